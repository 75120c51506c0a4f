"""The prior of means and variances: found again, of use, and right in its limits."""

import numpy as np
import pytest
from scipy.stats import kstest, norm, t

from ppds_jax.attacks.lira import lira
from ppds_jax.attacks.shrunk import fit_prior, predictive
from ppds_jax.attacks.sides import side
from ppds_jax.metrics.roc import tpr_at_fpr
from tests import reference_attacks


def images(m, n, degrees, spread, seed=0):
    """Signals [m n 1] from the prior itself, one more of each, and the deviations."""
    rng = np.random.default_rng(seed)
    sigma = np.sqrt(2.0 * degrees / rng.chisquare(degrees, size=n))
    mean = 3 + spread**0.5 * sigma * rng.normal(size=n)
    draw = lambda *shape: (mean + sigma * rng.normal(size=(*shape, n)))[..., None]
    return draw(m), draw(), sigma


def all_in(phi):
    return side(phi, np.ones(phi.shape[:2], bool))


REGIMES = {
    "variances differ": lambda rng, x: x * rng.uniform(0.1, 5, size=(20, 1)),
    "levels differ": lambda rng, x: x + 10 * rng.normal(size=(20, 1)),
    "all alike": lambda rng, x: x,
    "some constant": lambda rng, x: np.where(np.arange(20)[:, None] < 8, 0.1, x),
    "all constant": lambda rng, x: 0 * x + rng.integers(9, size=(20, 1)),
}


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("num_models", [2, 3, 12])  # with 2, one model a side
def test_shrunk_is_the_plain_loop_in_every_regime(regime, online, num_models):
    rng = np.random.default_rng(num_models)
    phi = REGIMES[regime](rng, rng.normal(size=(num_models + 1, 20, 1)))
    member = rng.random((num_models, 20)) < 0.5
    member[:2] = [[True], [False]]
    options = {"online": online, "variance": "shrunk", "center": "mean"}
    options["offline_rule"] = "two_sided"
    expected = reference_attacks.lira(phi[0], phi[1:], member, **options)
    score = lira(phi[0], phi[1:], member, **options)
    assert np.isfinite(score).all()
    np.testing.assert_allclose(score, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("degrees", [3.0, 20.0])
def test_the_prior_is_found_again(degrees):
    """From 20,000 images; over 20 seeds the worst was within half of the bounds."""
    phi, _, _ = images(8, 20_000, degrees, spread=4.0)
    prior = fit_prior(all_in(phi))
    assert prior.degrees.item() == pytest.approx(degrees, rel=0.2)
    assert prior.variance.item() == pytest.approx(2.0, rel=0.1)
    assert prior.mean.item() == pytest.approx(3.0, abs=0.3)
    assert prior.spread.item() == pytest.approx(4.0, rel=0.5)


def test_the_predictive_is_calibrated():
    """New signals fall uniformly into its quantiles; at 20,000, p below 1e-6: 1e-6."""
    phi, new, _ = images(4, 20_000, 5.0, spread=4.0)
    density = predictive(all_in(phi))
    place = t.cdf((new - density.center) / density.scale, density.degrees)
    assert kstest(place.ravel(), "uniform").pvalue > 1e-6
    plain = (new - phi.mean(0)) / phi.std(0)  # the planted fault: no shrinkage
    assert kstest(norm.cdf(plain).ravel(), "uniform").pvalue < 1e-6


def test_limits():
    """Many models: each image for itself. One variance for all: that variance."""
    phi, _, _ = images(4000, 50, 3.0, spread=1e4)
    many = predictive(all_in(phi))
    np.testing.assert_allclose(many.scale, phi.std(0), rtol=0.01)
    np.testing.assert_allclose(many.center, phi.mean(0), rtol=1e-3)
    phi, _, _ = images(3, 100_000, 1e9, spread=1e4)
    same = predictive(all_in(phi))
    np.testing.assert_allclose(same.scale, (2 * 4 / 3) ** 0.5, rtol=0.25)
    assert 0.1 * same.scale.std() < 0.01 * phi.std(0).std()


@pytest.mark.parametrize("online", [True, False])
def test_few_models_gain_by_shrinking(online):
    """Variances differ: neither one for all nor one for each is best at 8 models.

    Over 10 seeds the gain was 0.020 on average, its standard deviation 0.003.
    """
    rng, n = np.random.default_rng(3), 200_000
    sigma = np.sqrt(4 / rng.chisquare(4, size=(n, 1)))
    level = 5 * rng.normal(size=(n, 1))
    member = rng.permuted(np.tile(np.arange(8) < 4, (n, 1)), axis=1).T
    target = np.arange(n) % 2 == 0
    noise = lambda shape: rng.normal(size=(*shape, 1))
    draw = lambda inside: level + sigma * (2 * inside[..., None] + noise(inside.shape))
    phi, shadows = draw(target), draw(member)
    found = {}
    for variance in ("shrunk", "fixed", "per_example"):
        score = lira(phi, shadows, member, online=online, variance=variance)
        found[variance] = tpr_at_fpr(score, target, 0.02)
    assert found["shrunk"] > max(found["fixed"], found["per_example"]), found
