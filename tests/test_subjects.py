"""Which images play which part, and what is seen of each release."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppds_jax.attacks.observe import known, queries
from ppds_jax.data.batches import decode
from ppds_jax.data.load import Images
from ppds_jax.harness.subjects import split
from ppds_jax.types import InputError

RNG = np.random.default_rng(0)


def images(distinct, copies):
    x = RNG.integers(0, 256, (distinct, 4, 4, 1), dtype=np.uint8)
    x = np.concatenate([x, x[:copies]])
    y = np.zeros(len(x), np.int32)
    return Images("mine", x, y, x[:2], y[:2], 1)


def test_no_image_plays_two_parts_nor_has_a_twin_elsewhere():
    data = images(30, 20)
    parts = split(jax.random.key(0), data, 12, 10, 8)
    assert [len(part) for part in parts] == [12, 10, 8]
    rows = data.x_train[np.concatenate(parts)].reshape(30, -1)
    assert len(np.unique(rows, axis=0)) == 30


def test_more_than_there_are_distinct_is_refused():
    with pytest.raises(InputError, match="12 \\+ 19 images asked for; mine has 30"):
        split(jax.random.key(0), images(30, 20), 12, 19)


def test_queries_are_the_image_its_mirror_and_shifts():
    image = jnp.asarray(RNG.random((3, 6, 5, 2)), jnp.float32)
    shown = [np.asarray(show(image)) for show in queries(18)]
    np.testing.assert_array_equal(shown[0], image)
    np.testing.assert_array_equal(shown[1], image[:, :, ::-1])
    assert all(x.shape == image.shape for x in shown)
    flat = np.array([x.ravel() for x in shown])
    assert len(np.unique(flat, axis=0)) == 18
    inner = np.asarray(image)[:, 2:4, 2:3]
    places = {
        (y, x)
        for y in range(3)
        for x in range(3)
        for other in shown[::2]
        if (other[:, 1 + y : 3 + y, 1 + x : 2 + x] == inner).all()
    }
    assert len(places) == 9  # each shift is there once
    for count in (0, 19):
        with pytest.raises(InputError, match=f"queries={count}"):
            queries(count)


def test_public_knowledge_needs_enough_images():
    reference = jnp.asarray(RNG.integers(0, 256, (20, 6, 6, 1)), jnp.uint8)
    seen = known(reference, dims=5)
    assert seen.components(decode(reference)).shape == (20, 5)
    assert (np.diff(seen.radius) > 0).all()
    with pytest.raises(InputError, match="must be more than 30"):
        known(reference, dims=30)
