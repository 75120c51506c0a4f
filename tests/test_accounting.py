"""Epsilons against closed forms, and the rules of composition."""

import math

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from ppds_jax.privacy import accounting
from ppds_jax.privacy.accounting import calibrate, compose, epsilon, gaussian, pure
from ppds_jax.types import Budget, InputError


def analytic_gaussian(sigma, delta):
    """Balle and Wang 2018, theorem 8: delta(epsilon) of one Gaussian release."""

    def excess(e):
        a, b = 1 / (2 * sigma) - e * sigma, -1 / (2 * sigma) - e * sigma
        return norm.cdf(a) - math.exp(e) * norm.cdf(b) - delta

    return brentq(excess, 0, 100)


@pytest.mark.parametrize("neighbours", [accounting.ADD_OR_REMOVE, accounting.ZERO_OUT])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.73, 16.3])
def test_gaussian_epsilon_is_the_closed_form_and_never_below(sigma, neighbours):
    exact = analytic_gaussian(sigma, 1e-5)
    ours = epsilon(gaussian(sigma, neighbours), 1e-5)
    assert exact - 1e-9 <= ours <= 1.002 * exact


@pytest.mark.parametrize(("budget", "sigma"), [(0.2, 16.3), (1.0, 3.73), (10.0, 0.50)])
def test_calibration_gives_the_published_multipliers(budget, sigma):
    """Analytic Gaussian mechanism at delta 1e-5."""
    run = lambda s: gaussian(s, accounting.ZERO_OUT)
    ours = calibrate(run, Budget(budget, 1e-5))
    assert ours == pytest.approx(sigma, rel=2e-3)
    assert 0.997 * budget <= epsilon(run(ours), 1e-5) <= budget


def test_k_gaussians_are_one_with_less_noise():
    five = compose(*[gaussian(5.0, accounting.ZERO_OUT)] * 5)
    one = epsilon(gaussian(5.0 / math.sqrt(5), accounting.ZERO_OUT), 1e-5)
    assert epsilon(five, 1e-5) == pytest.approx(one, rel=1e-3)


def test_replace_one_costs_twice_the_sensitivity():
    twice = epsilon(gaussian(4.0, accounting.REPLACE), 1e-5)
    assert twice == pytest.approx(analytic_gaussian(2.0, 1e-5), rel=2e-3)


def poisson(**changes):
    fields = {"noise_multiplier": 1.0, "sampling_rate": 0.1, "num_steps": 50}
    fields |= {"num_members": 1000, "capacity": 1000}
    return accounting.poisson_gaussian(**{**fields, **changes})


def test_poisson_sampling_in_its_limits_and_order():
    base = epsilon(poisson(), 1e-5)
    full = epsilon(poisson(sampling_rate=1.0, num_steps=1), 1e-5)
    assert full == pytest.approx(analytic_gaussian(1.0, 1e-5), rel=2e-3)
    assert epsilon(poisson(num_steps=100), 1e-5) > base
    assert epsilon(poisson(sampling_rate=0.2), 1e-5) > base
    assert epsilon(poisson(noise_multiplier=2.0), 1e-5) < base
    # cutting batches down costs something, and six standard deviations next to nothing
    assert epsilon(poisson(capacity=80), 1e-5) > 1.01 * base
    assert base <= epsilon(poisson(capacity=160), 1e-5) <= 1.01 * base


def test_no_noise_and_no_data_at_the_ends():
    assert epsilon(gaussian(0.0, accounting.ZERO_OUT), 1e-5) == math.inf
    assert epsilon(poisson(noise_multiplier=0.0), 1e-5) == math.inf
    assert epsilon(accounting.data_free(), 1e-5) == 0
    assert calibrate(lambda s: poisson(noise_multiplier=s), Budget(math.inf, 0.1)) == 0


def test_composition_keeps_relations_apart_and_notes_together():
    zero_out = gaussian(1.0, accounting.ZERO_OUT, "a", "b")
    with pytest.raises(InputError, match=r"add-or-remove and zero-out"):
        compose(zero_out, poisson())
    both = compose(
        zero_out, accounting.data_free(), gaussian(1.0, accounting.ZERO_OUT, "b")
    )
    assert both.notes == ("a", "b")
    assert both.neighbours == accounting.ZERO_OUT
    open_ended = compose(zero_out, accounting.non_private())
    assert epsilon(open_ended, 1e-5) == math.inf
    assert epsilon(compose(accounting.data_free()), 1e-5) == 0


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0])
def test_a_delta_outside_its_range_is_refused(delta):
    with pytest.raises(InputError, match="delta="):
        epsilon(poisson(), delta)
    with pytest.raises(InputError, match="delta="):
        calibrate(lambda s: poisson(noise_multiplier=s), Budget(1.0, delta))


@pytest.mark.parametrize("cost", [0.05, 0.7, 2.0, 6.0])
def test_a_pure_release_costs_what_it_says(cost):
    """Of randomised response delta(e) = (e^epsilon - e^e) / (1 + e^epsilon)."""
    for spent in (0.5 * cost, 0.9 * cost, cost):
        delta = max((math.exp(cost) - math.exp(spent)) / (1 + math.exp(cost)), 1e-11)
        assert epsilon(pure(cost), delta) == pytest.approx(spent, rel=5e-3)
    twice = epsilon(compose(pure(cost), pure(cost)), 1e-11)
    assert twice == pytest.approx(2 * cost, rel=5e-3)
