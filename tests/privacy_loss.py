"""Bounds on epsilon by our own integration of the privacy loss. Host, float64.

Nothing here knows dp_accounting: its epsilons are held against these. The loss of each
release is rounded to a grid whose mean is put right, so that the rounding errors of
many releases cancel but for an amount that Hoeffding's inequality bounds. The true
epsilon lies between the two bounds, up to float64's own rounding.

**References:** Gopi, Lee and Wutschitz, Numerical Composition of Differential Privacy,
2021, arXiv 2106.02848, for the idea of coupling the rounded sum to the true one.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import logsumexp, ndtr, ndtri

# Probability given up for each of: errors that do not cancel, losses cut off in single
# releases, sums beyond the window, round-off of the transforms. Far below any delta.
LOST = 1e-10


class Gaussians(NamedTuple):
    """`steps` Gaussian releases of sensitivity 1, each of a Poisson sample.

    With the record an output is N(1, sigma^2) with probability `rate` and else
    N(0, sigma^2); without it, always the latter.
    """

    sigma: float
    rate: float = 1.0
    steps: int = 1


def log_ratio(run, x):
    """log of the density of output x with the record over without it; rises with x."""
    u = (2 * x - 1) / (2 * run.sigma**2)
    if run.rate == 1:
        return u
    return np.logaddexp(np.log1p(-run.rate), np.log(run.rate) + u)


def output(run, level):
    """The inverse of `log_ratio`; -inf where no output is as low."""
    if run.rate < 1:
        with np.errstate(divide="ignore"):
            level = np.log1p(np.maximum(np.expm1(level) / run.rate, -1))
    return run.sigma**2 * level + 0.5


class Loss:
    """The privacy loss of one release: the log ratio of its output, drawn with the
    record (`present`), or minus that, drawn without it."""

    def __init__(self, run: Gaussians, present: bool):
        self.run, self.sign = run, 1 if present else -1
        self.rate = run.rate if present else 0.0
        # The trapezium rule has no error to speak of: smooth, with Gaussian tails, and
        # far enough out for high moments.
        step, far = min(run.sigma, run.sigma**2) / 8, 37 * run.sigma
        x = np.arange(-far, 1 + far, step)
        log_bell = lambda z: -(z**2) / 2 - math.log(math.sqrt(2 * math.pi) * run.sigma)
        with np.errstate(divide="ignore"):
            off = np.log1p(-self.rate) + log_bell(x / run.sigma)
            on = np.log(self.rate) + log_bell((x - 1) / run.sigma)
        self.log_weight = math.log(step) + np.logaddexp(off, on)
        self.ratio = log_ratio(run, x)
        self.mean_ratio = self.expect(self.ratio)
        self.mean = self.sign * self.mean_ratio

    def expect(self, values) -> float:
        return float(np.exp(self.log_weight) @ values)

    def log_mgf(self, order: float) -> float:
        """log of the mean of exp(order (loss - mean))."""
        power = order * self.sign * (self.ratio - self.mean_ratio)
        return float(logsumexp(self.log_weight + power))

    def renyi(self, order: float) -> float:
        """The Renyi divergence of this order, if it is above 1 and not far above 20."""
        return self.log_mgf(order - 1) / (order - 1) + self.mean

    def pmf(self, width: float):
        """First index and probabilities of (loss - mean) rounded to k width."""
        far = -ndtri(LOST / self.run.steps / 2) * self.run.sigma
        ends = log_ratio(self.run, np.array([-far, 1 + far])) - self.mean_ratio
        first, last = np.rint(ends / width).astype(int)
        edges = self.mean_ratio + width * (np.arange(first, last) + 0.5)
        x, rate = output(self.run, edges) / self.run.sigma, self.rate
        below = (1 - rate) * ndtr(x) + rate * ndtr(x - 1 / self.run.sigma)
        mass = np.diff(below, prepend=0.0, append=1.0)
        return (first, mass) if self.sign > 0 else (-last, mass[::-1])


def window(losses, sign) -> float:
    """How far above (below) its mean the sum may lie: Chernoff's bound."""
    spread = math.sqrt(
        sum(x.run.steps * x.expect((x.ratio - x.mean_ratio) ** 2) for x in losses)
    )
    bounds = []
    for order in np.geomspace(0.01, 1000, 200) / spread:
        total = sum(x.run.steps * x.log_mgf(sign * order) for x in losses)
        bounds.append((total - math.log(LOST)) / order)
    return min(bounds)


def curve(runs, slack: float, present: bool):
    """epsilons >= 0, spaced finely, and delta at each, of the rounded sum of losses."""
    losses = [Loss(run, present) for run in runs]
    steps = sum(run.steps for run in runs)
    width = slack / math.sqrt(steps * math.log(2 / LOST) / 2)
    low, high = -window(losses, -1) - slack, window(losses, 1) + slack
    size = next_fast_len(math.ceil((high - low) / width) + 2, real=True)
    spectrum, drift = 1.0, 0.0
    for loss in losses:
        first, mass = loss.pmf(width)
        index = np.arange(first, first + mass.size)
        # rounding moves the mean: the sum is moved back by as much
        drift += loss.run.steps * width * float(index @ mass)
        folded = np.bincount(index % size, weights=mass, minlength=size)
        spectrum = spectrum * rfft(folded) ** loss.run.steps
    start = math.floor((low + drift) / width)
    mass = np.roll(irfft(spectrum, size), -start)
    mean = sum(loss.run.steps * loss.mean for loss in losses)
    total = mean - drift + width * (start + np.arange(size))
    mass, total = mass[total > 0], total[total > 0]
    # delta(e) = sum over total > e of mass (1 - exp(e - total)), summed from the top
    above = lambda terms: np.cumsum(terms[::-1])[::-1]
    return total, above(mass) - np.exp(total) * above(mass * np.exp(-total))


def epsilon_bounds(runs, delta: float, slack: float) -> tuple[float, float]:
    """Between which the epsilon at `delta` of all runs together lies, add-or-remove.

    Args:
      runs: sequence of Gaussians, composed.
      delta: far above LOST.
      slack: error of rounding allowed to each side; smaller is slower.
    """
    bounds = []
    for present in (True, False):
        total, deltas = curve(runs, slack, present)
        sure = np.append(0.0, total[deltas >= delta + 4 * LOST])[-1] - slack
        safe = total[deltas <= delta - 4 * LOST]
        bounds.append((max(sure, 0.0), (safe[0] if safe.size else math.inf) + slack))
    return max(low for low, _ in bounds), max(high for _, high in bounds)
