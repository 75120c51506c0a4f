"""The checks that every private method goes through: `check` runs them all.

A guarantee is a claim about code. Each check holds the code to one part of the claim,
and is itself held to faults planted in `tests/planted_faults`. They use a small data
set and few steps; where they are statistical, a sound method fails one with a
probability below 1e-6. Host code around compiled steps.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from ppds_jax.data.batches import decode
from ppds_jax.privacy import accounting
from ppds_jax.privacy.flow import program
from ppds_jax.privacy.subject import (
    Subject,
    fitted,
    init_of,
    neighbours,
    noises,
    step_of,
    swapped,
)
from ppds_jax.types import Budget, Dataset, DataSpec

SIGMAS = 6.0  # of a two-sided normal test: fails by chance with probability 2e-9
RUNS = 4  # of a statistical check


def check(
    build: Callable[[Dataset, Budget], Any],
    spec: DataSpec,
    budget: Budget,
    data: Dataset,
) -> dict[str, str]:
    """Runs every check on a method.

    Args:
      build: (data, budget) -> Generator or Classifier, whose guarantee is in question.
      spec, budget: with which it is built; the budget is finite.
      data: a small set with members and non-members.

    Returns:
      For each check what is wrong, or "".
    """
    subject = Subject(build, spec, budget, data)
    return {name: one(subject) for name, one in CHECKS.items()}


def closure(s: Subject) -> str:
    """No array that a function holds, `public` ones included, depends on the data."""

    def held(data):
        method = s.made(data)
        key, read = jax.random.key(0), _reader(method, s.data)
        traced = [program(init_of(method), (), key, s.data)]
        traced.append(program(step_of(method), (), key, s.data, s.shape))
        traced.append(program(read, (), key, s.shape))
        arrays = [x for part in traced for x in part.constants]
        return [_numbers(x) for x in arrays + jax.tree.leaves(method.public)]

    for a, b in itertools.zip_longest(held(s.data), held(swapped(s.data))):
        if a is None or b is None or not np.array_equal(a, b):
            return "an array that the method closes over was made from private images"
    return ""


def flow(s: Subject) -> str:
    """Private data reach a state or an info by releases only."""
    init, step = (stage.program.leaks for stage in s.stages)
    leaks = [f"init's {name}" for name in init] + [f"step's {name}" for name in step]
    return f"private data reach {', '.join(leaks)} past any release" if leaks else ""


def ledger(s: Subject) -> str:
    """The guarantee is what the marked releases cost: neither less nor more."""
    init, step = (stage.program.mechanisms for stage in s.stages)
    runs = init + [(mechanism, n * s.method.num_steps) for mechanism, n in step]
    stated = s.method.guarantee
    cost = accounting.total(
        [(mechanism.event, -(-n // mechanism.rounds)) for mechanism, n in runs],
        stated.neighbours,
    )
    claim, real = (accounting.epsilon(g, s.budget.delta) for g in (stated, cost))
    if claim == real or abs(claim - real) <= 1e-3 * real:
        return ""
    return f"states epsilon {claim:.4g}, but its releases cost {real:.4g}"


def budget(s: Subject) -> str:
    """0.9 to 1 of the budget is spent, or nothing at all."""
    spent = accounting.epsilon(s.method.guarantee, s.budget.delta)
    if spent == 0 or 0.9 * s.budget.epsilon <= spent <= s.budget.epsilon:
        return ""
    return f"spends epsilon {spent:.4g} of {s.budget.epsilon:.4g}"


def sensitivity(s: Subject, seed: int = 0) -> str:
    """No neighbour moves a statistic by more than its mechanism states.

    Brute force: records are removed, added and replaced, with random and adversarial
    pixels and labels; keys, states and earlier releases stay the same. Replacing one
    may move a statistic twice as far.
    """
    change, allowed = neighbours(s.data, s.spec, seed)
    for stage, args, found in s.run(seed):
        moved = stage.replay([x.released for x in found], args[0], change, *args[2:])
        for (mechanism, times), here, there in zip(
            stage.mechanisms, found, moved, strict=True
        ):
            shift = np.asarray(there.statistic) - np.asarray(here.statistic)
            shift = shift.reshape(len(allowed), times, -1)
            far = np.linalg.norm(shift, np.inf if mechanism.norm == "max" else 2, -1)
            far = far.max(1)
            rounding = 1e-5 * float(jnp.linalg.norm(here.statistic.ravel()))
            limit = allowed * mechanism.sensitivity * (1 + 1e-4) + rounding
            if not (far <= limit).all():
                return (
                    f"neighbours move a statistic by {far.max():.4g}; the stated "
                    f"sensitivity is {mechanism.sensitivity:.4g}"
                )
    return ""


def noise(s: Subject) -> str:
    """Gaussian noise has the stated deviation, is new each time, and ignores the data.

    Noise that is correlated over steps is made independent first, by its strategy.
    """
    for draws in zip(*(list(noises(s, seed)) for seed in range(RUNS)), strict=True):
        deviation = draws[0][0]
        z = np.concatenate([rows for _, rows in draws]) / deviation
        rows, size = z.shape
        apart = np.linalg.norm(z[:, None] - z[None], axis=2) / size**0.5
        if (apart[np.triu_indices(rows, 1)] < 1e-2).any():
            return "the noise of one release is used again in another"
        spread, mean = z.std(), z.mean() * z.size**0.5
        if not abs(spread**2 - 1) * (z.size / 2) ** 0.5 < SIGMAS:
            return f"the noise has {spread:.4g} times the stated deviation"
        if not abs(mean) < SIGMAS:
            return f"the noise has a mean {mean:.3g} standard errors from 0"
        if size > 1 and stats.kstest(z.ravel(), "norm").pvalue < 1e-9:
            return "the noise is not Gaussian"
        alike = np.triu(z @ z.T, 1) / size**0.5  # normal: at most rows^2 / 2 tests
        if not abs(alike).max() < SIGMAS + np.log(rows):
            return "the noise of one release is correlated with that of another"
    other = jax.tree.map(lambda x: x[None], swapped(s.data))
    for stage, args, found in s.run(0):
        there = stage.replay([x.released for x in found], args[0], other, *args[2:])
        for (mechanism, _), a, b in zip(stage.mechanisms, found, there, strict=True):
            if not mechanism.deviation:
                continue
            change = (b.released - b.statistic)[0] - (a.released - a.statistic)
            size = jnp.abs(a.statistic).max() + jnp.abs(b.statistic).max()
            if not jnp.abs(change).max() <= 1e-3 * mechanism.deviation + 1e-5 * size:
                return "the noise depends on the private data"
    return ""


def sampling(s: Subject) -> str:
    """Each record is in each batch by its own coin, at the accountant's rate."""
    members = np.flatnonzero(s.data.member)
    removed = [s.data.member] + [s.data.member.at[i].set(False) for i in members]
    change = _stack(s.data, member=jnp.stack(removed))
    _, step = s.stages
    drawn: list[list[list[np.ndarray]]] = [[] for _ in step.mechanisms]
    for seed in range(RUNS):
        runs: list[list[np.ndarray]] = [[] for _ in step.mechanisms]
        for stage, args, found in s.run(seed):
            if stage is step:
                each = stage.replay(
                    [x.released for x in found], args[0], change, *args[2:]
                )
                for run, access, (mechanism, _) in zip(
                    runs, each, step.mechanisms, strict=True
                ):
                    x = np.asarray(access.statistic).reshape(len(members) + 1, -1)
                    far = np.linalg.norm(x[1:] - x[:1], axis=1)
                    run.append(far > 1e-4 * mechanism.sensitivity)  # not by rounding
        for whole, run in zip(drawn, runs, strict=True):
            whole.append(run)
    for (mechanism, times), batches in zip(step.mechanisms, drawn, strict=True):
        rate = accounting.sampling_rate(mechanism.event)
        if rate < 1 and times == 1:
            fault = _not_poisson(np.array(batches), rate, mechanism.rounds)
            if fault:
                return fault
    return ""


def _not_poisson(drawn: np.ndarray, rate: float, turns: int) -> str:
    """What is wrong with drawn [runs steps records]; each may take every turn-th."""
    _, steps, records = drawn.shape
    steps -= steps % turns
    chances = steps // turns  # of each record in each run
    count, variance = drawn[:, :steps].sum(1), rate * (1 - rate)
    excess = (count.sum() - count.size * chances * rate) / (
        count.size * chances * variance
    ) ** 0.5
    if not abs(excess) < SIGMAS:
        real = count.mean() / chances
        return f"records are drawn at rate {real:.3g}; the accountant's is {rate:.3g}"
    scatter = (count - chances * rate) ** 2 / (chances * variance)
    kurtosis = 2 + (1 - 6 * variance) / (chances * variance)
    if not abs(scatter.sum() - count.size) / (count.size * kurtosis) ** 0.5 < SIGMAS:
        return "records are not drawn independently from step to step"
    if turns == 1:
        size = drawn.sum(2)
        scatter = ((size - records * rate) ** 2 / (records * variance)).sum()
        if min(
            stats.chi2.cdf(scatter, size.size), stats.chi2.sf(scatter, size.size)
        ) < (1e-9):
            return "records are not drawn independently of each other"
    return ""


def failure(s: Subject) -> str:
    """It fails closed: no noise, or a step too many, leaves no number to publish."""
    init, step = s.stages
    for stage, args, _ in itertools.islice(s.run(0), 2):  # init, and one step
        for access in stage.broken(*args)[1]:
            x = access.released
            if jnp.issubdtype(x.dtype, jnp.floating) and jnp.isfinite(x).any():
                return "a number is released although its noise could not be drawn"
    if step.mechanisms:
        key = jax.random.key(0)
        state, _ = init.run(key, s.data)
        for t in range(s.method.num_steps + 1):
            (state, _), found = step.run(jax.random.fold_in(key, t), s.data, state)
        if any(bool(jnp.isfinite(x.released).any()) for x in found):
            return f"a step beyond num_steps={s.method.num_steps} is released"
    return ""


def collapse(s: Subject) -> str:
    """As noise grows, what is fitted forgets the data: here, all of them change."""

    def influence(epsilon):
        under = dataclasses.replace(s, budget=Budget(epsilon, s.budget.delta))
        a, b = fitted(under, s.data, swapped(s.data))
        size = lambda x: float(np.linalg.norm(x))
        return size(a - b) / (size(a) + size(b) or 1.0)

    free, noisy = influence(math.inf), influence(0.03)
    if noisy <= 0.5 * free:
        return ""
    return f"the data's influence falls from {free:.3g} to {noisy:.3g} only"


def keys(s: Subject) -> str:
    """No key is used twice."""
    key = jax.random.key(0)
    try:
        with jax.debug_key_reuse(True):
            state = jax.jit(init_of(s.method))(key, s.data)
            key = jax.random.key(1)
            jax.block_until_ready(jax.jit(step_of(s.method))(key, s.data, state))
    except jax.errors.KeyReuseError:
        return "a key is used twice: two draws are the same"
    return ""


CHECKS = {
    one.__name__: one
    for one in (
        closure,
        flow,
        ledger,
        budget,
        sensitivity,
        noise,
        sampling,
        failure,
        collapse,
        keys,
    )
}


def _stack(data: Dataset, member: jax.Array) -> Dataset:
    """The data under each row of membership."""
    repeat = lambda x: jnp.broadcast_to(x, (len(member), *x.shape))
    return Dataset(repeat(data.image), repeat(data.label), member)


def _reader(method: Any, data: Dataset) -> Callable:
    """What turns a state into images or logits."""
    if hasattr(method, "sample"):
        return lambda key, state: method.sample(key, state, data.label, method.public)
    return lambda key, state: method.logits(state, decode(data.image))


def _numbers(x: Any) -> np.ndarray:
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x)
