"""ROC curves of membership scores, and intervals that hold. NumPy, float64.

Higher scores say "member". Curves are exact steps; tied scores form one block, closed
at its end; nothing is interpolated.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from ppds_jax.types import InputError


class Roc(NamedTuple):
    """Vertices from (0, 0) to (1, 1); "member" is said at score >= threshold."""

    fpr: Float[Array, " v"]
    tpr: Float[Array, " v"]
    threshold: Float[Array, " v"]


def roc(
    score: Float[Array, "..."],
    member: Bool[Array, "..."],
    weight: Float[Array, "..."] | None = None,
) -> Roc:
    """The ROC curve; `weight` counts each row so many times (default: once).

    Raises:
      InputError: shapes that differ, scores that are NaN, or one side without rows.

    >>> roc(np.array([3.0, 1.0, 2.0]), np.array([True, False, True])).tpr.tolist()
    [0.0, 0.5, 1.0, 1.0]
    """
    score, member = np.asarray(score, np.float64).ravel(), np.asarray(member).ravel()
    weight = np.ones(score.size) if weight is None else np.asarray(weight).ravel()
    if not score.size == member.size == weight.size:
        raise InputError(
            f"score, member, weight: sizes {score.size}, {member.size}, {weight.size} "
            "differ; give one of each for each row"
        )
    if np.isnan(score).any():
        raise InputError(f"score: {np.isnan(score).sum()} of {score.size} are NaN")
    order = np.argsort(-score, kind="stable")  # fast where the scores are sorted
    score, member, weight = score[order], member[order], weight[order]
    last = np.append(np.flatnonzero(score[1:] != score[:-1]), score.size - 1)
    true = np.cumsum(weight * member)[last]
    false = np.cumsum(weight * ~member)[last]
    if not (true[-1] > 0 and false[-1] > 0):
        raise InputError("member: an ROC curve needs members and non-members")
    return Roc(
        np.append(0.0, false / false[-1]),
        np.append(0.0, true / true[-1]),
        np.append(np.inf, score[last]),
    )


def auc(score, member, weight=None) -> float:
    """The probability that a member scores above a non-member, ties counting half."""
    return area(roc(score, member, weight))


def area(curve: Roc) -> float:
    """The area under a curve; the diagonal over a block of ties counts them half."""
    return float(np.trapezoid(curve.tpr, curve.fpr))


def tpr_at_fpr(score, member, fpr: float, weight=None) -> float:
    """The largest true-positive rate at a false-positive rate <= `fpr`.

    The resolution of the false-positive rate is 1 / (number of non-members).
    """
    return rate_at(roc(score, member, weight), fpr)


def rate_at(curve: Roc, fpr: float) -> float:
    """The true-positive rate at the last vertex whose false-positive rate is <= fpr."""
    return float(curve.tpr[_last_within(curve, fpr)])


def threshold_at_fpr(score, member, fpr: float, weight=None) -> float:
    """The threshold at which `tpr_at_fpr` is read: infinite where nothing is within.

    Taken from shadow models and applied to a target, it is a threshold that an attacker
    has. Taken from the target, it is one that only an auditor has.
    """
    curve = roc(score, member, weight)
    return float(curve.threshold[_last_within(curve, fpr)])


def _last_within(curve: Roc, fpr: float) -> int:
    return int(np.flatnonzero(curve.fpr <= fpr * (1 + 1e-12))[-1])


def rates(score, member, threshold: float) -> tuple[float, float]:
    """False- and true-positive rate where "member" is said at score >= threshold."""
    curve = roc(score, member)
    vertex = int(np.flatnonzero(curve.threshold >= threshold)[-1])
    return float(curve.fpr[vertex]), float(curve.tpr[vertex])


def balanced_accuracy(score, member, threshold: float) -> float:
    """The mean of the true-positive and the true-negative rate, 0.5 for a guess.

    The threshold is to come from other models (see `threshold_at_fpr`): the best
    threshold of the same scores is above 0.5 for a guess too.
    """
    false, true = rates(score, member, threshold)
    return (true + 1 - false) / 2


def ppv(score, member, *, threshold: float, prior: float) -> float:
    """The share of members among the images called so, were `prior` of all members.

    tpr prior / (tpr prior + fpr (1 - prior)): the positive predictive value; NaN where
    no image is called a member. The shares of members in `score` do not matter.

    Args:
      score, member: of the target models.
      threshold: set on shadow models (see `threshold_at_fpr`).
      prior: in (0, 1).

    Raises:
      InputError: a prior outside (0, 1), or what `roc` refuses.

    **References:** Jayaraman, Wang, Knipmeyer, Gu and Evans, Revisiting Membership
    Inference Under Realistic Assumptions, 2021, arXiv 2005.10881.
    """
    if not 0 < prior < 1:
        raise InputError(f"prior={prior}: must lie between 0 and 1")
    false, true = rates(score, member, threshold)
    called = true * prior + false * (1 - prior)
    return true * prior / called if called else float("nan")


Statistic = Callable[[Array, Array, Array], Sequence[float]]


def bootstrap(
    score: Float[Array, "..."],
    member: Bool[Array, "..."],
    statistic: Statistic,
    *,
    clusters: Sequence[Int[Array, "..."]] | None = None,
    num_resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Float[Array, "k 2"]:
    """Percentile intervals of statistics of the ROC, thresholds chosen anew each time.

    Args:
      score, member: any shape, the same for both.
      statistic: (score, member, weight) -> k numbers; `weight` counts each row.
      clusters: one array of cluster numbers for each way in which rows hang together
        (target models and images, say), each shaped like `score`: clusters are drawn
        anew in every way, and a row counts the product. None: members and non-members
        are drawn anew, each on their own.
      num_resamples: how often; a resample that leaves one side empty is drawn again.
      level: the share of intervals that should cover.
      seed: of NumPy's generator.

    Returns:
      (low, high) for each of the k numbers.

    **References:** Owen and Eckles, Bootstrapping data arrays of arbitrary order, 2012,
    arXiv 1106.2125.
    """
    score, member = np.asarray(score, np.float64).ravel(), np.asarray(member).ravel()
    order = np.argsort(-score, kind="stable")
    score, member = score[order], member[order]
    clusters = () if clusters is None else clusters
    ways = [np.unique(np.ravel(c)[order], return_inverse=True)[1] for c in clusters]
    rng = np.random.default_rng(seed)
    results: list[Sequence[float]] = []
    while len(results) < num_resamples:
        weight = np.ones(score.size)
        for way in ways:
            weight *= _counts(rng, int(way.max()) + 1)[way]
        if not ways:
            for side in (member, ~member):
                weight[side] = _counts(rng, int(side.sum()))
        if (weight * member).any() and (weight * ~member).any():
            results.append(statistic(score, member, weight))
    tail = 100 * (1 - level) / 2
    return np.percentile(np.array(results), [tail, 100 - tail], axis=0).T


def _counts(rng: np.random.Generator, size: int) -> Array:
    """How often each of `size` rows comes up in `size` draws with replacement."""
    return np.bincount(rng.integers(size, size=size), minlength=size)
