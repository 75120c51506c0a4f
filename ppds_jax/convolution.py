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
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from ppds_jax.jaxprs import reinterpret


def canonical(fn: Callable) -> Callable:
    """Returns `fn` with its convolutions in the layout that has a fast CPU kernel.

    Those of images, that is: in one or three dimensions, and the gradient of a grouped
    one, they stay as they are. Works on the jaxpr, so on any library's layers and on
    gradients taken inside `fn`; loops and branches are entered. Apply it after
    `jax.grad`, not before. Results differ by float rounding only.

    >>> step = canonical(lambda x, w: lax.conv(x, w, (1, 1), "SAME"))
    >>> step(jnp.ones((1, 2, 5, 5)), jnp.ones((3, 2, 3, 3))).shape
    (1, 3, 5, 5)
    """

    rules = {"conv_general_dilated": _convolution, "dot_general": _product}
    return reinterpret(fn, rules)


def stacked(fn: Callable) -> Callable:
    """Returns `fn`, ready for a `vmap` that gives each model kernels of its own.

    Under such a `vmap` a convolution becomes one with groups, a group for each model,
    for which accelerators have slow kernels only. Here it becomes a batch of matrix
    products of what each place sees; so do its gradients. Any other `vmap`, or none,
    leaves convolutions as they are. Apply it after `jax.grad`, not before.

    >>> step = stacked(lambda x, w: lax.conv(x, w, (1, 1), "SAME"))
    >>> image, kernels = jnp.ones((1, 2, 5, 5)), jnp.ones((4, 3, 2, 3, 3))
    >>> jax.vmap(step, (None, 0))(image, kernels).shape
    (4, 1, 3, 5, 5)
    """
    return reinterpret(fn, {"conv_general_dilated": _stackable})


def _stackable(eqn, inputs: list) -> list:
    """One convolution, with a rule for a `vmap` over kernels."""
    plain = partial(eqn.primitive.bind, **eqn.params)
    convolve = custom_vmap(plain)

    @convolve.def_vmap
    def rule(size, batched, image, kernel):
        axes = tuple(0 if is_batched else None for is_batched in batched)
        shape = eqn.outvars[0].aval.shape
        pairs = (image, axes[0]), (kernel, axes[1])
        if size == 1:  # without groups, too
            first = [x[0] if axis == 0 else x for x, axis in pairs]
            return plain(*first)[None], True
        one = _as_products(eqn.params, shape) if batched[1] else plain
        return jax.vmap(one, axes)(image, kernel), True

    return [convolve(*inputs)]


def _as_products(params, shape: Sequence[int]) -> Callable:
    """A convolution as matrix products, where it is a layer or a gradient of one.

    Args:
      params: of the primitive.
      shape: of its result.
    """
    _, rhs, out = params["dimension_numbers"]
    padding, strides = params["padding"], params["window_strides"]
    spaced, dilation = params["lhs_dilation"], params["rhs_dilation"]
    sizes = tuple(shape[i] for i in out[2:])

    def convolve(image, kernel):
        after, before, *window = (kernel.shape[i] for i in rhs)
        if not _is_single(params, image.dtype):
            form = None
        elif {*strides, *spaced} == {1} and math.prod(window) >= math.prod(sizes):
            form = partial(_by_kernel, sizes=sizes, strides=dilation)
        elif {*strides, *dilation} == {1} and (after < before or {*spaced} != {1}):
            form = partial(_by_image, sizes=sizes, spaced=spaced)
        elif {*spaced, *dilation} == {1}:
            form = partial(im2col, strides=strides)
        else:
            form = None
        if form is None:
            return lax.conv_general_dilated_p.bind(image, kernel, **params)
        image, kernel = _standard(image, kernel, params)
        result = form(image, kernel, padding=padding, precision=params["precision"])
        return _as_asked(result, params)

    return convolve


def _is_single(params, dtype) -> bool:
    """Whether it is of images, without groups, its result of its inputs' type."""
    groups = params["feature_group_count"] * params["batch_group_count"]
    is_like = params["preferred_element_type"] in (None, dtype)
    return len(params["window_strides"]) == 2 and groups == 1 and is_like


def _by_kernel(image, kernel, *, sizes, strides, padding, precision):
    """The gradient of a layer by its kernel: [c h w n], [h' w' n d] -> [c kh kw d]."""
    columns = patches(image.transpose(3, 1, 2, 0), sizes, strides, padding)
    slope = kernel.transpose(2, 0, 1, 3)
    rows = (0, 1, 2), (0, 1, 2)
    result = jnp.tensordot(columns, slope, rows, precision=precision)
    result = result.reshape(*sizes, -1, slope.shape[-1])
    return result.transpose(2, 0, 1, 3)


def _by_image(image, kernel, *, sizes, spaced, padding, precision):
    """What each pixel adds to the places around it: a layer's gradient by its image.

    [n h w c], [kh kw c d] -> [n h' w' d], the pixels being `spaced` apart.
    """
    kh, kw, channels, _ = kernel.shape
    kernel = kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
    columns = jnp.matmul(image, kernel, precision=precision)
    total: Any = 0
    for k, piece in enumerate(jnp.split(columns, kh * kw, axis=-1)):
        edges = [(0, 0, 0)]
        for axis, offset in enumerate(divmod(k, kw)):
            low = padding[axis][0] - offset
            length = (image.shape[axis + 1] - 1) * spaced[axis] + 1
            edges.append((low, sizes[axis] - length - low, spaced[axis] - 1))
        zero = jnp.zeros((), columns.dtype)
        total += lax.pad(piece, zero, [*edges, (0, 0, 0)])
    return total


FEW = 32  # weights of one output of a layer that is faster as a matrix product


def _convolution(eqn, inputs: list) -> list:
    """One convolution in the layout NHWC, HWIO, NHWC, between transpositions."""
    image, kernel = inputs
    params = dict(eqn.params)
    # of signals or volumes, or the gradient of a grouped convolution
    if len(params["window_strides"]) != 2 or params["batch_group_count"] > 1:
        return [eqn.primitive.bind(image, kernel, **params)]
    image, kernel = _standard(image, kernel, params)
    # what made them is computed once, and not anew within each transposition
    image, kernel = lax.optimization_barrier((image, kernel))
    if math.prod(kernel.shape[:-1]) <= FEW and _is_plain(params):
        strides, padding = params["window_strides"], params["padding"]
        result = im2col(image, kernel, strides, padding, precision=params["precision"])
    else:
        nhwc = lax.conv_dimension_numbers(
            image.shape, kernel.shape, ("NHWC", "HWIO", "NHWC")
        )
        params["dimension_numbers"] = nhwc
        result = eqn.primitive.bind(image, kernel, **params)
    return [_as_asked(result, eqn.params)]


def _standard(image, kernel, params) -> tuple[jax.Array, jax.Array]:
    """A convolution's arguments, as NHWC and HWIO."""
    lhs, rhs, _ = params["dimension_numbers"]
    image = image.transpose((lhs[0], *lhs[2:], lhs[1]))
    return image, kernel.transpose((*rhs[2:], rhs[1], rhs[0]))


def _as_asked(result, params) -> jax.Array:
    """A convolution's NHWC result, in the layout that was asked for."""
    out = params["dimension_numbers"][2]
    order = (out[0], *out[2:], out[1])
    return result.transpose(tuple(order.index(i) for i in range(result.ndim)))


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
        params["feature_group_count"] == 1
        and {*params["lhs_dilation"], *params["rhs_dilation"]} == {1}
        and min(map(min, params["padding"])) >= 0
        and params["preferred_element_type"] is None
    )


def im2col(image, kernel, strides, padding, *_, precision=None, **__):
    """Convolution as shifted slices and one matrix product.

    A drop-in for the `conv_general_dilated` argument of `flax.linen.Conv`: fast on a
    CPU for strided layers, few input channels and per-example gradients.

    Args:
      image: [n h w c].
      kernel: [kh kw c d].
      strides: the window's steps (sh, sw).
      padding: "SAME", "VALID" or ((top, bottom), (left, right)).
      precision: of the product, as for `jnp.matmul`.

    Returns:
      [n h' w' d], equal to `lax.conv_general_dilated` up to float rounding.
    """
    kh, kw, channels, features = kernel.shape
    columns = patches(image, (kh, kw), strides, padding)
    kernel = kernel.reshape(kh * kw * channels, features)
    return jnp.matmul(columns, kernel, precision=precision)


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
