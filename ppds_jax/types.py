"""The contract: what data, generators, samplers, classifiers and guarantees are.

Every method of this library is a NamedTuple of pure functions over an explicit state.
The Protocols below document each function once; method files do not repeat them.

Names used everywhere: `image` float32 [n h w c] in [0, 1] (uint8 where stored),
`label` int32 [n], `member` bool [n], `key` a typed JAX key, `state` what a method must
carry, `info` what may be logged, `public` arrays that are no secret.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from jaxtyping import Array, Bool, Float, Int32, UInt8
from jaxtyping import Key as _Key

if TYPE_CHECKING:
    from ppds_jax.privacy.accounting import Event, Neighbours

PyTree = Any
Key = _Key[Array, ""]  # one typed key, as jax.random.key makes it


class InputError(ValueError):
    """A wrong input. The message names the field, its value and what would be right."""


def check_numbers(config: Any, *zero_allowed: str) -> None:
    """Refuses a method's config with a number of the wrong kind or not above 0.

    The kind is that of the field's default; fields in `zero_allowed` may be 0, and one
    whose default is None may be None. Words and switches are not looked at.

    Raises:
      InputError: naming the field and its value.
    """
    for field in fields(config):
        value, default = getattr(config, field.name), field.default
        if isinstance(default, (str, bool)) or (value is None and default is None):
            continue
        several = isinstance(default, tuple)
        first: Any = default[0] if isinstance(default, tuple) and default else default
        kind = float if isinstance(first, float) else int
        wanted = "a number" if kind is float else "whole, and"
        limit = "at least 0" if field.name in zero_allowed else "above 0"
        for number in value if several and isinstance(value, tuple) else (value,):
            fits = isinstance(number, (int, kind)) and not isinstance(number, bool)
            fits = fits and (number > 0 or (number == 0 and limit == "at least 0"))
            if not fits:
                name = f"{type(config).__name__}.{field.name}"
                raise InputError(f"{name}={value!r}: must be {wanted} {limit}")


@dataclass(frozen=True)
class DataSpec:
    """Static facts about a data set, all of them public by declaration.

    Attributes:
      image_shape: height, width, channels.
      num_classes: labels run from 0 to num_classes - 1.
      num_members: public bound on how many rows are members. Every sampling rate and
        every divisor of a private method uses this, never the number of rows.
      class_counts: members of each class, or None where they are not public.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    num_members: int
    class_counts: tuple[int, ...] | None = None


class Dataset(NamedTuple):
    """Images on the device, uint8 until a batch is gathered.

    Rows with `member` False have no influence on anything that is fitted: changing
    their pixels or labels leaves every state bitwise equal.
    """

    image: UInt8[Array, "n h w c"]
    label: Int32[Array, " n"]
    member: Bool[Array, " n"]


class Synthetic(NamedTuple):
    """Released images, quantised once. A weight of 0 marks a dropped row."""

    image: UInt8[Array, "s h w c"]
    label: Int32[Array, " s"]
    weight: Float[Array, " s"]


class Budget(NamedTuple):
    """A privacy budget: epsilon in 0.01 to 100 or inf (none), delta in 1e-12 to 0.1."""

    epsilon: float
    delta: float


@dataclass(frozen=True)
class Guarantee:
    """What a mechanism reveals, as data beside it; never traced.

    Attributes:
      event: the composition of mechanisms run, in dp_accounting's terms, or that it
        needs no accountant (`accounting.Known`).
      neighbours: the relation between data sets under which the event holds.
      notes: what a reader of the epsilon must know besides; printed with every row.
    """

    event: "Event"
    neighbours: "Neighbours"
    notes: tuple[str, ...] = ()


class InitFn(Protocol):
    """Makes the first state.

    It may touch private data; what that reveals is part of the method's guarantee.
    `start` is the state that an earlier stage hands over, or None.
    """

    def __call__(
        self, key: Key, data: Dataset, public: PyTree, start: PyTree = None
    ) -> PyTree: ...


class StepFn(Protocol):
    """One step: (state, info), with the private accesses that the guarantee counts.

    The key of step t is `fold_in(base, t)`, so that a replayed step is the same step.
    `info` holds scalars that may be logged; of a private method, nothing secret.
    """

    def __call__(
        self, key: Key, state: PyTree, data: Dataset, public: PyTree
    ) -> tuple[PyTree, PyTree]: ...


class SampleFn(Protocol):
    """Draws one image for each label: float32 [m h w c] in [0, 1].

    It never receives private data: sampling is post-processing of the state.
    """

    def __call__(
        self, key: Key, state: PyTree, label: Int32[Array, " m"], public: PyTree
    ) -> Float[Array, "m h w c"]: ...


class SignalFn(Protocol):
    """A white-box signal of membership for each image, higher for members: [n q]."""

    def __call__(
        self,
        key: Key,
        state: PyTree,
        image: Float[Array, "n h w c"],
        label: Int32[Array, " n"],
        public: PyTree,
    ) -> Float[Array, "n q"]: ...


class LogitsFn(Protocol):
    """Class scores [m classes] of images float32 [m h w c] in [0, 1]."""

    def __call__(
        self, state: PyTree, image: Float[Array, "m h w c"]
    ) -> Float[Array, "m classes"]: ...


class Generator(NamedTuple):
    """The generation stage: private images in, something that can be sampled out.

    `num_steps` steps after `init` make a whole run; `guarantee` is what that run
    reveals. `public` holds arrays that are passed in rather than closed over, so that
    they are stored once and not once for each shadow model. `signals` are white-box
    hooks for attacks. `straight` is the same method with its stages one after another
    in `init`, where `step` switches between them: checks look at it, as a branch hides
    how often a release happens.
    """

    init: InitFn
    step: StepFn
    sample: SampleFn
    num_steps: int
    guarantee: Guarantee
    public: PyTree = ()
    signals: Mapping[str, SignalFn] = MappingProxyType({})
    straight: Any = None  # a Generator


class Classifier(NamedTuple):
    """The classification stage, trained on private or on synthetic images.

    Its guarantee counts only where it is fitted on private images.
    """

    init: InitFn
    step: StepFn
    logits: LogitsFn
    num_steps: int
    guarantee: Guarantee
    public: PyTree = ()


class DrawFn(Protocol):
    """Draws the synthetic images that are released, from a fitted generator's state.

    A strategy that looks at `data` (a filter, say) adds to the guarantee. `data` is
    None where an outsider draws, who has the generator alone.
    """

    def __call__(
        self, key: Key, generator: Generator, state: PyTree, data: Dataset | None
    ) -> Synthetic: ...


class Sampler(NamedTuple):
    """The sampling stage. `guarantee` is what it adds to the generator's."""

    draw: DrawFn
    guarantee: Guarantee


class Published(NamedTuple):
    """One value for each release of a pipeline: its artefact, or its guarantee.

    A pipeline without a generator (a classifier trained on the private images) leaves
    the first two None.
    """

    generator: Any = None
    images: Any = None
    classifier: Any = None
