"""The attacks again, by plain loops and scipy: slow, obvious, and independent.

Nothing here is imported from the package. Arguments and results are those of the
functions of the same names.
"""

from itertools import combinations

import numpy as np
from scipy.optimize import brentq
from scipy.special import polygamma
from scipy.stats import norm, t

TINY, MOST = 1e-24, 1e4  # the least variance, the most degrees of freedom


def lira(phi, shadows, member, *, online, variance, center, offline_rule):
    middle = {"mean": np.mean, "median": np.median}[center]
    if variance == "auto":
        variance = "fixed" if len(member) < 64 else "per_example"

    def rows(k, side):
        return [shadows[member[:, j] == side, j, k] for j in range(len(phi))]

    def densities(k, side):
        """A frozen scipy distribution for each image."""
        if variance == "shrunk":
            return students(rows(k, side), middle)
        centers = [middle(row) for row in rows(k, side)]
        squares = [
            [(value - c) ** 2 for value in row]
            for row, c in zip(rows(k, side), centers, strict=True)
        ]
        pooled = np.mean([value for row in squares for value in row])
        own = [pooled if variance == "fixed" else np.mean(row) for row in squares]
        pairs = zip(centers, own, strict=True)
        return [norm(c, max(v, TINY) ** 0.5) for c, v in pairs]

    scores = np.zeros(phi.shape)
    for k in range(phi.shape[1]):
        outside = densities(k, False)
        inside = densities(k, True) if online else outside
        for j in range(len(phi)):
            value, out = phi[j, k], outside[j]
            if online:
                scores[j, k] = inside[j].logpdf(value) - out.logpdf(value)
            elif offline_rule == "two_sided":
                scores[j, k] = -out.logpdf(value)
            else:  # ppf: where scale is not the standard deviation
                one = out.kwds["scale"] if out.kwds else out.args[1]
                scores[j, k] = (value - out.median()) / one
    return scores.mean(1)


def students(rows, middle):
    """Posterior predictives under a normal-inverse-gamma prior fitted to all rows."""
    centers = [middle(row) for row in rows]
    squares = [sum((row - c) ** 2) for row, c in zip(rows, centers, strict=True)]
    unbiased = [
        max(s / max(len(row) - 1, 1), TINY)
        for s, row in zip(squares, rows, strict=True)
    ]
    nu0, s0 = inverse_gamma(unbiased, [len(row) - 1 for row in rows])
    mean = np.mean(centers)
    between = sum((c - mean) ** 2 for c in centers)
    within = sum(v / len(row) for v, row in zip(unbiased, rows, strict=True))
    spread = max(between - within, 0) / sum(unbiased)
    found = []
    for row, c, s in zip(rows, centers, squares, strict=True):
        # the textbook's form, in the prior's number of observations kappa
        a, b, kappa = nu0 / 2, nu0 * s0 / 2, 1 / max(spread, 1e-300)
        n = len(row)
        a_n, kappa_n = a + n / 2, kappa + n
        shift = kappa * n * (c - mean) ** 2 / (2 * kappa_n) if spread else 0.0
        if not spread:  # all images share the mean
            shift = n * (c - mean) ** 2 / 2
        b_n = b + s / 2 + shift
        m_n = mean + (n / kappa_n) * (c - mean)
        scale = (b_n * (kappa_n + 1) / (a_n * kappa_n)) ** 0.5
        found.append(t(df=2 * a_n, loc=m_n, scale=scale))
    return found


def inverse_gamma(unbiased, freedom):
    """Degrees of freedom and scale of the variances' prior, by their logarithms."""
    least = max(1e-12 * np.mean(unbiased), TINY)
    pairs = zip(unbiased, freedom, strict=True)
    kept = [(v, f) for v, f in pairs if f > 0 and v > least]
    if len(kept) < 2:
        return MOST, np.mean(unbiased)
    log = [np.log(v) - polygamma(0, f / 2) + np.log(f / 2) for v, f in kept]
    excess = np.var(log, ddof=1) - np.mean([polygamma(1, f / 2) for _, f in kept])
    half = MOST / 2
    if excess > polygamma(1, half):
        half = brentq(lambda x: polygamma(1, x) - excess, 1e-3, half, xtol=1e-13)
    return 2 * half, np.exp(np.mean(log) + polygamma(0, half) - np.log(half))


def rmia_ratio(target, shadows, member, *, online, offline_a):
    """r_x of each image, not its logarithm."""
    found = []
    for j in range(len(target)):
        inside = [p for p, had in zip(shadows[:, j], member[:, j], strict=True) if had]
        out = [p for p, had in zip(shadows[:, j], member[:, j], strict=True) if not had]
        if not online:
            prior = ((1 + offline_a) * np.mean(out) + 1 - offline_a) / 2
        elif inside:
            prior = (np.mean(inside) + np.mean(out)) / 2
        else:
            prior = np.mean(out)
        found.append(target[j] / prior)
    return np.array(found)


def rmia(target, shadows, member, z_target, z_shadows, *, online, gamma, offline_a):
    options = {"online": online, "offline_a": offline_a}
    never = np.zeros(z_shadows.shape, bool)
    r_z = rmia_ratio(z_target, z_shadows, never, **options)
    r_x = rmia_ratio(target, shadows, member, **options)
    return np.array([np.mean([x / z > gamma for z in r_z]) for x in r_x])


def global_threshold(phi):
    return np.array([sum(row) / len(row) for row in phi])


def difficulty_calibrated(phi, shadows, member):
    scores = np.zeros(phi.shape)
    for j, k in np.ndindex(phi.shape):
        scores[j, k] = phi[j, k] - np.mean(shadows[~member[:, j], j, k])
    return scores.mean(1)


def attack_r(phi, shadows, member):
    scores = np.zeros(phi.shape)
    for j, k in np.ndindex(phi.shape):
        outside = shadows[~member[:, j], j, k]
        scores[j, k] = sum(value < phi[j, k] for value in outside) / len(outside)
    return scores.mean(1)


def attack_p(phi, population):
    scores = np.zeros(phi.shape)
    for j, k in np.ndindex(phi.shape):
        below = sum(value < phi[j, k] for value in population[:, k])
        scores[j, k] = below / len(population)
    return scores.mean(1)


def quantile_regression(phi, feature, population, z_feature, *, level):
    """Of all planes through as many points as they have coefficients, the best."""

    def loss(line, x, y):
        residual = y - x @ line
        return np.mean(np.where(residual < 0, level - 1, level) * residual)

    x = np.column_stack([np.ones(len(z_feature)), z_feature])
    scores = np.zeros(phi.shape)
    for k in range(phi.shape[1]):
        y = population[:, k]
        planes = [
            np.linalg.solve(x[list(points)], y[list(points)])
            for points in combinations(range(len(y)), x.shape[1])
        ]
        best = min(planes, key=lambda line: loss(line, x, y))
        for j in range(len(phi)):
            scores[j, k] = phi[j, k] - best[0] - feature[j] @ best[1:]
    return scores.mean(1)
