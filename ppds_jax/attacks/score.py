"""Every calibration on every signal: from phi to rates of detection. Host, float64."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from ppds_jax.attacks.game import leave_one_out
from ppds_jax.attacks.lira import lira
from ppds_jax.attacks.rmia import rmia, rmia_ratio
from ppds_jax.attacks.signals import Signal


def lira_online(
    phi: Float[Array, "m n q"], member: Bool[Array, "m n"], population, signal: Signal
) -> Float[Array, "m n"]:
    """Online LiRA, each model in turn the target."""
    del population, signal
    return leave_one_out(lira, phi, member)


def rmia_offline(
    phi: Float[Array, "m n q"],
    member: Bool[Array, "m n"],
    population: Float[Array, "m z q"],
    signal: Signal,
) -> Float[Array, "m n"]:
    """Offline RMIA, each model in turn the target; ties broken by the ratio itself.

    Probabilities are averaged over queries.
    """
    read = lambda values: signal.probability(values).mean(-1)

    def calibration(
        target, shadow, shadow_member, population_target, population_shadow
    ):
        p, s = read(target), read(shadow)
        z_target, z_shadow = read(population_target), read(population_shadow)
        share = rmia(p, s, shadow_member, z_target, z_shadow)
        ratio = rmia_ratio(p, s, shadow_member)
        return share + (0.5 + np.arctan(ratio) / np.pi) / (2 * len(z_target))

    return leave_one_out(calibration, phi, member, population)


class Attack(NamedTuple):
    name: str
    score: Callable[..., Array]


ATTACKS = (Attack("lira", lira_online), Attack("rmia", rmia_offline))
