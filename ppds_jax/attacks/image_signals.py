"""What released images say of an image: signals, higher for members. JAX, pure.

Distances are root mean squares over the coordinates: of pixels in [0, 1], at most 1; or
of `embed`, a function from images [m h w c] in [0, 1] to points [m d]. It must be the
same for all models, and public. Computed in float32, to about 1e-3 of the diameter.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, UInt8

from ppds_jax.data.batches import decode, in_blocks
from ppds_jax.types import InputError, Synthetic

Embed = Callable[[Float[Array, "m h w c"]], Float[Array, "m d"]]
MOST_DIMENSIONS = 20  # of a kernel density: with more, all points are far from all


def k_nearest(
    synthetic: Synthetic,
    image: Float[Array, "n h w c"],
    label: Int32[Array, " n"],
    *,
    k: int,
    embed: Embed | None = None,
    missing: float = 1.0,
) -> Float[Array, "n k"]:
    """Minus the distances to the k nearest released images of the same label.

    One query each, the nearest first. Where fewer than k images of the label were
    released, `missing` stands for the distances that are not there: the largest
    possible in pixels; of an embedding, give its diameter.

    Raises:
      InputError: a k that is not between 1 and the number of released images.
    """
    if not 1 <= k <= len(synthetic.label):
        raise InputError(f"k={k}: must lie in 1 to {len(synthetic.label)}")

    distance = _distances(synthetic.image, embed)

    def block(image, label):
        same = (label[:, None] == synthetic.label[None]) & (synthetic.weight > 0)[None]
        return jax.lax.top_k(-jnp.where(same, distance(image), missing), k)[0]

    return in_blocks(block, image, label, size=250)


def neighbourhood(
    synthetic: Synthetic,
    image: Float[Array, "n h w c"],
    label: Int32[Array, " n"],
    *,
    radius: float | Float[Array, ""],
    embed: Embed | None = None,
) -> Float[Array, " n"]:
    """The share of released images of the same label within `radius`: Monte Carlo.

    It estimates the probability that the generator gives to the neighbourhood of the
    image; 0 where no image of the label was released. The authors' radius, the median
    over images of the distance to the nearest sample, must come from shadow models.

    **References:** Hilprecht, Haerterich and Bernau, Monte Carlo and Reconstruction
    Membership Inference Attacks against Generative Models, 2019, doi
    10.2478/popets-2019-0067.
    """

    distance = _distances(synthetic.image, embed)

    def block(image, label):
        same = label[:, None] == synthetic.label[None]
        weight = jnp.where(same, synthetic.weight[None], 0.0)
        within = jnp.where(distance(image) <= radius, weight, 0.0).sum(1)
        return within / jnp.maximum(weight.sum(1), 1e-6)

    return in_blocks(block, image, label, size=250)


def gan_leaks(
    synthetic: Synthetic,
    image: Float[Array, "n h w c"],
    *,
    embed: Embed | None = None,
) -> Float[Array, " n"]:
    """Minus the distance to the nearest released image, whatever its label.

    **References:** Chen, Yu, Zhang and Fritz, GAN-Leaks: A Taxonomy of Membership
    Inference Attacks against Generative Models, 2020, arXiv 1909.03935, full black box.
    """

    distance = _distances(synthetic.image, embed)

    def block(image):
        there = (synthetic.weight > 0)[None]
        return -jnp.where(there, distance(image), jnp.inf).min(1)

    return in_blocks(block, image, size=250)


def gan_leaks_calibrated(
    synthetic: Synthetic,
    reference: UInt8[Array, "r h w c"],
    image: Float[Array, "n h w c"],
    *,
    embed: Embed | None = None,
) -> Float[Array, " n"]:
    """`gan_leaks`, less the same for a reference set: easy images are near anything.

    Args:
      synthetic: what was released.
      reference: public images, as many as were released, none of them audited; or
        samples of a generator that was fitted to such images.
      image: the audited images.
      embed: see above.

    **References:** Chen et al., as `gan_leaks`, attack calibration.
    """
    rows = len(reference)
    public = Synthetic(reference, jnp.zeros(rows, jnp.int32), jnp.ones(rows))
    return gan_leaks(synthetic, image, embed=embed) - gan_leaks(
        public, image, embed=embed
    )


def log_density_ratio(
    synthetic: Synthetic,
    reference: UInt8[Array, "r h w c"],
    image: Float[Array, "n h w c"],
    *,
    embed: Embed,
) -> Float[Array, " n"]:
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
    points = [embed(decode(x)) for x in (synthetic.image, reference)]
    if points[0].shape[1] > MOST_DIMENSIONS:
        raise InputError(
            f"embed: {points[0].shape[1]} dimensions; a density needs "
            f"{MOST_DIMENSIONS} or fewer"
        )
    weights = (synthetic.weight, jnp.ones(len(reference)))
    densities = [log_density(p, w) for p, w in zip(points, weights, strict=True)]

    def block(image):
        x = embed(image)
        ours, public = (density(x) for density in densities)
        return ours - public

    return in_blocks(block, image, size=250)


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
        square = _squares(white(x - mean), centres)
        return jax.nn.logsumexp(-0.5 * square, b=share[None], axis=1) - volume

    return density


def principal_components(image: Float[Array, "r h w c"], dims: int) -> Embed:
    """An embedding: the leading principal components of public images.

    Raises:
      InputError: more dimensions than images or pixels, or none.
    """
    rows = image.reshape(len(image), -1)
    if not 1 <= dims <= min(rows.shape):
        raise InputError(f"dims={dims}: must lie in 1 to {min(rows.shape)}")
    mean = rows.mean(0, keepdims=True)
    axes = jnp.linalg.svd(rows - mean, full_matrices=False)[2][:dims]

    def embed(image):
        return jnp.matmul(
            image.reshape(len(image), -1) - mean, axes.T, precision="highest"
        )

    return embed


def _distances(released: UInt8[Array, "s h w c"], embed: Embed | None) -> Callable:
    """Images [m h w c] -> their distances [m s] to all that were released."""
    place = embed or (lambda image: image.reshape(len(image), -1))
    points = place(decode(released))
    return lambda image: jnp.sqrt(_squares(place(image), points) / points.shape[1])


def _squares(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    cross = jnp.matmul(x, y.T, precision="highest")
    square = (x**2).sum(1)[:, None] - 2 * cross + (y**2).sum(1)[None]
    return jnp.maximum(square, 0)
