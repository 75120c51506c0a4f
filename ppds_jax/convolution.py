"""Convolutions and pooling that stay fast inside a compiled training loop.

XLA:CPU has a fast kernel for one layout only (NHWC images, HWIO kernels). Gradients
of a convolution come in other layouts, which XLA puts right outside a loop but not
inside `lax.scan` or `lax.map`, where they fall back to a naive kernel, many times
slower. `canonical` re-writes any traced function so that only the fast layout is left,
a layer with few input channels (an image) becomes a matrix product, and products are
in the one form that is fast; `im2col` and `max_pool` have no such trouble at all.
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

    rules = {"conv_general_dilated": _convolution, "dot_general": _product}
    return reinterpret(fn, rules)


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


def _product(eqn, inputs: list) -> list:
    """A gradient by a kernel, its first factor contracted at the end.

    XLA:CPU's fast matrix product does no other; its slow one takes up to four times
    as long.
    """
    left, right = inputs
    (axes, others), batched = eqn.params["dimension_numbers"]
    first = tuple(range(len(axes)))
    if len(axes) < 2 or (axes, others) != (first, first) or batched != ((), ()):
        return [eqn.primitive.bind(left, right, **eqn.params)]
    free = left.ndim - len(axes)
    left = left.transpose((*range(len(axes), left.ndim), *first))
    last = tuple(range(free, left.ndim))
    params = eqn.params | {"dimension_numbers": ((last, first), batched)}
    # barriers, or the compiler undoes both transpositions
    result = eqn.primitive.bind(lax.optimization_barrier(left), right, **params)
    return [lax.optimization_barrier(result)]


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
    (kh, kw), (sh, sw) = window, strides
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(image.shape[1:3], (kh, kw), strides, padding)
    n, height, width, channels = image.shape
    rows = (height + sum(padding[0]) - kh) // sh + 1
    columns = (width + sum(padding[1]) - kw) // sw + 1
    # whole strides of pixels, so that neighbours in a row are taken at once
    tall, wide = -(-kh // sh) + rows - 1, -(-kw // sw) + columns - 1
    (top, _), (left, _) = padding
    below, right = tall * sh - height - top, wide * sw - width - left
    edges = (0, 0, 0), (top, below, 0), (left, right, 0), (0, 0, 0)
    image = lax.pad(image, jnp.zeros((), image.dtype), edges)
    image = image.reshape(n, tall, sh, wide, sw * channels)
    seen = []
    for i in range(kh):
        for j in range(0, kw, sw):
            row, column = i // sh, j // sw
            piece = image[:, row : row + rows, i % sh, column : column + columns]
            seen.append(piece[..., : min(sw, kw - j) * channels])
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
