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
    nearest = _nearest_first(synthetic, k, embed, missing)
    return in_blocks(lambda *rows: nearest(*rows)[0], image, label, size=250)


def neighbours(
    synthetic: Synthetic,
    image: Float[Array, "n h w c"],
    label: Int32[Array, " n"],
    *,
    k: int,
    embed: Embed | None = None,
) -> Int32[Array, "n k"]:
    """Which released images are those of `k_nearest`; -1 where there are fewer.

    Raises:
      InputError: as `k_nearest`.
    """
    nearest = _nearest_first(synthetic, k, embed, jnp.inf)

    def block(image, label):
        phi, index = nearest(image, label)
        return jnp.where(jnp.isfinite(phi), index, -1)

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


def _nearest_first(
    synthetic: Synthetic, k: int, embed: Embed | None, missing: float | Array
) -> Callable:
    """(image, label) -> minus the k least distances within the label, and whose."""
    if not 1 <= k <= len(synthetic.label):
        raise InputError(f"k={k}: must lie in 1 to {len(synthetic.label)}")
    distance = _distances(synthetic.image, embed)

    def nearest(image, label):
        same = (label[:, None] == synthetic.label[None]) & (synthetic.weight > 0)[None]
        return jax.lax.top_k(-jnp.where(same, distance(image), missing), k)

    return nearest


def _distances(released: UInt8[Array, "s h w c"], embed: Embed | None) -> Callable:
    """Images [m h w c] -> their distances [m s] to all that were released."""
    place = embed or (lambda image: image.reshape(len(image), -1))
    points = place(decode(released))
    return lambda image: jnp.sqrt(squares(place(image), points) / points.shape[1])


def squares(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Squared distances between rows; rounding errors below 0 are cut off."""
    cross = jnp.matmul(x, y.T, precision="highest")
    square = (x**2).sum(1)[:, None] - 2 * cross + (y**2).sum(1)[None]
    return jnp.maximum(square, 0)
