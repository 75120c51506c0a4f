"""Networks as pairs of pure functions, whatever library they are written in."""

from collections.abc import Callable
from typing import Any, NamedTuple

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
