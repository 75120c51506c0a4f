"""The precision of any network's forward and backward passes.

Parameters, their gradients and the optimiser stay in float32.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from ppds_jax.nets import Net
from ppds_jax.types import InputError

Precision = Literal["default", "float32", "tf32", "bfloat16"]
MATMUL = {"float32": "highest", "tf32": "tensorfloat32"}


def with_precision(net: Net, precision: Precision) -> Net:
    """The network, computed in another precision; its output is float32.

    Args:
      precision: "default" is what JAX takes for matrix products and convolutions of
        float32: on a CPU float32, on recent GPUs tf32, on TPUs inputs rounded to
        bfloat16. "float32" is that on every device. "tf32" lets inputs be rounded to
        10 bits of mantissa, where a device has units for it. "bfloat16" computes
        everything with 8 bits of mantissa: for accelerators, as few CPUs gain by it.

    **Privacy:** of a private step, only the loss is computed so: norms, clipping, sums
    and noise are float32 at highest precision and come from the same numbers (see
    `ppds_jax.privacy.engines`).

    Raises:
      InputError: another precision.
    """
    if precision not in get_args(Precision):
        names = ", ".join(get_args(Precision))
        raise InputError(f"precision={precision!r}: use one of {names}")
    if precision == "default":
        return net

    def half(tree):
        floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
        return jax.tree.map(
            lambda x: x.astype(jnp.bfloat16) if floating(x) else x, tree
        )

    def apply(params, *inputs):
        if precision in MATMUL:
            with jax.default_matmul_precision(MATMUL[precision]):
                return net.apply(params, *inputs)
        out = net.apply(half(params), *half(inputs))
        return jax.tree.map(lambda x: x.astype(jnp.float32), out)

    return Net(net.init, apply)
