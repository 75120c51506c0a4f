"""The likelihood-ratio attack, LiRA. A pure function, NumPy in float64."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from ppds_jax.types import InputError

Variance = Literal["auto", "per_example", "fixed"]


def lira(
    target_phi: Float[Array, "n q"],
    shadow_phi: Float[Array, "m n q"],
    shadow_member: Bool[Array, "m n"],
    *,
    online: bool = True,
    variance: Variance = "auto",
    center: Literal["mean", "median"] = "mean",
    offline_rule: Literal["one_sided", "two_sided"] = "one_sided",
) -> Float[Array, " n"]:
    """How much likelier the target's signal is if the image was a member.

    For each image and query, the signals of shadows that had the image (IN) and of
    those that had not (OUT) are taken for Gaussian. Online: the mean over queries of
    log N(phi; mu_in, s_in) - log N(phi; mu_out, s_out). Offline, from OUT alone:
    (phi - mu_out) / s_out (one-sided), or -log N(phi; mu_out, s_out) (two-sided, the
    rule of the published code).

    Args:
      target_phi: the attacked model's signals, higher for members.
      shadow_phi: the shadow models' signals.
      shadow_member: which images each shadow was trained on.
      online: whether IN shadows are used.
      variance: "per_example": over the models of each side, for each image; "fixed":
        squared residuals pooled over images; "auto": fixed below 64 shadows.
      center: of each image's Gaussian. Deviations are taken from it, with ddof 0.
      offline_rule: see above.

    Returns:
      Scores, higher for members; infinities of phi are the caller's to avoid.

    Raises:
      InputError: shapes that do not fit, an unknown option, or an image without a
        shadow on a side that is used.

    **References:** Carlini, Chien, Nasr, Song, Terzis and Tramer, Membership Inference
    Attacks From First Principles, 2022, arXiv 2112.03570, algorithm 1.
    """
    phi = np.asarray(target_phi, np.float64)
    shadows = np.asarray(shadow_phi, np.float64)
    member = np.asarray(shadow_member, bool)
    fits = phi.ndim == 2 and shadows.shape[1:] == phi.shape
    if not fits or member.shape != shadows.shape[:2]:
        raise InputError(
            f"target_phi {phi.shape}, shadow_phi {shadows.shape}, shadow_member "
            f"{member.shape}: must be [n q], [m n q] and [m n]"
        )
    _one_of("variance", variance, ("auto", "per_example", "fixed"))
    _one_of("center", center, ("mean", "median"))
    _one_of("offline_rule", offline_rule, ("one_sided", "two_sided"))
    fixed = variance == "fixed" or (variance == "auto" and len(shadows) < 64)
    mean_out, std_out = _gaussian(shadows, ~member, "OUT", center, fixed)
    if not online:
        z = (phi - mean_out) / std_out
        scores = z if offline_rule == "one_sided" else -_log_normal(z, std_out)
        return scores.mean(1)
    mean_in, std_in = _gaussian(shadows, member, "IN", center, fixed)
    inside = _log_normal((phi - mean_in) / std_in, std_in)
    outside = _log_normal((phi - mean_out) / std_out, std_out)
    return (inside - outside).mean(1)


def _gaussian(phi, side, name: str, center: str, fixed: bool) -> tuple[Array, Array]:
    """Centre and deviation of each image's signals over the models of one side."""
    count = side.sum(0)
    if not count.all():
        raise InputError(
            f"shadow_member: {(count == 0).sum()} images have no {name} shadow; train "
            "more shadows, or audit other images"
        )
    mask = side[:, :, None]
    if center == "mean":
        middle = np.where(mask, phi, 0).sum(0) / count[:, None]
    else:
        middle = np.nanmedian(np.where(mask, phi, np.nan), axis=0)
    squares = (np.where(mask, phi - middle, 0) ** 2).sum(0)
    square = squares.sum(0) / count.sum() if fixed else squares / count[:, None]
    return middle, np.sqrt(np.maximum(square, 1e-24))


def _log_normal(z: Array, std: Array) -> Array:
    return -0.5 * z**2 - np.log(std) - 0.5 * np.log(2 * np.pi)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name}={value!r}: use one of {', '.join(allowed)}")
