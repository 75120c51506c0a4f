"""The robust membership inference attack, RMIA. Pure functions, NumPy in float64."""

from functools import partial

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from ppds_jax.attacks.sides import check_count, side
from ppds_jax.types import InputError


def rmia(
    target_prob: Float[Array, " n"],
    shadow_prob: Float[Array, "m n"],
    shadow_member: Bool[Array, "m n"],
    population_target: Float[Array, " z"],
    population_shadow: Float[Array, "m z"],
    *,
    online: bool = False,
    gamma: float = 1.0,
    offline_a: float = 0.3,
) -> Float[Array, " n"]:
    """The share of population images z that x dominates: r_x / r_z > gamma.

    r_x = p(x | target) / p(x). Online, p(x) = (mean over IN + mean over OUT) / 2;
    offline, ((1 + a) mean over OUT + 1 - a) / 2. The population is in no shadow, so
    that p(z) is its mean online, and the same expression offline.

    Args:
      target_prob, shadow_prob: p(x | model) in (0, 1].
      shadow_member: which images each shadow was trained on.
      population_target, population_shadow: p(z | model) of images in no training set
        and not among the audited ones.
      online: whether IN shadows are used.
      gamma: above 0.
      offline_a: 0 where members always reach probability 1, 1 where they gain nothing.

    Returns:
      Scores in [0, 1]. For one target they rank as `rmia_ratio`, but with ties.

    Raises:
      InputError: shapes that do not fit, probabilities or an offline_a outside [0, 1],
        a gamma <= 0, or an image without a shadow on a side that is used.

    **References:** Zarifzadeh, Liu and Shokri, Low-Cost High-Power Membership
    Inference Attacks, 2024, arXiv 2312.03262.
    """
    if not gamma > 0:
        raise InputError(f"gamma={gamma}: must be above 0")
    if np.shape(population_shadow) != (len(shadow_prob), np.size(population_target)):
        raise InputError(
            f"population_target {np.shape(population_target)}, population_shadow "
            f"{np.shape(population_shadow)}: must be [z] and [m z], with the "
            f"{len(shadow_prob)} shadows of shadow_prob"
        )
    if not np.size(population_target):
        raise InputError("population_target: must have at least one image")
    if online:
        check_count(np.sum(shadow_member, 0), "IN")
    ratio_of = partial(rmia_ratio, online=online, offline_a=offline_a)
    ratio = ratio_of(target_prob, shadow_prob, shadow_member)
    outside = np.zeros(np.shape(population_shadow), bool)
    reference = ratio_of(population_target, population_shadow, outside)
    below = np.searchsorted(np.sort(reference), ratio - np.log(gamma), side="left")
    return below / reference.size


def rmia_ratio(
    target_prob: Float[Array, " n"],
    shadow_prob: Float[Array, "m n"],
    shadow_member: Bool[Array, "m n"],
    *,
    online: bool = False,
    offline_a: float = 0.3,
) -> Float[Array, " n"]:
    """log r_x = log p(x | target) - log p(x): ranks without ties. See `rmia`.

    Where an image has no IN shadow at all, online p(x) is its mean over OUT.
    """
    target, shadows = np.asarray(target_prob, np.float64), np.asarray(shadow_prob)
    member = np.asarray(shadow_member, bool)
    if shadows.shape != member.shape or shadows.shape[1:] != target.shape:
        raise InputError(
            f"target_prob {target.shape}, shadow_prob {shadows.shape}, shadow_member "
            f"{member.shape}: must be [n], [m n] and [m n]"
        )
    if not 0 <= offline_a <= 1:
        raise InputError(f"offline_a={offline_a}: must lie in [0, 1]")
    for name, value in (("target_prob", target), ("shadow_prob", shadows)):
        if value.size and not (value.min() >= 0 and value.max() <= 1):
            raise InputError(f"{name}: probabilities must lie in [0, 1]")
    outside = side(shadows[..., None], ~member)
    check_count(outside.models, "OUT")
    prior = mean_out = outside.center[:, 0]
    if not online:
        prior = ((1 + offline_a) * mean_out + 1 - offline_a) / 2
    elif member.any():
        inside = side(shadows[..., None], member)
        both = (inside.center[:, 0] + mean_out) / 2
        prior = np.where(inside.models > 0, both, mean_out)
    tiny = np.finfo(np.float64).tiny
    return np.log(np.maximum(target, tiny)) - np.log(np.maximum(prior, tiny))
