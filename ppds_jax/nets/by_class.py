"""Parameters of a class's own, applied to rows of many classes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from ppds_jax.types import PyTree

BLOCK = 50  # rows of one class at once: none is padding for 100 images of each


def by_class(
    fn: Callable[[PyTree, Array], Array],
    params: PyTree,
    rows: Float[Array, "n ..."],
    label: Int32[Array, " n"],
) -> Float[Array, "n ..."]:
    """`fn(params of the row's class, row)` for each row, by products of matrices.

    Rows are sorted into blocks that hold a single class: each row is worked on once,
    where running every class on all rows would do so as often as there are classes.
    Labels may be any, in any order.

    Args:
      fn: (one class's params, rows [b ...]) -> rows [b ...], each by itself.
      params: leaves [classes ...].
    """
    classes = len(jax.tree.leaves(params)[0])
    chosen = jax.nn.one_hot(label, classes, dtype=jnp.int32)
    within = (jnp.cumsum(chosen, axis=0) * chosen).sum(1) - 1  # of its class before it
    blocks = -(-chosen.sum(0) // BLOCK)
    slot = BLOCK * (jnp.cumsum(blocks) - blocks)[label] + within
    count = label.size // BLOCK + classes  # no fewer than there can be
    source = jnp.zeros(count * BLOCK, jnp.int32).at[slot].set(jnp.arange(label.size))
    owner = jnp.zeros(count, jnp.int32).at[slot // BLOCK].set(label)
    sorted_rows = rows[source].reshape(count, BLOCK, *rows.shape[1:])

    def one(block, found):
        mine = jax.tree.map(lambda leaf: leaf[owner[block]], params)
        return found.at[block].set(fn(mine, sorted_rows[block]))

    kind = jax.eval_shape(
        fn, jax.tree.map(lambda leaf: leaf[0], params), sorted_rows[0]
    )
    found = jnp.zeros((count, *kind.shape), kind.dtype)
    found = jax.lax.fori_loop(0, blocks.sum(), one, found)  # the rest are empty
    return found.reshape(count * BLOCK, *kind.shape[1:])[slot]
