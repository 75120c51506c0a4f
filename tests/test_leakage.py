"""What is reported of an attack: rates, and intervals round them."""

import numpy as np
import pytest

from ppds_jax.metrics.leakage import leakage
from ppds_jax.metrics.roc import auc, bootstrap, tpr_at_fpr


def game(seed):
    rng = np.random.default_rng(seed)
    return rng, rng.permuted(np.tile(np.arange(60) < 30, (8, 1)), axis=1)


def test_memorised_scores_are_detected():
    rng, member = game(0)
    result = leakage(rng.random(member.shape) + member, member)
    rates = result.auc, result.auc_low, result.tpr, result.tpr_low
    np.testing.assert_allclose(rates, 1, atol=1e-12)


def test_random_scores_are_not_detected():
    """At a coverage of 95 %, 14 or fewer of 20: 3e-4."""
    held = 0
    for seed in range(20):
        rng, member = game(seed)
        result = leakage(rng.normal(size=member.shape), member)
        held += 0 < result.auc_low <= 0.5 <= result.auc_high < 1
    assert held >= 15


@pytest.mark.parametrize("fpr", [0.01, 0.1])
def test_fields_are_those_of_one_roc(fpr):
    rng, member = game(1)
    score = rng.normal(size=member.shape) + member
    result = leakage(score, member, fpr=fpr)
    assert result.auc == auc(score, member)
    assert result.tpr == tpr_at_fpr(score, member, fpr)
    assert 0 <= result.auc_low <= result.auc <= result.auc_high <= 1
    assert 0 <= result.tpr_low <= result.tpr <= result.tpr_high <= 1
    assert (result.fpr, result.fpr_resolution) == (fpr, 1 / (8 * 30))


def test_intervals_allow_for_what_targets_share():
    """Members gain by model: rows drawn one by one would claim far too much."""
    rng, member = game(2)
    score = rng.normal(size=member.shape) + member * rng.normal(1, 1, size=(8, 1))
    result = leakage(score, member)
    rows = bootstrap(score, member, lambda *inputs: (auc(*inputs),))
    assert result.auc_high - result.auc_low > 1.5 * np.diff(rows).item()
