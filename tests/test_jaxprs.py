"""Programs run anew, with some of their operations changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ppds_jax.jaxprs import bodies, contains, reinterpret

X = jnp.linspace(-1.0, 2.0, 5)


def inner(x):
    return jnp.sin(x) + 1


PROGRAMS = {
    "plain": inner,
    "call": jax.jit(inner),
    "scan": lambda x: lax.scan(lambda c, y: (c + inner(y), c), x[0], x),
    "map": lambda x: lax.map(inner, x),
    "while": lambda x: lax.while_loop(
        lambda y: (y < 30).all(), lambda y: y + 2 + inner(y), x
    ),
    "branch": lambda x: lax.cond(x[1] > 0, inner, lambda y: y, x),
    "custom rule": lambda x: jax.nn.relu(inner(x)),
    "gradient": jax.grad(lambda x: inner(x).sum()),
    "two outputs": lambda x: {"a": inner(x), "b": (x, 2 * x)},
    "constant": lambda x: inner(x) + np.arange(5.0, dtype=np.float32),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_without_rules_nothing_changes(name):
    fn = PROGRAMS[name]
    same = reinterpret(fn, {})(X)
    jax.tree.map(np.testing.assert_array_equal, same, fn(X))


@pytest.mark.parametrize("name", sorted(PROGRAMS.keys() - {"gradient"}))
def test_a_rule_reaches_every_depth(name):
    rule = {"sin": lambda eqn, inputs: [inputs[0] * 0]}
    fn = reinterpret(PROGRAMS[name], rule)
    assert not contains(jax.make_jaxpr(fn)(X).jaxpr, "sin")
    assert contains(jax.make_jaxpr(PROGRAMS[name])(X).jaxpr, "sin")


def test_a_changed_program_can_be_compiled_mapped_and_differentiated():
    fn = reinterpret(lambda x: jnp.sin(x).sum(), {"sin": lambda e, i: [i[0] ** 2]})
    np.testing.assert_allclose(jax.jit(jax.grad(fn))(X), 2 * X, rtol=1e-6)
    rows = jnp.stack([X, 2 * X])
    np.testing.assert_allclose(jax.vmap(fn)(rows), (rows**2).sum(1), rtol=1e-6)


def test_bodies_are_those_of_loops_branches_and_calls():
    closed = jax.make_jaxpr(PROGRAMS["branch"])(X)
    (eqn,) = [e for e in closed.jaxpr.eqns if e.primitive.name == "cond"]
    assert len(bodies(eqn)) == 2
