"""The shadows that had an image (IN), or those that had not (OUT). NumPy, float64.

Signals are read in blocks of images: sums are in float64, and no float64 copy of all
signals is ever made.
"""

from collections.abc import Iterator
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
    count = keep.sum(0)
    divisor = np.maximum(count, 1)
    middle, squares = np.zeros(phi.shape[1:]), np.zeros(phi.shape[1:])
    for rows in blocks(*keep.shape):
        mask = -keep[:, rows].astype(np.int64)  # all bits, or none
        for query in range(phi.shape[2]):
            x = phi[:, rows, query].astype(np.float64)
            if center == "median":
                middle[rows, query] = _median(x, keep[:, rows], count[rows])
            else:
                middle[rows, query] = _only(x, mask).sum(0) / divisor[rows]
            x -= middle[rows, query]
            squares[rows, query] = np.square(_only(x, mask), out=x).sum(0)
    return Side(count, middle, squares)


def blocks(num_models: int, num_images: int) -> Iterator[slice]:
    """Blocks of images whose signals, of one query in float64, fit into a cache."""
    size = max(16, 2**16 // max(num_models, 1))
    return (slice(start, start + size) for start in range(0, num_images, size))


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


def _only(x: Array, mask: Array) -> Array:
    """Zeroes x in place where the mask has no bits.

    Several times faster than np.where, and unlike a product it removes NaN too.
    """
    bits = x.view(np.int64)
    np.bitwise_and(bits, mask, out=bits)
    return x


def _median(x: Array, keep: Array, count: Array) -> Array:
    """The median of the kept rows of each column; 0 where none is kept."""
    ordered = np.sort(np.where(keep, x, np.inf), axis=0)
    low, high = (
        np.take_along_axis(ordered, np.maximum(index, 0)[None], axis=0)[0]
        for index in ((count - 1) // 2, count // 2)
    )
    return np.where(count > 0, (low + high) / 2, 0.0)
