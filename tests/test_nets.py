"""Networks of three libraries behind one pair of functions."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from ppds_jax.nets import from_haiku, from_linen, from_nnx
from ppds_jax.nets.by_class import by_class


class TwoLayers(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.second = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


NETS = {
    "linen": from_linen(linen.Sequential([linen.Dense(4), linen.relu, linen.Dense(2)])),
    "haiku": from_haiku(hk.transform(lambda x: hk.nets.MLP((4, 2))(x))),
    "nnx": from_nnx(TwoLayers),
}


@pytest.mark.parametrize("name", NETS)
def test_a_net_is_a_pair_of_pure_functions(name):
    net, x = NETS[name], jnp.arange(15.0).reshape(5, 3)
    params = jax.jit(net.init)(jax.random.key(0), x)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(params))
    assert sizes == [2, 4, 8, 12]
    for a, b in zip(
        jax.tree.leaves(params),
        jax.tree.leaves(net.init(jax.random.key(0), x)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)
    by_hand = sorted(jax.tree.leaves(params), key=lambda leaf: leaf.size)
    b2, b1, w2, w1 = by_hand
    wanted = jnp.maximum(x @ w1 + b1[None], 0) @ w2 + b2[None]
    np.testing.assert_allclose(jax.jit(net.apply)(params, x), wanted, rtol=1e-4)
    gradient = jax.grad(lambda p: net.apply(p, x).sum())(params)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    many = jax.vmap(net.init, (0, None))(jax.random.split(jax.random.key(0), 3), x)
    assert jax.vmap(net.apply, (0, None))(many, x).shape == (3, 5, 2)


@pytest.mark.parametrize("labels", [[2], [1] * 70, [3, 0, 3] * 40, list(range(33))])
def test_each_row_meets_the_parameters_of_its_class(labels):
    label = jnp.array(labels, jnp.int32) % 5
    rows = jax.random.normal(jax.random.key(0), (label.size, 3))
    matrix = jax.random.normal(jax.random.key(1), (5, 3, 2))
    found = jax.jit(by_class, static_argnums=0)(
        lambda matrix, rows: rows @ matrix, matrix, rows, label
    )
    expected = np.einsum("ni,nij->nj", rows, matrix[label])
    np.testing.assert_allclose(found, expected, atol=1e-5)
