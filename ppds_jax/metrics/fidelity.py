"""How close generated images are to real ones, as sets. NumPy float64 on the host.

All of it is relative to a feature extractor, whose name belongs to every number: a
Fréchet distance on other features than Inception's is no "FID", and can be compared to
none. Features are computed in JAX, in blocks.
"""

from collections.abc import Callable
from functools import cache

import jax
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array
from scipy import linalg

from ppds_jax.data.batches import decode, in_blocks
from ppds_jax.nets.scattering import scattering
from ppds_jax.types import InputError

QUARTERS = 2  # places along each side over which scattering features are averaged


def _scattering(shape: tuple[int, int, int]) -> Callable:
    transform = scattering(*shape[:2])

    def features(image):
        x = transform(image)
        rows, columns = (np.array_split(np.arange(n), QUARTERS) for n in x.shape[1:3])
        parts = [
            x[:, r[0] : r[-1] + 1, c[0] : c[-1] + 1].mean((1, 2))
            for r in rows
            for c in columns
        ]
        return jax.numpy.concatenate(parts, axis=1)

    return features


EXTRACTORS: dict[str, Callable[[tuple[int, int, int]], Callable]] = {
    "scattering": _scattering,
    "pixels": lambda shape: lambda image: image.reshape(image.shape[0], -1),
}


@cache
def _compiled(name: str, shape: tuple[int, int, int]) -> Callable:
    fn = EXTRACTORS[name](shape)
    return jax.jit(lambda image: in_blocks(lambda x: fn(decode(x)), image, size=100))


def features(name: str, image: UInt8[Array, "n h w c"]) -> Float[Array, "n d"]:
    """Features of images by a named extractor, as float64.

    `scattering`: two scales, eight angles, orders 0 to 2, averaged over each quarter of
    the image: 324 for each channel. `pixels`: the images themselves.

    Raises:
      InputError: an unknown name, or images that are too small for it.
    """
    if name not in EXTRACTORS:
        raise InputError(f"extractor={name!r}: use one of {', '.join(EXTRACTORS)}")
    return np.asarray(_compiled(name, image.shape[1:])(image), np.float64)


def frechet(real: Float[Array, "n d"], generated: Float[Array, "m d"]) -> float:
    """The squared Fréchet distance of Gaussians with the two sets' moments.

        |mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))

    Means and covariances of finite samples bias it upwards, by a share that falls as
    1 / n: compare only what was computed from the same numbers of images, and against
    the distance of two real sets, which is not 0 either.

    Args:
      real, generated: features, two or more rows each, of one space.

    Raises:
      InputError: shapes that do not fit.

    **References:** Dowson and Landau, The Fréchet Distance between Multivariate Normal
    Distributions, 1982; Heusel et al., GANs Trained by a Two Time-Scale Update Rule
    Converge to a Local Nash Equilibrium, 2017, arXiv 1706.08500.
    """
    real, generated = _points(real, generated, least=2)
    mean = real.mean(0) - generated.mean(0)
    one, two = (np.atleast_2d(np.cov(x.T)) for x in (real, generated))
    # with R = C_1^(1/2), (C_1 C_2)^(1/2) has the trace of the symmetric (R C_2 R)^(1/2)
    values, vectors = linalg.eigh(one)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(linalg.eigvalsh(root @ two @ root), 0)).sum()
    return float(max(mean @ mean + np.trace(one) + np.trace(two) - 2 * cross, 0))


def precision_recall(
    real: Float[Array, "n d"], generated: Float[Array, "m d"], k: int = 3
) -> tuple[float, float]:
    """Shares of generated points on the real manifold, and of real on the generated.

    A set's manifold is the union of balls round its points, each out to its k-th
    nearest neighbour in the set. Precision falls where generated images look like no
    real ones, recall where some real ones look like no generated ones. Both depend on
    the sets' sizes, which should be equal; two real sets do not read 1. A far outlier
    has a large ball and so flatters the other set.

    Args:
      real, generated: features, more than k rows each, of one space.
      k: of the neighbour.

    Raises:
      InputError: shapes that do not fit, or too few rows.

    **References:** Kynkäänniemi et al., Improved Precision and Recall Metric for
    Assessing Generative Models, 2019, arXiv 1904.06991, equations 1 and 2.
    """
    if k < 1:
        raise InputError(f"k={k}: must be at least 1")
    real, generated = _points(real, generated, least=k + 1)
    return _on_manifold(generated, real, k), _on_manifold(real, generated, k)


def _on_manifold(x: Array, points: Array, k: int) -> float:
    """The share of x within the k-th neighbour's distance of any of the points."""
    # each point is its own nearest neighbour: the k-th other is in place k
    radius = np.concatenate(
        [np.partition(d, k, axis=1)[:, k] for d in _squares(points, points)]
    )
    inside = [(d <= radius * (1 + 1e-12)).any(1) for d in _squares(x, points)]
    return float(np.concatenate(inside).mean())


def _squares(x: Array, points: Array):
    """Squared distances of x to the points, some rows at a time."""
    norms, size = (points**2).sum(1), max(1, 2**22 // len(points))
    for start in range(0, len(x), size):
        block = x[start : start + size]
        square = (block**2).sum(1)[:, None] + norms - 2 * block @ points.T
        yield np.maximum(square, 0)


def _points(real: Array, generated: Array, least: int) -> list[Array]:
    points = [np.asarray(x, np.float64) for x in (real, generated)]
    one_space = points[0].shape[1:] == points[1].shape[1:]
    if not one_space or any(x.ndim != 2 or len(x) < least for x in points):
        raise InputError(
            f"real {points[0].shape}, generated {points[1].shape}: must be points "
            f"[rows d] of one space, at least {least} rows each"
        )
    return points
