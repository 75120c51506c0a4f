"""Reduced precision: close to float32, and never in parameters or private sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppds_jax.classifiers import CNN, DPCNN
from ppds_jax.fit import fit
from ppds_jax.jaxprs import bodies
from ppds_jax.privacy import checks
from ppds_jax.privacy.subject import Subject
from ppds_jax.types import Budget, InputError
from tests.conftest import BUDGET, DIGITS

SMALL = {"width": 2, "hidden": 8, "epochs": 3, "batch_size": 20}


def fitted(config, data):
    method = config.make(DIGITS, Budget(float("inf"), 1e-5))
    return jax.jit(lambda key: fit(key, method, data)[0])(jax.random.key(0)).params


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("method", [CNN, DPCNN])
def test_parameters_stay_float32_and_close(method, precision, digits):
    exact = fitted(method(**SMALL), digits)
    other = fitted(method(**SMALL, precision=precision), digits)
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(other), strict=True):
        assert b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.05)


def dots(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            yield eqn
        for body in bodies(eqn):
            yield from dots(body.jaxpr)


@pytest.mark.parametrize("pool", [False, True])
def test_bfloat16_reaches_every_product_of_the_network(pool, digits):
    method = CNN(**SMALL, pool=pool, precision="bfloat16").make(DIGITS, BUDGET)
    state = method.init(jax.random.key(0), digits, ())
    step = jax.make_jaxpr(method.step)(jax.random.key(0), state, digits, ())
    found = list(dots(step.jaxpr))
    assert found
    assert {v.aval.dtype for e in found for v in e.invars} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("precision", "asked"),
    [
        ("default", None),
        ("float32", (jax.lax.Precision.HIGHEST,) * 2),
        ("tf32", (jax.lax.Precision.HIGH,) * 2),  # JAX's word for it
    ],
)
@pytest.mark.parametrize("pool", [False, True])
def test_every_product_of_a_step_asks_for_its_precision(pool, precision, asked, digits):
    """Convolutions included, forward and backward."""
    method = CNN(**SMALL, pool=pool, precision=precision).make(DIGITS, BUDGET)
    state = method.init(jax.random.key(0), digits, ())
    step = jax.make_jaxpr(method.step)(jax.random.key(0), state, digits, ())
    found = {eqn.params["precision"] for eqn in dots(step.jaxpr)}
    assert found == {asked}


def test_a_private_step_in_bfloat16_keeps_its_sensitivity(digits):
    config = DPCNN(
        width=2, hidden=6, epochs=1, batch_size=24, clip_norm=0.3, precision="bfloat16"
    )
    build = lambda data, budget: config.make(DIGITS, budget)
    assert checks.sensitivity(Subject(build, DIGITS, BUDGET, digits)) == ""


def test_another_precision_is_refused():
    with pytest.raises(InputError, match="precision='half'"):
        CNN(precision="half").make(DIGITS, BUDGET)
