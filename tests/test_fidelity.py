"""Distances of sets of images: against closed forms, and at their limits."""

import numpy as np
import pytest

from ppds_jax.data.load import load
from ppds_jax.metrics.fidelity import features, frechet, precision_recall
from ppds_jax.types import InputError


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def with_moments(x, mean, covariance):
    """The points, moved and stretched to have exactly these moments."""
    x = x - x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return mean + x @ np.linalg.cholesky(covariance).T


def test_gaussians_that_commute_have_their_closed_form():
    """|m|^2 + sum of (s_1 - s_2)^2, in any basis that the two share."""
    q, _ = np.linalg.qr(normal(4, 4))
    s, t = np.array([1.0, 2.0, 3.0, 0.5]), np.array([2.0, 0.1, 3.0, 1.0])
    mean = np.array([1.0, -2.0, 0.0, 0.5])
    real = with_moments(normal(50, 4, 1), np.zeros(4), (q * s**2) @ q.T)
    other = with_moments(normal(70, 4, 2), mean, (q * t**2) @ q.T)
    wanted = mean @ mean + ((s - t) ** 2).sum()
    assert frechet(real, other) == pytest.approx(wanted, rel=1e-9)
    assert frechet(other, real) == pytest.approx(wanted, rel=1e-9)


def test_gaussians_in_the_plane_have_their_closed_form():
    """tr (AB)^(1/2) = (tr AB + 2 det(AB)^(1/2))^(1/2) for 2 x 2 matrices."""
    a, b = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
    real = with_moments(normal(40, 2, 1), np.zeros(2), a)
    other = with_moments(normal(40, 2, 2), np.zeros(2), b)
    cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    wanted = np.trace(a) + np.trace(b) - 2 * cross
    assert frechet(real, other) == pytest.approx(wanted, rel=1e-9)


def test_equal_sets_have_no_distance_and_are_on_each_others_manifold():
    x = normal(300, 20)
    assert frechet(x, x.copy()) == pytest.approx(0, abs=1e-6)
    assert precision_recall(x, x[::-1]) == (1, 1)


def test_few_points_in_many_dimensions_have_a_distance():
    assert np.isfinite(frechet(normal(5, 40), normal(6, 40, 1)))


def test_the_distance_is_biased_upwards_and_the_less_the_more_points():
    distance = [frechet(normal(n, 10, 1), normal(n, 10, 2)) for n in (50, 500, 5000)]
    assert distance[0] > 3 * distance[1] > 9 * distance[2] > 0


def test_disjoint_sets_have_no_precision_and_no_recall():
    assert precision_recall(normal(50, 5), 100 + normal(60, 5, 1)) == (0, 0)


def test_precision_and_recall_tell_missing_modes_from_wrong_images():
    left, right = normal(200, 5), 50 + normal(200, 5, 1)
    real = np.concatenate([left, right])
    precision, recall = precision_recall(real, normal(400, 5, 2))
    assert precision > 0.8
    assert 0.3 < recall <= 0.5
    precision, recall = precision_recall(normal(400, 5, 2), real)
    assert 0.3 < precision <= 0.5
    assert recall > 0.8


def test_precision_and_recall_equal_their_definition():
    real, other, k = normal(12, 2), normal(15, 2, 1), 2

    def share(x, points):
        inside = []
        for a in x:
            radius = [np.sort(np.linalg.norm(p - points, axis=1))[k] for p in points]
            far = np.linalg.norm(a - points, axis=1)
            inside.append(any(f <= r for f, r in zip(far, radius, strict=True)))
        return np.mean(inside)

    assert precision_recall(real, other, k) == (share(other, real), share(real, other))


@pytest.mark.parametrize("name", ["scattering", "pixels"])
def test_features_tell_real_digits_from_noise(name):
    image = load("digits").x_train
    noise = np.random.default_rng(0).integers(0, 256, image[:300].shape, np.uint8)
    x, y, z = (features(name, i) for i in (image[:300], image[300:600], noise))
    assert x.dtype == np.float64
    assert x.shape == (300, {"scattering": 324, "pixels": 64}[name])
    assert frechet(x, z) > 5 * frechet(x, y)


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (lambda: features("inception", np.zeros((1, 8, 8, 1), np.uint8)), "scattering"),
        (lambda: frechet(normal(5, 2), normal(5, 3)), "one space"),
        (lambda: precision_recall(normal(3, 2), normal(5, 2)), "at least 4 rows"),
        (lambda: precision_recall(normal(3, 2), normal(5, 2), 0), "k=0"),
    ],
)
def test_wrong_inputs_are_refused(fails, message):
    with pytest.raises(InputError, match=message):
        fails()
