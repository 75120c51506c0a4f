"""The shadows that had an image (IN), or those that had not (OUT). NumPy, float64.

Signals are read in blocks of images: sums are in float64, and no float64 copy of all
signals is ever made.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from ppds_jax.types import InputError

Center = Literal["mean", "median"]


class Side(NamedTuple):
    """One side of each image, over its models.

    Where an image has no model on the side, `models` is 0, and so are the other two.
    """

    models: Int[Array, " n"]  # how many
    center: Float[Array, "n q"]
    squares: Float[Array, "n q"]  # sum of squared deviations from the centre


def side(
    phi: Float[Array, "m n q"], keep: Bool[Array, "m n"], center: Center = "mean"
) -> Side:
    """Centres and squares over the models that `keep` marks for each image.

    What the other models say is not looked at: it may be infinite or NaN.
    """
    return sides(phi, (keep,), center)[0]


def sides(
    phi: Float[Array, "m n q"],
    keeps: Sequence[Bool[Array, "m n"]],
    center: Center = "mean",
) -> list[Side]:
    """`side` for each of several, in one reading of the signals."""
    num_models, num_images, num_queries = phi.shape
    found = [
        Side(keep.sum(0, dtype=np.int32), *np.zeros((2, *phi.shape[1:])))
        for keep in keeps
    ]
    if not num_models:
        return found
    wide, room = np.empty((2, num_models, block_size(num_models)))
    for rows in blocks(num_models, num_images):
        chosen = [_choose(keep[:, rows]) for keep in keeps]
        for query in range(num_queries):
            x = wide[:, : len(chosen[0].models)]
            x[...] = phi[:, rows, query]
            for keep, seen in zip(chosen, found, strict=True):
                middle, squares = _moments(x, keep, room[:, : x.shape[1]])
                if center == "median":
                    mean, middle = middle, _median(x, keep)
                    squares += keep.models * (middle - mean) ** 2
                seen.center[rows, query], seen.squares[rows, query] = middle, squares
    return found


class _Chosen(NamedTuple):
    """Which models of a block are on a side: [m b], as bits, how many, the first."""

    keep: Array
    bits: Array
    models: Array
    first: Array


def _choose(keep: Array) -> _Chosen:
    first = keep[:16].argmax(0)  # the others are rarely needed, and slow to search
    late = np.flatnonzero(~keep[first, np.arange(len(first))])
    first[late] = keep[:, late].argmax(0)
    count = keep.sum(0, dtype=np.int32)
    return _Chosen(keep, np.negative(keep.view(np.int8), dtype=np.int64), count, first)


def _moments(x: Array, chosen: _Chosen, room: Array) -> tuple[Array, Array]:
    """Mean and sum of squares about it, over the kept rows of each column.

    Both are those of x - s with s a kept value: (mean - s)^2 is at most the sum of
    squares, so that the difference of sums below loses no more digits than the number
    of rows has. The mask removes infinities and NaN, which a product would not.
    """
    start = x[chosen.first, np.arange(x.shape[1])]
    divisor = np.maximum(chosen.models, 1)
    with np.errstate(invalid="ignore"):  # infinities: not looked at, or NaN they become
        np.subtract(x, start, out=room)
        bits = room.view(np.int64)
        np.bitwise_and(bits, chosen.bits, out=bits)
        total = room.sum(0)
        squares = np.einsum("mb,mb->b", room, room) - total**2 / divisor
    mean = np.where(chosen.models > 0, start + total / divisor, 0.0)
    return mean, np.maximum(squares, 0)


def _median(x: Array, chosen: _Chosen) -> Array:
    """The median of the kept rows of each column; 0 where none is kept."""
    ordered = np.sort(np.where(chosen.keep, x, np.inf), axis=0)
    low, high = (
        np.take_along_axis(ordered, np.maximum(index, 0)[None], axis=0)[0]
        for index in ((chosen.models - 1) // 2, chosen.models // 2)
    )
    return np.where(chosen.models > 0, (low + high) / 2, 0.0)


def blocks(num_models: int, num_images: int) -> Iterator[slice]:
    """Blocks of images whose signals, of one query in float64, fit into a cache."""
    size = block_size(num_models)
    return (slice(start, start + size) for start in range(0, num_images, size))


def block_size(num_models: int) -> int:
    """How many images are in one of the `blocks`."""
    return max(16, 2**16 // max(num_models, 1))


def check_signals(
    target_phi: Float[Array, "n q"],
    shadow_phi: Float[Array, "m n q"],
    shadow_member: Bool[Array, "m n"],
) -> tuple[Array, Array, Array]:
    """The three as arrays; only the target's signals become float64.

    Raises:
      InputError: shapes that do not fit.
    """
    phi, shadows = np.asarray(target_phi, np.float64), np.asarray(shadow_phi)
    member = np.asarray(shadow_member, bool)
    fits = phi.ndim == 2 and shadows.shape[1:] == phi.shape
    if not fits or member.shape != shadows.shape[:2]:
        raise InputError(
            f"target_phi {phi.shape}, shadow_phi {shadows.shape}, shadow_member "
            f"{member.shape}: must be [n q], [m n q] and [m n]"
        )
    return phi, shadows, member


def check_count(count: Int[Array, " n"], name: str) -> None:
    """Refuses images without a model on a side that an attack uses.

    Raises:
      InputError: saying how many images, and which side.
    """
    if not count.all():
        raise InputError(
            f"shadow_member: {(count == 0).sum()} images have no {name} shadow; train "
            "more shadows, or audit other images"
        )


def check_option(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuses an unknown option.

    Raises:
      InputError: naming the option, its value and what is allowed.
    """
    if value not in allowed:
        raise InputError(f"{name}={value!r}: use one of {', '.join(allowed)}")
