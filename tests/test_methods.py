"""Conformance: what every generator and classifier of the registries must do."""

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppds_jax.fit import advance, begin, fit, fit_chunks
from ppds_jax.mapping import map_shadows
from ppds_jax.pipeline import (
    classification,
    generation,
    guarantees,
    run_stages,
    sampling,
)
from ppds_jax.privacy.accounting import Known, epsilon
from ppds_jax.sampling.balanced import Balanced
from ppds_jax.types import Dataset
from tests.conftest import BUDGET, DIGITS
from tests.methods import CLASSIFIERS, GENERATORS, METHODS, name


def key(seed=7):
    return jax.random.key(seed)


@cache
def made(config):
    return config.make(DIGITS, BUDGET)


@cache
def runner(config):
    method = made(config)
    return jax.jit(lambda key, data, public: fit(key, method, data, public)[0])


def fitted(config, data):
    return runner(config)(key(), data, made(config).public)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("config", METHODS, ids=name)
def test_non_members_leave_every_state_bitwise_equal(config, digits):
    """All pixels and labels of non-members change; nothing that is fitted does."""
    outside = ~digits.member
    changed = Dataset(
        jnp.where(outside[:, None, None, None], 255 - digits.image, digits.image),
        jnp.where(outside, 9 - digits.label, digits.label),
        digits.member,
    )
    assert_equal(fitted(config, digits), fitted(config, changed))


@pytest.mark.parametrize("config", METHODS, ids=name)
def test_members_have_influence(config, digits):
    """The counterpart of the test above: without it, that one could not fail."""
    if made(config).guarantee.event is Known.DATA_FREE:
        pytest.skip("reads no data")
    changed = digits._replace(image=255 - digits.image)
    one, other = fitted(config, digits), fitted(config, changed)
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    assert any(not np.array_equal(a, b) for a, b in leaves)


@pytest.mark.parametrize("config", METHODS, ids=name)
def test_the_same_key_gives_the_same_state(config, digits):
    assert_equal(fitted(config, digits), fitted(config, digits))


@pytest.mark.parametrize("config", METHODS, ids=name)
def test_chunks_and_resumption_equal_one_scan_bitwise(config, digits):
    method, whole = made(config), fitted(config, digits)
    seen = []
    keep = lambda step, state, info: seen.append((step, state))
    assert_equal(fit_chunks(key(), method, digits, chunk=4, callback=keep), whole)
    if len(seen) > 1:
        assert_equal(fit_chunks(key(), method, digits, chunk=4, resume=seen[0]), whole)


@pytest.mark.parametrize("config", METHODS, ids=name)
def test_one_program_for_chunks_of_any_size_equals_one_scan_bitwise(config, digits):
    method = made(config)
    first = jax.jit(lambda key, data, public: begin(key, method, data, public))
    state = first(key(), digits, method.public)
    chex.clear_trace_counter()
    counted = method._replace(step=chex.assert_max_traces(method.step, n=1))
    run = jax.jit(lambda key, *args: advance(key, counted, *args))
    done = 0
    for chunk in (1, 2, method.num_steps):
        last = min(done + chunk, method.num_steps)
        state = run(key(), state, digits, done, last, method.public)
        done = last
    assert_equal(state, fitted(config, digits))


@pytest.mark.parametrize("config", METHODS, ids=name)
def test_a_step_is_traced_once_in_a_scan(config, digits):
    """A second trace in a run of the same shapes would be a recompilation."""
    method = made(config)
    chex.clear_trace_counter()
    counted = method._replace(step=chex.assert_max_traces(method.step, n=1))
    run = jax.jit(lambda key, data: fit(key, counted, data)[0])
    jax.block_until_ready(run(key(), digits))
    jax.block_until_ready(run(key(8), digits))


@pytest.mark.parametrize("config", GENERATORS, ids=name)
def test_samples_are_images_of_the_labels_asked_for(config, digits):
    method = made(config)
    state = fitted(config, digits)
    label = jnp.array([3, 0, 0, 9, 5, 3, 3], jnp.int32)
    image = method.sample(key(1), state, label, method.public)
    assert image.shape == (7, 8, 8, 1)
    assert image.dtype == jnp.float32
    assert float(image.min()) >= 0
    assert float(image.max()) <= 1
    assert float(jnp.abs(image[1] - image[3]).max()) > 0.05


@pytest.mark.parametrize("config", METHODS, ids=name)
def test_the_budget_is_kept_and_used(config):
    """epsilon is infinite (no promise), 0 (no data), or 0.9 to 1 of the budget."""
    spent = epsilon(made(config).guarantee, BUDGET.delta)
    assert spent in (0, float("inf")) or 0.9 <= spent / BUDGET.epsilon <= 1


@pytest.mark.parametrize("config", METHODS, ids=name)
def test_a_number_below_its_range_is_refused_by_name(config):
    from dataclasses import fields, replace

    for field in fields(config):
        if isinstance(getattr(config, field.name), (int, float)):
            with pytest.raises(ValueError, match=field.name):
                replace(config, **{field.name: -1}).make(DIGITS, BUDGET)
            return


def test_ten_thousand_images_are_one_call_of_one_program(digits):
    (config,) = (c for c in GENERATORS if name(c) == "ClassMean")
    generator, traced = made(config), []

    def sample(key, state, label, public):
        traced.append(label.size)
        return generator.sample(key, state, label, public)

    sampler = Balanced(num_images=10_000, batch_size=500).make(DIGITS)
    counted = generator._replace(sample=sample)
    draw = jax.jit(lambda key, state: sampler.draw(key, counted, state, digits))
    state = jax.jit(lambda data: fit(key(), generator, data)[0])(digits)
    first, second = (draw(jax.random.key(i), state).image for i in (0, 1))
    assert first.shape == (10_000, *DIGITS.image_shape)
    assert traced == [500]
    assert draw._cache_size() == 1
    assert (first != second).any()


def pipeline(config):
    generator = made(config)
    sampler = Balanced(batch_size=32).make(DIGITS)
    classifier = made(CLASSIFIERS[0])
    stages = generation(generator), sampling(generator, sampler)
    return (*stages, classification(classifier))


def mapped_equals_separate(config, mode, data, rows):
    """Rows of membership give, within 2e-3 of a weight and 2 grey levels of a pixel,
    what they give one by one. (Sums are ordered differently under vmap.)"""
    stages = pipeline(config)

    def one(shared, row):
        return run_stages(row[0], stages, Dataset(*shared, row[1]))

    member = jnp.stack([data.member, ~data.member] * (rows // 2))
    shared = data.image, data.label
    mapped = map_shadows(one, mode)(shared, (jax.random.split(key(), rows), member))
    mapped = jax.device_get(mapped)  # rows of a sharded array are read by a collective
    single = jax.jit(one)
    for i in range(2):
        alone = single(shared, (jax.random.split(key(), rows)[i], member[i]))
        row = jax.tree.map(lambda x, i=i: x[i], mapped)
        for a, b in zip(jax.tree.leaves(row), jax.tree.leaves(alone), strict=True):
            if a.dtype == jnp.uint8:
                assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 2
            else:
                np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("config", GENERATORS, ids=name)
def test_the_whole_pipeline_under_vmap_equals_separate_runs(config, digits):
    mapped_equals_separate(config, "vmap", digits, 2)


@pytest.mark.parametrize("mode", ["map", "shard-map", "shard-vmap"])
def test_every_mapping_equals_separate_runs(mode, digits):
    mapped_equals_separate(GENERATORS[2], mode, digits, 4)


@pytest.mark.parametrize("config", METHODS, ids=name)
def test_no_key_is_used_twice(config, digits):
    method = made(config)
    with jax.debug_key_reuse(True):
        run = jax.jit(lambda key, data: fit(key, method, data)[0])
        jax.block_until_ready(run(key(), digits))


def test_guarantees_follow_the_stages(digits):
    private = made(GENERATORS[1])
    sampler = Balanced().make(DIGITS)
    classifier = made(CLASSIFIERS[0])
    composed = guarantees(private, sampler, classifier)
    spent = epsilon(private.guarantee, 1e-5)
    assert [epsilon(g, 1e-5) for g in composed] == [spent] * 3
    real = guarantees(None, None, classifier)
    assert real.images is None
    assert epsilon(real.classifier, 1e-5) == float("inf")
