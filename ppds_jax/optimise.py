"""Gradients of a batch, and parameters carried together with their optimiser."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32

from ppds_jax.devices import block_rows
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


def mean_gradient(
    loss: Callable[..., Float[Array, ""]], params: PyTree, *rows: Array
) -> tuple[Float[Array, ""], PyTree]:
    """The value and the gradient of a mean over the rows of a batch.

    Args:
      loss: (params, *rows) -> its mean over these rows, each on its own: no statistics
        over the batch.
      params: by which it is differentiated.
      rows: arrays with a common leading axis: images, labels, noises. On a CPU a block
        of them is taken at a time (`devices.block_rows`), which changes no result
        beyond rounding.
    """
    count = rows[0].shape[0]
    size = block_rows(count)
    if size == count:
        return jax.value_and_grad(loss)(params, *rows)

    def add(total, block):
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(params, *block))

    blocks = jax.tree.map(lambda x: x.reshape(count // size, size, *x.shape[1:]), rows)
    zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    total, _ = jax.lax.scan(lambda t, block: (add(t, block), None), zero, blocks)
    return jax.tree.map(lambda x: x * (size / count), total)


class Averaged(NamedTuple):
    """Trained parameters beside their moving average, by which samples are drawn."""

    trained: Trained
    average: PyTree
    steps: Int32[Array, ""]


def begin_average(trained: Trained) -> Averaged:
    """An average that starts at the parameters."""
    return Averaged(trained, trained.params, jnp.array(0, jnp.int32))


def handed_over(state: Averaged | Trained) -> PyTree:
    """The parameters that a later stage starts from: the average, where there is one.

    The optimiser begins anew: its moments and its schedule are of another loss.
    """
    return state.average if isinstance(state, Averaged) else state.params


def follow(state: Averaged, trained: Trained, decay: float) -> Averaged:
    """The average a <- d a + (1 - d) params, d = min(decay, t / (t + 9)) at step t.

    At first it reaches back over a tenth of the steps so far, so that short runs do not
    keep their first weights.
    """
    t = (state.steps + 1).astype(jnp.float32)
    d = jnp.minimum(decay, t / (t + 9))
    average = jax.tree.map(
        lambda a, p: a + (1 - d) * (p - a), state.average, trained.params
    )
    return Averaged(trained, average, state.steps + 1)
