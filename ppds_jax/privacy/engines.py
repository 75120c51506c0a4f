"""Clipped sums of per-example gradients, and noise streams, both by jax_privacy.

Only this file imports jax_privacy, and only when a gradient is built: its import takes
two seconds.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int32

from ppds_jax.data.batches import decode
from ppds_jax.devices import ghost_rows, spread
from ppds_jax.privacy import ghost
from ppds_jax.types import Dataset, InputError, Key, PyTree

LossFn = Callable[
    [Key, PyTree, Float[Array, "1 h w c"], Int32[Array, " 1"]], Float[Array, ""]
]
SumFn = Callable[[Key, PyTree, Dataset, Int32[Array, " b"]], Float[Array, " p"]]
Engine = Literal["auto", "reference", "microbatch", "ghost"]
_ENGINE: ContextVar[Engine] = ContextVar("engine", default="auto")


@contextlib.contextmanager
def using(engine: Engine) -> Iterator[None]:
    """Within it, private gradients are built with this engine, unless told otherwise.

    A matter of speed alone, so no method's config has it.

    Raises:
      InputError: an unknown engine.
    """
    token = _ENGINE.set(_known(engine))
    try:
        yield
    finally:
        _ENGINE.reset(token)


def _known(engine: Engine) -> Engine:
    if engine not in get_args(Engine):
        raise InputError(f"engine={engine!r}: use one of {', '.join(get_args(Engine))}")
    return engine


def clipped_sum(
    loss: LossFn,
    *,
    clip_norm: float,
    layered: bool,
    multiplicity: int,
    microbatch: int,
    engine: Engine | None = None,
) -> SumFn:
    """The sum over a batch of clip(mean over K draws of grad loss(params, x), C).

    Images are decoded, differentiated and clipped a block at a time; blocks of padding
    alone are not computed. Norms, clipping and sums are float32 at highest precision,
    whatever the loss computes in. All engines give the same sum, up to rounding.

    Args:
      loss: of one image; each of the K = `multiplicity` draws has its own key.
      clip_norm: C. Where `layered`, each of L layers is clipped to C / sqrt(L).
      microbatch: images in a block whose gradients are in memory at once.
      engine: "reference" is jax_privacy's own; "microbatch" makes per-example gradients
        flat, so that they sum up fast; "ghost" makes them only where it must (see
        `ghost`). "auto" is ghost, but for networks with parameters inside loops. None
        is what `using` says: by default, auto.

    Returns:
      A pure function (key, params, data, rows padded with -1 at the end) -> the sum,
      flat, in the order of `jax.tree.leaves(params)`. It is not finite where the
      gradient of an image is not.

    Raises:
      InputError: an unknown engine.
    """
    wanted = _known(_ENGINE.get() if engine is None else engine)

    def one(params, key, image, label):
        if multiplicity == 1:
            return loss(key, params, image[None], label[None])
        draw = lambda key: loss(key, params, image[None], label[None])
        return jnp.mean(jax.vmap(draw)(jax.random.split(key, multiplicity)))

    def total(key, params, data, index):
        layers = _layers(params, layered)
        bound = clip_norm / len(layers) ** 0.5
        chosen = _fastest(one, params, data) if wanted == "auto" else wanted
        size = microbatch
        if chosen == "ghost":
            many = min(ghost_rows() // multiplicity, index.size)
            size *= max(1, many // microbatch)
        index = jnp.pad(index, (0, -index.size % size), constant_values=-1)
        # a sum of zeros that depends on the data: inside shard_map, replicated
        # parameters would have their gradients summed over devices before clipping
        zero = (data.label[0] & 0).astype(jnp.float32)
        params = jax.tree.map(lambda x: x + zero.astype(x.dtype), params)

        def add(i, total):
            rows = spread(jax.lax.dynamic_slice(index, (i * size,), (size,)))
            padding = rows < 0
            rows = jnp.where(padding, rows[0], rows)  # never a row that was not drawn
            # by row, not by place: what one image draws must not depend on another's
            # being there, or a neighbour would move all gradients of the batch
            keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
            examples = keys, decode(data.image[rows]), data.label[rows]
            each = SUMS[chosen](one, params, examples, padding, layers, bound)
            return total + each

        blocks = (jnp.sum(index >= 0, dtype=jnp.int32) + size - 1) // size
        # jax_privacy mixes dtypes, and relies on the default promotion rules
        with jax.numpy_dtype_promotion("standard"):
            return jax.lax.fori_loop(
                0, blocks, add, jnp.zeros_like(_flat(params)) + zero
            )

    return total


def _fastest(one, params, data: Dataset) -> Engine:
    found = ghost.explain(one, params, _example(data))
    inside = {"scan", "while", "cond"}
    loops = [name for name, why in found.items() if inside & set(why.split("; "))]
    if not loops:
        return "ghost"
    warnings.warn(
        f"{', '.join(loops)}: inside a loop or a branch, which ghost clipping does not "
        "see into: all parameters' per-example gradients are made, which is slower",
        RuntimeWarning,
        stacklevel=2,
    )
    return "microbatch"


def _example(data: Dataset) -> tuple:
    return jax.random.key(0), decode(data.image[:1])[0], data.label[0]


def _reference(one, params, examples, padding, layers, bound):
    """By jax_privacy's `clipped_grad`, layer by layer."""
    from jax_privacy.clipping import clipped_grad

    leaves, tree = jax.tree.flatten(params)
    total: list[Any] = [None] * len(leaves)
    for layer in layers:

        def loss(part, key, image, label, layer=layer):
            whole = list(leaves)
            for i, leaf in zip(layer, part, strict=True):
                whole[i] = leaf.astype(leaves[i].dtype)
            return one(jax.tree.unflatten(tree, whole), key, image, label)

        sums = clipped_grad(
            loss,
            batch_argnums=(1, 2, 3),
            l2_clip_norm=bound,
            keep_batch_dim=False,
            nan_safe=False,
        )(
            [leaves[i].astype(jnp.float32) for i in layer],
            *examples,
            is_padding_example=padding,
        )
        for i, leaf in zip(layer, sums, strict=True):
            total[i] = leaf
    return _flat(total)


def _microbatch(one, params, examples, padding, layers, bound):
    """Per-example gradients, clipped, as rows of a matrix."""
    from jax_privacy.clipping import clip_pytree

    def clipped(padding, *example):
        gradient = jax.tree.leaves(jax.grad(one)(params, *example))
        for layer in layers:
            part = [gradient[i].astype(jnp.float32) for i in layer]
            flat, back = ravel_pytree(part)
            # not nan_safe: what is not finite must show, not count as zero
            flat = clip_pytree(flat, bound, nan_safe=False, return_zero=padding)[0]
            for i, leaf in zip(layer, back(flat), strict=True):
                gradient[i] = leaf
        return _flat(gradient)

    each = jax.vmap(clipped)(padding, *examples)
    # a matrix product: XLA:CPU sums over rows far slower
    return jnp.matmul(jnp.ones(len(each)), each, precision="highest")


def _ghost(one, params, examples, padding, layers, bound):
    """By norms alone where they suffice."""

    def weigh(squares):
        weights = [None] * len(squares)
        for layer in layers:
            norm = jnp.sqrt(sum(squares[i] for i in layer))
            # what is not finite must show, not count as zero
            weight = jnp.where(jnp.isfinite(norm), jnp.minimum(1, bound / norm), norm)
            weight = jnp.where(padding, 0.0, weight)
            for i in layer:
                weights[i] = weight
        return weights

    return _flat(ghost.clipped_sum(one, params, examples, weigh))


SUMS = {"reference": _reference, "microbatch": _microbatch, "ghost": _ghost}


def _flat(tree: PyTree) -> Float[Array, " p"]:
    leaves = jax.tree.leaves(tree)
    return jnp.concatenate([x.astype(jnp.float32).ravel() for x in leaves])


def unravel(params: PyTree, flat: Float[Array, " p"]) -> PyTree:
    """A flat sum in the shape of the parameters it was taken for."""
    single = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    return ravel_pytree(single)[1](flat)


def _layers(params: PyTree, layered: bool) -> list[list[int]]:
    """Which leaves are clipped together: all, or those of each layer.

    The leaves of a layer share all of their path but the last key.
    """
    paths, _ = jax.tree.flatten_with_path(params)
    layers: dict[str, list[int]] = {}
    for i, (path, _) in enumerate(paths):
        name = jax.tree_util.keystr(path[:-1]) if layered else ""
        layers.setdefault(name, []).append(i)
    return list(layers.values())


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
