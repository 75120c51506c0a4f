"""Training: a method's steps as one pure function, whole or in chunks.

No algorithm knows how it is run: by `fit` (one scan, inside jit, vmap or shard_map), by
`begin` and `advance` (chunks whose ends are traced: one program for all of them), or by
`fit_chunks` (from the host, with a callback). All give the same bits.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int32

from ppds_jax.devices import loop_body
from ppds_jax.types import Dataset, InitFn, InputError, Key, PyTree, StepFn


class Method(Protocol):
    """What can be fitted: a Generator or a Classifier."""

    @property
    def init(self) -> InitFn: ...
    @property
    def step(self) -> StepFn: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def public(self) -> PyTree: ...


def _keys(key: Key) -> tuple[Key, Key]:
    init_key, step_key = jax.random.split(key)
    return init_key, step_key


def _step(method: Method, key: Key, data: Dataset, public):
    def step(state, t):
        return method.step(jax.random.fold_in(key, t), state, data, public)

    return loop_body(step)


def _scan(method: Method, key: Key, state, data: Dataset, public, steps):
    return lax.scan(_step(method, key, data, public), state, steps)


def begin(
    key: Key, method: Method, data: Dataset, public: PyTree = None, start: PyTree = None
) -> PyTree:
    """The state before the first step. Arguments as for `fit`."""
    public = method.public if public is None else public
    return method.init(_keys(key)[0], data, public, start)


def advance(
    key: Key,
    method: Method,
    state: PyTree,
    data: Dataset,
    first: int | Int32[Array, ""],
    last: int | Int32[Array, ""],
    public: PyTree = None,
) -> PyTree:
    """The state after `last` steps, from that after `first`; both may be traced.

    From the state of `begin`, steps 0 to `num_steps` make the run of `fit`, and where
    it is cut changes no bit. The other arguments are as for `fit`.
    """
    public = method.public if public is None else public
    step = _step(method, _keys(key)[1], data, public)
    return lax.fori_loop(first, last, lambda t, state: step(state, t)[0], state)


def fit(
    key: Key, method: Method, data: Dataset, public: PyTree = None, start: PyTree = None
) -> tuple[PyTree, PyTree]:
    """Runs `init` and all `num_steps` steps of a method as one pure function.

    Args:
      key: the run's key; step t uses `fold_in(step_key, t)`.
      method: a Generator or a Classifier; closed over, not traced.
      data: the images to fit; only rows with `member` True have influence.
      public: replaces `method.public`. Pass it as an argument of the jitted function
        to keep large public arrays out of the compiled program.
      start: the state that an earlier stage hands over to `init`.

    Returns:
      The last state, and the infos of all steps stacked along a leading axis.

    **Privacy:** what `method.guarantee` says, once; nothing is added here.
    """
    public = method.public if public is None else public
    init_key, step_key = _keys(key)  # once: the checker of keys counts
    state = method.init(init_key, data, public, start)
    return _scan(method, step_key, state, data, public, jnp.arange(method.num_steps))


def fit_chunks(
    key: Key,
    method: Method,
    data: Dataset,
    *,
    chunk: int = 100,
    start: PyTree = None,
    resume: tuple[int, PyTree] | None = None,
    callback: Callable[[int, PyTree, PyTree], None] = lambda step, state, info: None,
) -> PyTree:
    """The same run as `fit`, in chunks of steps from the host.

    Args:
      key, method, data, start: as for `fit`.
      chunk: steps in one compiled call, 1 or more.
      resume: (steps done, state) as a callback has seen them; training goes on from
        there, bitwise as if it had not been interrupted.
      callback: called after each chunk with the steps done so far, the state, and the
        chunk's stacked infos. What it raises stops the run.

    Returns:
      The last state, bitwise equal to that of a jitted `fit` to which `public` is
      passed: what a program has as a constant may be multiplied in another order.

    Raises:
      InputError: a chunk below 1, or a resumption beyond the method's last step.
      FloatingPointError: a state that is not finite; the callback does not see it. A
        private step makes its whole result NaN where it could not keep its promise.
    """
    if chunk < 1:
        raise InputError(f"chunk={chunk}: a chunk has at least 1 step")
    init_key, step_key = _keys(key)
    done, state = resume or (0, None)
    if done > method.num_steps:
        raise InputError(
            f"resume={done} steps: the method has only {method.num_steps}; a further "
            "step would not be covered by its guarantee"
        )
    if resume is None:
        state = jax.jit(method.init)(init_key, data, method.public, start)
    run = jax.jit(partial(_scan, method))
    for steps in _chunks(done, method.num_steps, chunk):
        state, info = run(step_key, state, data, method.public, steps)
        if not finite(state):
            raise FloatingPointError(
                f"step {int(steps[0]) + 1} to {int(steps[-1]) + 1}: the state is not "
                "finite: the training diverged, or a private step failed; nothing of "
                "this run may be published. Try a lower learning rate"
            )
        callback(int(steps[-1]) + 1, state, info)
    return state


@jax.jit
def finite(state: PyTree) -> jax.Array:
    numbers = [
        x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    return jnp.array([jnp.isfinite(x).all() for x in numbers], bool).all()


def _chunks(first: int, last: int, size: int) -> Iterator[jax.Array]:
    while first < last:
        yield jnp.arange(first, min(first + size, last))
        first += size
