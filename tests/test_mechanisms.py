"""One-shot releases: what they compute, their noise, and their cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ppds_jax.privacy.accounting import epsilon, pure
from ppds_jax.privacy.flow import program
from ppds_jax.privacy.mechanisms import (
    gaussian_release,
    nearest_votes,
    noisy_histogram,
    noisy_max,
    noisy_sum,
)
from ppds_jax.types import InputError

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
ROWS = jnp.asarray(RNG.normal(size=(30, 4)), jnp.float32)
LABEL = jnp.asarray(RNG.integers(0, 3, 30), jnp.int32)
MEMBER = jnp.asarray(np.arange(30) % 3 != 0)


def mechanisms(fn, *args):
    return program(fn, tuple(range(1, len(args))), *args).mechanisms


def test_the_noise_is_gaussian_and_of_the_size_said():
    release = lambda key, x: gaussian_release(
        key, x, sensitivity=0.5, noise_multiplier=3.0
    )
    statistic = jnp.arange(20_000.0)
    noise = np.asarray(release(KEY, statistic) - statistic)
    assert stats.kstest(noise / 1.5, "norm").pvalue > 1e-3
    ((mechanism, times),) = mechanisms(release, KEY, statistic)
    assert (mechanism.sensitivity, mechanism.deviation, times) == (0.5, 1.5, 1)
    for wrong in ({"sensitivity": 0.0}, {"sensitivity": np.inf}):
        with pytest.raises(InputError):
            gaussian_release(KEY, statistic, noise_multiplier=1.0, **wrong)
    with pytest.raises(InputError):
        gaussian_release(KEY, statistic, sensitivity=1.0, noise_multiplier=-1.0)


def test_sums_are_those_of_clipped_members():
    found = noisy_sum(
        KEY, ROWS, LABEL, MEMBER, num_classes=3, bound=1.2, noise_multiplier=0.0
    )
    expected = np.zeros((3, 4))
    for row, label, member in zip(*map(np.asarray, (ROWS, LABEL, MEMBER)), strict=True):
        if member:
            expected[label] += row * min(1, 1.2 / np.linalg.norm(row))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_sum_moves_by_the_bound_at_most():
    def total(rows):
        return noisy_sum(
            KEY, rows, LABEL, MEMBER, num_classes=3, bound=0.7, noise_multiplier=0.0
        )

    before = total(ROWS)
    for scale in (0.0, 1e-20, 1e20):
        away = float(jnp.linalg.norm(total(ROWS.at[1].mul(scale)) - before))
        assert away <= 2 * 0.7 * 1.0001
        gone = MEMBER.at[1].set(False)
        without = noisy_sum(
            KEY, ROWS, LABEL, gone, num_classes=3, bound=0.7, noise_multiplier=0.0
        )
        alone = total(ROWS.at[1].mul(scale)) - without
        assert float(jnp.linalg.norm(alone)) <= 0.7 * 1.0001


def test_histograms_count_members_and_nothing_outside():
    bins = jnp.array([0, 1, 1, 2, 5, -7, 2], jnp.int32)
    member = jnp.array([True, True, True, True, True, True, False])
    found = noisy_histogram(KEY, bins, member, num_bins=3, noise_multiplier=0.0)
    np.testing.assert_array_equal(found, [1, 2, 1])


def test_votes_go_to_the_nearest_that_is_eligible():
    candidate = jnp.array([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]])
    feature = jnp.array([[0.1, 0.0], [0.9, 0.1], [0.8, 0.0], [4.0, 5.0]])
    member = jnp.array([True, True, False, True])
    votes = nearest_votes(KEY, feature, member, candidate, noise_multiplier=0.0)
    np.testing.assert_array_equal(votes, [1, 1, 1])
    eligible = jnp.array([[False, True, True], [False] * 3, [True] * 3, [True] * 3])
    votes = nearest_votes(
        KEY, feature, member, candidate, noise_multiplier=0.0, eligible=eligible
    )
    np.testing.assert_array_equal(votes, [0, 1, 1])  # who may vote for none does not
    groups = jnp.array([1, 3, 1, 0], jnp.int32), jnp.array([0, 1, 1], jnp.int32)
    votes = nearest_votes(
        KEY, feature, member, candidate, noise_multiplier=0.0, groups=groups
    )
    np.testing.assert_array_equal(votes, [1, 1, 0])
    votes = nearest_votes(
        KEY, feature, member, candidate, noise_multiplier=1.0, allowed=False
    )
    assert np.isnan(votes).all()


@pytest.mark.parametrize("monotone", [False, True])
def test_selection_is_the_exponential_mechanism(monotone):
    score, cost, sensitivity = jnp.array([0.0, 1.0, 2.0, 2.5]), 1.5, 2.0
    keys = jax.random.split(KEY, 40_000)
    choose = jax.jit(
        jax.vmap(
            lambda key: noisy_max(
                key, score, sensitivity=sensitivity, epsilon=cost, monotone=monotone
            )
        )
    )
    count = np.bincount(np.asarray(choose(keys)), minlength=4)
    share = np.exp(
        np.asarray(score, np.float64) * cost / sensitivity / (1 if monotone else 2)
    )
    expected = 40_000 * share / share.sum()
    assert stats.chisquare(count, expected).pvalue > 1e-3
    best = noisy_max(KEY, score, sensitivity=1.0, epsilon=np.inf)
    assert int(best) == 3


def test_a_selection_costs_what_it_says():
    select = lambda key, x: noisy_max(key, x, sensitivity=1.0, epsilon=0.7)
    ((mechanism, times),) = mechanisms(select, KEY, jnp.arange(3.0))
    assert mechanism.event == pure(0.7).event
    assert (mechanism.norm, times) == ("max", 1)
    assert epsilon(pure(0.7), 1e-6) == pytest.approx(0.7, rel=1e-2)
