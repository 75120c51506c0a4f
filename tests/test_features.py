"""Feature maps have norm 1 at most, and are what their formulas say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppds_jax.data.batches import decode
from ppds_jax.generators.dp_kip import tangent_kernel
from ppds_jax.generators.matching import (
    BOUND,
    COUNT,
    contributions,
    counts,
    distance,
    means,
)
from ppds_jax.nets import Net
from ppds_jax.nets.features import composed, convolutions, fourier, tangent
from ppds_jax.types import Dataset

SHAPE = (6, 6, 1)
NET = convolutions(2)
PARAMS = NET.init(jax.random.key(5), jnp.zeros((1, *SHAPE)))
MAPS = {
    "fourier": fourier(20, (0.2, 0.5)),
    "tangent": tangent(9),
    "convolutions": composed(NET, PARAMS, tangent(9)),
    "convolutions, fourier": composed(NET, PARAMS, fourier(20, (0.4,))),
}


def each(features, image):
    """z(x) of each image, one by one: [n d]."""
    params = features.init(jax.random.key(0), image.shape[1:])
    one = lambda x: features.total(params, x[None], jnp.ones(1))
    return jax.vmap(one)(image), params


def extremes():
    random = jax.random.uniform(jax.random.key(1), (5, *SHAPE))
    flat = jnp.stack([jnp.zeros(SHAPE), jnp.ones(SHAPE)])
    return jnp.concatenate([random, flat, (random > 0.9).astype(jnp.float32)])


@pytest.mark.parametrize("name", MAPS)
def test_no_image_has_a_norm_above_1(name):
    """Black and white ones included; the sensitivity of every release rests on it."""
    z, _ = each(MAPS[name], extremes())
    norm = np.linalg.norm(z, axis=1)
    assert (norm <= 1 + 1e-5).all()
    assert (norm >= 0.999).all()  # tight: no noise is wasted


@pytest.mark.parametrize("name", MAPS)
def test_a_total_is_the_weighted_sum(name):
    image = extremes()
    z, params = each(MAPS[name], image)
    weight = jnp.linspace(-1, 2, len(image))
    total = MAPS[name].total(params, image, weight)
    np.testing.assert_allclose(total, weight @ z, atol=1e-5)


def test_fourier_features_give_the_gaussian_kernel():
    """Within 0.05: 5 standard deviations of a mean over 10,000 frequencies."""
    image = jax.random.uniform(jax.random.key(2), (6, *SHAPE))
    z, _ = each(fourier(20_000, (0.3,)), image)
    flat = image.reshape(6, -1)
    square = jnp.sum((flat[:, None] - flat[None]) ** 2, axis=2)
    kernel = jnp.exp(-square / (2 * 0.3**2 * flat.shape[1]))
    np.testing.assert_allclose(z @ z.T, kernel, atol=0.05)


def test_tangent_features_are_gradients_of_a_network():
    """Those that autodiff finds at the hidden layer, scaled to norm 1."""
    image = jax.random.uniform(jax.random.key(3), (4, *SHAPE))
    z, params = each(tangent(9, bias=0.3), image)
    sign = jnp.array([1.0, -1, -1, 1, 1, -1, 1, -1, 1])

    def network(w, x):
        return jnp.maximum(jnp.append(x.ravel(), 0.3 * 6) @ w, 0) @ sign

    gradient = jax.vmap(jax.grad(network), (None, 0))(params, image).reshape(4, -1)
    gradient = gradient / jnp.linalg.norm(gradient, axis=1, keepdims=True)
    np.testing.assert_allclose(z @ z.T, gradient @ gradient.T, atol=1e-5)


def test_the_wide_kernel_is_the_limit_of_finite_networks():
    """Its two parts, by autodiff: 30,000 units are within 4 %."""
    x = jax.random.normal(jax.random.key(4), (3, 12))
    w = jax.random.normal(jax.random.key(5), (12, 30_000))
    v = jax.random.normal(jax.random.key(6), (30_000,))

    def network(parameters, x):
        w, v = parameters
        return jnp.maximum(x @ w, 0) @ v / 30_000**0.5

    gradient = jax.vmap(jax.grad(network), (None, 0))((w, v), x)
    rows = jnp.concatenate([g.reshape(3, -1) for g in gradient], axis=1)
    np.testing.assert_allclose(tangent_kernel(x, x), rows @ rows.T, rtol=0.04, atol=0.2)


def dataset():
    image = jax.random.randint(jax.random.key(6), (30, *SHAPE), 0, 256, jnp.uint8)
    label = jnp.arange(30, dtype=jnp.int32) % 3
    return Dataset(image, label, jnp.arange(30) % 5 > 0)


def test_contributions_are_sums_and_counts_of_members():
    data, features = dataset(), MAPS["fourier"]
    z, params = each(features, decode(data.image))
    total = contributions(features, params, data, 3)
    for c in range(3):
        rows = np.asarray((data.label == c) & data.member)
        np.testing.assert_allclose(total[c, :-1], z[rows].sum(0), atol=1e-4)
        np.testing.assert_allclose(total[c, -1], COUNT * rows.sum(), rtol=1e-5)
    np.testing.assert_allclose(counts(total, 10.0), 8, rtol=1e-5)
    np.testing.assert_allclose(means(total, 10.0), total[:, :-1] / 8, rtol=1e-5)
    np.testing.assert_allclose(counts(-total, 10.0), 1)  # noise: a tenth of 10

    without = data._replace(member=data.member.at[1].set(False))
    change = total - contributions(features, params, without, 3)
    np.testing.assert_allclose(np.linalg.norm(change), BOUND, rtol=1e-4)


def test_the_distance_counts_no_pair_of_an_image_with_itself():
    image = jax.random.uniform(jax.random.key(7), (3, 4, *SHAPE))
    features = MAPS["fourier"]
    z, params = each(features, image.reshape(12, *SHAPE))
    z = z.reshape(3, 4, -1)
    target = jax.random.normal(jax.random.key(8), (3, z.shape[2]))
    pairs = jnp.einsum("cid,cjd->cij", z, z) * (1 - jnp.eye(4))[None]
    expected = pairs.sum((1, 2)) / 12 - 2 * (z.mean(1) * target).sum(1)
    found = distance(features, params, image, target)
    np.testing.assert_allclose(found - 1 / 3, expected.mean(), atol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e30, np.inf, np.nan])
def test_no_output_of_a_network_makes_a_norm_above_1(scale):
    net = Net(lambda key, x: None, lambda p, x: scale * (x[..., 0] + 1))
    z, _ = each(composed(net, None, tangent(9)), extremes())
    norm = np.linalg.norm(z, axis=1)
    assert (norm <= 1 + 1e-5).all()
    assert (norm >= 0.999).all()


def test_outputs_of_a_network_weigh_as_much_as_the_pixels():
    """So much that another network's features are far from one's."""
    image = jax.random.uniform(jax.random.key(9), (4, *SHAPE))
    weight = jnp.ones(4) / 4
    rows = []
    for seed in (1, 2):
        params = NET.init(jax.random.key(seed), image)
        features = composed(NET, params, tangent(9))
        given = features.init(jax.random.key(0), SHAPE)
        rows.append(features.total(given, image, weight))
    cosine = rows[0] @ rows[1] / jnp.linalg.norm(rows[0]) / jnp.linalg.norm(rows[1])
    assert cosine < 0.95


def test_a_network_of_ones_own_serves_as_features():
    net = Net(lambda key, x: 2.0, lambda p, x: p * x[:, ::2])
    z, params = each(composed(net, 3.0, fourier(10, (0.5,))), extremes())
    assert params[0] == 3.0
    assert z.shape == (12, 10)
