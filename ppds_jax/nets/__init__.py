"""Networks as pairs of pure functions, whatever library they are written in."""

from collections.abc import Callable
from typing import Any, NamedTuple

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
