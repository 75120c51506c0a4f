"""The likelihood-ratio attack, LiRA. A pure function, NumPy in float64."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from ppds_jax.attacks.shrunk import TINY, Density, predictive
from ppds_jax.attacks.sides import (
    Center,
    Side,
    check_count,
    check_option,
    check_signals,
    side,
    sides,
)

Variance = Literal["auto", "per_example", "fixed", "shrunk"]


def lira(
    target_phi: Float[Array, "n q"],
    shadow_phi: Float[Array, "m n q"],
    shadow_member: Bool[Array, "m n"],
    *,
    online: bool = True,
    variance: Variance = "auto",
    center: Center = "mean",
    offline_rule: Literal["one_sided", "two_sided"] = "one_sided",
) -> Float[Array, " n"]:
    """How much likelier the target's signal is if the image was a member.

    For each image and query, the signals of shadows that had the image (IN) and of
    those that had not (OUT) are taken for Gaussian. Online: the mean over queries of
    log N(phi; mu_in, s_in) - log N(phi; mu_out, s_out). Offline, from OUT alone:
    (phi - mu_out) / s_out (one-sided), or -log N(phi; mu_out, s_out) (two-sided, the
    rule of the published code).

    With shrunk variances, mu and s are unknown to the attacker, who has a
    normal-inverse-gamma prior of them, fitted to all images of a side. Student t
    densities with the mu and s of `ppds_jax.attacks.shrunk.predictive` then take the
    place of the Gaussians.

    Args:
      target_phi: the attacked model's signals, higher for members.
      shadow_phi: the shadow models' signals.
      shadow_member: which images each shadow was trained on.
      online: whether IN shadows are used.
      variance: "per_example": over the models of each side, for each image; "fixed":
        squared residuals pooled over images; "auto": fixed below 64 shadows; "shrunk":
        between these two, as far as the images' variances differ.
      center: of each image's Gaussian. Deviations are taken from it, with ddof 0.
      offline_rule: see above.

    Returns:
      Scores, higher for members; infinities of phi are the caller's to avoid.

    Raises:
      InputError: shapes that do not fit, an unknown option, or an image without a
        shadow on a side that is used.

    **References:** Carlini, Chien, Nasr, Song, Terzis and Tramer, Membership Inference
    Attacks From First Principles, 2022, arXiv 2112.03570, algorithm 1. Shrunk:
    Brännvall, Exponential-Family Membership Inference: From LiRA and RMIA to BaVarIA,
    2026, arXiv 2603.11799, for the idea; densities and fit are derived in `shrunk`.
    """
    phi, shadows, member = check_signals(target_phi, shadow_phi, shadow_member)
    check_option("variance", variance, ("auto", "per_example", "fixed", "shrunk"))
    check_option("center", center, ("mean", "median"))
    check_option("offline_rule", offline_rule, ("one_sided", "two_sided"))
    if variance == "auto":
        variance = "fixed" if len(shadows) < 64 else "per_example"
    if online:
        seen = sides(shadows, (member, ~member), center)
        inside, outside = (
            _density(each, name, variance)
            for each, name in zip(seen, ("IN", "OUT"), strict=True)
        )
        return (inside.log(phi) - outside.log(phi)).mean(1)
    outside = _density(side(shadows, ~member, center), "OUT", variance)
    if offline_rule == "two_sided":
        return -outside.log(phi).mean(1)
    return ((phi - outside.center) / outside.scale).mean(1)


def _density(seen: Side, name: str, variance: Variance) -> Density:
    """What a signal would be on one side, for each image and query."""
    check_count(seen.models, name)
    if variance == "shrunk":
        return predictive(seen)
    if variance == "fixed":
        square = seen.squares.sum(0) / seen.models.sum()
    else:
        square = seen.squares / seen.models[:, None]
    return Density(seen.center, np.sqrt(np.maximum(square, TINY)))
