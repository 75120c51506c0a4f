"""Every method's programs, before they are compiled: for TPUs too, and fast on CPUs."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax import export

from ppds_jax.fit import fit
from ppds_jax.sampling.balanced import Balanced
from tests.conftest import BUDGET, DIGITS
from tests.methods import GENERATORS, METHODS, name


def states(method, data):
    """Shapes of a method's state."""
    return jax.eval_shape(
        lambda key, data: method.init(key, data, method.public), jax.random.key(0), data
    )


@pytest.fixture
def on_tpu(monkeypatch):
    """What depends on the backend is as it is there: only the chip is missing."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")


@pytest.mark.parametrize("config", METHODS, ids=name)
def test_every_step_lowers_for_tpus(config, digits, on_tpu):
    method = config.make(DIGITS, BUDGET)
    step = export.export(jax.jit(method.step), platforms=["tpu"])
    made = step(jax.random.key(0), states(method, digits), digits, method.public)
    assert made.platforms == ("tpu",)


@pytest.mark.parametrize("config", GENERATORS, ids=name)
def test_every_sampler_lowers_for_tpus(config, digits, on_tpu):
    method = config.make(DIGITS, BUDGET)
    draw = Balanced(num_images=20, batch_size=10).make(DIGITS).draw

    def sample(key, state, public):
        return draw(key, method._replace(public=public), state, None).image

    made = export.export(jax.jit(sample), platforms=["tpu"])(
        jax.random.key(0), states(method, digits), method.public
    )
    assert made.out_avals[0].shape == (20, 8, 8, 1)


@pytest.mark.parametrize("config", METHODS, ids=name)
def test_no_slow_convolution_is_left_in_a_training_loop(config, digits):
    """All are in the one layout that has a fast kernel on CPUs.

    Otherwise they fall back to a naive one inside a loop: see `convolution`.
    """
    method = config.make(DIGITS, BUDGET)
    run = jax.jit(lambda key, data, public: fit(key, method, data, public)[0])
    text = run.lower(jax.random.key(0), digits, method.public).as_text("hlo")
    found = set(re.findall(r"dim_labels=(\S+?)(?:,|\s|$)", text))
    assert found <= {"b01f_01io->b01f"}


def test_a_slow_convolution_would_be_seen():
    image, kernel = jnp.ones((4, 8, 8, 2)), jnp.ones((3, 3, 2, 5))

    def loss(kernel):
        form = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=form
        )
        return jnp.sum(out**2)

    text = jax.jit(jax.grad(loss)).lower(kernel).as_text("hlo")
    found = set(re.findall(r"dim_labels=(\S+?)(?:,|\s|$)", text))
    assert found - {"b01f_01io->b01f"}
