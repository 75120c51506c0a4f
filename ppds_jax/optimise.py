"""Parameters and their optimiser, carried together."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32

from ppds_jax.types import PyTree


class Trained(NamedTuple):
    """The state of anything trained by gradient descent."""

    params: PyTree
    optimizer: PyTree
    private: PyTree = ()  # what a private gradient carries besides


def begin(
    optimizer: optax.GradientTransformation, params: PyTree, private: PyTree = ()
) -> Trained:
    """Parameters with the optimiser's first state."""
    return Trained(params, optimizer.init(params), private)


def descend(
    optimizer: optax.GradientTransformation, state: Trained, gradient: PyTree
) -> Trained:
    """One step of the optimiser along a gradient that is shaped like the parameters."""
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes int and float
        update, optimizer_state = optimizer.update(
            gradient, state.optimizer, state.params
        )
    params = optax.apply_updates(state.params, update)
    return Trained(params, optimizer_state, state.private)


class Averaged(NamedTuple):
    """Trained parameters beside their moving average, by which samples are drawn."""

    trained: Trained
    average: PyTree
    count: Int32[Array, ""]


def begin_average(trained: Trained) -> Averaged:
    """An average that starts at the parameters."""
    return Averaged(trained, trained.params, jnp.array(0, jnp.int32))


def follow(state: Averaged, trained: Trained, decay: float) -> Averaged:
    """The average a <- d a + (1 - d) params, d = min(decay, t / (t + 9)) at step t.

    At first it reaches back over a tenth of the steps so far, so that short runs do not
    keep their first weights.
    """
    t = (state.count + 1).astype(jnp.float32)
    d = jnp.minimum(decay, t / (t + 9))
    average = jax.tree.map(
        lambda a, p: a + (1 - d) * (p - a), state.average, trained.params
    )
    return Averaged(trained, average, state.count + 1)
