"""Private Evolution: private images vote for public candidates, which then vary."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from ppds_jax.data.batches import decode, in_blocks
from ppds_jax.generators.simulators import SIMULATORS, Latent
from ppds_jax.privacy import accounting
from ppds_jax.privacy.mechanisms import nearest_votes
from ppds_jax.types import Budget, DataSpec, Generator, InputError, check_numbers


class PrivateEvolutionState(NamedTuple):
    latent: Latent  # of the chosen, m of each class one after another
    votes: Float[Array, "classes m"]  # of the last round; NaN: nothing may be published
    step: Int32[Array, ""]


@dataclass(frozen=True, kw_only=True)
class PrivateEvolution:
    """Chooses among a simulator's images by noisy votes, and varies the chosen.

    In each of T rounds every private image votes for the nearest of its class's m
    candidates. Candidates with noisy counts above a threshold are drawn in proportion
    to them, by systematic resampling; their variations are the next round's candidates,
    and, after the last round, the samples. Nothing is trained.

    **Privacy:** add-or-remove-one. An image votes once in a round: T Gaussian releases
    of sensitivity 1, whatever the number of candidates and of classes. The simulator
    and the embedding are public; for a simulator of yours that is your claim, and a
    note on the guarantee says so.

    **Presets:** accuracy of a CNN, and time on one of two busy cores: MNIST, epsilon 1:
    0.861 ± 0.05 in 12 s; MNIST, epsilon 10: 0.875 ± 0.03 in 17 s; Fashion-MNIST,
    epsilon 1: 0.436 ± 0.12 in 14 s; Fashion-MNIST, epsilon 10: 0.437 ± 0.12 in 23 s. By
    `python -m experiments.generators small --data FILE.npz --methods PrivateEvolution`
    with mnist or fashion_mnist for FILE, see `experiments/results/`.

    **References:** Lin, Gopi, Kulkarni, Nori and Yekhanin, Differentially Private
    Synthetic Data via Foundation Model APIs 1: Images, 2024, arXiv 2305.15560,
    algorithms 1 and 2. Lin, Baltrusaitis, Wang and Yekhanin, Differentially Private
    Synthetic Data via APIs 3: Using Simulators Instead of Foundation Models, 2025,
    arXiv 2502.05505.

    Attributes:
      simulator: "digits" or "letters" (fonts), "shapes", or an object whose
        `make(spec)` gives a `Simulator`.
      num_candidates: m.
      num_steps: T.
      degree, last_degree: of variation, in the first round and of the samples, from 0
        to 1; geometric in between.
      threshold: of votes, in standard deviations of their noise.
      resolution: rows and columns to which images are reduced before they are compared.
    """

    simulator: Any = "shapes"
    num_candidates: int = 100
    num_steps: int = 5
    degree: float = 0.7
    last_degree: float = 0.3
    threshold: float = 2.0
    resolution: int = 14

    def make(self, spec: DataSpec, budget: Budget) -> Generator:
        check_numbers(self, "threshold")
        if max(self.degree, self.last_degree) > 1:
            raise InputError(
                f"PrivateEvolution.degree={self.degree}, last_degree="
                f"{self.last_degree}: must be at most 1"
            )
        simulator = _simulator(self.simulator).make(spec)
        classes, count, rounds = spec.num_classes, self.num_candidates, self.num_steps
        label = jnp.repeat(jnp.arange(classes, dtype=jnp.int32), count)
        height, width, channels = spec.image_shape
        small = min(self.resolution, height), min(self.resolution, width), channels

        def run(sigma):
            if sigma == 0:
                return accounting.non_private()
            one = accounting.gaussian(sigma, accounting.ADD_OR_REMOVE)
            every = accounting.total([(one.event, rounds)], one.neighbours)
            known = isinstance(self.simulator, str)  # drawn by code of this package
            return every if known else replace(every, notes=(PUBLIC_SIMULATOR,))

        sigma = accounting.calibrate(run, budget)

        def degree(t):
            """From `degree` at t = 0 to `last_degree` at t = T."""
            share = t.astype(jnp.float32) / rounds
            return self.degree * (self.last_degree / self.degree) ** share

        def embed(image):
            image = jax.image.resize(image, (image.shape[0], *small), "linear")
            return image.reshape(image.shape[0], -1)

        def init(key, data, public, start=None):
            del data  # candidates are public
            latent = simulator.random(key, label, public)
            latent = latent if start is None else start.latent
            votes = jnp.ones((classes, count))
            return PrivateEvolutionState(latent, votes, jnp.zeros((), jnp.int32))

        def step(key, state, data, public):
            vary_key, vote_key, draw_key = jax.random.split(key, 3)
            # of random draws, which round 0 begins with, a variation is a random draw
            latent = simulator.vary(
                vary_key, state.latent, label, degree(state.step), public
            )
            votes = nearest_votes(
                vote_key,
                in_blocks(lambda x: embed(decode(x)), data.image),
                data.member,
                embed(simulator.render(latent, label, public)),
                noise_multiplier=sigma,
                groups=(data.label, label),
                allowed=state.step < rounds,
            ).reshape(classes, count)
            weight = jnp.where(votes >= self.threshold * sigma, votes, 0.0)
            none = weight.sum(1, keepdims=True) <= 0
            weight = jnp.where(none, 1.0, jnp.maximum(weight, 0))
            place = jnp.arange(count, dtype=jnp.float32) + jax.random.uniform(draw_key)
            chosen = jax.vmap(lambda w: inverse(w, place / count))(weight)
            rows = (chosen + count * jnp.arange(classes)[:, None]).reshape(-1)
            latent = jax.tree.map(lambda x: x[rows], latent)
            kept = (weight > 0).mean(dtype=jnp.float32)
            state = PrivateEvolutionState(latent, votes, state.step + 1)
            return state, {"kept": kept}

        def sample(key, state, label, public):
            draw_key, vary_key = jax.random.split(key)
            rows = label * count + jax.random.randint(draw_key, label.shape, 0, count)
            latent = jax.tree.map(lambda x: x[rows], state.latent)
            latent = simulator.vary(vary_key, latent, label, self.last_degree, public)
            return simulator.render(latent, label, public)

        return Generator(init, step, sample, rounds, run(sigma), simulator.public)


PUBLIC_SIMULATOR = "the simulator is taken to know nothing of the private images"


def _simulator(given: Any) -> Any:
    if isinstance(given, str) and given in SIMULATORS:
        return SIMULATORS[given]
    if hasattr(given, "make"):
        return given
    raise InputError(
        f"PrivateEvolution.simulator={given!r}: use one of {', '.join(SIMULATORS)}, or "
        "an object with `make(spec)`"
    )


def inverse(
    weight: Float[Array, " m"], place: Float[Array, " m"]
) -> Int32[Array, " m"]:
    """Indices at which the cumulative share of weight passes each place in (0, 1)."""
    edges = jnp.cumsum(weight) / weight.sum()
    index = jnp.searchsorted(edges, place, side="right").astype(jnp.int32)
    return jnp.minimum(index, weight.size - 1)


# chosen on the last 10,000 training images of MNIST, which did not vote
PRESETS = {
    "digits": PrivateEvolution(simulator="digits"),
    "mnist": PrivateEvolution(simulator="digits", num_candidates=400),
    "fashion_mnist": PrivateEvolution(num_candidates=400),
}
