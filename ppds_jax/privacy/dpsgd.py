"""DP-SGD: Poisson batches, per-example clipping, Gaussian noise.

Only this file imports jax_privacy, and only when a gradient is built: its import takes
two seconds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int32

from ppds_jax.data.batches import decode
from ppds_jax.privacy import accounting
from ppds_jax.types import Budget, Dataset, DataSpec, Guarantee, InputError, Key, PyTree

LossFn = Callable[
    [Key, PyTree, Float[Array, "1 h w c"], Int32[Array, " 1"]], Float[Array, ""]
]


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
    """

    noise_multiplier: float
    clip_norm: float
    num_members: int
    batch_size: int
    num_steps: int
    microbatch: int = 16

    @property
    def sampling_rate(self) -> float:
        """The probability with which each image is in a batch."""
        return min(1.0, self.batch_size / self.num_members)

    @property
    def capacity(self) -> int:
        """Rows of a batch: the mean and six standard deviations, whole microbatches."""
        rate = self.sampling_rate
        mean = rate * self.num_members
        size = mean + 6 * math.sqrt(mean * (1 - rate))
        size = min(math.ceil(size), self.num_members)
        return math.ceil(size / self.microbatch) * self.microbatch

    @property
    def guarantee(self) -> Guarantee:
        """What `num_steps` steps reveal, under add-or-remove-one."""
        return accounting.poisson_gaussian(
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            num_steps=self.num_steps,
            num_members=self.num_members,
            capacity=self.capacity,
            notes=(accounting.PUBLIC_COUNT, accounting.RECORDED_SEED),
        )


def calibrated(
    spec: DataSpec,
    budget: Budget,
    *,
    clip_norm: float,
    batch_size: int,
    num_steps: int,
    microbatch: int = 16,
) -> DPSGD:
    """The settings with the least noise that keep a whole run within the budget.

    Raises:
      InputError: a field outside its range.
    """
    fields = {"clip_norm": clip_norm, "batch_size": batch_size}
    fields |= {"num_steps": num_steps, "microbatch": microbatch}
    for name, value in fields.items():
        if not value > 0:
            raise InputError(f"{name}={value}: must be above 0")

    def settings(noise_multiplier: float) -> DPSGD:
        return DPSGD(
            noise_multiplier=noise_multiplier,
            clip_norm=clip_norm,
            num_members=spec.num_members,
            batch_size=min(batch_size, spec.num_members),
            num_steps=num_steps,
            microbatch=microbatch,
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


def dp_gradient(
    loss: LossFn, settings: DPSGD
) -> Callable[[Key, PyTree, Dataset], PyTree]:
    """The private mean gradient of `loss`, one step of DP-SGD.

    g = (sum over the batch of clip(grad loss(params, x), C) + N(0, (sigma C)^2 I)) / B,
    with a Poisson batch, C the clip norm, sigma the noise multiplier and B the expected
    batch size. Images are drawn, decoded, differentiated and clipped in microbatches.

    Args:
      loss: of one image: (key, params, image [1 h w c], label [1]) -> scalar.
      settings: as calibrated to the budget; its `guarantee` is that of the run.

    Returns:
      A pure function (key, params, data) -> gradient, shaped like params.

    **Privacy:** add-or-remove-one, sensitivity `clip_norm` for the sum; all steps
    together `settings.guarantee`. The key decides batch and noise: it must be secret,
    and never be used for other parameters or data.

    **References:** Abadi et al., Deep Learning with Differential Privacy, 2016,
    arXiv 1607.00133, algorithm 1.
    """
    from jax_privacy.clipping import clip_pytree
    from jax_privacy.noise_addition import gaussian_privatizer

    size = settings.microbatch

    def clipped(key, params, image, label, padding):
        gradient = jax.grad(loss, argnums=1)(key, params, image[None], label[None])
        flat, _ = ravel_pytree(gradient)
        return clip_pytree(flat, settings.clip_norm, return_zero=padding)[0]

    def gradient(key: Key, params: PyTree, data: Dataset) -> PyTree:
        batch_key, loss_key, noise_key = jax.random.split(key, 3)
        index = poisson_batch(
            batch_key, data.member, settings.sampling_rate, settings.capacity
        )
        flat, unravel = ravel_pytree(params)

        def add(i, total):
            rows = jax.lax.dynamic_slice(index, (i * size,), (size,))
            keys = jax.random.split(jax.random.fold_in(loss_key, i), size)
            each = jax.vmap(clipped, (0, None, 0, 0, 0))(
                keys, params, decode(data.image[rows]), data.label[rows], rows < 0
            )
            # a matrix product: XLA:CPU sums over rows far slower
            return total + jnp.matmul(jnp.ones(size), each, precision="highest")

        batches = (jnp.sum(index >= 0, dtype=jnp.int32) + size - 1) // size
        # jax_privacy mixes dtypes, and relies on the default promotion rules
        with jax.numpy_dtype_promotion("standard"):
            total = jax.lax.fori_loop(0, batches, add, jnp.zeros_like(flat))
            privatizer = gaussian_privatizer(
                stddev=settings.noise_multiplier * settings.clip_norm,
                prng_key=noise_key,
            )
            noisy, _ = privatizer.update(total, privatizer.init(total))
        return unravel(noisy / settings.batch_size)

    return gradient
