"""Networks as pairs of pure functions, whatever library they are written in."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from ppds_jax.types import Key, PyTree


class Net(NamedTuple):
    """A network: `init(key, *inputs) -> params`, `apply(params, *inputs) -> output`."""

    init: Callable[..., PyTree]
    apply: Callable[..., Any]


def from_linen(module: Any) -> Net:
    """A flax.linen module whose only variables are its parameters."""

    def init(key: Key, *inputs: Any) -> PyTree:
        return module.init(key, *inputs)["params"]

    def apply(params: PyTree, *inputs: Any) -> Any:
        return module.apply({"params": params}, *inputs)

    return Net(init, apply)


def drawn_at_once(net: Net, zero: str = "last") -> Net:
    """The network with its first parameters cut from a single normal draw.

    Kernels have variance 1 / (number of inputs of a unit), as is usual; all of a layer
    called `zero`, and biases, are 0. A draw for each kernel takes seconds to compile.
    """

    def init(key: Key, *inputs: Any) -> PyTree:
        shapes, tree = jax.tree.flatten_with_path(
            jax.eval_shape(net.init, key, *inputs)
        )
        sizes = [math.prod(x.shape) for _, x in shapes]
        normal = jax.random.normal(key, (sum(sizes),))
        leaves, first = [], 0
        for (path, x), size in zip(shapes, sizes, strict=True):
            part = normal[first : first + size].reshape(x.shape)
            first += size
            fixed = len(x.shape) < 2 or any(
                getattr(step, "key", None) == zero for step in path
            )
            scale = 0.0 if fixed else math.prod(x.shape[:-1]) ** -0.5
            leaves.append(scale * part)
        return jax.tree.unflatten(tree, leaves)

    return Net(init, net.apply)


def from_haiku(transformed: Any) -> Net:
    """A `haiku.transform`-ed function that needs no key when applied."""

    def apply(params: PyTree, *inputs: Any) -> Any:
        return transformed.apply(params, None, *inputs)

    return Net(transformed.init, apply)
