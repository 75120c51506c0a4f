"""The scattering transform: against loops in NumPy, and what wavelets promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppds_jax.nets.scattering import (
    ANGLES,
    CHANNELS,
    RADIUS,
    average,
    kernels,
    normalise,
    scattering,
)
from ppds_jax.types import InputError


def transform(height, width):
    return jax.jit(scattering(height, width))


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random(shape), jnp.float32)


def convolved(x, kernel):
    """By its definition, continued by zeros."""
    h, w = x.shape
    padded = np.pad(x, RADIUS)
    flipped = kernel[::-1, ::-1]
    size = kernel.shape[0]
    return np.array(
        [
            [np.sum(padded[i : i + size, j : j + size] * flipped) for j in range(w)]
            for i in range(h)
        ]
    )


def reference(x):
    """The features of one channel [h w], in float64 and without any transform."""
    psi = kernels()
    fine, coarse = psi[:ANGLES], psi[ANGLES:]

    def smooth(u, step, std):
        rows, columns = (average(size, step, std) for size in u.shape)
        return rows @ u @ columns.T

    first = [np.abs(convolved(x, k)) for k in fine]
    out = [smooth(x, 4, 1.6)]
    out += [smooth(u, 4, 1.6) for u in first]
    out += [smooth(np.abs(convolved(x, k))[::2, ::2], 2, 0.8) for k in coarse]
    out += [
        smooth(np.abs(convolved(u, k))[::2, ::2], 2, 0.8) for u in first for k in coarse
    ]
    return np.stack(out, -1)


@pytest.mark.parametrize("shape", [(8, 8), (9, 14)])
def test_it_equals_loops_in_numpy(shape):
    image = images(2, *shape, 2)
    features = transform(*shape)(image)
    for i in range(2):
        for c in range(2):
            expected = reference(np.asarray(image[i, :, :, c], float))
            got = features[i, :, :, c * CHANNELS : (c + 1) * CHANNELS]
            np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(28, 28, 1), (8, 11, 3)])
def test_shapes_and_finite_values(shape):
    h, w, c = shape
    f = transform(h, w)
    for image in (images(3, *shape), jnp.zeros((3, *shape)), jnp.ones((3, *shape))):
        features = f(image)
        assert features.shape == (3, -(-h // 4), -(-w // 4), CHANNELS * c)
        assert bool(jnp.isfinite(normalise(features, 27)).all())


def test_distances_do_not_grow():
    f = transform(20, 20)
    for seed in range(5):
        x, y = images(2, 1, 20, 20, 1, seed=seed)
        between = f(x) - f(y)
        assert jnp.linalg.norm(between) <= jnp.linalg.norm(x - y)
    assert np.abs(kernels().sum((1, 2))).max() < 1e-12


def test_a_shift_moves_features_less_than_pixels():
    """Of thin lines, whose pixels a shift by one exchanges altogether."""
    x = jnp.zeros((1, 28, 28, 1)).at[:, 5:23, 14].set(1.0)
    y = jnp.roll(x, 1, axis=2)
    change = lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(a)
    f = transform(28, 28)
    assert change(f(x), f(y)) < 0.5 * change(x, y)


def test_the_angle_of_a_line_decides_which_wavelet_answers():
    f = transform(28, 28)
    x = jnp.zeros((1, 28, 28, 1)).at[:, :, 14].set(1.0)
    upright, lying = f(x), f(x.transpose(0, 2, 1, 3))
    first = slice(1, 1 + ANGLES)
    assert int(upright[0, 3, 3, first].argmax()) == 0
    assert int(lying[0, 3, 3, first].argmax()) == ANGLES // 2


def test_normalised_groups_have_mean_0_and_variance_1_in_each_image():
    x = images(2, 3, 3, 6).at[..., 2:4].multiply(10.0)
    y = normalise(x, 3).reshape(2, 9, 3, 2)
    np.testing.assert_allclose(y.mean((1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((1, 3)), 1, rtol=1e-3)
    np.testing.assert_array_equal(normalise(x[:1], 3), normalise(x, 3)[:1])


def test_images_too_small_are_refused():
    with pytest.raises(InputError, match="8 x 8"):
        scattering(7, 9)
