"""Statistics over models against exact arithmetic, where float64 is at its limits."""

from fractions import Fraction

import numpy as np
import pytest

from ppds_jax.attacks.sides import block_size, side, sides


def exact(column):
    """Mean and sum of squares in rational numbers, rounded at the end."""
    values = [Fraction(float(value)) for value in column]
    mean = sum(values) / len(values)
    return float(mean), float(sum((value - mean) ** 2 for value in values))


HARD = {
    "far from 0": lambda rng, x: 1e9 + x,
    "one outlier, first": lambda rng, x: np.where(np.arange(40)[:, None] < 1, 1e8, x),
    "one outlier, last": lambda rng, x: np.where(np.arange(40)[:, None] > 38, 1e8, x),
    "two levels": lambda rng, x: x + 1e9 * (rng.random(x.shape) < 0.5),
    "tiny": lambda rng, x: 3 + 1e-9 * x,
}


@pytest.mark.parametrize("case", HARD)
def test_moments_are_exact_where_sums_of_squares_fail(case):
    rng = np.random.default_rng(0)
    x = HARD[case](rng, rng.normal(size=(40, 30)))
    keep = rng.random(x.shape) < 0.5
    keep[0], keep[-1] = True, True
    seen = side(x[..., None], keep)
    for j in range(30):
        mean, squares = exact(x[keep[:, j], j])
        assert seen.center[j, 0] == pytest.approx(mean, rel=1e-12)
        assert seen.squares[j, 0] == pytest.approx(squares, rel=1e-9)


@pytest.mark.parametrize("center", ["mean", "median"])
def test_constant_signals_have_no_variance_at_all(center):
    x = np.full((11, 50, 1), 0.1)
    keep = np.random.default_rng(0).random((11, 50)) < 0.5
    keep[3] = True
    seen = side(x, keep, center)
    assert (seen.squares == 0).all()
    assert (seen.center == 0.1).all()


@pytest.mark.parametrize("center", ["mean", "median"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_other_models_are_not_looked_at(center, wrong):
    rng = np.random.default_rng(0)
    x, keep = rng.normal(size=(40, 30, 2)), rng.random((40, 30)) < 0.5
    keep[:30, 0], keep[30:, 0] = False, True  # the first model comes late
    expected = side(x, keep, center)
    seen = side(np.where(keep[..., None], x, wrong), keep, center)
    for one, other in zip(seen, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    broken = x.copy()
    broken[35, 0, 1] = wrong  # on the side: it must show
    assert not np.isfinite(side(broken, keep).center[0, 1])


def test_images_without_a_model_are_zero():
    x, keep = np.full((5, 3, 1), np.nan), np.zeros((5, 3), bool)
    keep[2, 1], x[2, 1] = True, 7.0
    for center in ("mean", "median"):
        seen = side(x, keep, center)
        assert seen.models.tolist() == [0, 1, 0]
        assert seen.center.ravel().tolist() == [0, 7, 0]
        assert (seen.squares == 0).all()


def test_no_models_at_all():
    seen = side(np.zeros((0, 3, 2)), np.zeros((0, 3), bool))
    assert (seen.models == 0).all()
    assert (seen.center == 0).all()


def test_blocks_and_both_sides_are_those_of_one():
    rng = np.random.default_rng(0)
    rows = 2 * block_size(300) + 17
    x, keep = rng.normal(size=(300, rows, 3)), rng.random((300, rows)) < 0.3
    both = sides(x, (keep, ~keep))
    np.testing.assert_allclose(
        both[0].center, [x[keep[:, j], j].mean(0) for j in range(rows)], atol=1e-12
    )
    np.testing.assert_allclose(
        both[1].squares,
        [x[~keep[:, j], j].var(0) * (~keep[:, j]).sum() for j in range(rows)],
        rtol=1e-9,
    )
    for found, chosen in zip(both, (keep, ~keep), strict=True):
        for one, other in zip(found, side(x, chosen), strict=True):
            np.testing.assert_array_equal(one, other)
