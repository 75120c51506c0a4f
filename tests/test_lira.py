"""LiRA against plain loops, its invariances, and its closed-form power."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import norm

from ppds_jax.attacks.lira import lira
from ppds_jax.metrics.roc import auc, tpr_at_fpr
from ppds_jax.types import InputError
from tests import reference_attacks


def problem(m, n=6, q=3):
    rng = np.random.default_rng(m)
    member = rng.random((m, n)) < 0.4
    member[:4] = [[True], [False], [True], [False]]  # both sides, with a variance
    shadows = rng.uniform(0.5, 2, size=(n, q)) * rng.normal(size=(m, n, q))
    return rng.normal(size=(n, q)), shadows + member[..., None], member


VARIANCES = ["auto", "per_example", "fixed", "shrunk"]


@pytest.mark.parametrize("num_shadows", [12, 63, 64])  # "auto" changes at 64
@pytest.mark.parametrize("variance", VARIANCES)
def test_lira_is_the_plain_loop(num_shadows, variance):
    inputs, sides = problem(num_shadows), ("one_sided", "two_sided")
    for online, center, rule in product((True, False), ("mean", "median"), sides):
        options = {"online": online, "center": center, "offline_rule": rule}
        expected = reference_attacks.lira(*inputs, variance=variance, **options)
        actual = lira(*inputs, variance=variance, **options)
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variance", VARIANCES)
def test_blocks_of_images_change_nothing(variance):
    """More images than one block holds, and queries that are not next to each other."""
    phi, shadows, member = problem(40, n=4000, q=2)
    wide = np.repeat(shadows, 2, axis=2)[..., ::2].astype(np.float32)
    score = lira(phi, wide, member, variance=variance)
    expected = lira(phi, wide.astype(np.float64), member, variance=variance)
    np.testing.assert_array_equal(score, expected)
    if variance == "per_example":  # images know nothing of each other
        some = slice(1600, 1700)
        alone = lira(phi[some], wide[:, some], member[:, some], variance=variance)
        np.testing.assert_allclose(alone, score[some], rtol=1e-12)


@pytest.mark.parametrize("variance", VARIANCES[1:])
@pytest.mark.parametrize("online", [True, False])
def test_affine_maps_and_permutations_change_nothing(online, variance):
    def check(expected, *inputs):
        score = lira(*inputs, online=online, variance=variance)
        np.testing.assert_allclose(score, expected, rtol=1e-9, atol=1e-9)

    phi, shadows, member = problem(20)
    expected = lira(phi, shadows, member, online=online, variance=variance)
    check(expected, 3 * phi - 5, 3 * shadows - 5, member)
    rng = np.random.default_rng(1)
    models, images = rng.permutation(20), rng.permutation(6)
    check(expected, phi, shadows[models], member[models])
    check(expected[images], phi[images], shadows[:, images], member[:, images])
    if not online:  # what IN shadows say is not looked at
        check(expected, phi, np.where(member[..., None], 1e6, shadows), member)


@pytest.mark.parametrize("variance", VARIANCES[1:])
@pytest.mark.parametrize("online", [True, False])
def test_known_gaussians_reach_the_closed_form(online, variance):
    """AUC Phi(d sqrt(q / 2)), TPR 1 - Phi(z - d sqrt(q)) at an FPR of 1 - Phi(z).

    Standard errors are 0.005 and 0.01: beyond 5 of them 6e-7. Means estimated from 64
    models of each side cost less than 0.005 on top.
    """
    rng, n, q, d = np.random.default_rng(2), 10_000, 2, 0.7
    member = rng.permuted(np.tile(np.arange(128) < 64, (n, 1)), axis=1).T
    target = np.arange(n) % 2 == 0
    level = 3 * rng.normal(size=(n, q))  # easy and hard images, calibrated away
    phi = level + d * target[:, None] + rng.normal(size=(n, q))
    shadows = level + d * member[..., None] + rng.normal(size=(128, n, q))
    score = lira(phi, shadows, member, online=online, variance=variance)
    best = norm.cdf(d)
    assert auc(score, target) == pytest.approx(best, abs=0.03)
    power = norm.sf(norm.isf(0.1) - d * q**0.5)
    assert tpr_at_fpr(score, target, 0.1) == pytest.approx(power, abs=0.055)
    assert auc(phi.mean(1), target) < best - 0.1


def test_bad_shapes_and_options_are_named():
    phi, shadows, member = problem(6)
    for inputs in ((phi[1:], shadows), (phi, shadows[..., 1:]), (phi, shadows[1:])):
        with pytest.raises(InputError, match="target_phi"):
            lira(*inputs, member)
    for field in ("variance", "center", "offline_rule"):
        with pytest.raises(InputError, match=f"^{field}"):
            lira(phi, shadows, member, **{field: "other"})


def test_signals_without_a_query_axis_are_refused():
    phi, shadows, member = problem(6)  # as many images as models
    with pytest.raises(InputError, match="target_phi"):
        lira(phi[:, 0], shadows[..., 0], member)


def test_images_without_a_side_that_is_used_are_refused():
    phi, shadows, member = problem(6)
    with pytest.raises(InputError, match=r"shadow_member: 6 .*OUT"):
        lira(phi, shadows, member | True, online=False)
    with pytest.raises(InputError, match=r"shadow_member: 6 .*IN"):
        lira(phi, shadows, member & False)
    assert lira(phi, shadows, member & False, online=False).shape == (6,)
