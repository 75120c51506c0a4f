"""A released set's density at an image, against the density of its kind. JAX, pure."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from ppds_jax.attacks.image_signals import BLOCK, Embed, Reader, squares
from ppds_jax.data.batches import decode, in_blocks
from ppds_jax.types import InputError, Synthetic

MOST_DIMENSIONS = 20  # with more, all points are about equally far from all


def log_density_ratio(
    synthetic: Synthetic,
    reference: UInt8[Array, "r h w c"],
    image: Float[Array, "n h w c"],
    *,
    embed: Embed,
) -> Float[Array, "n 1"]:
    """log p_S(x) - log p_ref(x): where the generator has more mass than it should.

    Both are kernel densities in the embedding; see `log_density`.

    Args:
      synthetic: what was released, more images than the embedding has dimensions.
      reference: public images of the private images' distribution, none audited.
      image: the audited images.
      embed: into at most 20 dimensions; see `principal_components`.

    Raises:
      InputError: an embedding of more dimensions.

    **References:** van Breugel, Sun, Qian and van der Schaar, Membership Inference
    Attacks against Synthetic Data through Overfitting Detection, 2023, arXiv
    2302.12580.
    """
    read = log_density_ratio_reader(synthetic, reference, embed=embed)
    return in_blocks(lambda x: read(x, None), image, size=BLOCK)


def log_density_ratio_reader(
    synthetic: Synthetic, reference: UInt8[Array, "r h w c"], *, embed: Embed
) -> Reader:
    """`log_density_ratio` of one block.

    Raises:
      InputError: as there.
    """
    points = [embed(decode(x)) for x in (synthetic.image, reference)]
    if points[0].shape[1] > MOST_DIMENSIONS:
        raise InputError(
            f"embed: {points[0].shape[1]} dimensions; a density needs "
            f"{MOST_DIMENSIONS} or fewer"
        )
    weights = (synthetic.weight, jnp.ones(len(reference)))
    densities = [log_density(p, w) for p, w in zip(points, weights, strict=True)]

    def read(image, label):
        del label
        x = embed(image)
        ours, public = (density(x) for density in densities)
        return (ours - public)[:, None]

    return read


def log_density(
    point: Float[Array, "s d"], weight: Float[Array, " s"]
) -> Callable[[Float[Array, "n d"]], Float[Array, " n"]]:
    """The log of the Gaussian kernel density of weighted points, as a function.

    The kernel has the points' covariance times s^(-2 / (d + 4)) (Scott's rule), with
    s = (sum of weights)^2 / (sum of their squares). Sums are of logarithms: no density
    underflows, and none needs a floor.
    """
    dims = point.shape[1]
    share = weight / weight.sum()
    effective = 1 / (share**2).sum()
    mean = (share @ point)[None]
    away = point - mean  # float32 loses least about the mean
    covariance = (share[:, None] * away).T @ away / (1 - 1 / effective)
    root = jnp.linalg.cholesky(covariance) * effective ** (-1 / (dims + 4))
    white = lambda y: jax.scipy.linalg.solve_triangular(root, y.T, lower=True).T
    centres = white(away)
    volume = jnp.log(jnp.diagonal(root)).sum() + 0.5 * dims * jnp.log(2 * jnp.pi)

    def density(x):
        square = squares(white(x - mean), centres)
        return jax.nn.logsumexp(-0.5 * square, b=share[None], axis=1) - volume

    return density


class Components(NamedTuple):
    """An embedding into principal components: arrays, and a function of images."""

    mean: Float[Array, " p"]
    axes: Float[Array, "d p"]

    def __call__(self, image: Float[Array, "m h w c"]) -> Float[Array, "m d"]:
        rows = image.reshape(len(image), -1) - self.mean[None]
        return jnp.matmul(rows, self.axes.T, precision="highest")


def principal_components(image: Float[Array, "r h w c"], dims: int) -> Components:
    """An embedding: the leading principal components of public images.

    Raises:
      InputError: more dimensions than images or pixels, or none.
    """
    rows = image.reshape(len(image), -1)
    if not 1 <= dims <= min(rows.shape):
        raise InputError(f"dims={dims}: must lie in 1 to {min(rows.shape)}")
    mean = rows.mean(0)
    axes = jnp.linalg.svd(rows - mean[None], full_matrices=False)[2][:dims]
    return Components(mean, axes)
