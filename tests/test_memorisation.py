"""Copies are recognised, fresh points are not; definitions are those of loops."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from ppds_jax.metrics import memorisation
from ppds_jax.metrics.memorisation import (
    authenticity,
    data_copying,
    nearest,
    nearest_neighbour_ratio,
)
from ppds_jax.types import InputError


def sets(seed=0, rows=300, dims=5):
    """Training, held-out and fresh points of one distribution."""
    return np.random.default_rng(seed).normal(size=(3, rows, dims))


def copies(training, noise, seed=1):
    return training + noise * np.random.default_rng(seed).normal(size=training.shape)


def by_loops(x, points):
    return np.array([min(np.linalg.norm(row - p) for p in points) for row in x])


def test_nearest_is_brute_force():
    training, _, fresh = sets(rows=50)
    expected = by_loops(fresh, training)
    np.testing.assert_allclose(nearest(fresh, training), expected, rtol=1e-12)
    assert (nearest(1e3 + training, 1e3 + training) == 0).all()
    many = np.tile(fresh, (2**22 // 50 // 50 + 2, 1))  # more than one block
    np.testing.assert_allclose(nearest(many, training)[-50:], expected, rtol=1e-12)


def test_data_copying_is_the_standardised_rank_test():
    training, held_out, fresh = sets(rows=60)
    cells = [np.random.default_rng(i).integers(3, size=60) for i in range(3)]
    expected, weights = [], []
    for cell in range(3):
        t, p, g = (
            x[c == cell]
            for x, c in zip((training, held_out, fresh), cells, strict=True)
        )
        near, far = by_loops(g, t), by_loops(p, t)
        above = mannwhitneyu(near, far).statistic
        sigma = np.sqrt(len(near) * len(far) * (len(near) + len(far) + 1) / 12)
        expected.append((above - len(near) * len(far) / 2) / sigma)
        weights.append(len(p))
    names = ("training_cell", "held_out_cell", "generated_cell")
    found = data_copying(
        training, held_out, fresh, **dict(zip(names, cells, strict=True))
    )
    assert found == pytest.approx(np.average(expected, weights=weights), abs=1e-12)


def test_copies_are_recognised_and_fresh_points_are_not():
    """C_T of fresh points, given training, is standard normal: 5 of it, 6e-7."""
    training, held_out, fresh = sets()
    assert abs(data_copying(training, held_out, fresh)) < 5
    assert data_copying(training, held_out, copies(training, 0.1)) < -10
    assert data_copying(training, held_out, copies(training, 5.0)) > 10
    assert 0.9 < nearest_neighbour_ratio(training, held_out, fresh) < 1.1
    assert nearest_neighbour_ratio(training, held_out, copies(training, 0.1)) < 0.3
    assert nearest_neighbour_ratio(training, held_out, training) < 1e-9
    assert nearest_neighbour_ratio(training, training, training) == 1
    assert authenticity(training, copies(training, 0.01)) == 0
    assert authenticity(training, fresh + 100) == 1
    assert authenticity(training, fresh) > 0.3


def test_authenticity_is_the_plain_loop():
    training, _, fresh = sets(rows=40, dims=2)
    authentic = []
    for point in fresh:
        to_training = [np.linalg.norm(point - t) for t in training]
        i = int(np.argmin(to_training))
        others = [np.linalg.norm(training[i] - t) for t in np.delete(training, i, 0)]
        authentic.append(to_training[i] > min(others))
    assert authenticity(training, fresh) == np.mean(authentic)


def test_cells_without_enough_generated_points_are_left_out():
    training, held_out, fresh = sets()
    cell = (np.arange(300) < 150).astype(int)
    cells = {"training_cell": cell, "held_out_cell": cell}
    few = np.append(np.ones(295, int), np.zeros(5, int))
    generated = np.where(few[:, None] == 0, training, fresh)
    options = {**cells, "generated_cell": few}
    kept = data_copying(training, held_out, generated, least_share=0.1, **options)
    alone = data_copying(training[:150], held_out[:150], generated[:295])
    assert kept == pytest.approx(alone, abs=1e-12)
    assert data_copying(training, held_out, generated, **options) < kept - 0.5


def test_wrong_inputs_are_named():
    training, held_out, fresh = sets(rows=10)
    with pytest.raises(InputError, match="one space"):
        data_copying(training, held_out[:, 1:], fresh)
    with pytest.raises(InputError, match="one space"):
        authenticity(training, fresh[:0])
    with pytest.raises(InputError, match="all or none"):
        data_copying(training, held_out, fresh, held_out_cell=np.zeros(10))
    with pytest.raises(InputError, match="each point"):
        data_copying(
            training, held_out, fresh,
            training_cell=np.zeros(10), held_out_cell=np.zeros(9),
            generated_cell=np.zeros(10),
        )  # fmt: skip
    with pytest.raises(InputError, match="none has"):
        data_copying(
            training, held_out, fresh,
            training_cell=np.zeros(10), held_out_cell=np.ones(10),
            generated_cell=np.zeros(10),
        )  # fmt: skip
    with pytest.raises(InputError, match="held_out: 9 points"):
        nearest_neighbour_ratio(training, held_out[1:], fresh)
    with pytest.raises(InputError, match="at least 2"):
        authenticity(training[:1], fresh)


def test_every_metric_says_that_it_is_not_privacy():
    assert "privacy" in memorisation.__doc__
    for metric in (data_copying, authenticity, nearest_neighbour_ratio):
        assert "not a measure of" in metric.__doc__
