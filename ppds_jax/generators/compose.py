"""Generators from generators: a public start, stages in turn, averaged parameters.

Each takes generators and gives one, so that they nest. What the result reveals is
composed from its parts' guarantees.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int32

from ppds_jax.fit import fit
from ppds_jax.optimise import Averaged, Trained
from ppds_jax.privacy.accounting import compose, promises
from ppds_jax.types import Generator, InputError, PyTree

PUBLIC_START = "started from parameters that are taken to be public"


def warm_start(generator: Generator, params: PyTree) -> Generator:
    """The generator, whose `init` starts from the state `params`.

    Args:
      generator: a method whose `init` takes a `start`, as most that train a network do.
      params: the state that is handed to it, fitted to public data by the same method
        or its private kin (VAE for DPVAE, Diffusion for DPDM and DPFeta, GAN for
        DPGAN), of the same sizes; it lies in `public`, so that shadow models share it.
        Its parameters are taken over, not its optimiser.

    **Privacy:** the generator's own, with a note: that `params` know nothing of the
    private images is the caller's claim.

    Raises:
      InputError: on running, a generator that makes no use of a start.
    """
    guarantee = generator.guarantee
    if promises(guarantee):
        guarantee = replace(guarantee, notes=(*guarantee.notes, PUBLIC_START))

    def init(key, data, public, start=None):
        inner, params = public
        start = params if start is None else start
        if not _uses(lambda start: generator.init(key, data, inner, start), start):
            raise InputError("warm_start: this generator makes no use of a start")
        return generator.init(key, data, inner, start)

    return _inside(generator, lambda public: public[0])._replace(
        init=init,
        guarantee=guarantee,
        public=(generator.public, params),
        straight=generator.straight and warm_start(generator.straight, params),
    )


def _uses(fn: Callable, argument: PyTree) -> bool:
    """Whether a function reads its argument, traced."""
    jaxpr = jax.make_jaxpr(fn)(argument).jaxpr
    read = [*jaxpr.outvars, *(atom for eqn in jaxpr.eqns for atom in eqn.invars)]
    known = {id(atom) for atom in read}
    return any(id(variable) in known for variable in jaxpr.invars)


def _inside(generator: Generator, own: Callable[[PyTree], PyTree]) -> Generator:
    """The generator, given public arrays of which `own` picks what it knows."""

    def signal(inner):
        return lambda key, state, image, label, public: inner(
            key, state, image, label, own(public)
        )

    def init(key, data, public, start=None):
        return generator.init(key, data, own(public), start)

    return generator._replace(
        init=init,
        step=lambda key, state, data, public: generator.step(
            key, state, data, own(public)
        ),
        sample=lambda key, state, label, public: generator.sample(
            key, state, label, own(public)
        ),
        signals={name: signal(inner) for name, inner in generator.signals.items()},
        straight=None,
    )


class ThenState(NamedTuple):
    """Where a run of two stages is; the stage that does not run is all zeros."""

    step: Int32[Array, ""]
    first: PyTree
    second: PyTree


def then(
    first: Generator, second: Generator, hand_over: Callable[[PyTree], PyTree]
) -> Generator:
    """Two stages: all of `first`, and then all of `second`, which draws the samples.

    The last step of `first` also runs `second.init`, which gets `hand_over(state of
    first)` as its `start`. Steps add up, so that a run has progress, checkpoints and
    resumption in both stages. The switch looks at the number of the step, which is the
    same for all shadow models of a `vmap`: it stays a branch, and one stage runs. (Only
    where states are themselves mapped over, chunk by chunk, are both computed.)

    Infos are {"first": ..., "second": ...}, NaN for the stage that does not run.

    **Privacy:** both guarantees composed; what is handed over and the state of the
    second stage are covered together.

    Raises:
      InputError: guarantees under different neighbour relations, or a first stage that
        itself has two: write then(a, then(b, c)) for then(then(a, b), c).
    """
    if first.straight:
        raise InputError("then: a first stage of stages; let the second be the `then`")
    guarantee = compose(first.guarantee, second.guarantee)
    public = first.public, second.public
    last = first.num_steps - 1
    after = _inside(second, lambda public: public[1])
    straight = _at_once(first, second.straight or second, hand_over)
    straight = straight._replace(guarantee=guarantee, public=public)
    if last < 0:  # nothing but an init: there are no stages to switch between
        whole = _at_once(first, second, hand_over)
        return whole._replace(
            guarantee=guarantee, public=public, straight=second.straight and straight
        )

    def opened(key, state, data, public):
        return second.init(key, data, public[1], hand_over(state))

    def init(key, data, public, start=None):
        state = first.init(key, data, public[0], start)
        shape = jax.eval_shape(opened, key, state, data, public)
        return ThenState(jnp.zeros((), jnp.int32), state, _blank(shape, 0))

    def step(key, state, data, public):
        first_key, open_key, second_key = jax.random.split(key, 3)
        t = state.step

        def one(before, key):
            return first.step(key, before, data, public[0])

        def two(later, key):
            return second.step(key, later, data, public[1])

        here, info = _where(t <= last, one, state.first, first_key)
        later = lax.cond(
            t == last,
            lambda: opened(open_key, here, data, public),
            lambda: state.second,
        )
        later, more = _where(t > last, two, later, second_key)
        kept = lax.cond(t < last, lambda: here, lambda: _blank(here, 0))
        return ThenState(t + 1, kept, later), {"first": info, "second": more}

    def outer(fn):
        return lambda key, state, *rest: fn(key, state.second, *rest)

    return Generator(
        init,
        step,
        outer(after.sample),
        first.num_steps + second.num_steps,
        guarantee,
        public,
        {name: outer(signal) for name, signal in after.signals.items()},
        straight,
    )


def _at_once(first: Generator, second: Generator, hand_over: Callable) -> Generator:
    """`second`, whose init runs the first stage whole."""

    def init(key, data, public, start=None):
        first_key, second_key = jax.random.split(key)
        state, _ = fit(first_key, first, data, public[0], start)
        return second.init(second_key, data, public[1], hand_over(state))

    return _inside(second, lambda public: public[1])._replace(init=init)


def _where(run: Array, step: Callable, state: PyTree, key: Any) -> tuple:
    """One step of a stage (state, info), or the state as it is and no info."""
    _, info = jax.eval_shape(step, state, key)
    return lax.cond(
        run, step, lambda state, _: (state, _blank(info, jnp.nan)), state, key
    )


def _blank(shape: PyTree, value: float) -> PyTree:
    """Arrays of these shapes, full of a value; of zeros where they are not floats."""

    def one(x):
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.full(x.shape, value if floating else 0, x.dtype)

    return jax.tree.map(one, shape)


class EMAState(NamedTuple):
    """The generator's state, and the average of its parameters over the steps."""

    state: PyTree
    mean: list[PyTree]  # of each `Trained` in the state
    step: Int32[Array, ""]


def ema(generator: Generator, decay: float) -> Generator:
    """The generator with an exponential average of its parameters, which samples.

    After step t the average is (1 - d) / (1 - d^t) times the sum over s <= t of
    d^(t-s) params_s, with d = `decay`: that of Adam's moments, which the first
    parameters do not weigh down. Parameters are those of every `Trained` in the state.

    **Privacy:** the generator's own, where that covers all states of the run and not
    the last one alone, as it does for DP-SGD.

    Raises:
      InputError: a decay outside [0, 1), a `then`, of which the second stage is to be
        averaged; on running, a state without a `Trained`, or with an average already.

    **References:** Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015,
    arXiv 1412.6980, section 3.
    """
    if not 0 <= decay < 1:
        raise InputError(f"decay={decay}: must be at least 0 and below 1")
    if generator.straight:
        raise InputError("ema: of stages; write then(first, ema(second, decay), ...)")

    def init(key, data, public, start=None):
        state = generator.init(key, data, public, start)
        mean = [part.params for part in _trained(state)]
        if not mean:
            raise InputError(
                f"ema: {type(state).__name__} holds no `Trained` to average"
            )
        if _averages(state):
            raise InputError("ema: draws by an average already; set its `average`")
        return EMAState(state, mean, jnp.zeros((), jnp.int32))

    def step(key, state, data, public):
        inner, info = generator.step(key, state.state, data, public)
        t = (state.step + 1).astype(jnp.float32)
        rate = (1 - decay) / (1 - jnp.float32(decay) ** t)
        params = [part.params for part in _trained(inner)]
        move = lambda m, p: m + rate.astype(m.dtype) * (p - m)
        mean = jax.tree.map(move, state.mean, params)
        return EMAState(inner, mean, state.step + 1), info

    def averaged(fn):
        return lambda key, state, *rest: fn(
            key, _with_params(state.state, state.mean), *rest
        )

    return generator._replace(
        init=init,
        step=step,
        sample=averaged(generator.sample),
        signals={name: averaged(fn) for name, fn in generator.signals.items()},
    )


def _averages(state: PyTree) -> bool:
    """Whether a state holds an average of parameters of its own."""
    one = lambda x: isinstance(x, Averaged)
    return any(map(one, jax.tree.leaves(state, is_leaf=one)))


def _is_trained(x: Any) -> bool:
    return isinstance(x, Trained)


def _trained(state: PyTree) -> list[Trained]:
    return [x for x in jax.tree.leaves(state, is_leaf=_is_trained) if _is_trained(x)]


def _with_params(state: PyTree, params: list[PyTree]) -> PyTree:
    rest = iter(params)
    put = lambda x: x._replace(params=next(rest)) if _is_trained(x) else x
    return jax.tree.map(put, state, is_leaf=_is_trained)
