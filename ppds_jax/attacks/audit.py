"""Audits: how much epsilon a mechanism spends at least, measured from outside.

A lower bound above the claim refutes it. One below it proves nothing. Bounds are host
code in float64; `Player` runs the mechanism, vectorised.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from scipy import optimize, stats

from ppds_jax.devices import Layout
from ppds_jax.fit import fit
from ppds_jax.mapping import map_shadows
from ppds_jax.privacy.accounting import ADD_OR_REMOVE, epsilon, gaussian
from ppds_jax.privacy.flow import collect, program
from ppds_jax.types import Dataset, InputError


class Errors(NamedTuple):
    """Upper bounds on the two error rates of a test of membership."""

    false_positive: float
    false_negative: float


def error_bounds(
    inside: Float[Array, " m"], outside: Float[Array, " n"], confidence: float = 0.999
) -> Errors:
    """Clopper-Pearson bounds, together at `confidence`, on the errors of one threshold.

    The threshold is the best one on the first half of the scores; the errors are
    counted on the second half, which it has not seen.

    Args:
      inside, outside: scores of independent runs with and without the canary; higher
        where it is guessed to be in.

    Raises:
      InputError: fewer than 4 scores on a side, or some that are not finite.
    """
    inside, outside = np.asarray(inside, np.float64), np.asarray(outside, np.float64)
    if min(len(inside), len(outside)) < 4:
        raise InputError(
            f"scores: {len(inside)} inside and {len(outside)} outside; 4 of each are "
            "the least"
        )
    if not np.isfinite(inside).all() or not np.isfinite(outside).all():
        raise InputError("scores: must be finite")
    (train_in, test_in), (train_out, test_out) = (
        np.split(x, [len(x) // 2]) for x in (inside, outside)
    )
    level = (1 - confidence) / 2
    cuts = np.unique(np.concatenate([train_in, train_out]))
    cuts = (cuts[1:] + cuts[:-1]) / 2 if len(cuts) > 1 else cuts
    wrong_out = len(train_out) - np.searchsorted(np.sort(train_out), cuts)
    wrong_in = np.searchsorted(np.sort(train_in), cuts)
    rates = Errors(
        _upper(wrong_out, len(train_out), level), _upper(wrong_in, len(train_in), level)
    )
    cut = cuts[np.argmax(_epsilon(rates, 0.0))]
    return Errors(
        float(_upper(np.sum(test_out >= cut), len(test_out), level)),
        float(_upper(np.sum(test_in < cut), len(test_in), level)),
    )


def epsilon_clopper_pearson(errors: Errors, delta: float) -> float:
    """The least epsilon of a mechanism that allows these errors; 0 at least.

    **References:** Kairouz, Oh and Viswanath, The Composition Theorem for Differential
    Privacy, 2015, arXiv 1311.0776, theorem 2.1; Nasr et al., Adversary Instantiation,
    2021, arXiv 2101.04535.
    """
    return float(max(0.0, _epsilon(errors, delta)))


def epsilon_gaussian(errors: Errors, delta: float) -> float:
    """The same, if the mechanism is as private as some Gaussian release; 0 at least.

    An estimate and no bound for mechanisms of another trade-off curve.

    **References:** Nasr et al., Tight Auditing of Differentially Private Machine
    Learning, 2023, arXiv 2302.07956.
    """
    mu = float(-stats.norm.ppf(errors.false_positive))
    mu -= float(stats.norm.ppf(errors.false_negative))
    if not mu > 0:
        return 0.0
    return epsilon(gaussian(1 / mu, ADD_OR_REMOVE), delta)


def epsilon_one_run(
    correct: int, guesses: int, canaries: int, delta: float, confidence: float = 0.999
) -> float:
    """A lower bound from one run, in which each canary was in by its own fair coin.

    Args:
      correct: of so many `guesses`, made for some of the `canaries`; how many are made
        must be fixed beforehand.

    **References:** Steinke, Nasr and Jagielski, Privacy Auditing with One (1) Training
    Run, 2023, arXiv 2305.08846, theorem 3.1.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise InputError(
            f"correct={correct}, guesses={guesses}, canaries={canaries}: must not "
            "decrease in this order"
        )

    def doubt(eps):
        rate = 1 / (1 + np.exp(-eps))
        chance = stats.binom.sf(correct - 1, guesses, rate)
        fewer = stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, rate)
        steps = np.arange(1, correct + 1)
        slope = np.max(np.cumsum(fewer) / steps, initial=0.0)
        return chance + 2 * canaries * delta * slope - (1 - confidence)

    if doubt(0.0) > 0:
        return 0.0
    top = 1.0
    while doubt(top) < 0 and top < 64:
        top *= 2
    return float(optimize.brentq(doubt, 0.0, top)) if doubt(top) > 0 else top


Views = tuple[Float[Array, "r p"], ...]


class Player(NamedTuple):
    """Runs a method many times, and its twin without noise, from which an attacker
    learns what a record changes.

    Both are functions (keys [r], member [r n]) -> what the attacker looks at in each
    run: all that was released on the way, and the last state.
    """

    run: Callable[[Any, Bool[Array, "r n"]], Views]
    twin: Callable[[Any, Bool[Array, "r n"]], Views]


def player(
    method: Any, twin: Any, data: Dataset, layout: Layout | None = None
) -> Player:
    """Both as compiled functions; over all devices, unless a layout says otherwise."""
    layout = layout or Layout()
    return Player(_runner(method, data, layout), _runner(twin, data, layout))


def _runner(method: Any, data: Dataset, layout: Layout) -> Callable:
    start = program(method.init, (1,), jax.random.key(0), data, method.public)
    if not start.mechanisms:  # nothing private in it: an attacker may know the start
        init = method.init
        method = method._replace(init=lambda key, *args: init(jax.random.key(0), *args))

    def flat(tree):
        leaves = [
            x.ravel()
            for x in jax.tree.leaves(tree)
            if jnp.issubdtype(x.dtype, jnp.floating)
        ]
        return jnp.concatenate([*leaves, jnp.zeros(1)])

    def one(shared, row):
        key, member = row
        image, label, public = shared
        whole = lambda key, data: fit(key, method, data, public)[0]
        state, found = collect(whole)(key, Dataset(image, label, member))
        return flat([access.released for access in found]), flat(state)

    mapped = map_shadows(one, layout)

    def run(keys, member):
        shared = data.image, data.label, method.public
        views = mapped(shared, (keys, jnp.asarray(member)))
        return tuple(np.asarray(view, np.float64) for view in views)

    return run


def distinguish(
    play: Player, key: Any, member: Bool[Array, " n"], canary: int, runs: int
) -> tuple[Float[Array, " r"], Float[Array, " r"]]:
    """Scores of `runs` independent runs each with and without record `canary`.

    What an attacker sees is projected on what the canary changes in runs without noise,
    each coordinate weighted by the inverse of its variance: the best linear test, where
    coordinates are independent. Weights, and whether to look at the releases or at the
    last state, are learnt on further runs.
    """
    with_it, without = np.tile(member, (runs, 1)), np.tile(member, (runs, 1))
    with_it[:, canary], without[:, canary] = True, False
    learn, try_in, try_out, real_in, real_out = jax.random.split(key, 5)
    few = max(4, runs // 8)
    same = jax.random.split(learn, few)
    shifts = [
        (a - b).mean(0)
        for a, b in zip(
            play.twin(same, with_it[:few]), play.twin(same, without[:few]), strict=True
        )
    ]
    known_in = play.run(jax.random.split(try_in, few), with_it[:few])
    known_out = play.run(jax.random.split(try_out, few), without[:few])
    weights = [
        _weight(shift, (x.var(0) + y.var(0)) / 2)
        for shift, x, y in zip(shifts, known_in, known_out, strict=True)
    ]
    power = [
        np.mean((x @ w)[:, None] > (y @ w)[None])
        for x, y, w in zip(known_in, known_out, weights, strict=True)
    ]
    best = int(np.argmax(power))
    inside = play.run(jax.random.split(real_in, runs), with_it)[best]
    outside = play.run(jax.random.split(real_out, runs), without)[best]
    return inside @ weights[best], outside @ weights[best]


def guess(
    play: Player, key: Any, canaries: int, guesses: int, simulations: int = 64
) -> int:
    """How many of `guesses` are right in one run where each record is in by a coin.

    The records with the highest scores are guessed to be in, as many with the lowest
    to be out. A score is centred and scaled by simulated runs with other coins.
    """
    coin_key, run_key, sim_key, twin_key = jax.random.split(key, 4)
    flip = lambda key, rows: np.asarray(
        jax.random.bernoulli(key, 0.5, (rows, canaries))
    )
    coins = flip(coin_key, 1)
    others = flip(sim_key, simulations)
    everyone = np.ones((canaries + 1, canaries), bool)
    everyone[np.arange(canaries), np.arange(canaries)] = False
    each = play.twin(jnp.stack([twin_key] * (canaries + 1)), everyone)[0]
    shift = each[-1] - each[:-1]
    sims = jax.random.split(jax.random.fold_in(sim_key, 1), simulations)
    known = play.run(sims, others)[0]
    weight = np.stack([_weight(row, known.var(0)) for row in shift], axis=1)
    score, scale = play.run(run_key[None], coins)[0] @ weight, known @ weight
    score = ((score - scale.mean(0)) / np.maximum(scale.std(0), 1e-300))[0]
    order = np.argsort(score)
    half = guesses // 2
    return int(coins[0][order[-half:]].sum() + (~coins[0][order[:half]]).sum())


def _weight(shift: Array, variance: Array) -> Array:
    weight = shift / (variance + 1e-6 * variance.max() + 1e-30)
    return weight / max(np.linalg.norm(weight), 1e-300)


def _upper(errors: Any, trials: int, level: float) -> Any:
    """The Clopper-Pearson upper bound on an error rate, at confidence 1 - level."""
    errors = np.asarray(errors)
    bound = stats.beta.ppf(1 - level, errors + 1, np.maximum(trials - errors, 1e-9))
    return np.where(errors >= trials, 1.0, bound)


def _epsilon(errors: Errors, delta: float) -> Any:
    a, b = errors
    with np.errstate(divide="ignore"):
        one = np.log(np.maximum(1 - delta - b, 0)) - np.log(a)
        other = np.log(np.maximum(1 - delta - a, 0)) - np.log(b)
    return np.maximum(one, other)
