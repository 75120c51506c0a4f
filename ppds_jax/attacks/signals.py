"""What is read from each release: signals [n q] of membership, higher for members. JAX.

Signals are stable in float32; statistics over models are taken elsewhere, in float64.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32


def scaled_logit(
    logits: Float[Array, "n classes"], label: Int32[Array, " n"]
) -> Float[Array, " n"]:
    """log(p_y / (1 - p_y)) as z_y - logsumexp over c != y of z_c: stable at any size.

    **References:** Carlini et al., Membership Inference Attacks From First Principles,
    2022, arXiv 2112.03570, section IV.C.
    """
    true = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(true, -jnp.inf, logits), axis=-1)
    return jnp.sum(jnp.where(true, logits, 0.0), axis=-1) - others


def hinge(
    logits: Float[Array, "n classes"], label: Int32[Array, " n"]
) -> Float[Array, " n"]:
    """z_y - max over c != y of z_c: above 0 where the label is predicted."""
    true = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
    others = jnp.where(true, -jnp.inf, logits).max(-1)
    return jnp.sum(jnp.where(true, logits, 0.0), axis=-1) - others


def minus_loss(
    logits: Float[Array, "n classes"], label: Int32[Array, " n"]
) -> Float[Array, " n"]:
    """log p_y: minus the cross-entropy, so that it is higher for members."""
    return -jax.nn.softplus(-scaled_logit(logits, label))


def probability(
    logits: Float[Array, "n classes"], label: Int32[Array, " n"]
) -> Float[Array, " n"]:
    """p_y, in [0, 1]. Confident answers all round to 1: other signals tell more."""
    return jax.nn.sigmoid(scaled_logit(logits, label))


OF_LOGITS = {
    "logit": scaled_logit,
    "hinge": hinge,
    "minus_loss": minus_loss,
    "probability": probability,
}


class Signal(NamedTuple):
    """A signal's name, and how it is read as a probability where an attack needs one.

    `probability` (NumPy, phi -> (0, 1]) is increasing, so that no information is lost.
    """

    name: str
    probability: Callable[[np.ndarray], np.ndarray]


def of_logit(phi: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-phi)): how a signal without a scale of its own is read."""
    return np.exp(-np.logaddexp(0, -np.asarray(phi, np.float64)))


def _of_distance(phi: np.ndarray) -> np.ndarray:
    return np.exp(10 * np.asarray(phi, np.float64))


SIGNALS = {
    signal.name: signal
    for signal in (
        Signal("logit", of_logit),
        Signal("hinge", of_logit),
        Signal("minus_loss", lambda phi: np.exp(np.asarray(phi, np.float64))),
        Signal("probability", lambda phi: np.asarray(phi, np.float64)),
        Signal("nearest", _of_distance),
        Signal("nearest_in_pca", _of_distance),
        Signal("gan_leaks", _of_distance),
        Signal("gan_leaks_calibrated", of_logit),
        Signal("log_density_ratio", of_logit),
        Signal("neighbourhood", lambda phi: (1 + np.asarray(phi, np.float64)) / 2),
        Signal("elbo", of_logit),
        Signal("denoising_loss", of_logit),
        Signal("secmi", of_logit),
        Signal("pia", of_logit),
        Signal("sima", of_logit),
        Signal("velocity_loss", of_logit),
        Signal("discriminator", of_logit),
        Signal("reconstruction", of_logit),
    )
}
