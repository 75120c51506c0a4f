"""What an attack's scores give away: rates of detection with intervals."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from ppds_jax.metrics.roc import area, bootstrap, rate_at, roc


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """Rates in [0, 1], with 95 % intervals over target models and over images.

    Attributes:
      auc: the probability that a member scores above a non-member.
      tpr: the true-positive rate at a false-positive rate <= `fpr`.
      fpr_resolution: 1 / (non-members of all target models together).
      resolved: whether at least 10 non-members are within `fpr`; the TPR rests on too
        few of them otherwise.
    """

    auc: float
    auc_low: float
    auc_high: float
    tpr: float
    tpr_low: float
    tpr_high: float
    fpr: float
    fpr_resolution: float
    resolved: bool


def leakage(
    score: Float[Array, "m n"],
    member: Bool[Array, "m n"],
    *,
    fpr: float = 0.01,
    num_resamples: int = 200,
) -> Leakage:
    """Scores of all target models in one ROC, resampled by models and by images.

    The targets share images and references; resampling both ways allows for that.
    """

    def statistic(score, member, weight=None):
        curve = roc(score, member, weight)
        return area(curve), rate_at(curve, fpr)

    model, image = (
        np.broadcast_to(x, score.shape) for x in np.ix_(*map(np.arange, score.shape))
    )
    interval = bootstrap(
        score, member, statistic, clusters=(model, image), num_resamples=num_resamples
    )
    (auc_low, auc_high), (tpr_low, tpr_high) = interval.tolist()
    auc, tpr = statistic(score, member)
    return Leakage(
        auc=auc,
        auc_low=auc_low,
        auc_high=auc_high,
        tpr=tpr,
        tpr_low=tpr_low,
        tpr_high=tpr_high,
        fpr=fpr,
        fpr_resolution=1 / float(np.sum(~member)),
        resolved=bool(fpr * np.sum(~member) >= 10),
    )
