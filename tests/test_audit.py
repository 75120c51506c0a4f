"""Lower bounds hold on null scores and on known mechanisms, and see what is there."""

import numpy as np
import pytest
from scipy import stats

from ppds_jax.attacks.audit import (
    Errors,
    epsilon_clopper_pearson,
    epsilon_gaussian,
    epsilon_one_run,
    error_bounds,
)
from ppds_jax.privacy.accounting import ZERO_OUT, epsilon, gaussian
from ppds_jax.types import InputError


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.5])
def test_bounds_stay_below_the_epsilon_of_a_gaussian(shift):
    """40 audits at 99.9 % each: one fails by chance with probability below 0.04."""
    real = epsilon(gaussian(1 / shift, ZERO_OUT), 1e-5) if shift else 0.0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        errors = error_bounds(rng.normal(shift, 1, 500), rng.normal(0, 1, 500))
        assert epsilon_clopper_pearson(errors, 1e-5) <= real
        assert epsilon_gaussian(errors, 1e-5) <= real


def test_bounds_rise_where_membership_is_plain():
    errors = error_bounds(np.ones(1000) + np.arange(1000), -np.arange(1000.0))
    upper = 1 - 0.0005 ** (1 / 500)
    assert errors == pytest.approx(Errors(upper, upper))
    expected = np.log((1 - 1e-5 - upper) / upper)
    assert epsilon_clopper_pearson(errors, 1e-5) == pytest.approx(expected)


@pytest.mark.parametrize("eps", [0.0, 1.0, 3.0])
def test_one_run_holds_for_randomised_response_as_often_as_it_says(eps):
    """Its guesses are right as often as epsilon allows; the chance of a bound above
    epsilon is summed exactly."""
    right = np.arange(201)
    weight = stats.binom.pmf(right, 200, 1 / (1 + np.exp(-eps)))
    bounds = np.array([epsilon_one_run(int(v), 200, 200, 0.0) for v in right])
    assert weight[bounds > eps + 1e-9].sum() <= 1e-3
    assert eps == 0 or weight @ bounds > 0.4 * eps


def test_one_run_is_the_binomial_bound_without_delta():
    bound = epsilon_one_run(45, 50, 100, 0.0)
    rate = 1 / (1 + np.exp(-bound))
    assert stats.binom.sf(44, 50, rate) == pytest.approx(1e-3, rel=1e-3)
    assert epsilon_one_run(45, 50, 100, 1e-4) < bound


def test_scores_that_cannot_be_used_are_refused():
    with pytest.raises(InputError, match="scores"):
        error_bounds(np.ones(3), np.ones(9))
    with pytest.raises(InputError, match="finite"):
        error_bounds(np.full(9, np.nan), np.ones(9))
    with pytest.raises(InputError, match="correct=9"):
        epsilon_one_run(9, 8, 10, 0.0)
