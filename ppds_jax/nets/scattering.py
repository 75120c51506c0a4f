"""A scattering transform: fixed wavelets, moduli and averages; nothing is learnt.

Filters are made once in NumPy; the transform is JAX, and differentiable but where a
modulus is 0.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float

from ppds_jax.types import InputError

ANGLES = 8
RADIUS = 8  # of a filter's support: all but the faint tails of the coarsest wavelets
CHANNELS = 1 + 2 * ANGLES + ANGLES**2  # features of one channel at one place: 81


def scattering(height: int, width: int) -> Callable[[Array], Array]:
    """Two scales, eight angles, orders 0 to 2: [n h w c] -> [n h' w' 81c].

    With phi an average over about 4 pixels, psi_j,l a Morlet wavelet of scale 2^j at
    the angle l pi / 8, and * a convolution of the image, continued by zeros:

        x * phi,   |x * psi_j,l| * phi,   ||x * psi_0,l| * psi_1,m| * phi

    sampled every 4 pixels: h' = ceil(h / 4), w' = ceil(w / 4). Each channel gives 81 of
    the result, in this order. The transform does not increase distances between images;
    a small shift or deformation changes it little.

    Convolutions are products of Fourier transforms, which on a CPU take a fraction of
    the time of direct ones with so few channels and kernels so wide.

    Args:
      height, width: of the images, 8 or more.

    Raises:
      InputError: smaller images.

    **Privacy:** data-independent; the features of an image depend on that image alone.

    **References:** Bruna and Mallat, Invariant Scattering Convolution Networks, 2013,
    arXiv 1203.1513.
    """
    if min(height, width) < RADIUS:
        raise InputError(
            f"image_shape={height, width}: a scattering of two scales needs at least "
            f"{RADIUS} x {RADIUS} pixels"
        )
    # room for the filters, so that nothing comes round from the other side
    full = tuple(4 * -(-(size + RADIUS) // 4) for size in (height, width))
    half = -(-height // 2), -(-width // 2)
    wavelets = spectra(*full)
    fine, coarse = jnp.asarray(wavelets[:ANGLES]), jnp.asarray(wavelets[ANGLES:])
    phi = [jnp.asarray(average(size, 4, 1.6)) for size in (height, width)]
    phi_half = [jnp.asarray(average(size, 2, 0.8)) for size in half]

    def transform(x):  # of [... h w], padded with zeros
        pads = [(0, 0)] * (x.ndim - 2)
        pads += [(0, full[0] - height), (0, full[1] - width)]
        return jnp.fft.fft2(jnp.pad(x, pads))

    def every_other(spectrum):  # the spectrum of every other pixel
        folded = spectrum.reshape(
            *spectrum.shape[:-2], 2, full[0] // 2, 2, full[1] // 2
        )
        return folded.mean((-4, -2))

    def modulus(spectrum, size):
        return jnp.abs(jnp.fft.ifft2(spectrum))[..., : size[0], : size[1]]

    def smooth(x, rows, columns):  # [n k h w] -> [n h' w' k]
        return jnp.einsum("nkyx,py,qx->npqk", x, rows, columns, precision="highest")

    def one_channel(x):
        spectrum = transform(x)[:, None]
        first = modulus(spectrum * fine[None], (height, width))
        first_half = modulus(every_other(spectrum * coarse[None]), half)
        second = every_other(transform(first)[:, :, None] * coarse[None, None])
        second = modulus(second, half).reshape(-1, ANGLES**2, *half)
        orders = [smooth(x[:, None], *phi), smooth(first, *phi)]
        orders += [smooth(first_half, *phi_half), smooth(second, *phi_half)]
        return jnp.concatenate(orders, axis=-1)

    def features(image: Float[Array, "n h w c"]) -> Float[Array, "n p q k"]:
        n, _, _, c = image.shape
        x = image.transpose(0, 3, 1, 2).reshape(n * c, height, width)
        out = one_channel(x)
        out = out.reshape(n, c, *out.shape[1:]).transpose(0, 2, 3, 1, 4)
        return out.reshape(*out.shape[:3], c * CHANNELS)

    return features


def normalise(
    features: Float[Array, "n p q k"], groups: int, floor: float = 1e-7
) -> Float[Array, "n p q k"]:
    """Mean 0 and variance 1 in each group of channels of each image, over its places.

    No statistics over the batch: the features of one image depend on it alone.

    Args:
      features: k channels, a multiple of `groups`.
      groups: of neighbouring channels.
      floor: added to the variance; small, as second-order features are faint.

    **References:** Wu and He, Group Normalization, 2018, arXiv 1803.08494.
    """
    n, p, q, k = features.shape
    x = features.reshape(n, p * q, groups, k // groups)
    x = x - x.mean((1, 3), keepdims=True)
    x = x * lax.rsqrt(jnp.square(x).mean((1, 3), keepdims=True) + floor)
    return x.reshape(n, p, q, k)


def morlet(scale: int, angle: float) -> Complex[np.ndarray, "y x"]:
    """A wave of frequency 3 pi / 4 / 2^scale under a Gaussian, made to sum to 0.

    The Gaussian is 0.8 2^scale wide along the wave and twice that across it.
    """
    y, x = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1] / 2.0**scale
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    envelope = np.exp(-(along**2 + across**2 / 4) / (2 * 0.8**2))
    wave = envelope * np.exp(0.75j * np.pi * along)
    return wave - envelope * wave.sum() / envelope.sum()


def kernels() -> Complex[np.ndarray, "k y x"]:
    """All wavelets, scale by scale, in one scale that keeps the transform contractive.

    At each frequency w, |phi(w)|^2 and the sum over wavelets of half of |psi(w)|^2 +
    |psi(-w)|^2 make at most 1.
    """
    psi = np.stack(
        [morlet(j, np.pi * i / ANGLES) for j in range(2) for i in range(ANGLES)]
    )
    size = 64
    power = (np.abs(np.fft.fft2(psi, (size, size))) ** 2).sum(0)
    power = (power + np.roll(power[::-1, ::-1], (1, 1), (0, 1))) / 2
    line = np.abs(np.fft.fft(gaussian(np.arange(-size // 2, size // 2), 1.6))) ** 2
    room = 1 - line[:, None] * line[None]
    room[0, 0] = power[0, 0] = 1  # there phi is 1 and each psi is 0
    return psi * np.sqrt((room / power).min())


def spectra(rows: int, columns: int) -> Complex[np.ndarray, "k rows columns"]:
    """The wavelets' Fourier transforms, each wavelet centred on pixel (0, 0)."""
    psi = kernels()
    grid = np.zeros((len(psi), rows, columns), complex)
    for y, x in np.ndindex(psi.shape[1:]):
        # added, as both ends of a filter fall on one pixel of the smallest images
        grid[:, (y - RADIUS) % rows, (x - RADIUS) % columns] += psi[:, y, x]
    return np.fft.fft2(grid).astype(np.complex64)


def gaussian(x: Float[np.ndarray, "..."], std: float) -> Float[np.ndarray, "..."]:
    """A Gaussian density, which sums to 1 over the integers if it is not too narrow."""
    return np.exp(-(x**2) / (2 * std**2)) / (np.sqrt(2 * np.pi) * std)


def average(size: int, step: int, std: float) -> Float[np.ndarray, "places size"]:
    """Gaussian averages of a line of pixels, one every `step`: a matrix."""
    centre = step * np.arange(-(-size // step)) + step // 2
    offset = (np.arange(size)[None] - centre[:, None]).astype(float)
    return gaussian(offset, std).astype(np.float32)
