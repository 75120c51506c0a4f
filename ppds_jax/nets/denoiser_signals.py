"""What a denoiser tells about membership: signals [n q], one a noise level. Pure.

All are of (key, denoiser, image [n h w c] in [-1, 1]), and higher for images that were
trained on. The predicted noise is e(x; sigma) = (x - D(x; sigma)) / sigma.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ppds_jax.nets.edm import Denoiser, Image, slope
from ppds_jax.types import Key

LEVELS = 0.1, 0.2, 0.4, 0.8, 1.6
NOISES = 4  # of each level and image
CLEAN = 0.02  # the level of an image as it is

Signals = Float[Array, "n q"]


def _by_level(of, *rows) -> Signals:
    """`of` one row at a time, so that the network is compiled once."""
    return jax.lax.map(lambda row: of(*row), rows).T


def minus_denoising_loss(key: Key, denoise: Denoiser, image: Image) -> Signals:
    """-ln of the mean square of D(x + sigma n) - x, over a few n fixed by the key.

    **References:** Carlini et al., Extracting Training Data from Diffusion Models,
    2023, arXiv 2301.13188, section 5.
    """

    def once(sigma, key):
        noise = jax.random.normal(key, image.shape)
        level = jnp.broadcast_to(sigma, image.shape[:1])
        return _square(denoise(image + sigma * noise, level) - image)

    sigma = jnp.repeat(jnp.array(LEVELS), NOISES)
    each = _by_level(once, sigma, jax.random.split(key, sigma.size))
    mean = each.reshape(image.shape[0], len(LEVELS), NOISES).mean(2)
    return -jnp.log(mean + 1e-12)


def secmi(key: Key, denoise: Denoiser, image: Image) -> Signals:
    """Minus the error, in log, of one step up and back along the noise-free path.

    The image is carried up the differential equation to each level, by the steps
    between `LEVELS`; from there one more step up, and one back.

    **References:** Duan et al., Are Diffusion Models Vulnerable to Membership Inference
    Attacks?, 2023, arXiv 2302.01316, equation 9.
    """
    del key  # there is no noise in it

    def step(x, row):
        sigma, after, beyond = row
        x = x + (after - sigma) * slope(denoise, x, sigma)
        up = x + (beyond - after) * slope(denoise, x, after)
        back = up + (after - beyond) * slope(denoise, up, beyond)
        return x, -jnp.log(_square(back - x) + 1e-12)

    levels = jnp.array((CLEAN, *LEVELS, 1.25 * LEVELS[-1]))
    rows = levels[:-2], levels[1:-1], 1.25 * levels[1:-1]
    return jax.lax.scan(step, image, rows)[1].T


def pia(key: Key, denoise: Denoiser, image: Image) -> Signals:
    """Minus the distance, in log, of the noises predicted at an image and near it.

    The noise predicted for the image itself is added to it, at each level, and
    predicted again; distances are in the norm of power 4.

    **References:** Kong et al., An Efficient Membership Inference Attack for the
    Diffusion Model by Proximal Initialization, 2023, arXiv 2305.18355, equation 9.
    """
    del key
    first = slope(denoise, image, jnp.array(CLEAN))

    def once(sigma):
        again = slope(denoise, image + sigma * first, sigma)
        return -jnp.log(((again - first) ** 4).mean((1, 2, 3)) + 1e-12) / 4

    return _by_level(once, jnp.array(LEVELS))


def sima(key: Key, denoise: Denoiser, image: Image) -> Signals:
    """Minus the norm, in log, of the noise that is predicted where none was added.

    **References:** Rao, Qu and Moyer, Score-based Membership Inference on Diffusion
    Models, 2025, arXiv 2509.25003.
    """
    del key

    def once(sigma):
        return -jnp.log(_square(slope(denoise, image, sigma)) + 1e-12) / 2

    return _by_level(once, jnp.array(LEVELS))


def _square(x: Image) -> Float[Array, " n"]:
    return jnp.square(x).mean((1, 2, 3))


SIGNALS = {
    "denoising_loss": minus_denoising_loss,
    "secmi": secmi,
    "pia": pia,
    "sima": sima,
}
