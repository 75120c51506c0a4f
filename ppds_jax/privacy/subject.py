"""A private method under test: its programs, a run of it, its neighbours.

Host code around compiled steps, for `checks` and for audits.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppds_jax.privacy.flow import Access, Program, collect, program, replay
from ppds_jax.privacy.release import Mechanism
from ppds_jax.types import Budget, Dataset, DataSpec, PyTree

STEPS = 6  # run of a method with private steps, at most
FRAGILE = "erf_inv", "cholesky", "lu", "eigh", "svd"  # normal variates, factorisations


@dataclass(frozen=True)
class Subject:
    """A method under test.

    Attributes:
      build: (data, budget) -> Generator or Classifier. One that is made from its
        configuration alone ignores the data.
      spec, budget, data: with which it is built and run.
    """

    build: Callable[[Dataset, Budget], Any]
    spec: DataSpec
    budget: Budget
    data: Dataset

    @functools.cached_property
    def method(self) -> Any:
        return self.made(self.data)

    def made(self, data: Dataset) -> Any:
        """The method, built on some data; without branches between its stages."""
        made = self.build(data, self.budget)
        return getattr(made, "straight", None) or made

    @functools.cached_property
    def stages(self) -> list["Stage"]:
        """`init` and, where steps read private data, `step`."""
        init = Stage.of(init_of(self.method), (1,), jax.random.key(0), self.data)
        step = Stage.of(
            step_of(self.method), (1,), jax.random.key(0), self.data, self.shape
        )
        return [init, step]

    @functools.cached_property
    def shape(self) -> PyTree:
        """The shapes of a state."""
        return jax.eval_shape(init_of(self.method), jax.random.key(0), self.data)

    def run(self, seed: int) -> Iterator[tuple["Stage", tuple, list[Access]]]:
        """A run on the data: each stage with its arguments and its releases."""
        init, step = self.stages
        key = jax.random.key(seed)
        state, found = init.run(key, self.data)
        yield init, (key, self.data), found
        for t in range(min(self.method.num_steps, STEPS) if step.mechanisms else 0):
            args = jax.random.fold_in(key, t), self.data, state
            (state, _), found = step.run(*args)
            yield step, args, found


class Stage(NamedTuple):
    """`init` or `step`, compiled in the forms that the checks run.

    All are functions of (key, data[, state]).
    """

    program: Program
    mechanisms: list[tuple[Mechanism, int]]
    run: Callable  # -> output, releases
    replay: Callable  # (releases, key, stack of data sets[, state]) -> releases of each
    broken: Callable  # as run, but no normal variate and no factorisation is finite

    @classmethod
    def of(cls, fn: Callable, private: tuple[int, ...], *args: Any) -> "Stage":
        traced = program(fn, private, *args)
        axes = (None, None, 0, None)[: len(args) + 1]
        return cls(
            traced,
            traced.mechanisms,
            jax.jit(collect(fn)),
            jax.jit(jax.vmap(replay(fn), axes)),
            jax.jit(collect(fn, dict.fromkeys(FRAGILE, _fail))),
        )


def neighbours(
    data: Dataset, spec: DataSpec, seed: int = 0
) -> tuple[Dataset, np.ndarray]:
    """Data sets that differ in one record, stacked, and how far each may move a sum.

    Members are removed (1) and replaced (2), non-members are added (1); new records
    are black, white, a checkerboard, one bright pixel, noise, or a copy of another,
    under the same or another label.
    """
    rng = np.random.default_rng(seed)
    image, label = np.asarray(data.image), np.asarray(data.label)
    member, shape = np.asarray(data.member), image.shape[1:]
    board = np.indices(shape).sum(0) % 2 * 255
    pixel = np.zeros(shape)
    pixel[0, 0] = 255
    stack, allowed = [], []
    for i in rng.permutation(len(image))[:16]:
        random = rng.integers(0, 256, shape)
        for new in (None, np.zeros(shape), board + 0, pixel, random, 255 + pixel * 0):
            x, y, m = image.copy(), label.copy(), member.copy()
            if new is None:
                m[i] = not m[i]
            else:
                x[i], y[i], m[i] = new, rng.integers(spec.num_classes), True
            stack.append((x, y, m))
            allowed.append(2 if member[i] and new is not None else 1)
    together = [
        jnp.stack([jnp.asarray(x) for x in xs]) for xs in zip(*stack, strict=True)
    ]
    return Dataset(*together), np.array(allowed, float)


def swapped(data: Dataset) -> Dataset:
    """Data as different as may be: images inverted, labels moved on."""
    classes = int(data.label.max()) + 1
    return Dataset(255 - data.image, (data.label + 1) % classes, data.member)


def init_of(method: Any) -> Callable:
    return lambda key, data: method.init(key, data, method.public)


def step_of(method: Any) -> Callable:
    return lambda key, data, state: method.step(key, state, data, method.public)


def noises(s: Subject, seed: int) -> Iterator[tuple[float, np.ndarray]]:
    """Of each mechanism in one run, its deviation and its independent noises [t d]."""
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    for stage, _, accesses in s.run(seed):
        place = int(stage is s.stages[1])
        for i, ((mechanism, times), x) in enumerate(
            zip(stage.mechanisms, accesses, strict=True)
        ):
            if mechanism.deviation:
                rows = np.asarray(x.released - x.statistic, np.float64)
                found.setdefault((place, i), []).append(rows.reshape(times, -1))
    for (place, i), parts in found.items():
        mechanism, times = s.stages[place].mechanisms[i]
        assert mechanism.deviation is not None
        total = times * (s.method.num_steps if place else 1)
        noise = _independent(np.concatenate(parts), mechanism.strategy, total)
        yield mechanism.deviation, noise


def _independent(
    noise: np.ndarray, strategy: tuple[float, ...], num_steps: int
) -> np.ndarray:
    """C times correlated noise, with C's Toeplitz columns scaled to norm 1."""
    c = np.array(strategy)
    left = np.minimum(len(c), num_steps - np.arange(len(noise)))
    scaled = noise / np.sqrt(np.cumsum(c**2))[left - 1][:, None]
    out = np.zeros_like(noise)
    for i, weight in enumerate(c[: len(noise)]):
        out[i:] += weight * scaled[: len(noise) - i]
    return out


def fitted(s: Subject, *data: Dataset) -> list[np.ndarray]:
    """The numbers of the states fitted to some data sets on the same keys, flat."""
    key = jax.random.key(0)

    def one(data):
        def step(t, state):
            return step_of(s.method)(jax.random.fold_in(key, t), data, state)[0]

        state = init_of(s.method)(key, data)
        return jax.lax.fori_loop(0, min(s.method.num_steps, STEPS), step, state)

    states = jax.jit(jax.vmap(one))(jax.tree.map(lambda *x: jnp.stack(x), *data))
    numbers = [np.zeros((len(data), 1))]
    for x in jax.tree.leaves(states):
        if jnp.issubdtype(x.dtype, jnp.floating):
            numbers.append(np.asarray(x).reshape(len(data), -1))
    return list(np.concatenate(numbers, axis=1))


def _fail(eqn: Any, inputs: list) -> list:
    """Takes the place of an operation that cannot be trusted: nothing but NaN."""
    avals = [out.aval for out in eqn.outvars]
    value = lambda a: jnp.nan if jnp.issubdtype(a.dtype, jnp.inexact) else 0
    return [jnp.full(a.shape, value(a), a.dtype) for a in avals]
