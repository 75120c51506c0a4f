"""Every calibration on every signal: from phi to scores, and settings from references.

The way: a `Case` (one signal of one release, on all models) -> `choose` tries an
attack's settings on references as if they were targets -> `score_targets` attacks the
targets with the setting that did best there. Host, float64.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from ppds_jax.attacks import baselines
from ppds_jax.attacks.game import Pool, leave_one_out, partners, score_pool
from ppds_jax.attacks.lira import lira
from ppds_jax.attacks.rmia import rmia, rmia_ratio
from ppds_jax.attacks.signals import Signal
from ppds_jax.metrics.roc import auc
from ppds_jax.types import InputError


class Case(NamedTuple):
    """One signal on all models, and what public facts an attack may use besides."""

    signal: Signal
    phi: Float[Array, "m n q"]
    member: Bool[Array, "m n"]
    population: Float[Array, "m z q"]
    feature: Float[Array, "n f"] | None = None  # of the audited images, public
    population_feature: Float[Array, "z f"] | None = None


Setting = Mapping[str, Any]


class Attack(NamedTuple):
    """A calibration, and the settings among which references decide.

    `calibrate(case, target_phi, shadow_phi, shadow_member, population_target,
    population_shadow, **setting)` gives scores [n].
    """

    name: str
    calibrate: Callable[..., Array]
    settings: tuple[Setting, ...] = ({},)


def _global_threshold(case: Case, phi, *rest) -> Array:
    return baselines.global_threshold(phi)


def _attack_p(case: Case, phi, shadows, member, population, _) -> Array:
    return baselines.attack_p(phi, population)


def _quantile_regression(case: Case, phi, shadows, member, population, _) -> Array:
    if case.feature is None or case.population_feature is None:
        raise InputError("feature, population_feature: quantile regression needs them")
    return baselines.quantile_regression(
        phi, case.feature, population, case.population_feature
    )


def _difficulty(case: Case, phi, shadows, member, *population) -> Array:
    return baselines.difficulty_calibrated(phi, shadows, member)


def _attack_r(case: Case, phi, shadows, member, *population) -> Array:
    return baselines.attack_r(phi, shadows, member)


def _lira(
    case: Case, phi, shadows, member, population_target, _, **setting: Any
) -> Array:
    return lira(phi, shadows, member, **setting)


def _rmia(case: Case, phi, shadows, member, z_phi, z_shadows, **setting: Any) -> Array:
    """Probabilities are averaged over queries; the ratio itself breaks ties."""
    p, s, z, zs = (
        case.signal.probability(x).mean(-1) for x in (phi, shadows, z_phi, z_shadows)
    )
    share = rmia(p, s, member, z, zs, **setting)
    ratio = rmia_ratio(p, s, member, **setting)
    return share + (0.5 + np.arctan(ratio) / np.pi) / (2 * len(z))


ATTACKS = {
    attack.name: attack
    for attack in (
        Attack("global_threshold", _global_threshold),
        Attack("attack_p", _attack_p),
        Attack("quantile_regression", _quantile_regression),
        Attack("difficulty_calibrated", _difficulty),
        Attack("attack_r", _attack_r),
        Attack(
            "lira_offline",
            partial(_lira, online=False),
            tuple(
                {"variance": variance, "offline_rule": rule}
                for variance in ("fixed", "per_example", "shrunk")
                for rule in ("one_sided", "two_sided")
            ),
        ),
        Attack(
            "lira",
            _lira,
            tuple({"variance": v} for v in ("fixed", "per_example", "shrunk")),
        ),
        Attack(
            "rmia_offline",
            _rmia,
            tuple({"offline_a": a} for a in (0.0, 0.3, 0.6, 0.9)),
        ),
        Attack("rmia", partial(_rmia, online=True)),
    )
}


def score_all(attack: Attack, case: Case, **setting: Any) -> Float[Array, "m n"]:
    """Each model in turn the target, the others its references; see `leave_one_out`.

    The setting is not chosen: it is the one that is given, or the attack's own default.
    """
    calibrate = partial(attack.calibrate, case, **setting)
    return leave_one_out(calibrate, case.phi, case.member, case.population)


def score_targets(
    attack: Attack, case: Case, pool: Pool, **setting: Any
) -> Float[Array, "t n"]:
    """The pool's targets, each against all of the pool's references."""
    calibrate = partial(attack.calibrate, case, **setting)
    return score_pool(calibrate, case.phi, case.member, pool, case.population)


class Choice(NamedTuple):
    """What references say of an attack: its best setting, and scores under it."""

    setting: Setting
    auc: float
    model: Int[Array, " k"]  # the references that stood in for targets
    score: Float[Array, "k n"]


def choose(
    attack: Attack, case: Case, reference: Int[Array, " r"], num_tried: int = 8
) -> Choice:
    """The setting with the largest AUC on some references, attacked by the others.

    Targets are not looked at, so that nothing is chosen by what it is judged on.

    Args:
      attack: one of `ATTACKS`.
      case: all models.
      reference: the models that may be looked at, at least 3.
      num_tried: how many of them stand in for targets, each in turn.
    """
    tried, partner = reference[:num_tried], partners(case.member)
    found = []
    for setting in attack.settings:
        scores = [
            score_targets(
                attack,
                case,
                Pool(
                    np.array([model]), np.setdiff1d(reference, [model, partner[model]])
                ),
                **setting,
            )
            for model in tried
        ]
        score = np.concatenate(scores)
        found.append(Choice(setting, auc(score, case.member[tried]), tried, score))
    return max(found, key=lambda choice: choice.auc)
