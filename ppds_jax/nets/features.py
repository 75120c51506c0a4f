"""Fixed feature maps of images, whose class means one-shot methods release.

A map is a network with public parameters: nothing in it is learnt from private images.
`total(params, image [n h w c], weight [n])` is the sum over i of weight_i z(x_i), flat.
A map with many features need not write out each z(x_i): `fourier` does, `tangent` does
not. The norm of each z(x) is at most 1.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ppds_jax.convolution import im2col
from ppds_jax.nets import Net
from ppds_jax.nets.scattering import scattering
from ppds_jax.types import Key, PyTree


class Features(NamedTuple):
    """`init(key, image_shape) -> params`; `total(params, image, weight) -> [d]`."""

    init: Callable[[Key, tuple[int, int, int]], PyTree]
    total: Callable[
        [PyTree, Float[Array, "n h w c"], Float[Array, " n"]], Float[Array, " d"]
    ]


def summed(weight: Float[Array, " n"], rows: Float[Array, "n d"]) -> Array:
    """The weighted sum of rows, at full precision on any device."""
    return jnp.matmul(weight, rows, precision="highest")


def random_fourier(
    rows: Float[Array, "n d"], frequencies: Float[Array, "d half"]
) -> Float[Array, "n features"]:
    """z(x) = [cos Wx; sin Wx] / sqrt(D/2), of norm 1."""
    angle = rows @ frequencies
    z = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)
    return z / math.sqrt(frequencies.shape[1])


def frequencies(
    key: Key, dimensions: int, features: int, lengthscales: tuple[float, ...]
) -> Float[Array, "dimensions half"]:
    """Rows of W, transposed: as many from each kernel exp(-|x - y|^2 / 2 l^2)."""
    half = features // 2
    scale = jnp.array([lengthscales[i % len(lengthscales)] for i in range(half)])
    return jax.random.normal(key, (dimensions, half)) / scale[None]


def fourier(features: int, lengthscales: tuple[float, ...]) -> Features:
    """Random Fourier features of the pixels, of a mean of Gaussian kernels.

    Args:
      features: D, even.
      lengthscales: each as a multiple of the square root of the number of pixels.

    **References:** Rahimi and Recht, Random Features for Large-Scale Kernel Machines,
    2007.
    """

    def init(key, image_shape):
        pixels = math.prod(image_shape)
        scales = tuple(scale * math.sqrt(pixels) for scale in lengthscales)
        return frequencies(key, pixels, features, scales)

    def total(params, image, weight):
        rows = image.reshape(image.shape[0], -1)
        return summed(weight, random_fourier(rows, params))

    return Features(init, total)


def tangent(hidden: int, bias: float = 0.2) -> Features:
    """Gradients of a random network of one hidden ReLU layer, scaled to norm 1.

    For f(x) = sum over k of v_k max(w_k.x, 0), with v_k = 1 or -1, the gradient at w_k
    is v_k 1[w_k.x > 0] x. The signs cancel in inner products and are left out, as is
    the gradient at v_k, w_k.x 1[w_k.x > 0]: a linear function of the one at w_k. The
    weighted sum over images is then A'X, with A the activations' derivatives (weighted,
    over the norms): two matrix products, and no gradient is written out.

    Args:
      hidden: units of the layer; the features are so many times the pixels.

    **References:** Yang, Adamczewski, Sutherland, Li and Park, Differentially Private
    Neural Tangent Kernels (DP-NTK) for Privacy-Preserving Data Generation, 2023, arXiv
    2303.01687, section 4.
    """

    def init(key, image_shape):
        return jax.random.normal(key, (math.prod(image_shape) + 1, hidden))

    def total(params, image, weight):
        x = image.reshape(image.shape[0], -1)
        x = jnp.pad(x, ((0, 0), (0, 1)), constant_values=bias * x.shape[1] ** 0.5)
        active = (x @ params > 0).astype(x.dtype)
        square = jnp.square(x).sum(1) * active.sum(1)
        scaled = active * (weight * jax.lax.rsqrt(square + 1e-12))[:, None]
        return jnp.matmul(scaled.T, x, precision="highest").ravel()

    return Features(init, total)


def convolutions(width: int) -> Net:
    """Two 5x5 convolutions of stride 2 with ReLUs: image -> [n h' w' 2 width].

    First weights are random, such that the outputs' mean square is about the pixels'.
    """

    def init(key, image):
        shapes = (image.shape[-1], width), (width, 2 * width)
        return [
            jax.random.normal(key, (5, 5, *shape)) * (2 / (25 * shape[0])) ** 0.5
            for key, shape in zip(jax.random.split(key), shapes, strict=True)
        ]

    def apply(params, image):
        for kernel in params:
            image = jax.nn.relu(im2col(image, kernel, (2, 2), "SAME"))
        return image

    return Net(init, apply)


def wavelets(image_shape: tuple[int, int, int]) -> Net:
    """The scattering transform of images of a shape, which has no parameters."""
    transform = scattering(*image_shape[:2])
    return Net(lambda key, image: (), lambda params, image: transform(image))


def each_alone(net: Net) -> Net:
    """The network on one image at a time: none can touch another's output."""

    def apply(params, image):
        return jax.vmap(lambda x: net.apply(params, x[None])[0])(image)

    return net._replace(apply=apply)


def composed(net: Net, params: PyTree, features: Features) -> Features:
    """Features of an image's pixels beside a network's output, scaled to their norm.

    Args:
      net: `apply(params, image)` gives [n ...], of each image by itself; what is not
        finite counts as 0.
      params: the network's, public; `init` of the result puts them beside the map's.
      features: a map of images, which takes each row of d numbers as one of [1 1 d].
    """

    def rows(params, image):
        x = image.reshape(image.shape[0], -1)
        g = net.apply(params, image).reshape(image.shape[0], -1)
        g = jnp.where(jnp.isfinite(g), g, 0.0)
        largest = lax.stop_gradient(jnp.abs(g).max(1, keepdims=True))
        g = g / jnp.where(largest > 0, largest, 1.0)  # so that no square overflows
        norm = lambda v: jnp.sqrt(jnp.square(v).sum(1, keepdims=True) + 1e-12)
        return jnp.concatenate([x, g * (norm(x) / norm(g))], axis=1)[:, None, None]

    def init(key, image_shape):
        size = jax.eval_shape(rows, params, jnp.zeros((1, *image_shape))).shape[1:]
        return params, features.init(key, size)

    def total(params, image, weight):
        return features.total(params[1], rows(params[0], image), weight)

    return Features(init, total)
