"""Faster forward and backward passes, in reduced precision, of any network.

Parameters, their gradients and the optimiser stay in float32.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from ppds_jax.nets import Net
from ppds_jax.types import InputError

Precision = Literal["float32", "tf32", "bfloat16"]


def with_precision(net: Net, precision: Precision) -> Net:
    """The network, computed in another precision; its output is float32.

    Args:
      precision: "float32" changes nothing. "tf32" lets matrix products and
        convolutions round their inputs to 10 bits of mantissa, where a device has
        units for it; elsewhere it changes nothing. "bfloat16" computes everything with
        8 bits of mantissa: for accelerators, as few CPUs gain by it.

    **Privacy:** of a private step, only the loss is computed so: norms, clipping, sums
    and noise are float32 at highest precision and come from the same numbers (see
    `ppds_jax.privacy.engines`).

    Raises:
      InputError: another precision.
    """
    if precision not in get_args(Precision):
        names = ", ".join(get_args(Precision))
        raise InputError(f"precision={precision!r}: use one of {names}")
    if precision == "float32":
        return net

    def half(tree):
        floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
        return jax.tree.map(
            lambda x: x.astype(jnp.bfloat16) if floating(x) else x, tree
        )

    def apply(params, *inputs):
        if precision == "tf32":
            with jax.default_matmul_precision("tensorfloat32"):
                return net.apply(params, *inputs)
        out = net.apply(half(params), *half(inputs))
        return jax.tree.map(lambda x: x.astype(jnp.float32), out)

    return Net(net.init, apply)
