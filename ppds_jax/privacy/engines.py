"""Clipped sums of per-example gradients, and noise streams, both by jax_privacy.

Only this file imports jax_privacy, and only when a gradient is built: its import takes
two seconds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int32

from ppds_jax.data.batches import decode
from ppds_jax.devices import spread
from ppds_jax.types import Dataset, InputError, Key, PyTree

LossFn = Callable[
    [Key, PyTree, Float[Array, "1 h w c"], Int32[Array, " 1"]], Float[Array, ""]
]
SumFn = Callable[[Key, PyTree, Dataset, Int32[Array, " b"]], Float[Array, " p"]]


def microbatched(
    loss: LossFn, *, clip_norm: float, layered: bool, multiplicity: int, microbatch: int
) -> SumFn:
    """The sum over a batch of clip(mean over K draws of grad loss(params, x), C).

    Images are decoded, differentiated and clipped `microbatch` at a time; microbatches
    of padding alone are not computed. Norms, clipping and sums are float32 at highest
    precision, whatever the loss computes in.

    Args:
      loss: of one image; each of the K = `multiplicity` draws has its own key.
      clip_norm: C. Where `layered`, each of L layers is clipped to C / sqrt(L).

    Returns:
      A pure function (key, params, data, rows padded with -1) -> the sum, flat. It is
      not finite where the gradient of an image is not.
    """
    from jax_privacy.clipping import clip_pytree

    def average(params, key, image, label):
        if multiplicity == 1:
            return loss(key, params, image[None], label[None])
        draw = lambda key: loss(key, params, image[None], label[None])
        return jnp.mean(jax.vmap(draw)(jax.random.split(key, multiplicity)))

    def clipped(key, params, image, label, padding):
        gradient = jax.grad(average)(params, key, image, label)
        gradient = jax.tree.map(lambda x: x.astype(jnp.float32), gradient)
        parts = _layers(gradient) if layered else [gradient]
        parts = [ravel_pytree(part)[0] for part in parts]
        bound = clip_norm / len(parts) ** 0.5
        # not nan_safe: what is not finite must show, not count as zero
        clip = lambda x: clip_pytree(x, bound, nan_safe=False, return_zero=padding)[0]
        return jnp.concatenate([clip(part) for part in parts])

    def total(key, params, data, index):
        size = microbatch
        flat, _ = ravel_pytree(params)

        def add(i, total):
            rows = spread(jax.lax.dynamic_slice(index, (i * size,), (size,)))
            keys = jax.random.split(jax.random.fold_in(key, i), size)
            each = jax.vmap(clipped, (0, None, 0, 0, 0))(
                keys, params, decode(data.image[rows]), data.label[rows], rows < 0
            )
            # a matrix product: XLA:CPU sums over rows far slower
            return total + jnp.matmul(jnp.ones(size), each, precision="highest")

        batches = (jnp.sum(index >= 0, dtype=jnp.int32) + size - 1) // size
        # jax_privacy mixes dtypes, and relies on the default promotion rules
        with jax.numpy_dtype_promotion("standard"):
            return jax.lax.fori_loop(0, batches, add, jnp.zeros(flat.shape))

    return total


def unravel(params: PyTree, flat: Float[Array, " p"], layered: bool) -> PyTree:
    """A flat sum in the shape of the parameters it was taken for."""
    if not layered:
        single = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        return ravel_pytree(single)[1](flat)
    paths, tree = jax.tree.flatten_with_path(params)
    names = [jax.tree_util.keystr(path[:-1]) for path, _ in paths]
    order = sorted(range(len(paths)), key=lambda i: names[i])
    leaves: list[Any] = [None] * len(paths)
    for i in order:  # the order in which _layers lays them out
        leaf = paths[i][1]
        leaves[i] = flat[: leaf.size].reshape(leaf.shape)
        flat = flat[leaf.size :]
    return jax.tree.unflatten(tree, leaves)


def _layers(gradient: PyTree) -> list[PyTree]:
    """The leaves of each layer: those that share all of their path but the last key."""
    paths, _ = jax.tree.flatten_with_path(gradient)
    layers: dict[str, list[Any]] = {}
    for path, leaf in paths:
        layers.setdefault(jax.tree_util.keystr(path[:-1]), []).append(leaf)
    return [layers[name] for name in sorted(layers)]


class Noise(NamedTuple):
    """A stream of Gaussian noise, one vector a step.

    `add(key, state, total) -> (noisy, state)`; the state holds past noise: a secret.
    """

    init: Callable[[Float[Array, " p"]], PyTree]
    add: Callable[[Key, PyTree, Float[Array, " p"]], tuple[Float[Array, " p"], PyTree]]


def noise(deviation: float, strategy: tuple[float, ...], num_steps: int) -> Noise:
    """Independent noise (strategy (1.0,)), or noise correlated over steps.

    The noise of all steps is C^-1 Z, with Z independent of standard deviation
    `deviation` and C the lower triangular banded Toeplitz matrix of the strategy,
    each of its `num_steps` columns scaled to norm 1.

    Raises:
      InputError: a strategy by which C cannot be inverted.

    **References:** Choquette-Choo et al., (Amplified) Banded Matrix Factorization: A
    unified approach to private training, 2023, arXiv 2306.08153, algorithm 9.
    """
    from jax_privacy import noise_addition
    from jax_privacy.matrix_factorization import toeplitz

    check_strategy(strategy, num_steps)

    def stream(key):
        if len(strategy) == 1:
            return noise_addition.gaussian_privatizer(stddev=deviation, prng_key=key)
        bands = jnp.asarray(strategy, jnp.float32)
        matrix = toeplitz.inverse_as_streaming_matrix(bands, num_steps)
        return noise_addition.matrix_factorization_privatizer(
            matrix, stddev=deviation, prng_key=key
        )

    def init(total):
        with jax.numpy_dtype_promotion("standard"):
            return stream(jax.random.key(0)).init(total)[1]

    def add(key, state, total):
        with jax.numpy_dtype_promotion("standard"):
            noisy, (_, state) = stream(key).update(total, (key, state))
        return noisy, state

    return Noise(init, add)


def banded_strategy(bands: int) -> tuple[float, ...]:
    """A Toeplitz strategy with so many bands, of norm 1; (1.0,) for independent noise.

    The coefficients of (1 - x)^(-1/2), cut off: the optimal strategy for prefix sums
    without a limit to the bands.

    **References:** Fichtenberger, Henzinger and Upadhyay, Constant Matters, 2023, arXiv
    2202.11205.
    """
    k = np.arange(1, bands)
    coefficients = np.concatenate([[1.0], np.cumprod((2 * k - 1) / (2 * k))])
    return tuple((coefficients / np.linalg.norm(coefficients)).tolist())


def check_strategy(strategy: tuple[float, ...], num_steps: int) -> None:
    """Refuses a strategy that does not give the noise which is accounted for.

    Raises:
      InputError: entries that are not finite, a first entry that is not above 0 (C has
        no inverse), a norm that is not 1, or more bands than steps.
    """
    c = np.asarray(strategy, np.float64)
    fine = c.ndim == 1 and c.size and bool(np.isfinite(c).all()) and c[0] > 0
    if not fine or abs(np.linalg.norm(c) - 1) > 1e-6 or c.size > num_steps:
        raise InputError(
            f"strategy={strategy}: must be finite, of norm 1, with a first entry above "
            f"0 and at most num_steps={num_steps} entries; no noise is drawn from it"
        )
