"""Parameters and their optimiser, carried together."""

from typing import NamedTuple

import jax
import optax

from ppds_jax.types import PyTree


class Trained(NamedTuple):
    """The state of anything trained by gradient descent."""

    params: PyTree
    optimizer: PyTree


def begin(optimizer: optax.GradientTransformation, params: PyTree) -> Trained:
    """Fresh parameters with the optimiser's first state."""
    return Trained(params, optimizer.init(params))


def descend(
    optimizer: optax.GradientTransformation, state: Trained, gradient: PyTree
) -> Trained:
    """One step of the optimiser along a gradient that is shaped like the parameters."""
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes int and float
        update, optimizer_state = optimizer.update(
            gradient, state.optimizer, state.params
        )
    return Trained(optax.apply_updates(state.params, update), optimizer_state)
