"""Simpler attacks, to compare the strong ones with. Pure functions, NumPy in float64.

All read signals [n q], higher for members, and return scores [n], higher for members:
the mean over queries of what is said of each.
"""

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from scipy.optimize import linprog

from ppds_jax.attacks.sides import blocks, check_count, check_signals, side
from ppds_jax.types import InputError


def global_threshold(target_phi: Float[Array, "n q"]) -> Float[Array, " n"]:
    """The target's signals as they are: one threshold for all images, no shadows.

    Raises:
      InputError: signals without a query axis.

    **References:** Yeom, Giacomelli, Fredrikson and Jha, Privacy Risk in Machine
    Learning: Analyzing the Connection to Overfitting, 2018, arXiv 1709.01604.
    """
    return _signals("target_phi", target_phi).mean(1)


def difficulty_calibrated(
    target_phi: Float[Array, "n q"],
    shadow_phi: Float[Array, "m n q"],
    shadow_member: Bool[Array, "m n"],
) -> Float[Array, " n"]:
    """phi - mu_out: how far the target is above shadows that had not the image.

    Args:
      target_phi, shadow_phi, shadow_member: as for `ppds_jax.attacks.lira.lira`; IN
        shadows are not looked at.

    Raises:
      InputError: shapes that do not fit, or an image without an OUT shadow.

    **References:** Watson, Guo, Cormode and Sablayrolles, On the Importance of
    Difficulty Calibration in Membership Inference Attacks, 2022, arXiv 2111.08440.
    """
    phi, shadows, member = check_signals(target_phi, shadow_phi, shadow_member)
    outside = side(shadows, ~member)
    check_count(outside.models, "OUT")
    return (phi - outside.center).mean(1)


def attack_r(
    target_phi: Float[Array, "n q"],
    shadow_phi: Float[Array, "m n q"],
    shadow_member: Bool[Array, "m n"],
) -> Float[Array, " n"]:
    """The share of OUT shadows whose signal on the image is below the target's.

    Attack R: a threshold for each image, from reference models. With few shadows many
    scores are tied, and rates at low false-positive rates are 0.

    Args:
      target_phi, shadow_phi, shadow_member: as for `ppds_jax.attacks.lira.lira`; IN
        shadows are not looked at.

    Returns:
      Scores in [0, 1].

    Raises:
      InputError: shapes that do not fit, or an image without an OUT shadow.

    **References:** Ye, Maddi, Murakonda, Bindschaedler and Shokri, Enhanced Membership
    Inference Attacks against Machine Learning Models, 2022, arXiv 2111.09679.
    """
    phi, shadows, member = check_signals(target_phi, shadow_phi, shadow_member)
    models = (~member).sum(0)
    check_count(models, "OUT")
    below = np.zeros(phi.shape)
    for rows in blocks(*member.shape):
        outside = ~member[:, rows]
        for query in range(phi.shape[1]):
            lower = shadows[:, rows, query] < phi[rows, query]
            below[rows, query] = (lower & outside).sum(0)
    return (below / models[:, None]).mean(1)


def attack_p(
    target_phi: Float[Array, "n q"], population_target: Float[Array, "z q"]
) -> Float[Array, " n"]:
    """The share of population images whose signal is below the image's.

    Attack P: one threshold for all images, set by images in no training set, so that
    1 - score estimates the false-positive rate at that threshold. No shadows.

    Args:
      target_phi: the attacked model's signals.
      population_target: its signals on images outside its training set.

    Returns:
      Scores in [0, 1]; for one query they rank as `global_threshold`, but with ties.

    Raises:
      InputError: shapes that do not fit, or no population.

    **References:** Ye et al., as `attack_r`.
    """
    phi, population = _with_population(target_phi, population_target)
    columns = zip(phi.T, np.sort(population, axis=0).T, strict=True)
    below = [np.searchsorted(z, x, side="left") for x, z in columns]
    return np.mean(below, axis=0) / len(population)


def quantile_regression(
    target_phi: Float[Array, "n q"],
    feature: Float[Array, "n f"],
    population_target: Float[Array, "z q"],
    population_feature: Float[Array, "z f"],
    *,
    level: float = 0.99,
) -> Float[Array, " n"]:
    """phi minus the quantile of it that images like this one reach as non-members.

    The quantile is linear in the image's features, with an intercept, and minimises
    the pinball loss over the population: the mean of r (level - [r < 0]) over the
    residuals r. It is solved exactly, as a linear programme. No shadows: one needs
    signals of the target itself on images outside its training set, many more of them
    than features, and features that tell easy images from hard ones without having
    been fitted to the audited images (labels one-hot, a public embedding).

    Args:
      target_phi: the attacked model's signals.
      feature: of the audited images.
      population_target: the attacked model's signals on images outside its training
        set, none of them audited.
      population_feature: of those images.
      level: of the quantile, in (0, 1). Scores above 0 have a false-positive rate of
        about 1 - level, for all images alike as far as the features tell.

    Raises:
      InputError: shapes that do not fit, a level outside (0, 1), or features that are
        not finite.

    **References:** Bertran, Tang, Kearns, Morgenstern, Roth and Wu, Scalable Membership
    Inference Attacks via Quantile Regression, 2023, arXiv 2307.03694; the regression of
    Koenker and Bassett, Regression Quantiles, 1978, doi 10.2307/1913643.
    """
    phi, population = _with_population(target_phi, population_target)
    x, z = (np.asarray(f, np.float64) for f in (feature, population_feature))
    fits = x.ndim == z.ndim == 2 and x.shape[1] == z.shape[1]
    if not fits or len(x) != len(phi) or len(z) != len(population):
        raise InputError(
            f"feature {x.shape}, population_feature {z.shape}: must be [n f] and [z f] "
            f"with n = {len(phi)} and z = {len(population)}"
        )
    if not (np.isfinite(x).all() and np.isfinite(z).all()):
        raise InputError("feature, population_feature: must be finite")
    if not 0 < level < 1:
        raise InputError(f"level={level}: must lie between 0 and 1")
    middle, scale = z.mean(0), z.std(0)
    scale[scale == 0] = 1
    x, z = (np.c_[np.ones(len(f)), (f - middle) / scale] for f in (x, z))
    line = np.stack([_quantile_line(z, s, level) for s in population.T], axis=1)
    return (phi - x @ line).mean(1)


def _quantile_line(x: Array, y: Array, level: float) -> Array:
    """Coefficients of the linear quantile, from the dual linear programme.

    max y'a over a in [level - 1, level] with x'a = 0, whose multipliers they are.
    """
    solved = linprog(
        -y,
        A_eq=x.T,
        b_eq=np.zeros(x.shape[1]),
        bounds=(level - 1, level),
        method="highs",
    )
    if not solved.success:
        raise InputError(f"population_target: no quantile: {solved.message}")
    return -solved.eqlin.marginals


def _signals(name: str, value: Float[Array, "n q"]) -> Array:
    phi = np.asarray(value, np.float64)
    if phi.ndim != 2:
        raise InputError(f"{name} {phi.shape}: must be [n q], with a query axis")
    return phi


def _with_population(target_phi, population_target) -> tuple[Array, Array]:
    phi = _signals("target_phi", target_phi)
    population = _signals("population_target", population_target)
    if population.shape[1] != phi.shape[1] or not len(population):
        raise InputError(
            f"target_phi {phi.shape}, population_target {population.shape}: must be "
            "[n q] and [z q], with at least one population image"
        )
    return phi, population
