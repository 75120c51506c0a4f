"""Means and variances of many images, each shrunk towards all. NumPy, float64.

Few models say little about one image's variance; all images together say much about
what variances are like. Here the second informs the first.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from scipy.special import digamma, gammaln, polygamma

from ppds_jax.attacks.sides import Side

TINY = 1e-24  # the least variance: of signals in float32, less is rounding
MOST = 1e4  # degrees of freedom; beyond, a Student t is Gaussian


class Prior(NamedTuple):
    """sigma^2 ~ degrees variance / chi^2(degrees); mu given sigma ~ N(mean, spread
    sigma^2): a normal-inverse-gamma distribution, one for each query."""

    degrees: Float[Array, " q"]
    variance: Float[Array, " q"]
    mean: Float[Array, " q"]
    spread: Float[Array, " q"]


class Density(NamedTuple):
    """What one more signal would be: a Gaussian, or a Student t of finite degrees."""

    center: Float[Array, "n q"]
    scale: Float[Array, "..."]
    degrees: Float[Array, "..."] | float = np.inf

    def log(self, phi: Float[Array, "n q"]) -> Float[Array, "n q"]:
        """The logarithm of the density at phi."""
        z, nu = (phi - self.center) / self.scale, self.degrees
        if np.ndim(nu) == 0:
            return -0.5 * z**2 - np.log(self.scale) - 0.5 * np.log(2 * np.pi)
        power = (nu + 1) / 2
        constant = gammaln(power) - gammaln(nu / 2) - 0.5 * np.log(nu * np.pi)
        return constant - np.log(self.scale) - power * np.log1p(z**2 / nu)


def fit_prior(side: Side) -> Prior:
    """The prior that fits the images' means and variances, by moments.

    With c models, s^2 = squares / (c - 1) and d = c - 1, sigma^2 integrated out,

        E log s^2 = log variance + psi(d / 2) - log(d / 2)
                    - psi(degrees / 2) + log(degrees / 2)
        V log s^2 = psi'(d / 2) + psi'(degrees / 2)
        E (center - mean)^2 = E sigma^2 (spread + 1 / c)

    which are solved for degrees, variance and spread; images with one model on the side
    say nothing of variances, nor do those whose signals do not vary at all. Variances
    that differ no more than by chance give the most degrees: all images share one.

    **References:** Smyth, Linear Models and Empirical Bayes Methods for Assessing
    Differential Expression in Microarray Experiments, 2004, doi 10.2202/1544-6115.1027.
    """
    freedom = np.maximum(side.models - 1, 1)[:, None]
    square = np.maximum(side.squares / freedom, TINY)
    degrees, variance = fit_variances(square, np.maximum(side.models - 1, 0))
    mean = side.center.mean(0)
    between = ((side.center - mean) ** 2).sum(0)
    within = (square / side.models[:, None]).sum(0)
    spread = np.maximum(between - within, 0) / square.sum(0)
    return Prior(degrees, variance, mean, spread)


def fit_variances(square, freedom) -> tuple[Float[Array, " q"], Float[Array, " q"]]:
    """Degrees and variance of the prior of sigma^2; see `fit_prior`.

    Args:
      square: unbiased variances of each image and query, [n q].
      freedom: degrees of freedom of each image's variances, [n]; 0 where it has none.
    """
    found = [_fit_query(column, freedom) for column in square.T]
    degrees, variance = np.array(found).T
    return degrees, variance


def _fit_query(square: Array, freedom: Array) -> tuple[float, float]:
    # a variance this far below the others is a rounding error, not a variance
    varies = (freedom > 0) & (square > max(1e-12 * square.mean(), TINY))
    if varies.sum() < 2:
        return MOST, float(square.mean())
    half = freedom[varies] / 2
    log = np.log(square[varies]) - digamma(half) + np.log(half)
    excess = log.var(ddof=1) - polygamma(1, half).mean()
    degrees = 2 * _inverse_trigamma(excess)
    own = digamma(degrees / 2) - np.log(degrees / 2)
    return degrees, float(np.exp(log.mean() + own))


def _inverse_trigamma(value: float) -> float:
    """x with psi'(x) = value, up to MOST / 2; psi' falls from infinity to 0."""
    low, high = 1e-3, MOST / 2
    if value <= polygamma(1, high):
        return high
    for _ in range(200):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if polygamma(1, middle) > value else (low, middle)
    return low


def predictive(side: Side) -> Density:
    """The posterior predictive density of each image's signal, [n q].

    With the prior of `fit_prior` and an image's c models, mean m and squares S, the
    posterior is again normal-inverse-gamma, with

        degrees'           = degrees + c
        mean'              = prior mean + w (m - prior mean),  w = c spread / g
        degrees' variance' = degrees variance + S + c (m - prior mean)^2 / g
        spread'            = spread / g,                       g = 1 + c spread

    A new signal is N(mu, sigma^2); over the posterior, that is a Student t about mean'
    with degrees' degrees of freedom and scale^2 = variance' (1 + spread'). With another
    centre than the mean, that centre and the squares about it take their places.
    """
    prior, count = fit_prior(side), side.models[:, None]
    gain = 1 + count * prior.spread
    away = side.center - prior.mean
    degrees = prior.degrees + count
    total = prior.degrees * prior.variance + side.squares + count * away**2 / gain
    return Density(
        prior.mean + count * prior.spread / gain * away,
        np.sqrt(total / degrees * (1 + prior.spread / gain)),
        degrees,
    )
