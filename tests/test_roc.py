"""ROC curves against brute force; intervals that cover what they say."""

import numpy as np
import pytest
from scipy.stats import norm

from ppds_jax.metrics.roc import (
    auc,
    balanced_accuracy,
    bootstrap,
    ppv,
    rates,
    roc,
    threshold_at_fpr,
    tpr_at_fpr,
)
from ppds_jax.types import InputError


def tied(seed, size=60, levels=7):
    rng = np.random.default_rng(seed)
    member = np.append([True, False], rng.random(size - 2) < 0.4)
    return rng.integers(levels, size=size) + 1.0 * member, member


def brute_force(score, member):
    """Non-members and members at or above each threshold; the thresholds."""
    thresholds = [np.inf, *sorted(set(score.tolist()), reverse=True)]
    false = [sum(score[~member] >= t) for t in thresholds[1:]]
    true = [sum(score[member] >= t) for t in thresholds[1:]]
    return np.array([0, *false]), np.array([0, *true]), thresholds


@pytest.mark.parametrize("seed", range(5))
def test_roc_and_auc_are_those_of_brute_force(seed):
    score, member = tied(seed)
    curve, (false, true, threshold) = roc(score, member), brute_force(score, member)
    np.testing.assert_allclose(curve.fpr, false / false[-1], atol=1e-14)
    np.testing.assert_allclose(curve.tpr, true / true[-1], atol=1e-14)
    np.testing.assert_array_equal(curve.threshold, threshold)
    inside, outside = score[member][:, None], score[~member][None]
    pairs = np.mean((inside > outside) + 0.5 * (inside == outside))
    assert auc(score, member) == pytest.approx(pairs, abs=1e-12)


def test_constant_scores_are_one_block():
    member = np.arange(10) < 5  # members first: unclosed ties would give AUC 1
    assert auc(np.zeros(10), member) == 0.5
    assert tpr_at_fpr(np.zeros(10), member, 0.9) == 0


def test_tied_infinities_are_one_block():
    assert auc(np.full(10, -np.inf), np.arange(10) < 5) == 0.5


@pytest.mark.parametrize("levels", [3, 1000])
def test_tpr_at_fpr_is_the_last_vertex_within(levels):
    for seed in range(20):
        score, member = tied(seed, size=40 + seed, levels=levels)
        false, true, _ = brute_force(score, member)
        for k in range(false[-1] + 1):
            within = true[false <= k].max() / true[-1]
            for alpha in (k / false[-1], k * (1 / false[-1]), (k + 0.5) / false[-1]):
                assert tpr_at_fpr(score, member, alpha) == within
            if k:
                below = true[false < k].max() / true[-1]
                assert tpr_at_fpr(score, member, (k - 1e-6) / false[-1]) == below


@pytest.mark.parametrize("levels", [3, 1000])
def test_thresholds_give_the_rates_of_brute_force(levels):
    for seed in range(10):
        score, member = tied(seed, size=40 + seed, levels=levels)
        for threshold in [-1.0, *score, *(score + 0.5), np.inf]:
            called = score >= threshold
            false, true = called[~member].mean(), called[member].mean()
            assert rates(score, member, threshold) == pytest.approx((false, true))
            right = (true + (1 - false)) / 2
            found = balanced_accuracy(score, member, threshold)
            assert found == pytest.approx(right, abs=1e-12)
            for prior in (0.01, 0.1, 0.5):
                mass = np.where(member, prior / member.sum(), 0)
                mass = np.where(member, mass, (1 - prior) / (~member).sum())
                value = ppv(score, member, threshold=threshold, prior=prior)
                if called.any():
                    expected = mass[called & member].sum() / mass[called].sum()
                    assert value == pytest.approx(expected, abs=1e-12)
                else:
                    assert np.isnan(value)
        for fpr in (0, 0.05, 0.1, 0.5, 1):
            threshold = threshold_at_fpr(score, member, fpr)
            false, true = rates(score, member, threshold)
            assert false <= fpr
            assert true == pytest.approx(tpr_at_fpr(score, member, fpr))


def test_ppv_of_a_guess_is_the_prior():
    """A threshold of other models: 40,000 rows, 5 standard errors, 6e-7."""
    rng = np.random.default_rng(0)
    score, member = rng.normal(size=(2, 40_000)), np.arange(40_000) % 2 == 0
    threshold = threshold_at_fpr(score[0], member, 0.1)
    error = 5 * (2 * 0.1 * 0.9 / 20_000) ** 0.5 / 0.2  # of the odds tpr / fpr, relative
    for prior in (0.01, 0.1, 0.5):
        value = ppv(score[1], member, threshold=threshold, prior=prior)
        assert value == pytest.approx(prior, rel=2 * error)
    assert balanced_accuracy(score[1], member, threshold) == pytest.approx(
        0.5, abs=0.02
    )
    for prior in (0, 1, np.nan):
        with pytest.raises(InputError, match="prior"):
            ppv(score[1], member, threshold=threshold, prior=prior)


def test_affine_scores_and_permutations_change_no_rate():
    score, member = tied(5)
    order = np.random.default_rng(0).permutation(score.size)
    for fpr in np.linspace(0, 1, 21):
        expected = tpr_at_fpr(score, member, fpr)
        assert tpr_at_fpr(3 * score - 7, member, fpr) == expected
        assert tpr_at_fpr(score[order], member[order], fpr) == expected
    assert auc(-score, member) == pytest.approx(1 - auc(score, member), abs=1e-12)


def test_weights_are_repeated_rows():
    score, member = tied(0)
    weight = np.random.default_rng(1).integers(4, size=score.size)
    repeated = np.repeat(score, weight), np.repeat(member, weight)
    assert auc(score, member, weight) == pytest.approx(auc(*repeated), abs=1e-12)
    for alpha in np.linspace(0, 1, 41):
        weighted = tpr_at_fpr(score, member, alpha, weight)
        assert weighted == pytest.approx(tpr_at_fpr(*repeated, alpha), abs=1e-12)


@pytest.mark.parametrize(
    ("score", "member"),
    [([0, np.nan], [1, 0]), ([0, 1], [1, 1]), ([0, 1], [0, 0]), ([0, 1, 2], [1, 0])],
)
def test_bad_inputs_are_refused(score, member):
    field = "member" if len(set(member)) == 1 else "score"
    with pytest.raises(InputError, match=f"^{field}"):
        roc(np.array(score), np.array(member, bool))


def only_auc(score, member, weight):
    return (auc(score, member, weight),)


def coverage(draw, true, clustered, num_sets=400, statistic=only_auc):
    """Of 400 intervals. At a true 94 %, below 90 %: 0.1 %; all 400: 2e-11."""
    hits = []
    for i in range(num_sets):
        score, member = draw(np.random.default_rng([7, i]))
        ways = np.indices(score.shape) if clustered else None
        ((low, high),) = bootstrap(score, member, statistic, clusters=ways, seed=i)
        hits.append(low <= true <= high)
    return np.mean(hits)


def test_intervals_of_independent_rows_cover():
    def draw(rng):
        member = np.arange(160) < 80
        return rng.normal(size=160) + member, member

    assert 0.9 <= coverage(draw, norm.cdf(1 / 2**0.5), clustered=False) < 1


def test_intervals_of_the_tpr_cover():
    """At 10 % FPR, where 20 non-members are above the threshold."""

    def draw(rng):
        member = np.arange(400) < 200
        return rng.normal(size=400) + member, member

    true = norm.sf(norm.isf(0.1) - 1)
    statistic = lambda *rows: (tpr_at_fpr(rows[0], rows[1], 0.1, rows[2]),)
    assert 0.9 <= coverage(draw, true, clustered=False, statistic=statistic) < 1


def test_intervals_of_clustered_rows_cover():
    """What a member gains varies with model and image; without clusters: missed."""

    def draw(rng):
        member = rng.permuted(np.tile(np.arange(40) < 20, (20, 1)), axis=1)
        gain = 1 + rng.normal(size=(20, 1)) + rng.normal(size=(1, 40))
        return rng.normal(size=(20, 40)) + gain * member, member

    assert 0.9 <= coverage(draw, norm.cdf(1 / 4**0.5), clustered=True) < 1
    assert coverage(draw, norm.cdf(1 / 4**0.5), False, num_sets=100) < 0.75


def test_bootstrap_is_a_function_of_its_seed():
    one, same, other = (bootstrap(*tied(3), only_auc, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
