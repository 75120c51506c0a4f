"""Networks as pairs of pure functions, whatever library they are written in."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

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


def from_nnx(make: Callable[[Any], Any]) -> Net:
    """A flax.nnx module whose only variables are its parameters.

    Args:
      make: `nnx.Rngs` -> module; nnx modules have their sizes when they are made, so
        that `init` looks at no input.

    >>> import jax
    >>> net = from_nnx(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
    >>> params = net.init(jax.random.key(0))
    >>> net.apply(params, jax.numpy.ones((5, 3))).shape
    (5, 2)
    """

    def init(key: Key, *inputs: Any) -> PyTree:
        return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key)), nnx.Param))

    def apply(params: PyTree, *inputs: Any) -> Any:
        graph, rest = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
        nnx.replace_by_pure_dict(rest, params)
        return nnx.merge(graph, rest)(*inputs)

    return Net(init, apply)
