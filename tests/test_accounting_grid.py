"""Our noise multipliers, measured by an accountant that shares nothing with ours."""

import itertools
import math

import numpy as np
import pytest

from ppds_jax.privacy import accounting
from ppds_jax.privacy.accounting import calibrate, compose, epsilon, rdp_epsilon
from ppds_jax.types import Budget, InputError
from tests.privacy_loss import Gaussians, Loss, epsilon_bounds
from tests.test_accounting import analytic_gaussian, poisson

DELTA = 1e-5
MANY = 10**6  # members, and rows of a batch: none is cut down
EPSILONS, RATES = (0.1, 1.0, 3.0, 10.0, 20.0), (1e-4, 1e-3, 1e-2, 0.1, 1.0)
STEPS = (1, 100, 1_000, 10_000, 100_000)
# every value of each axis, opposite corners, and where rounding to one grid was worst
FAST = [
    (0.1, 1e-4, 1),
    (0.1, 1.0, 100_000),
    (0.1, 1e-2, 10_000),
    (1.0, 1e-2, 1_000),
    (1.0, 1.0, 100_000),
    (1.0, 1e-2, 100_000),
    (3.0, 1e-3, 1_000),
    (3.0, 0.1, 100),
    (10.0, 1e-3, 100),
    (10.0, 0.1, 10_000),
    (20.0, 1e-4, 10_000),
    (20.0, 1.0, 1),
]
GRID = [
    pytest.param(*point, marks=() if point in FAST else pytest.mark.slow)
    for point in itertools.product(EPSILONS, RATES, STEPS)
]


def run(sigma, rate, steps):
    return accounting.poisson_gaussian(
        noise_multiplier=sigma,
        sampling_rate=rate,
        num_steps=steps,
        num_members=MANY,
        capacity=MANY,
    )


@pytest.mark.parametrize(("budget", "rate", "steps"), GRID)
def test_noise_multipliers_spend_the_budget_and_no_more(budget, rate, steps):
    """`calibrate` promises 0.997 of the budget by its own count, which may be 0.0007
    too high; the bounds are 0.0005 of the budget and one cell of their grid apart from
    the truth. Every rate is above delta: see the next test."""
    sigma = calibrate(lambda s: run(s, rate, steps), Budget(budget, DELTA))
    low, high = epsilon_bounds(
        [Gaussians(sigma, rate, steps)], DELTA, slack=5e-4 * budget
    )
    assert 0.9955 * budget <= low <= budget
    assert high <= 1.001 * budget


def test_a_budget_that_delta_alone_covers_ends_the_search():
    """A record drawn with a probability below delta needs no noise to be covered: such
    points have no least multiplier, and are not on the grid."""
    once = lambda sigma: run(sigma, DELTA / 10, 1)
    sigma = calibrate(once, Budget(1.0, DELTA))
    assert sigma < 0.1
    assert epsilon(once(sigma), DELTA) == 0


def test_unlike_stages_add_up():
    """Two Gaussians and a DP-SGD run, against the convolution of their losses."""
    gaussians = [accounting.gaussian(s, accounting.ADD_OR_REMOVE) for s in (5.0, 8.0)]
    stages = compose(*gaussians, run(1.0, 0.01, 1_000))
    parts = [Gaussians(5.0), Gaussians(8.0), Gaussians(1.0, 0.01, 1_000)]
    low, high = epsilon_bounds(parts, DELTA, slack=2e-3)
    assert low <= epsilon(stages, DELTA) <= 1.001 * high
    # more than any stage alone, and less than the sum of their epsilons
    alone = [epsilon(stage, DELTA) for stage in (*gaussians, run(1.0, 0.01, 1_000))]
    assert max(alone) < low < high < 0.8 * sum(alone)


@pytest.mark.parametrize("releases", [2, 10, 50])
def test_gaussians_add_up_to_one_of_less_noise(releases):
    stages = [accounting.gaussian(5.0, accounting.ADD_OR_REMOVE)] * releases
    exact = analytic_gaussian(5.0 / math.sqrt(releases), DELTA)
    assert exact - 1e-9 <= epsilon(compose(*stages), DELTA) <= 1.002 * exact
    low, high = epsilon_bounds([Gaussians(5.0)] * releases, DELTA, slack=1e-3 * exact)
    assert low <= exact <= high


PUBLISHED = [  # Renyi epsilons at delta 1e-5: see test_privacy_loss
    (1.3, 256 / 60_000, 3_516, 1.19),
    (1.1, 256 / 60_000, 14_063, 3.01),
    (0.7, 256 / 60_000, 10_547, 7.10),
    (4.0, 0.01, 10_000, 1.26),
]


@pytest.mark.parametrize(("sigma", "rate", "steps", "published"), PUBLISHED)
def test_published_settings_cost_less_by_newer_accounting(
    sigma, rate, steps, published
):
    pld, rdp = (
        count(run(sigma, rate, steps), DELTA) for count in (epsilon, rdp_epsilon)
    )
    assert 0.7 * published < pld < rdp < published
    low, high = epsilon_bounds([Gaussians(sigma, rate, steps)], DELTA, slack=1e-3 * pld)
    assert low <= pld <= 1.001 * high
    # Renyi divergences of our own, and the conversion of Canonne, Kamath and Steinke
    # 2020 (arXiv 2004.00010)
    loss = Loss(Gaussians(sigma, rate), present=True)
    own = min(
        steps * loss.renyi(a) + math.log1p(-1 / a) - math.log(a * DELTA) / (a - 1)
        for a in np.append(np.arange(1.1, 11, 0.1), np.arange(11, 25))
    )
    # its series for fractional orders adds up absolute values: a little too high
    assert own * (1 - 1e-9) <= rdp <= 1.0005 * own


@pytest.mark.parametrize(("budget", "sigma"), [(0.2, 16.3), (1.0, 3.73), (10.0, 0.50)])
def test_renyi_is_looser_on_one_gaussian_too(budget, sigma):
    release = accounting.gaussian(sigma, accounting.ZERO_OUT)
    exact = analytic_gaussian(sigma, DELTA)
    assert exact == pytest.approx(budget, rel=5e-3)
    assert exact <= epsilon(release, DELTA) < rdp_epsilon(release, DELTA) < 1.35 * exact


def test_renyi_refuses_what_it_does_not_cover():
    twice = accounting.gaussian(4.0, accounting.REPLACE)
    for guarantee in (poisson(capacity=160), twice, compose(twice, twice)):
        with pytest.raises(InputError, match="Renyi DP covers Gaussians"):
            rdp_epsilon(guarantee, DELTA)
    with pytest.raises(InputError, match="delta="):
        rdp_epsilon(poisson(), 0.0)
    assert rdp_epsilon(accounting.data_free(), DELTA) == 0
    assert rdp_epsilon(accounting.non_private(), DELTA) == math.inf


def test_six_standard_deviations_of_room_cost_nothing_and_four_something():
    settings = {"noise_multiplier": 1.0, "sampling_rate": 0.01, "num_steps": 1_000}
    mean, deviation = 600, math.sqrt(600 * 0.99)
    spent = [
        epsilon(poisson(**settings, num_members=60_000, capacity=capacity), DELTA)
        for capacity in (
            math.ceil(mean + 4 * deviation),
            math.ceil(mean + 6 * deviation),
            60_000,
        )
    ]
    assert spent[2] == pytest.approx(1.828, rel=1e-3)
    assert spent[2] <= spent[1] <= 1.0005 * spent[2]
    assert 1.02 * spent[2] <= spent[0] <= 1.06 * spent[2]


def test_relations_by_name():
    """Zero-out is add-or-remove of one Gaussian; replace-one moves it twice as far."""
    by_name = {
        name: epsilon(accounting.gaussian(4.0, neighbours), DELTA)
        for neighbours, name in accounting.NAMES.items()
    }
    assert by_name["zero-out"] == by_name["add-or-remove"]
    low, high = epsilon_bounds([Gaussians(2.0)], DELTA, slack=1e-3)
    assert low <= by_name["replace-one"] <= 1.001 * high
    low, high = epsilon_bounds([Gaussians(4.0)], DELTA, slack=1e-3)
    assert low <= by_name["zero-out"] <= 1.001 * high
