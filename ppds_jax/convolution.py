"""Convolutions and pooling that stay fast inside a compiled training loop.

XLA:CPU has a fast kernel for one layout only (NHWC images, HWIO kernels). Gradients
of a convolution come in other layouts, which XLA puts right outside a loop but not
inside `lax.scan` or `lax.map`, where they fall back to a naive kernel, many times
slower. `canonical` re-writes any traced function so that only the fast layout is left;
`im2col` and `max_pool` are forms whose gradients have no such trouble at all.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

_INLINE = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr"}
_INLINE |= {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


def canonical(fn: Callable) -> Callable:
    """Returns `fn` with every convolution in the layout that has a fast CPU kernel.

    Works on the jaxpr, so on any library's layers and on gradients taken inside `fn`;
    loops and branches are entered. Apply it after `jax.grad`, not before. Results
    differ by float rounding only.

    >>> step = canonical(lambda x, w: lax.conv(x, w, (1, 1), "SAME"))
    >>> step(jnp.ones((1, 2, 5, 5)), jnp.ones((3, 2, 3, 3))).shape
    (1, 3, 5, 5)
    """

    def wrapped(*args):
        closed, out_shape = jax.make_jaxpr(fn, return_shape=True)(*args)
        out = _evaluate(closed.jaxpr, closed.consts, *jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(out_shape), out)

    return wrapped


def _evaluate(jaxpr: core.Jaxpr, consts: list, *args) -> list:
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        name, params = eqn.primitive.name, eqn.params
        if name == "conv_general_dilated":
            outputs = [_convolution(eqn.primitive, *inputs, **params)]
        elif name in _INLINE:
            inner = params[_INLINE[name]]
            outputs = _evaluate(inner.jaxpr, inner.consts, *inputs)
        else:
            params = {key: _rewrite(value) for key, value in params.items()}
            params = eqn.primitive.get_bind_params(params)
            with eqn.ctx.manager:
                outputs = eqn.primitive.bind(*inputs, **params)
            outputs = outputs if eqn.primitive.multiple_results else [outputs]
        values |= dict(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _rewrite(value: Any) -> Any:
    """Re-writes the bodies of loops and branches among an equation's parameters."""
    if isinstance(value, core.ClosedJaxpr) and hasattr(value, "in_avals"):
        shapes = [
            jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
            for aval in value.in_avals
        ]
        body = lambda *args: _evaluate(value.jaxpr, value.consts, *args)
        return jax.make_jaxpr(body)(*shapes)
    if isinstance(value, tuple) and any(isinstance(v, core.ClosedJaxpr) for v in value):
        return tuple(_rewrite(item) for item in value)
    return value


def _convolution(conv: core.Primitive, image, kernel, *, dimension_numbers, **params):
    """One convolution in the layout NHWC, HWIO, NHWC, between transpositions."""
    lhs, rhs, out = dimension_numbers
    if params["batch_group_count"] > 1:  # gradient of a grouped convolution
        return conv.bind(image, kernel, dimension_numbers=dimension_numbers, **params)
    image = image.transpose((lhs[0], *lhs[2:], lhs[1]))
    kernel = kernel.transpose((*rhs[2:], rhs[1], rhs[0]))
    nhwc = lax.conv_dimension_numbers(
        image.shape, kernel.shape, ("NHWC", "HWIO", "NHWC")
    )
    result = conv.bind(image, kernel, dimension_numbers=nhwc, **params)
    order = (out[0], *out[2:], out[1])
    return result.transpose(tuple(order.index(i) for i in range(result.ndim)))


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
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(image.shape[1:3], (kh, kw), strides, padding)
    image = jnp.pad(image, ((0, 0), *padding, (0, 0)))
    rows, columns = (
        (image.shape[i + 1] - k) // strides[i] + 1 for i, k in ((0, kh), (1, kw))
    )
    patches = [
        lax.slice(
            image,
            (0, i, j, 0),
            (
                image.shape[0],
                i + (rows - 1) * strides[0] + 1,
                j + (columns - 1) * strides[1] + 1,
                channels,
            ),
            (1, *strides, 1),
        )
        for i in range(kh)
        for j in range(kw)
    ]
    columns_of = jnp.concatenate(patches, axis=-1)
    return columns_of @ kernel.reshape(kh * kw * channels, features)


def max_pool(image: jax.Array, size: int = 2) -> jax.Array:
    """Non-overlapping max-pooling [n h w c] -> [n h//size w//size c].

    A reshape and a maximum: its gradient is faster on a CPU than that of
    `lax.reduce_window`. Rows and columns beyond a multiple of `size` are dropped.
    """
    n, h, w, c = image.shape
    h, w = h // size, w // size
    image = image[:, : h * size, : w * size]
    return image.reshape(n, h, size, w, size, c).max((2, 4))
