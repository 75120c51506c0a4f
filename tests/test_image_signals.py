"""Signals of released images against brute force in float64, and their order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import gaussian_kde

from ppds_jax.attacks.density import (
    log_density,
    log_density_ratio,
    principal_components,
)
from ppds_jax.attacks.image_signals import (
    gan_leaks,
    gan_leaks_calibrated,
    k_nearest,
    neighbourhood,
    neighbours,
)
from ppds_jax.metrics.roc import auc
from ppds_jax.types import InputError, Synthetic

RNG = np.random.default_rng(0)
RELEASED = Synthetic(
    image=jnp.array(RNG.integers(256, size=(40, 4, 5, 2)), jnp.uint8),
    label=jnp.array(RNG.integers(3, size=40), jnp.int32),
    weight=jnp.array(RNG.random(40) < 0.7, jnp.float32),
)
IMAGE = jnp.array(RNG.random((300, 4, 5, 2)), jnp.float32)  # more than one block
LABEL = jnp.array(RNG.integers(4, size=300), jnp.int32)  # nothing released of label 3
AXES = jnp.array(RNG.normal(size=(40, 3)), jnp.float32)


def project(image):
    return image.reshape(len(image), -1) @ AXES


EMBEDDINGS = [None, project]


def brute_force(embed):
    """Distances [300 40] in float64, and which of them are within the label."""
    flat = lambda x: np.asarray(x, np.float64).reshape(len(x), -1)
    x, points = flat(IMAGE), flat(RELEASED.image) / 255
    if embed:
        x, points = x @ np.asarray(AXES, float), points @ np.asarray(AXES, float)
    distance = np.sqrt(((x[:, None] - points[None]) ** 2).mean(-1))
    kept = np.asarray(RELEASED.weight) > 0
    same = np.asarray(LABEL)[:, None] == np.asarray(RELEASED.label)
    return distance, kept, same & kept


@pytest.mark.parametrize("embed", EMBEDDINGS)
def test_k_nearest_is_brute_force(embed):
    distance, _, same = brute_force(embed)
    for k, missing in ((1, 1.0), (12, 9.0)):
        phi = k_nearest(RELEASED, IMAGE, LABEL, k=k, embed=embed, missing=missing)
        expected = -np.sort(np.where(same, distance, missing), axis=1)[:, :k]
        np.testing.assert_allclose(phi, expected, atol=2e-3)
        assert (np.asarray(phi)[np.asarray(LABEL) == 3] == -missing).all()
    for k in (0, 41):
        with pytest.raises(InputError, match="k="):
            k_nearest(RELEASED, IMAGE, LABEL, k=k)


def test_neighbours_are_those_of_the_distances():
    distance, _, same = brute_force(None)
    index = np.asarray(neighbours(RELEASED, IMAGE, LABEL, k=12))
    phi = np.asarray(k_nearest(RELEASED, IMAGE, LABEL, k=12))
    there = index >= 0
    np.testing.assert_array_equal(there.sum(1), np.minimum(same.sum(1), 12))
    rows = np.broadcast_to(np.arange(300)[:, None], index.shape)[there]
    assert same[rows, index[there]].all()
    np.testing.assert_allclose(phi[there], -distance[rows, index[there]], atol=2e-3)


@pytest.mark.parametrize("embed", EMBEDDINGS)
def test_neighbourhood_is_brute_force(embed):
    distance, _, same = brute_force(embed)
    radius = np.median(distance[same])
    near = abs(distance - radius) < 1e-4
    phi = neighbourhood(RELEASED, IMAGE, LABEL, radius=radius[None], embed=embed)[:, 0]
    expected = (same & (distance <= radius)).sum(1) / np.maximum(same.sum(1), 1)
    clear = ~(near & same).any(1)  # float32 cannot tell which side these are on
    assert clear.mean() > 0.9
    np.testing.assert_allclose(np.asarray(phi)[clear], expected[clear], atol=1e-6)
    assert (np.asarray(phi)[np.asarray(LABEL) == 3] == 0).all()


@pytest.mark.parametrize("embed", EMBEDDINGS)
def test_gan_leaks_is_brute_force(embed):
    distance, kept, _ = brute_force(embed)
    plain = gan_leaks(RELEASED, IMAGE, embed=embed)[:, 0]
    np.testing.assert_allclose(plain, -distance[:, kept].min(1), atol=2e-3)
    reference = RELEASED.image[:20]
    score = gan_leaks_calibrated(RELEASED, reference, IMAGE, embed=embed)[:, 0]
    expected = distance[:, :20].min(1) - distance[:, kept].min(1)
    np.testing.assert_allclose(score, expected, atol=4e-3)
    same = RELEASED._replace(weight=jnp.ones(40))
    nothing = gan_leaks_calibrated(same, RELEASED.image, IMAGE, embed=embed)
    np.testing.assert_array_equal(nothing, 0)


@pytest.mark.parametrize("dims", [1, 20])
def test_log_density_is_that_of_scipy(dims):
    rng = np.random.default_rng(dims)
    mix = rng.normal(size=(dims, dims)) + 3 * np.eye(dims)
    point, x = rng.normal(size=(200, dims)) @ mix + 5, rng.normal(size=(50, dims)) @ mix
    for weight in (np.ones(200), (rng.random(200) < 0.5) * 1.0, rng.random(200)):
        kept = weight > 0  # scipy's sums go wrong in logarithms of 0
        oracle = gaussian_kde(point[kept].T, weights=weight[kept])
        inputs = (jnp.array(a, jnp.float32) for a in (point, weight))
        found = log_density(*inputs)(jnp.array(x, jnp.float32))
        np.testing.assert_allclose(found, oracle.logpdf(x.T), rtol=1e-3, atol=1e-2)


def test_far_images_have_a_finite_density():
    """1,000 deviations away a density underflows, and its logarithm does not."""
    point = jnp.array(np.random.default_rng(0).normal(size=(100, 2)), jnp.float32)
    density = log_density(point, jnp.ones(100))
    far = np.asarray(density(jnp.array([[1e3, 0], [2e3, 0]], jnp.float32)))
    assert np.isfinite(far).all()
    assert far[1] < far[0] < -1e5


def pictures(rng, rows):
    """Images of 6 hidden dimensions."""
    hidden = rng.normal(size=(rows, 6))
    basis = np.random.default_rng(5).normal(size=(6, 64))
    return (
        np.clip(128 + 12 * hidden @ basis, 0, 255).astype(np.uint8).reshape(-1, 8, 8, 1)
    )


def test_each_signal_is_higher_for_members():
    """Released: 300 members with a little noise. AUC of a guess is 0.5 +- 0.024."""
    rng = np.random.default_rng(1)
    image, public = pictures(rng, 600), pictures(rng, 600)
    member, label = np.arange(600) < 300, jnp.zeros(600, jnp.int32)
    noise = rng.normal(0, 3, size=image[:300].shape)
    copies = np.clip(image[:300] + noise, 0, 255).astype(np.uint8)
    synthetic = Synthetic(jnp.array(copies), label[:300], jnp.ones(300))
    x, reference = jnp.array(image / 255, jnp.float32), jnp.array(public)
    embed = principal_components(reference.astype(jnp.float32) / 255, 6)
    signals = {
        "pixels": k_nearest(synthetic, x, label, k=2),
        "embedded": k_nearest(synthetic, x, label, k=2, embed=embed),
        "count": neighbourhood(synthetic, x, label, radius=jnp.array([0.05])),
        "gan leaks": gan_leaks(synthetic, x),
        "calibrated": gan_leaks_calibrated(synthetic, reference, x),
        "density": log_density_ratio(synthetic, reference, x, embed=embed),
    }
    for name, phi in signals.items():
        assert np.isfinite(phi).all(), name
        assert auc(phi[:, 0], member) > 0.6, name
    independent = synthetic._replace(image=jnp.array(pictures(rng, 300)))
    ratio = log_density_ratio(independent, reference, x, embed=embed)
    assert abs(auc(ratio, member) - 0.5) < 5 * 0.024  # 6e-7


def test_principal_components_are_the_leading_ones():
    rng = np.random.default_rng(0)
    image = jnp.array(pictures(rng, 100) / 255, jnp.float32)
    embed = principal_components(image, 6)
    point = np.asarray(embed(image), np.float64)
    rows = np.asarray(image, np.float64).reshape(100, -1)
    values = np.linalg.eigvalsh(np.cov(rows.T))[::-1][:6]
    np.testing.assert_allclose(np.cov(point.T), np.diag(values), atol=1e-5)
    np.testing.assert_allclose(point.mean(0), 0, atol=1e-5)
    for dims in (0, 65):
        with pytest.raises(InputError, match="dims"):
            principal_components(image, dims)
    wide = principal_components(image, 21)
    synthetic = Synthetic(RELEASED.image, RELEASED.label, RELEASED.weight)
    pictured = jnp.array(pictures(rng, 40))
    with pytest.raises(InputError, match="21 dimensions"):
        log_density_ratio(
            synthetic._replace(image=pictured), pictured, image, embed=wide
        )


def test_signals_are_traceable():
    """As observers call them, mapped over models."""
    models = jax.tree.map(lambda x: jnp.stack([x, x]), RELEASED)
    look = lambda released: (
        k_nearest(released, IMAGE, LABEL, k=2),
        neighbourhood(released, IMAGE, LABEL, radius=jnp.array([0.3])),
        gan_leaks_calibrated(released, RELEASED.image, IMAGE),
        log_density_ratio(released, RELEASED.image, IMAGE, embed=project),
    )
    for mapped, one in zip(
        jax.jit(jax.vmap(look))(models), look(RELEASED), strict=True
    ):
        np.testing.assert_allclose(mapped[1], one, atol=1e-3)
