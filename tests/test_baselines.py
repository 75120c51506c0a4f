"""The simpler attacks: against plain loops, their invariances and their power."""

import numpy as np
import pytest
from scipy.stats import norm

from ppds_jax.attacks.baselines import (
    attack_p,
    attack_r,
    difficulty_calibrated,
    global_threshold,
    quantile_regression,
)
from ppds_jax.metrics.roc import auc
from ppds_jax.types import InputError
from tests import reference_attacks

WITH_SHADOWS = (attack_r, difficulty_calibrated)


def problem(m=7, n=30, q=3, z=40, seed=0):
    """Rounded signals, so that some are tied."""
    rng = np.random.default_rng(seed)
    member = rng.random((m, n)) < 0.5
    member[0] = False
    draw = lambda *shape: rng.normal(size=shape).round(1)
    return draw(n, q), draw(m, n, q), member, draw(z, q)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_attacks_are_the_plain_loops(dtype):
    phi, shadows, member, population = (
        x if x.dtype == bool else x.astype(dtype).astype(np.float64) for x in problem()
    )
    for attack, *inputs in (
        (global_threshold, phi),
        (attack_p, phi, population),
        *((attack, phi, shadows, member) for attack in WITH_SHADOWS),
    ):
        expected = getattr(reference_attacks, attack.__name__)(*inputs)
        stored = [x if x.dtype == bool else x.astype(dtype) for x in inputs]
        np.testing.assert_allclose(attack(*stored), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("level", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("num_features", [0, 1, 2])
def test_quantile_regression_is_the_best_of_all_planes(num_features, level):
    rng = np.random.default_rng(num_features)
    phi, population = rng.normal(size=(5, 2)), rng.normal(size=(19, 2))
    feature = rng.normal(size=(5, num_features))
    z_feature = 10 * rng.normal(size=(19, num_features)) - 3
    inputs = phi, feature, population, z_feature
    expected = reference_attacks.quantile_regression(*inputs, level=level)
    score = quantile_regression(*inputs, level=level)
    np.testing.assert_allclose(score, expected, rtol=1e-9, atol=1e-9)


def test_quantile_regression_flags_as_many_of_each_kind():
    """Non-members of 4 labels, 2,000 each, at level 0.9: 0.1 within 5 errors, 5e-6.

    The errors are those of both sets, population and audited: 0.1 x 0.9 x 2 / 2,000.
    """
    rng = np.random.default_rng(0)
    label, one_hot = np.arange(8000) % 4, np.eye(4)
    draw = lambda: (rng.normal(size=8000) * (1 + label) + 5 * label)[:, None]
    feature = one_hot[label]  # with the intercept: one column too many
    score = quantile_regression(draw(), feature, draw(), feature, level=0.9)
    for kind in range(4):
        flagged = np.mean(score[label == kind] > 0)
        assert flagged == pytest.approx(0.1, abs=5 * (0.18 / 2000) ** 0.5)
    plain = draw()[:, 0] - np.quantile(draw(), 0.9)  # one threshold flags one kind only
    assert np.mean(plain[label == 0] > 0) == 0


def test_known_gaussians_reach_the_closed_form():
    """AUC Phi(d / sqrt 2), at 20,000 images 0.0034; 5 of them: 6e-7."""
    rng, n, d = np.random.default_rng(2), 20_000, 1.0
    target = np.arange(n) % 2 == 0
    level, feature = rng.normal(size=(2, n, 1)) * [[[3]], [[1]]]
    member = rng.random((200, n)) < 0.5
    seen = d * target[:, None] + rng.normal(size=(n, 1))
    best, population = norm.cdf(d / 2**0.5), rng.normal(size=(5000, 1))
    check = lambda score: abs(auc(score, target) - best) < 0.017
    assert check(global_threshold(seen))
    assert check(attack_p(seen, population))
    z_feature = rng.normal(size=(5000, 1))
    assert check(
        quantile_regression(
            seen + 3 * feature,
            feature,
            population + 3 * z_feature,
            z_feature,
            level=0.5,
        )
    )
    shadows = level + d * member[..., None] + rng.normal(size=(200, n, 1))
    for attack in WITH_SHADOWS:
        assert check(attack(level + seen, shadows, member))
    assert auc(global_threshold(level + seen), target) < best - 0.1


def test_invariances():
    phi, shadows, member, population = problem()
    rng = np.random.default_rng(1)
    models, images, points = (
        rng.permutation(7),
        rng.permutation(30),
        rng.permutation(40),
    )
    for attack in WITH_SHADOWS:
        score = attack(phi, shadows, member)
        moved = attack(phi + 5, shadows + 5, member)
        np.testing.assert_allclose(moved, score, atol=1e-9)
        shuffled = attack(phi, shadows[models], member[models])
        np.testing.assert_allclose(shuffled, score, atol=1e-12)
        shuffled = attack(phi[images], shadows[:, images], member[:, images])
        np.testing.assert_array_equal(shuffled, score[images])
        unseen = np.where(member[..., None], np.nan, shadows)  # IN is not looked at
        np.testing.assert_array_equal(attack(phi, unseen, member), score)
    score = attack_p(phi, population)
    np.testing.assert_array_equal(attack_p(3 * phi, 3 * population[points]), score)
    assert ((score >= 0) & (score <= 1)).all()


def test_wrong_inputs_are_named():
    phi, shadows, member, population = problem()
    for attack in WITH_SHADOWS:
        with pytest.raises(InputError, match="target_phi"):
            attack(phi[1:], shadows, member)
        with pytest.raises(InputError, match=r"shadow_member: 30 .*OUT"):
            attack(phi, shadows, member | True)
    for wrong in (phi[:, 0], phi[..., None]):
        with pytest.raises(InputError, match="target_phi"):
            global_threshold(wrong)
    for wrong in (population[:, 1:], population[:0], population[:, 0]):
        with pytest.raises(InputError, match="population_target"):
            attack_p(phi, wrong)
    x, z = np.zeros((30, 2)), np.zeros((40, 2))
    for inputs in ((phi, x[1:], population, z), (phi, x, population, z[:, 1:])):
        with pytest.raises(InputError, match=r"^feature"):
            quantile_regression(*inputs)
    with pytest.raises(InputError, match="finite"):
        quantile_regression(phi, x + np.nan, population, z)
    for level in (0.0, 1.0, np.nan):
        with pytest.raises(InputError, match="level"):
            quantile_regression(phi, x, population, z, level=level)
