"""Parameters and their optimiser, carried together."""

from typing import NamedTuple

import jax
import optax

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
