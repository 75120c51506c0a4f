"""Convolutions and pooling that stay fast inside a compiled training loop.

XLA:CPU has a fast kernel for one layout only (NHWC images, HWIO kernels). Gradients
of a convolution come in other layouts, which XLA puts right outside a loop but not
inside `lax.scan` or `lax.map`, where they fall back to a naive kernel, many times
slower. `canonical` re-writes any traced function so that only the fast layout is left,
and a layer with few input channels (an image) becomes a matrix product; `im2col` and
`max_pool` are forms whose gradients have no such trouble at all.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax

from ppds_jax.jaxprs import reinterpret


def canonical(fn: Callable) -> Callable:
    """Returns `fn` with every convolution in the layout that has a fast CPU kernel.

    Works on the jaxpr, so on any library's layers and on gradients taken inside `fn`;
    loops and branches are entered. Apply it after `jax.grad`, not before. Results
    differ by float rounding only.

    >>> step = canonical(lambda x, w: lax.conv(x, w, (1, 1), "SAME"))
    >>> step(jnp.ones((1, 2, 5, 5)), jnp.ones((3, 2, 3, 3))).shape
    (1, 3, 5, 5)
    """

    return reinterpret(fn, {"conv_general_dilated": _convolution})


FEW = 32  # weights of one output of a layer that is faster as a matrix product


def _convolution(eqn, inputs: list) -> list:
    """One convolution in the layout NHWC, HWIO, NHWC, between transpositions."""
    image, kernel = inputs
    params = dict(eqn.params)
    lhs, rhs, out = params.pop("dimension_numbers")
    if params["batch_group_count"] > 1:  # gradient of a grouped convolution
        return [eqn.primitive.bind(image, kernel, **eqn.params)]
    image = image.transpose((lhs[0], *lhs[2:], lhs[1]))
    kernel = kernel.transpose((*rhs[2:], rhs[1], rhs[0]))
    # what made them is computed once, and not anew within each transposition
    image, kernel = lax.optimization_barrier((image, kernel))
    if math.prod(kernel.shape[:-1]) <= FEW and _is_plain(params):
        result = im2col(image, kernel, params["window_strides"], params["padding"])
    else:
        nhwc = lax.conv_dimension_numbers(
            image.shape, kernel.shape, ("NHWC", "HWIO", "NHWC")
        )
        result = eqn.primitive.bind(image, kernel, dimension_numbers=nhwc, **params)
    order = (out[0], *out[2:], out[1])
    return [result.transpose(tuple(order.index(i) for i in range(result.ndim)))]


def _is_plain(params) -> bool:
    """Whether `im2col` can do it: of images, without groups, dilation or cropping."""
    return (
        len(params["window_strides"]) == 2
        and params["feature_group_count"] == 1
        and {*params["lhs_dilation"], *params["rhs_dilation"]} == {1}
        and min(map(min, params["padding"])) >= 0
        and params["preferred_element_type"] is None
    )


def im2col(image, kernel, strides, padding, *_, dimension_numbers=None, **__):
    """Convolution as shifted slices and one matrix product.

    A drop-in for the `conv_general_dilated` argument of `flax.linen.Conv`: fast on a
    CPU for strided layers, few input channels and per-example gradients.

    Args:
      image: [n h w c].
      kernel: [kh kw c d].
      strides: the window's steps (sh, sw).
      padding: "SAME", "VALID" or ((top, bottom), (left, right)).

    Returns:
      [n h' w' d], equal to `lax.conv_general_dilated` up to float rounding.
    """
    kh, kw, channels, features = kernel.shape
    columns = patches(image, (kh, kw), strides, padding)
    return columns @ kernel.reshape(kh * kw * channels, features)


def patches(
    image: jax.Array,
    window: tuple[int, int],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
) -> jax.Array:
    """What each place of a convolution sees: [n h w c] -> [n h' w' kh*kw*c]."""
    kh, kw = window
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(image.shape[1:3], (kh, kw), strides, padding)
    image = jnp.pad(image, ((0, 0), *padding, (0, 0)))
    n, height, width, channels = image.shape
    rows = (height - kh) // strides[0] + 1
    columns = (width - kw) // strides[1] + 1
    seen = [
        lax.slice(
            image,
            (0, i, j, 0),
            (
                n,
                i + (rows - 1) * strides[0] + 1,
                j + (columns - 1) * strides[1] + 1,
                channels,
            ),
            (1, *strides, 1),
        )
        for i in range(kh)
        for j in range(kw)
    ]
    return jnp.concatenate(seen, axis=-1)


def max_pool(image: jax.Array, size: int = 2) -> jax.Array:
    """Non-overlapping max-pooling [n h w c] -> [n h//size w//size c].

    The maximum of shifted slices, and a gradient written to match (shared evenly
    between equal maxima), several times faster on a CPU than those of
    `lax.reduce_window`. Rows and columns beyond a multiple of `size` are dropped.
    """
    h, w = (length // size * size for length in image.shape[1:3])
    return _max_pool(image[:, :h, :w], size)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(image: jax.Array, size: int) -> jax.Array:
    return reduce(jnp.maximum, _windows(image, size))


def _windows(image: jax.Array, size: int) -> list[jax.Array]:
    """The pixels at each place of a window: size^2 arrays [n h/size w/size c]."""
    split = _split(image, size)
    return [split[:, :, i, :, j] for i in range(size) for j in range(size)]


def _split(image: jax.Array, size: int) -> jax.Array:
    n, h, w, c = image.shape
    return image.reshape(n, h // size, size, w // size, size, c)


def _max_pool_forward(image, size):
    largest = _max_pool(image, size)
    return largest, (image, largest)


def _max_pool_backward(size, kept, cotangent):
    image, largest = kept
    hits = sum((x == largest).astype(cotangent.dtype) for x in _windows(image, size))
    share = (cotangent / hits)[:, :, None, :, None]
    hit = _split(image, size) == largest[:, :, None, :, None]
    return (jnp.where(hit, share, 0).reshape(image.shape),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
