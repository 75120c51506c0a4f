"""DP-SGD: Poisson batches, per-example clipping, Gaussian noise.

The data's way through a step: rows drawn (`poisson_batch`) -> gradients clipped and
summed (`engines.clipped_sum`) -> noise (`engines.noise`) -> `release`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from ppds_jax.privacy import accounting, engines
from ppds_jax.privacy.engines import Engine, LossFn
from ppds_jax.privacy.release import Mechanism, release
from ppds_jax.types import Budget, Dataset, DataSpec, Guarantee, InputError, Key, PyTree

Clipping = Literal["global", "per-layer"]


@dataclass(frozen=True, kw_only=True)
class DPSGD:
    """The settings of one DP-SGD run: the step and the accountant read these fields.

    Attributes:
      noise_multiplier: standard deviation of the noise over `clip_norm`.
      clip_norm: bound on the Euclidean norm of each image's gradient.
      num_members: public number of private images.
      batch_size: expected size of a batch, the constant by which sums are divided.
      num_steps: private steps in the whole run.
      microbatch: images whose gradients are in memory at once.
      multiplicity: draws of the loss (augmentations, diffusion noises) whose gradients
        are averaged for each image before clipping; the sensitivity stays the same.
      clipping: "per-layer" clips each of L layers to clip_norm / sqrt(L).
      bands: above 1, noise is correlated over so many steps, and an image can be drawn
        in every bands-th step only (banded matrix factorisation).
    """

    noise_multiplier: float
    clip_norm: float
    num_members: int
    batch_size: int
    num_steps: int
    microbatch: int = 16
    multiplicity: int = 1
    clipping: Clipping = "global"
    bands: int = 1

    @property
    def sampling_rate(self) -> float:
        """The probability with which an image is in a batch that it can be in."""
        return min(1.0, self.bands * self.batch_size / self.num_members)

    @property
    def capacity(self) -> int:
        """Rows of a batch: the mean and six standard deviations, whole microbatches.

        With `bands`, all images: how many there are in each of the groups that take
        turns is not public.
        """
        rate = self.sampling_rate
        mean = rate * self.num_members
        size = mean + 6 * math.sqrt(mean * (1 - rate))
        size = min(math.ceil(size), self.num_members)
        size = size if self.bands == 1 else self.num_members
        return math.ceil(size / self.microbatch) * self.microbatch

    @property
    def strategy(self) -> tuple[float, ...]:
        """The bands of the matrix by which noise is correlated over steps."""
        return engines.banded_strategy(self.bands)

    def _cost(self, num_steps: int) -> Guarantee:
        return accounting.poisson_gaussian(
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            num_steps=num_steps,
            num_members=self.num_members,
            capacity=self.capacity,
            notes=(accounting.PUBLIC_COUNT,),
        )

    @property
    def mechanism(self) -> Mechanism:
        """What each step releases."""
        return Mechanism(
            self._cost(1).event,
            self.clip_norm,
            deviation=self.noise_multiplier * self.clip_norm,
            strategy=self.strategy,
            rounds=self.bands,
        )

    @property
    def guarantee(self) -> Guarantee:
        """What `num_steps` steps reveal, under add-or-remove-one.

        With b bands an image is drawn in at most ceil(num_steps / b) steps, and the
        whole run costs as much as so many steps with independent noise.
        """
        return self._cost(math.ceil(self.num_steps / self.bands))


def calibrated(
    spec: DataSpec,
    budget: Budget,
    *,
    clip_norm: float,
    batch_size: int,
    num_steps: int,
    microbatch: int = 16,
    multiplicity: int = 1,
    clipping: Clipping = "global",
    bands: int = 1,
) -> DPSGD:
    """The settings with the least noise that keep a whole run within the budget.

    Raises:
      InputError: a field outside its range.
    """
    counts: dict[str, Any] = {"batch_size": batch_size, "num_steps": num_steps}
    counts |= {"microbatch": microbatch, "multiplicity": multiplicity, "bands": bands}
    for name, value in ({"clip_norm": clip_norm} | counts).items():
        if not 0 < value < math.inf:
            raise InputError(f"{name}={value}: must be above 0, and finite")
    if clipping not in get_args(Clipping):
        raise InputError(
            f"clipping={clipping!r}: use {' or '.join(get_args(Clipping))}"
        )
    size = min(batch_size, spec.num_members)
    if bands > num_steps or bands * size > spec.num_members:
        raise InputError(
            f"bands={bands}: at most num_steps={num_steps}, and num_members / "
            f"batch_size = {spec.num_members // size}: groups of images take turns"
        )
    counts |= {"batch_size": size, "num_members": spec.num_members}

    def settings(noise_multiplier: float) -> DPSGD:
        return DPSGD(
            noise_multiplier=noise_multiplier,
            clip_norm=clip_norm,
            clipping=clipping,
            **counts,
        )

    return settings(accounting.calibrate(lambda s: settings(s).guarantee, budget))


def poisson_batch(
    key: Key, member: Bool[Array, " n"], sampling_rate: float, capacity: int
) -> Int32[Array, " capacity"]:
    """Each member with probability `sampling_rate`, independently; padded with -1.

    Where more than `capacity` are drawn, a random `capacity` of them is kept. The shape
    is static, so that the draw can stand inside a compiled step.
    """
    coin_key, order_key = jax.random.split(key)
    chosen = jax.random.bernoulli(coin_key, sampling_rate, member.shape) & member
    priority = jax.random.uniform(order_key, member.shape)
    size = min(capacity, member.size)
    value, index = jax.lax.top_k(jnp.where(chosen, priority, -1.0), size)
    index = jnp.where(value >= 0, index, -1).astype(jnp.int32)
    return jnp.pad(index, (0, capacity - size), constant_values=-1)


class PrivateState(NamedTuple):
    """What a private gradient carries: the steps it has taken, and past noise.

    The noise is there between steps only where it is correlated over them; it is a
    secret, and erased with the last step.
    """

    step: Int32[Array, ""]
    noise: PyTree


class PrivateGradient(NamedTuple):
    """`init(params) -> state`; `apply(key, state, params, data) -> (gradient, state)`.

    The gradient is shaped like the parameters.
    """

    init: Callable[[PyTree], PrivateState]
    apply: Callable[[Key, PrivateState, PyTree, Dataset], tuple[PyTree, PrivateState]]


def dp_gradient(
    loss: LossFn, settings: DPSGD, engine: Engine | None = None
) -> PrivateGradient:
    """The private mean gradient of `loss`, one step of DP-SGD.

    g = (sum over the batch of clip(grad loss(params, x), C) + N(0, (sigma C)^2 I)) / B,
    with a Poisson batch, C the clip norm, sigma the noise multiplier and B the expected
    batch size.

    It fails closed: where the gradient of an image is not finite, and in any step
    beyond `num_steps`, the whole result is NaN, which `fit_chunks` and the harness
    raise as an error. That a run failed is not covered by its guarantee.

    Args:
      loss: of one image: (key, params, image [1 h w c], label [1]) -> scalar.
      settings: as calibrated to the budget; its `guarantee` is that of the run.
      engine: how clipped gradients are summed (see `engines.clipped_sum`). All give the
        same result up to rounding, so it is no part of the settings.

    **Privacy:** add-or-remove-one, sensitivity `clip_norm` for the sum; all steps
    together `settings.guarantee`. The key decides batch and noise: it must be secret,
    and never be used for other parameters or data.

    **References:** Abadi et al., Deep Learning with Differential Privacy, 2016,
    arXiv 1607.00133, algorithm 1; for `bands`, Choquette-Choo et al., 2023, arXiv
    2306.08153; for `multiplicity`, De et al., Unlocking High-Accuracy Differentially
    Private Image Classification through Scale, 2022, arXiv 2204.13650.
    """
    mechanism = settings.mechanism
    clipped_sum = engines.clipped_sum(
        loss,
        clip_norm=settings.clip_norm,
        layered=settings.clipping == "per-layer",
        multiplicity=settings.multiplicity,
        microbatch=settings.microbatch,
        engine=engine,
    )
    noise = engines.noise(
        settings.noise_multiplier * settings.clip_norm,
        settings.strategy,
        settings.num_steps,
    )

    def init(params):
        size = sum(x.size for x in jax.tree.leaves(params))
        return PrivateState(jnp.array(0, jnp.int32), noise.init(jnp.zeros(size)))

    def apply(key, state, params, data):
        batch_key, loss_key, noise_key = jax.random.split(key, 3)
        turn = jnp.arange(data.member.size, dtype=jnp.int32) % settings.bands
        able = data.member & (turn == state.step % settings.bands)
        index = poisson_batch(
            batch_key, able, settings.sampling_rate, settings.capacity
        )
        total = clipped_sum(loss_key, params, data, index)
        noisy, past = noise.add(noise_key, state.noise, total)
        sound = jnp.isfinite(total).all() & (state.step < settings.num_steps)
        noisy = release(total, jnp.where(sound, noisy, jnp.nan), mechanism)
        last = state.step + 1 >= settings.num_steps
        past = jax.tree.map(lambda x: jnp.where(last, jnp.zeros_like(x), x), past)
        gradient = engines.unravel(params, noisy / settings.batch_size)
        return gradient, PrivateState(state.step + 1, past)

    return PrivateGradient(init, apply)


def poisson_sum(
    key: Key,
    step: Int32[Array, ""],
    member: Bool[Array, " n"],
    total: Callable[[Int32[Array, " capacity"]], Array],
    settings: DPSGD,
) -> Array:
    """A noisy sum over a Poisson batch, of whatever shape: DP-SGD without a gradient.

    It fails closed, as `dp_gradient` does.

    Args:
      step: how many releases there have been under these settings.
      total: (rows of the batch, padded with -1) -> the sum over them; the caller
        proves that a row adds `settings.clip_norm` at most, in norm.

    **Privacy:** add-or-remove-one; so many steps as `settings` says, together, cost
    `settings.guarantee`. For independent noise only.
    """
    batch_key, noise_key = jax.random.split(key)
    index = poisson_batch(batch_key, member, settings.sampling_rate, settings.capacity)
    exact = total(index)
    deviation = settings.noise_multiplier * settings.clip_norm
    noisy = exact + deviation * jax.random.normal(noise_key, exact.shape)
    sound = jnp.isfinite(exact).all() & (step < settings.num_steps)
    return release(exact, jnp.where(sound, noisy, jnp.nan), settings.mechanism)
