"""The accountant of the tests, itself tested: closed form, quadrature, publications."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

from tests.privacy_loss import Gaussians, Loss, epsilon_bounds
from tests.test_accounting import analytic_gaussian


@pytest.mark.parametrize("steps", [1, 100, 10_000])
@pytest.mark.parametrize("sigma", [0.29, 1.0, 3.73, 30.76])
def test_steps_on_all_data_are_one_gaussian_of_less_noise(sigma, steps):
    exact = analytic_gaussian(sigma, 1e-5)
    run = Gaussians(sigma * math.sqrt(steps), steps=steps)
    low, high = epsilon_bounds([run], 1e-5, slack=1e-3 * exact)
    assert 0.998 * exact <= low <= exact <= high <= 1.002 * exact
    # rounding errors cancel far better than the bounds say
    assert steps == 1 or (low + high) / 2 == pytest.approx(exact, rel=3e-5)


@pytest.mark.parametrize("rate", [1e-3, 0.1, 0.9])
@pytest.mark.parametrize("sigma", [0.4, 1.0, 5.0])
def test_one_step_on_a_sample_is_the_integral_of_its_densities(sigma, rate):
    delta = 1e-5

    def excess(e, present):
        def integrand(x):
            off = norm.pdf(x, 0, sigma)
            on = (1 - rate) * off + rate * norm.pdf(x, 1, sigma)
            more, less = (on, off) if present else (off, on)
            return max(more - math.exp(e) * less, 0.0)

        ends = np.linspace(-9 * sigma, 1 + 9 * sigma, 13)
        return (
            sum(quad(integrand, *piece, limit=200)[0] for piece in pairwise(ends))
            - delta
        )

    # with the record absent, the loss stops at log(1 / (1 - rate))
    exact = max(
        brentq(excess, 0, 60, args=(present,), xtol=1e-9) if excess(0, present) else 0
        for present in (True, False)
    )
    low, high = epsilon_bounds([Gaussians(sigma, rate)], delta, slack=1e-3 * exact)
    assert 0.998 * exact <= low <= exact <= high <= 1.002 * exact


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "published"),
    [
        (1.3, 256 / 60_000, math.ceil(15 * 60_000 / 256), 1.19),
        (1.1, 256 / 60_000, math.ceil(60 * 60_000 / 256), 3.01),
        (0.7, 256 / 60_000, math.ceil(45 * 60_000 / 256), 7.10),
        (4.0, 0.01, 10_000, 1.26),
    ],
)
def test_its_integrals_give_the_published_epsilons(sigma, rate, steps, published):
    """The table of TensorFlow Privacy's MNIST tutorial; Abadi et al. 2016, section 3.

    All at delta 1e-5, and all from Renyi divergences R(a) by the conversion of their
    time, R(a) + log(1 / delta) / (a - 1), at the best a of a list.
    """
    loss = Loss(Gaussians(sigma, rate), present=True)
    ours = min(
        steps * loss.renyi(a) - math.log(1e-5) / (a - 1)
        for a in np.append(np.arange(1.1, 11, 0.1), np.arange(11, 25))
    )
    assert ours == pytest.approx(published, abs=0.006)
