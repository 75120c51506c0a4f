"""Every attack from a case; settings that are chosen without a look at the targets."""

import jax
import numpy as np
import pytest

from ppds_jax.attacks.game import half_design, partners, target_pool
from ppds_jax.attacks.score import ATTACKS, Case, choose, score_all, score_targets
from ppds_jax.attacks.signals import SIGNALS
from ppds_jax.metrics.roc import auc
from ppds_jax.types import InputError

MODELS, IMAGES, POPULATION = 12, 200, 80


def case(shift=1.5, seed=0):
    """Gaussian logits, `shift` higher for members; labels tell nothing."""
    rng = np.random.default_rng(seed)
    member = half_design(jax.random.key(seed), np.zeros(IMAGES, int), MODELS)
    phi = rng.normal(size=(MODELS, IMAGES, 2)) + shift * member[..., None]
    phi = phi + rng.normal(size=(1, IMAGES, 1))  # images differ in difficulty
    population = rng.normal(size=(MODELS, POPULATION, 2))
    population = population + rng.normal(size=(1, POPULATION, 1))
    hot = lambda n: np.eye(3)[rng.integers(0, 3, n)][:, :2]
    features = hot(IMAGES), hot(POPULATION)
    return Case(SIGNALS["logit"], phi, member, population, *features)


@pytest.mark.parametrize("name", ATTACKS)
def test_each_attack_finds_members_and_not_what_is_no_membership(name):
    known = case()
    pool = target_pool(known.member, 4)
    target = known.member[pool.target]
    choice = choose(ATTACKS[name], known, pool.reference, num_tried=4)
    score = score_targets(ATTACKS[name], known, pool, **choice.setting)
    assert auc(score, target) > 0.7
    assert choice.auc > 0.7
    assert choice.setting in ATTACKS[name].settings
    anew = known._replace(
        member=half_design(jax.random.key(9), np.zeros(IMAGES, int), MODELS)
    )
    score = score_targets(ATTACKS[name], anew, pool, **choice.setting)
    assert abs(auc(score, anew.member[pool.target]) - 0.5) < 0.12


@pytest.mark.parametrize("name", ["lira", "lira_offline", "rmia_offline"])
def test_targets_are_not_looked_at_when_settings_are_chosen(name):
    known = case()
    pool = target_pool(known.member, 4)
    choice = choose(ATTACKS[name], known, pool.reference, num_tried=4)
    spoilt = known.phi.copy()
    spoilt[pool.target] = np.nan  # whoever looks at them fails
    without = known._replace(phi=spoilt)
    again = choose(ATTACKS[name], without, pool.reference, num_tried=4)
    assert choice.setting == again.setting
    np.testing.assert_array_equal(choice.score, again.score)


def test_a_stand_in_is_not_compared_with_its_partner():
    known = case()
    reference = target_pool(known.member, 4).reference
    other = int(partners(known.member)[reference[0]])
    spoilt = known.phi.copy()
    spoilt[other] = np.nan
    choice = choose(ATTACKS["lira"], known._replace(phi=spoilt), reference, num_tried=1)
    assert np.isfinite(choice.score).all()


def test_the_best_setting_wins():
    known = case()
    reference = np.arange(4, MODELS)
    tried = [
        choose(ATTACKS["rmia_offline"]._replace(settings=(s,)), known, reference, 4)
        for s in ATTACKS["rmia_offline"].settings
    ]
    best = choose(ATTACKS["rmia_offline"], known, reference, 4)
    assert best.auc == max(one.auc for one in tried)
    assert len({round(one.auc, 6) for one in tried}) > 1  # there is something to choose


def test_each_model_in_turn():
    score = score_all(ATTACKS["lira"], case())
    assert score.shape == (MODELS, IMAGES)
    assert auc(score, case().member) > 0.7


def test_quantile_regression_asks_for_features():
    bare = case()._replace(feature=None)
    with pytest.raises(InputError, match="feature"):
        score_all(ATTACKS["quantile_regression"], bare)
