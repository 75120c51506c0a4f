"""RMIA against plain loops, its limits, and its relation to its own ratio."""

import numpy as np
import pytest
from scipy.stats import norm

from ppds_jax.attacks.rmia import rmia, rmia_ratio
from ppds_jax.attacks.score import ATTACKS, Case, score_all
from ppds_jax.attacks.signals import Signal
from ppds_jax.metrics.roc import auc, tpr_at_fpr
from ppds_jax.types import InputError
from tests import reference_attacks


def problem(m=6, n=30, z=40, seed=0):
    rng = np.random.default_rng(seed)
    member = rng.random((m, n)) < 0.5
    member[:2] = [[True], [False]]  # each image has both sides
    p = lambda *shape: rng.uniform(0.01, 1, size=shape)
    return p(n), p(m, n), member, p(z), p(m, z)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("online", [True, False])
def test_rmia_is_the_plain_loop(online, gamma):
    for seed, a in enumerate((0.0, 0.3, 1.0)):
        inputs = problem(seed=seed)
        options = {"online": online, "offline_a": a}
        score = rmia(*inputs, gamma=gamma, **options)
        expected = reference_attacks.rmia(*inputs, gamma=gamma, **options)
        np.testing.assert_allclose(score, expected, atol=1e-12)
        assert ((score >= 0) & (score <= 1)).all()
        inputs[2][:, 3] = False  # without an IN shadow, OUT alone
        ratio = rmia_ratio(*inputs[:3], **options)
        expected = np.log(reference_attacks.rmia_ratio(*inputs[:3], **options))
        np.testing.assert_allclose(ratio, expected, atol=1e-12)


def test_domination_is_strict():
    target, shadows, member, *_ = problem()
    score = rmia(target, shadows, member & False, target, shadows)  # x among the z
    np.testing.assert_allclose(np.sort(score), np.arange(30) / 30)


def test_limits_of_gamma_and_a():
    for online in (True, False):
        assert (rmia(*problem(), online=online, gamma=1e-12) == 1).all()
        assert (rmia(*problem(), online=online, gamma=1e12) == 0).all()
    target, shadows, member, *_ = problem()
    out = np.array([shadows[~member[:, j], j].mean() for j in range(target.size)])
    for a, prior in ((1.0, out), (0.0, (1 + out) / 2)):
        ratio = rmia_ratio(target, shadows, member, offline_a=a)
        np.testing.assert_allclose(ratio, np.log(target / prior), atol=1e-12)


@pytest.mark.parametrize("online", [True, False])
def test_the_ratio_ranks_as_the_share(online):
    share = rmia(*problem(n=200), online=online)
    ratio = rmia_ratio(*problem(n=200)[:3], online=online)
    assert (np.diff(share[np.argsort(ratio)]) >= 0).all()
    assert 5 < np.unique(share).size <= 41 < np.unique(ratio).size == 200


def test_ties_of_the_share_are_broken_by_the_ratio():
    rng = np.random.default_rng(0)
    member = np.array([[0, 1] * 50, [1, 0] * 50, [0, 0, 1, 1] * 25, [1, 1, 0, 0] * 25])
    p, z, member = rng.random((4, 100)), rng.random((4, 10)), member.astype(bool)
    identity = Signal("probability", lambda phi: phi)
    case = Case(identity, p[..., None], member, z[..., None])
    score = score_all(ATTACKS["rmia_offline"], case)[0]
    share = rmia(p[0], p[2:], member[2:], z[0], z[2:])
    ratio = rmia_ratio(p[0], p[2:], member[2:])
    np.testing.assert_array_equal(np.argsort(score), np.lexsort((ratio, share)))
    assert ((score > share) & (score < share + 1 / 10)).all()  # less than one z


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
@pytest.mark.parametrize("which", [0, 1, 3, 4])
def test_bad_probabilities_and_gammas_are_refused(which, value):
    inputs = problem()
    inputs[which].flat[0] = value
    with pytest.raises(InputError, match="probabilities"):
        rmia(*inputs)
    with pytest.raises(InputError, match="gamma"):
        rmia(*problem(), gamma=min(value, 0.0))


@pytest.mark.parametrize("which", range(5))
def test_shapes_that_do_not_fit_are_refused(which):
    inputs = list(problem())
    inputs[which] = inputs[which][1:]  # one image, or one shadow, too few
    with pytest.raises(InputError, match="must be"):
        rmia(*inputs)


@pytest.mark.parametrize("side", [True, False])
def test_images_without_a_side_that_is_used_are_refused(side):
    inputs = problem()
    inputs[2][:, 0] = side
    with pytest.raises(InputError, match="shadow_member: 1 "):
        rmia(*inputs, online=True)


def test_a_population_of_nothing_is_refused():
    target, shadows, member, z_target, z_shadows = problem()
    with pytest.raises(InputError, match="at least one"):
        rmia(target, shadows, member, z_target[:0], z_shadows[:, :0])
    for a in (-0.1, 1.1, np.nan):
        with pytest.raises(InputError, match="offline_a"):
            rmia(target, shadows, member, z_target, z_shadows, offline_a=a)


@pytest.mark.parametrize("online", [True, False])
def test_permutations_change_nothing(online):
    target, shadows, member, z_target, z_shadows = problem()
    rng = np.random.default_rng(1)
    models, images, points = (rng.permutation(size) for size in (6, 30, 40))
    expected = rmia(*problem(), online=online)
    rows = shadows[models], member[models], z_target, z_shadows[models]
    np.testing.assert_allclose(rmia(target, *rows, online=online), expected)
    columns = target[images], shadows[:, images], member[:, images]
    found = rmia(*columns, z_target[points], z_shadows[:, points], online=online)
    np.testing.assert_array_equal(found, expected[images])


@pytest.mark.parametrize("online", [True, False])
def test_known_gaussians_reach_the_closed_form(online):
    """With log p(x | model) = level + d member + noise, r_x is monotone in what LiRA
    sees: AUC Phi(d / sqrt 2), TPR 1 - Phi(z - d), but for the shadows' own means.

    At 20,000 images the standard errors are 0.0034 and 0.008: 5 of them, 6e-7.
    """
    rng, n, z, d = np.random.default_rng(2), 20_000, 5000, 1.0
    image = np.arange(n) % 2 == 0
    member = rng.random((256, n)) < 0.5
    level, z_level = -12 + rng.normal(size=n), -12 + rng.normal(size=z)
    p = lambda level, member: np.exp(
        np.minimum(level + d * member + rng.normal(size=member.shape), 0)
    )
    none = np.zeros((256, z))
    inputs = p(level, image), p(level, member), member, p(z_level, none[0])
    score = rmia(*inputs, p(z_level, none), online=online, offline_a=1.0)
    assert auc(score, image) == pytest.approx(norm.cdf(d / 2**0.5), abs=0.025)
    power = norm.sf(norm.isf(0.1) - d)
    assert tpr_at_fpr(score, image, 0.1) == pytest.approx(power, abs=0.045)
