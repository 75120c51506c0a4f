"""The one door by which private data leave a program.

Every private mechanism passes its result through `release`: an identity that marks, in
the traced program, what was released, from which statistic, at which cost. What the
marks cost together is what a guarantee has to state, and data that reach a result by
any other way are a leak: `ppds_jax.privacy.checks` holds every method to both.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
from jax.extend import core
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from ppds_jax.privacy.accounting import Event
from ppds_jax.types import InputError


@dataclass(frozen=True)
class Mechanism:
    """What one release does, as its guarantee has to state it.

    Attributes:
      event: what the release costs, in dp_accounting's terms.
      sensitivity: bound on the change of the statistic between neighbours.
      norm: in which the change is measured: Euclidean, or the largest entry's.
      deviation: standard deviation of Gaussian noise on the statistic; None where the
        mechanism adds another noise.
      strategy: noise of successive releases is correlated: it is C^-1 times independent
        noise, and these are the bands of the Toeplitz matrix C (see `dpsgd`).
      rounds: so many successive releases cost one event together.
    """

    event: Event
    sensitivity: float
    norm: Literal["l2", "max"] = "l2"
    deviation: float | None = None
    strategy: tuple[float, ...] = (1.0,)
    rounds: int = 1

    def __post_init__(self):
        if not 0 < self.sensitivity < float("inf"):
            raise InputError(
                f"sensitivity={self.sensitivity}: must be a finite number above 0"
            )
        if self.deviation is not None and not 0 <= self.deviation < float("inf"):
            raise InputError(
                f"noise deviation={self.deviation}: must be finite and not negative"
            )


def release(statistic: Array, released: Array, mechanism: Mechanism) -> Array:
    """Marks `released`, made from the private `statistic` by a mechanism.

    Returns `released`. A gradient cannot be taken through it: the statistic lies on
    the other side.
    """
    return _release.bind(statistic, released, mechanism=mechanism)


NAME = "release"
_release = core.Primitive(NAME)


@_release.def_impl
def _impl(statistic: Array, released: Array, *, mechanism: Mechanism) -> Array:
    return released


@_release.def_abstract_eval
def _shape(statistic: Any, released: Any, *, mechanism: Mechanism) -> Any:
    return jax.core.ShapedArray(released.shape, released.dtype)


def _lower(context: Any, statistic: Any, released: Any, *, mechanism: Mechanism) -> Any:
    return [released]


def _batch(values: Any, axes: Any, *, mechanism: Mechanism) -> Any:
    return _release.bind(*values, mechanism=mechanism), axes[1]


def _derivative(values: Any, tangents: Any, *, mechanism: Mechanism) -> Any:
    raise InputError(
        "release: a gradient was taken through a private release, back to the private "
        "statistic; differentiate only what is computed from the released value"
    )


mlir.register_lowering(_release, _lower)
batching.primitive_batchers[_release] = _batch
ad.primitive_jvps[_release] = _derivative
