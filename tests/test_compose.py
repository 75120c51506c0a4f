"""Generators from parts: as the parts by hand, under their composed guarantee."""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ppds_jax.fit import fit, fit_chunks
from ppds_jax.generators import DPVAE, VAE, ClassMean, FlowMatching
from ppds_jax.generators.compose import PUBLIC_START, ema, then, warm_start
from ppds_jax.optimise import Trained, begin, descend, handed_over
from ppds_jax.privacy import accounting
from ppds_jax.privacy.checks import CHECKS
from ppds_jax.privacy.dpsgd import calibrated, dp_gradient
from ppds_jax.privacy.subject import Subject
from ppds_jax.types import Budget, Generator, InputError
from tests.conftest import BUDGET, DIGITS

LABEL = jnp.arange(10, dtype=jnp.int32)


class DriftState(NamedTuple):
    mean: jax.Array
    trained: Trained


@dataclass(frozen=True)
class Drift:
    """One release of class means, and free steps of pixels towards them."""

    num_steps: int = 3

    def make(self, spec, budget):
        inner, optimizer = ClassMean().make(spec, budget), optax.adam(0.1)

        def init(key, data, public, start=None):
            mean = inner.init(key, data, public)
            return DriftState(mean, begin(optimizer, jnp.zeros_like(mean)))

        def step(key, state, data, public):
            loss = lambda params: jnp.square(params - state.mean).sum()
            value, gradient = jax.value_and_grad(loss)(state.trained.params)
            gradient = gradient + 0.01 * jax.random.normal(key, gradient.shape)
            trained = descend(optimizer, state.trained, gradient)
            return DriftState(state.mean, trained), {"loss": value}

        def sample(key, state, label, public):
            return jnp.clip(state.trained.params[label], 0, 1)

        return Generator(init, step, sample, self.num_steps, inner.guarantee)


FIRST = Drift()


class Pixels:
    """A generator of 64 parameters for each class, by DP-SGD: seconds to compile."""

    num_steps = 4

    def make(self, spec, budget):
        settings = calibrated(
            spec, budget, clip_norm=1.0, batch_size=20, num_steps=self.num_steps
        )
        optimizer = optax.adam(0.1)

        def loss(key, params, image, label):
            return ((params[label] - image) ** 2).mean()

        private = dp_gradient(loss, settings)

        def init(key, data, public, start=None):
            params = jnp.zeros((spec.num_classes, *spec.image_shape))
            params = params if start is None else start
            return begin(optimizer, params, private.init(params))

        def step(key, state, data, public):
            gradient, spent = private.apply(key, state.private, state.params, data)
            state = descend(optimizer, state, gradient)
            return state._replace(private=spent), {"size": jnp.abs(state.params).sum()}

        def sample(key, state, label, public):
            return jnp.clip(state.params[label], 0, 1)

        return Generator(init, step, sample, settings.num_steps, settings.guarantee)


def drawn(first):
    """Hands images over as the pixels to start from."""

    def hand_over(state):
        key = jax.random.key(3)
        return jax.lax.stop_gradient(first.sample(key, state, LABEL, first.public))

    return hand_over


@cache
def two_stages(epsilon=2.0):
    half = Budget(epsilon / 2, 1e-5)
    first, second = FIRST.make(DIGITS, half), Pixels().make(DIGITS, half)
    relation = second.guarantee.neighbours
    event = first.guarantee.event
    guarantee = accounting.Guarantee(event, relation)  # add-or-remove: the same sum
    first = first._replace(guarantee=guarantee)
    return first, second, then(first, second, drawn(first))


def run(method, data, seed=0):
    return jax.jit(lambda k, d: fit(k, method, d))(jax.random.key(seed), data)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_two_stages_equal_the_parts_by_hand_bitwise(digits):
    first, second, both = two_stages()
    state, info = run(both, digits)
    init_key, step_key = jax.random.split(jax.random.key(0))
    here = jax.jit(first.init)(init_key, digits, first.public)
    later = None
    for t in range(both.num_steps):
        key = jax.random.fold_in(step_key, t)
        first_key, open_key, second_key = jax.random.split(key, 3)
        if t < first.num_steps:
            here, _ = jax.jit(first.step)(first_key, here, digits, first.public)
        if t == first.num_steps - 1:
            start = jax.jit(drawn(first))(here)
            later = jax.jit(second.init)(open_key, digits, second.public, start)
        if t >= first.num_steps:
            later, _ = jax.jit(second.step)(second_key, later, digits, second.public)
    assert_equal(state.second, later)
    assert_equal(
        both.sample(init_key, state, LABEL, both.public),
        second.sample(init_key, later, LABEL, second.public),
    )
    np.testing.assert_array_equal(
        np.isnan(info["second"]["size"]), np.arange(both.num_steps) < first.num_steps
    )
    np.testing.assert_array_equal(
        np.isnan(info["first"]["loss"]), np.arange(both.num_steps) >= first.num_steps
    )
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(state.first))


def test_steps_and_guarantees_add_up():
    first, second, both = two_stages()
    assert both.num_steps == first.num_steps + second.num_steps
    spent = accounting.epsilon(both.guarantee, 1e-5)
    parts = [accounting.epsilon(g.guarantee, 1e-5) for g in (first, second)]
    assert max(parts) < spent < sum(parts)


def test_stages_under_different_relations_are_refused():
    first = FIRST.make(DIGITS, BUDGET)
    with pytest.raises(InputError, match="neighbours=add-or-remove and zero-out"):
        then(first, Pixels().make(DIGITS, BUDGET), drawn(first))


@pytest.mark.parametrize("check", CHECKS)
def test_two_private_stages_pass_every_check(check, digits):
    """The budget is split in halves, which together cost less than the whole."""
    budget = Budget(2.0, 1e-5)
    build = lambda data, budget: two_stages(budget.epsilon)[2]
    fault = CHECKS[check](Subject(build, DIGITS, budget, digits))
    assert fault == "" or (check == "budget" and fault.startswith("spends epsilon 1."))


def twice():
    """Two stages that are quick to compile."""
    first = FIRST.make(DIGITS, BUDGET)
    return then(first, Drift(num_steps=2).make(DIGITS, BUDGET), lambda s: None)


COMPOSED = {
    "then an ema": lambda: then(
        FIRST.make(DIGITS, BUDGET),
        ema(Drift(num_steps=2).make(DIGITS, BUDGET), 0.9),
        lambda state: None,
    ),
    "a last stage of one release": lambda: then(
        FIRST.make(DIGITS, BUDGET), ClassMean().make(DIGITS, BUDGET), lambda state: None
    ),
    "warm": lambda: warm_start(Pixels().make(DIGITS, BUDGET), jnp.ones((10, 8, 8, 1))),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_composed_generators_conform(name, digits):
    """Resumption and the mask bitwise, vmap within rounding, images in [0, 1]."""
    method = COMPOSED[name]()
    whole, _ = run(method, digits)
    seen = []
    keep = lambda step, state, info: seen.append((step, state))
    key = jax.random.key(0)
    assert_equal(fit_chunks(key, method, digits, chunk=3, callback=keep), whole)
    resume = seen[0]
    assert_equal(fit_chunks(key, method, digits, chunk=3, resume=resume), whole)
    outside = ~digits.member[:, None, None, None]
    changed = digits._replace(image=jnp.where(outside, 255, digits.image))
    assert_equal(run(method, changed)[0], whole)
    member = jnp.stack([digits.member, ~digits.member])
    mapped = jax.jit(
        jax.vmap(lambda m: fit(key, method, digits._replace(member=m))[0])
    )(member)
    for a, b in zip(jax.tree.leaves(mapped), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a[0], b, atol=2e-3, rtol=1e-3)
    image = method.sample(key, whole, LABEL, method.public)
    assert image.shape == (10, 8, 8, 1)
    assert 0 <= float(image.min()) <= float(image.max()) <= 1


def test_under_vmap_the_switch_stays_a_branch(digits):
    """A batched condition would turn into a select, which computes both stages."""
    method = twice()
    member = jnp.stack([digits.member, ~digits.member])
    one = lambda m: fit(jax.random.key(0), method, digits._replace(member=m))[0]
    program = str(jax.make_jaxpr(jax.vmap(one))(member))
    assert program.count("cond[") >= 4


def test_an_average_follows_its_formula(digits):
    inner = Drift(num_steps=5).make(DIGITS, BUDGET)
    method = ema(inner, 0.8)
    state, _ = run(method, digits)
    seen = []
    keep = lambda step, state, info: seen.append(state.trained.params)
    key = jax.random.key(0)
    last = fit_chunks(key, inner, digits, chunk=1, callback=keep)
    weight = 0.8 ** np.arange(5)[::-1] * (1 - 0.8) / (1 - 0.8**5)
    assert_equal(state.state, last)
    (mean,) = state.mean
    for got, *each in zip(
        jax.tree.leaves(mean), *map(jax.tree.leaves, seen), strict=True
    ):
        np.testing.assert_allclose(
            got, np.tensordot(weight, np.stack(each), 1), atol=1e-6
        )
    averaged = last._replace(trained=last.trained._replace(params=mean))
    assert_equal(
        method.sample(key, state, LABEL, method.public),
        inner.sample(key, averaged, LABEL, inner.public),
    )
    assert set(ema(VAE().make(DIGITS, BUDGET), 0.8).signals) == {"elbo"}


def test_a_first_stage_without_steps_is_done_in_init(digits):
    first, second = (c.make(DIGITS, BUDGET) for c in (ClassMean(), FIRST))
    both = then(first, second, lambda state: None)
    assert both.num_steps == second.num_steps
    key = jax.random.key(0)
    _, second_key = jax.random.split(key)
    assert_equal(
        both.init(key, digits, both.public),
        second.init(second_key, digits, second.public),
    )


def test_three_stages_are_nested_to_the_right(digits):
    """And checks find no branch in them."""
    one, two, three = (Drift(num_steps=n).make(DIGITS, BUDGET) for n in (2, 1, 3))
    pass_on = lambda state: None
    whole = then(one, then(two, three, pass_on), pass_on)
    assert whole.num_steps == 6
    state, _ = run(whole, digits)
    assert state.second.second.trained.params.any()
    trace = lambda fn, *args: str(jax.make_jaxpr(fn)(*args))
    key, straight = jax.random.key(0), whole.straight
    assert "cond[" in trace(whole.step, key, state, digits, whole.public)
    assert "cond[" not in trace(straight.init, key, digits, straight.public)
    with pytest.raises(InputError, match="let the second be"):
        then(then(one, two, pass_on), three, pass_on)


def test_an_average_of_nothing_is_refused(digits):
    with pytest.raises(InputError, match="decay=1"):
        ema(FIRST.make(DIGITS, BUDGET), 1.0)
    with pytest.raises(InputError, match="no `Trained`"):
        run(ema(ClassMean().make(DIGITS, BUDGET), 0.9), digits)
    with pytest.raises(InputError, match=r"then\(first, ema\(second"):
        ema(twice(), 0.9)
    with pytest.raises(InputError, match="set its `average`"):
        run(ema(DPVAE().make(DIGITS, BUDGET), 0.9), digits)


SMALL = VAE(latent=2, width=4, epochs=1)
FLOW = FlowMatching(width=8, multipliers=(1,), epochs=1)
STARTS = {
    "VAE": (SMALL, DPVAE(latent=2, width=4, epochs=1, batch_size=20)),
    "FlowMatching": (FLOW, FLOW),
}


@pytest.mark.parametrize(
    "name", [pytest.param("VAE", marks=pytest.mark.slow), "FlowMatching"]
)
def test_a_fitted_network_is_taken_over_and_trains_on(name, digits):
    """Its parameters, not its optimiser: the schedule of that one has run out."""
    public, private = (one.make(DIGITS, BUDGET) for one in STARTS[name])
    fitted, _ = run(public, digits)
    method = warm_start(private, fitted)
    key = jax.random.key(5)
    state = jax.jit(method.init)(key, digits, method.public)
    assert_equal(state.trained.params, handed_over(fitted))
    later, _ = jax.jit(method.step)(key, state, digits, method.public)
    moved = jax.tree.map(
        lambda a, b: jnp.abs(a - b).max(), later.trained.params, state.trained.params
    )
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_a_start_that_nothing_is_made_of_is_refused(digits):
    method = warm_start(ClassMean().make(DIGITS, BUDGET), jnp.ones(3))
    with pytest.raises(InputError, match="no use of a start"):
        run(method, digits)


def test_a_public_start_costs_nothing_and_is_noted(digits):
    inner = Pixels().make(DIGITS, BUDGET)
    start = jnp.ones((10, 8, 8, 1))
    method = warm_start(inner, start)
    assert method.guarantee.event == inner.guarantee.event
    assert PUBLIC_START in method.guarantee.notes
    by_hand = jax.jit(lambda k, d: fit(k, inner, d, start=start)[0])
    assert_equal(run(method, digits)[0], by_hand(jax.random.key(0), digits))
