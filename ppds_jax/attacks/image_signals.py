"""What released images say of an image: signals, higher for members. JAX, pure.

Distances are root mean squares over the coordinates: of pixels in [0, 1], at most 1; or
of `embed`, a function from images [m h w c] in [0, 1] to points [m d]. It must be the
same for all models, and public. Computed in float32, to about 1e-3 of the diameter.

Each signal is also there as a `Reader`, `..._reader(synthetic, ...)`: a function of one
block of images, so that several can be read in one pass over the same distances.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, UInt8

from ppds_jax.data.batches import decode, in_blocks
from ppds_jax.types import InputError, Synthetic

Embed = Callable[[Float[Array, "m h w c"]], Float[Array, "m d"]]
Reader = Callable[..., Float[Array, "m q"]]  # of image [m h w c] and label [m]
BLOCK = 250  # images whose distances to all that were released are held at once


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
    read = k_nearest_reader(synthetic, k=k, embed=embed, missing=missing)
    return in_blocks(read, image, label, size=BLOCK)


def k_nearest_reader(
    synthetic: Synthetic, *, k: int, embed: Embed | None = None, missing: float = 1.0
) -> Reader:
    """`k_nearest` of one block."""
    nearest = _nearest_first(synthetic, k, embed, missing)
    return lambda image, label: nearest(image, label)[0]


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

    return in_blocks(block, image, label, size=BLOCK)


def neighbourhood(
    synthetic: Synthetic,
    image: Float[Array, "n h w c"],
    label: Int32[Array, " n"],
    *,
    radius: Float[Array, " q"],
    embed: Embed | None = None,
) -> Float[Array, "n q"]:
    """The share of released images of the same label within each radius: Monte Carlo.

    It estimates the probability that the generator gives to the neighbourhood of the
    image; 0 where no image of the label was released. The radii must be the same for
    all models, and public: `usual_distances` gives some; the authors take the median
    over images of the distance to the nearest sample, of shadow models.

    **References:** Hilprecht, Haerterich and Bernau, Monte Carlo and Reconstruction
    Membership Inference Attacks against Generative Models, 2019, doi
    10.2478/popets-2019-0067.
    """
    read = neighbourhood_reader(synthetic, radius=radius, embed=embed)
    return in_blocks(read, image, label, size=BLOCK)


def neighbourhood_reader(
    synthetic: Synthetic, *, radius: Float[Array, " q"], embed: Embed | None = None
) -> Reader:
    """`neighbourhood` of one block."""
    distance = _distances(synthetic.image, embed)

    def read(image, label):
        same = label[:, None] == synthetic.label[None]
        weight = jnp.where(same, synthetic.weight[None], 0.0)
        far, total = distance(image), jnp.maximum(weight.sum(1), 1e-6)
        within = [jnp.where(far <= r, weight, 0.0).sum(1) / total for r in radius]
        return jnp.stack(within, axis=1)

    return read


def usual_distances(
    reference: UInt8[Array, "r h w c"],
    share: tuple[float, ...] = (0.1, 0.5),
    *,
    embed: Embed | None = None,
) -> Float[Array, " q"]:
    """Quantiles, over public images, of the distance to the nearest other one."""
    far = _distances(reference, embed)(decode(reference))
    far = jnp.where(jnp.eye(len(reference), dtype=bool), jnp.inf, far)
    return jnp.quantile(far.min(1), jnp.array(share))


def gan_leaks(
    synthetic: Synthetic,
    image: Float[Array, "n h w c"],
    *,
    embed: Embed | None = None,
) -> Float[Array, "n 1"]:
    """Minus the distance to the nearest released image, whatever its label.

    **References:** Chen, Yu, Zhang and Fritz, GAN-Leaks: A Taxonomy of Membership
    Inference Attacks against Generative Models, 2020, arXiv 1909.03935, full black box.
    """
    read = gan_leaks_reader(synthetic, embed=embed)
    return in_blocks(lambda x: read(x, None), image, size=BLOCK)


def gan_leaks_reader(synthetic: Synthetic, *, embed: Embed | None = None) -> Reader:
    """`gan_leaks` of one block."""
    distance = _distances(synthetic.image, embed)

    def read(image, label):
        del label
        there = (synthetic.weight > 0)[None]
        return -jnp.where(there, distance(image), jnp.inf).min(1, keepdims=True)

    return read


def gan_leaks_calibrated(
    synthetic: Synthetic,
    reference: UInt8[Array, "r h w c"],
    image: Float[Array, "n h w c"],
    *,
    embed: Embed | None = None,
) -> Float[Array, "n 1"]:
    """`gan_leaks`, less the same for a reference set: easy images are near anything.

    Args:
      synthetic: what was released.
      reference: public images, as many as were released, none of them audited; or
        samples of a generator that was fitted to such images.
      image: the audited images.
      embed: see above.

    **References:** Chen et al., as `gan_leaks`, attack calibration.
    """
    read = gan_leaks_calibrated_reader(synthetic, reference, embed=embed)
    return in_blocks(lambda x: read(x, None), image, size=BLOCK)


def gan_leaks_calibrated_reader(
    synthetic: Synthetic,
    reference: UInt8[Array, "r h w c"],
    *,
    embed: Embed | None = None,
) -> Reader:
    """`gan_leaks_calibrated` of one block."""
    rows = len(reference)
    public = Synthetic(reference, jnp.zeros(rows, jnp.int32), jnp.ones(rows))
    readers = [gan_leaks_reader(x, embed=embed) for x in (synthetic, public)]

    def read(image, label):
        ours, theirs = (reader(image, label) for reader in readers)
        return ours - theirs

    return read


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
