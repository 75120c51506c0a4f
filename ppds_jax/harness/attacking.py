"""From evidence to rows: each attack on each signal, as chosen on shadow models.

The way: `Evidence` -> every `Case` with every attack -> `choose` on shadow models ->
scores of the targets -> rates and intervals -> rows.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from scipy.stats import norm

from ppds_jax.attacks.game import Pool, half_design, target_pool
from ppds_jax.attacks.score import ATTACKS, Attack, Case, Choice, choose, score_targets
from ppds_jax.harness.controls import ANEW
from ppds_jax.harness.evidence import Evidence
from ppds_jax.harness.progress import progress
from ppds_jax.harness.run import Row, plain
from ppds_jax.metrics.leakage import Leakage, leakage
from ppds_jax.metrics.roc import (
    balanced_accuracy,
    ppv,
    roc,
    threshold_at_fpr,
    tpr_at_fpr,
)
from ppds_jax.privacy.accounting import ADD_OR_REMOVE, epsilon, gaussian

PRIORS = (0.01, 0.1, 0.5)


@dataclass(frozen=True, kw_only=True)
class MiaRow(Leakage):
    """One attack on one signal of one release, on targets that it was not chosen on.

    `setting`, `auc_on_shadows`, `chosen` (the release's best attack) and all thresholds
    come from shadow models. `ppv_1`: the share of members among images called so, if 1
    % of all were. `accuracy` is on real test images, the mean over models.
    `epsilon_estimate` is that of a Gaussian release whose best attack has the AUC at
    the low end of the interval: for average images and this attack, and no bound.
    """

    data: str
    design: str
    subject: str
    release: str
    signal: str
    attack: str
    setting: str
    kind: str
    control: str
    chosen: bool
    auc_on_shadows: float
    tpr_at_1_percent: float
    balanced_accuracy: float
    ppv_1: float | None
    ppv_10: float | None
    ppv_50: float | None
    epsilon_estimate: float | None
    accuracy: float
    accuracy_std: float
    epsilon: float
    delta: float
    neighbours: str
    notes: tuple[str, ...]
    method: str
    num_shadows: int
    num_targets: int
    num_private: int
    num_members: int


class Tried(NamedTuple):
    """One attack on one signal: what shadows say of it, and its scores on targets."""

    signal: str
    attack: Attack
    case: Case
    choice: Choice
    score: np.ndarray  # [targets n]


def attack_all(
    evidence: Evidence, *, fpr: float, num_resamples: int
) -> tuple[list[Row], dict[str, Float[Array, "2 v"]]]:
    """Every attack on every signal of every release; of the best ones the ROC curves.

    Curves are named SUBJECT|RELEASE|KIND.
    """
    rows, curves = [], {}
    pool = target_pool(evidence.audited.member, evidence.facts["num_targets"])
    with (
        progress(len(evidence.releases), "attacks") as done,
        ThreadPoolExecutor(len(ATTACKS)) as threads,
    ):
        for release in evidence.releases:
            work = product(evidence.cases(release), ATTACKS.values())
            tried = list(threads.map(lambda pair: _try(pair[0], pair[1], pool), work))
            best = max(tried, key=lambda one: one.choice.auc)
            settings = evidence, release, best, pool, fpr, num_resamples
            found = list(threads.map(partial(_rows, settings), tried))
            for row, curve in (pair for pairs in found for pair in pairs):
                rows.append(plain(row))
                if curve is not None:
                    name = f"{row.subject}|{row.release}|{row.kind}"
                    curves[name] = np.stack([curve.fpr, curve.tpr])
            done(1)
    return rows, curves


def _try(named: tuple[str, Case], attack: Attack, pool: Pool) -> Tried:
    name, case = named
    choice = choose(attack, case, pool.reference)
    score = score_targets(attack, case, pool, **choice.setting)
    return Tried(name, attack, case, choice, score)


def _rows(settings: tuple, one: Tried) -> list[tuple[MiaRow, Any]]:
    """One attack's row for each kind of image; of the best attack also its curve."""
    evidence, release, best, pool, fpr, num_resamples = settings
    rows = []
    kinds = evidence.audited.kind
    designs = [("", one.case.member, one, kind) for kind in ("all", *np.unique(kinds))]
    designs = designs[: 1 if (kinds == "").all() else None]
    if one is best:
        anew = _anew(evidence)
        again = _try((one.signal, one.case._replace(member=anew)), one.attack, pool)
        designs.append((ANEW, anew, again, "all"))
    accuracy = evidence.accuracy(release)
    for control, member, tried, kind in designs:
        keep = kinds == kind if kind != "all" else np.ones(len(kinds), bool)
        score, inside = tried.score[:, keep], member[pool.target][:, keep]
        seen = tried.choice.score[:, keep], member[tried.choice.model][:, keep]
        leaked = leakage(score, inside, fpr=fpr, num_resamples=num_resamples)
        cut = threshold_at_fpr(*seen, 0.01)
        curve = roc(*seen)
        middle = float(curve.threshold[np.argmax(curve.tpr - curve.fpr)])
        shares = [ppv(score, inside, threshold=cut, prior=prior) for prior in PRIORS]
        one_percent, ten_percent, half = (None if x != x else x for x in shares)
        estimate = None
        if one is best and not control:
            estimate = _epsilon_of(leaked.auc_low, evidence.facts["delta"])
        row = MiaRow(
            **asdict(leaked),
            subject=release.subject,
            release=release.release,
            signal=one.signal,
            attack=one.attack.name,
            setting=", ".join(f"{k}={v}" for k, v in tried.choice.setting.items()),
            kind=kind,
            control=control or release.control,
            chosen=one is best,
            auc_on_shadows=tried.choice.auc,
            tpr_at_1_percent=tpr_at_fpr(score, inside, 0.01),
            balanced_accuracy=balanced_accuracy(score, inside, middle),
            ppv_1=one_percent,
            ppv_10=ten_percent,
            ppv_50=half,
            epsilon_estimate=estimate,
            accuracy=float(accuracy.mean()),
            accuracy_std=float(accuracy.std()),
            epsilon=release.epsilon,
            neighbours=release.neighbours,
            notes=release.notes,
            method=release.method,
            num_shadows=len(pool.reference),
            **{
                name: evidence.facts[name]
                for name in ("data", "design", "delta", "num_targets", "num_private")
            },
            num_members=evidence.facts["num_members"],
        )
        shown = one is best and not control
        rows.append((row, roc(score, inside) if shown else None))
    return rows


def _anew(evidence: Evidence) -> np.ndarray:
    """A membership that has nothing to do with what the models were trained on."""
    key = jax.random.key(2**31 - 1)
    label = evidence.audited.label
    if (evidence.audited.kind != "").any():
        label = np.unique(evidence.audited.kind, return_inverse=True)[1]
    return half_design(key, label, len(evidence.audited.member))


def _epsilon_of(area: float, delta: float) -> float:
    """Of a Gaussian release between whose two outcomes the best test has this AUC."""
    distance = np.sqrt(2) * norm.ppf(area)
    if not distance > 0:
        return 0.0
    if not np.isfinite(distance):
        return float("inf")
    return epsilon(gaussian(1 / distance, ADD_OR_REMOVE), delta)
