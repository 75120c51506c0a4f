"""Simulators, and Private Evolution on them. Conformance is in test_methods.py."""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppds_jax.fit import fit
from ppds_jax.generators import DPMerf, PrivateEvolution
from ppds_jax.generators.private_evolution import (
    PRESETS,
    PUBLIC_SIMULATOR,
    inverse,
)
from ppds_jax.generators.simulators import SIMULATORS, Fonts, Shapes, fitted
from ppds_jax.privacy import accounting
from ppds_jax.privacy.checks import CHECKS
from ppds_jax.privacy.subject import Subject
from ppds_jax.types import Budget, Dataset, DataSpec, InputError
from tests.conftest import BUDGET, DIGITS

FREE = Budget(float("inf"), 1e-5)
LABEL = jnp.repeat(jnp.arange(10, dtype=jnp.int32), 20)
SMALL = PrivateEvolution(simulator="digits", num_candidates=20, num_steps=3)


@dataclass(frozen=True)
class Fitted:
    """A user's own simulator: a generator fitted to public data."""

    def make(self, spec):
        config = DPMerf(features=20, width=2, num_steps=2, batch_size=20)
        method = config.make(spec, FREE)
        data = Dataset(
            jnp.full((60, *spec.image_shape), 99, jnp.uint8),
            jnp.arange(60, dtype=jnp.int32) % 10,
            jnp.ones(60, bool),
        )
        return fitted(method, jax.jit(lambda k: fit(k, method, data)[0])(key(0)))


MADE = {**SIMULATORS, "fitted": Fitted()}


def key(seed):
    return jax.random.key(seed)


@pytest.mark.parametrize("name", MADE)
def test_a_simulator_draws_renders_and_varies(name):
    """Degree 0 changes nothing, degree 1 is a new draw; both give images."""
    s = MADE[name].make(DIGITS)
    random, vary = jax.jit(s.random), jax.jit(s.vary)
    latent = random(key(1), LABEL, s.public)
    image = jax.jit(s.render)(latent, LABEL, s.public)
    assert image.shape == (200, 8, 8, 1)
    assert image.dtype == jnp.float32
    assert 0 <= float(image.min()) < float(image.max()) <= 1
    assert float(image.std(0).mean()) > 0.01
    same = vary(key(2), latent, LABEL, 0.0, s.public)
    jax.tree.map(np.testing.assert_array_equal, same, latent)
    new = vary(key(2), latent, LABEL, 1.0, s.public)
    for a, b in zip(jax.tree.leaves(latent), jax.tree.leaves(new), strict=True):
        assert np.asarray(a != b).mean() > 0.4


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_variations_keep_the_distribution_of_random_draws(name):
    """Normal numbers stay normal: mean 0 and variance 1 within 6 standard errors."""
    s = MADE[name].make(DIGITS)
    label = jnp.zeros(5000, jnp.int32)
    latent = s.random(key(1), label, s.public)
    for t in range(3):
        latent = s.vary(key(5 + t), latent, label, 0.5, s.public)
    z = np.asarray(latent.normal)
    assert abs(z.mean()) < 6 / math.sqrt(z.size)
    assert abs(z.var() - 1) < 6 * math.sqrt(2 / z.size)


def test_fonts_tell_digits_apart():
    """Without any variation, each digit is nearest to its own class's mean."""
    spec = DataSpec((28, 28, 1), 10, 60)
    s = Fonts().make(spec)
    latent = s.random(key(1), LABEL, s.public)
    latent = latent._replace(normal=0 * latent.normal)
    x = np.asarray(s.render(latent, LABEL, s.public)).reshape(10, 20, -1)
    near = np.linalg.norm(x[:, :, None] - x.mean(1)[None, None], axis=3).argmin(2)
    assert (near == np.arange(10)[:, None]).mean() > 0.7


def test_shapes_have_the_colours_of_the_images():
    s = Shapes().make(DataSpec((12, 16, 3), 10, 60))
    image = s.render(s.random(key(1), LABEL, ()), LABEL, ())
    assert image.shape == (200, 12, 16, 3)
    assert float(jnp.abs(image[..., 0] - image[..., 2]).max()) > 0.1


def test_sigma_of_the_published_budget():
    """9.107 in 5 rounds gives epsilon 1 at the delta 1 / (N ln N) of 45,000 images."""
    one = accounting.gaussian(9.107, accounting.ADD_OR_REMOVE)
    five = accounting.total([(one.event, 5)], one.neighbours)
    delta = 1 / (45_000 * math.log(45_000))
    assert accounting.epsilon(five, delta) == pytest.approx(1.0, abs=2e-3)
    spec = DataSpec((8, 8, 1), 10, 45_000)
    made = replace(SMALL, num_steps=5).make(spec, Budget(1.0, delta))
    assert 0.995 <= accounting.epsilon(made.guarantee, delta) <= 1


def test_votes_draw_candidates_towards_the_data(digits):
    """Without noise, the chosen are nearer to members of their class than at first."""
    method = replace(SMALL, num_steps=4).make(DIGITS, FREE)
    state, _ = jax.jit(lambda k, d: fit(k, method, d))(key(0), digits)
    first = method.init(jax.random.split(key(0))[0], digits, method.public)
    member = np.asarray(digits.member)
    real = np.asarray(digits.image)[member].reshape(60, -1) / 255
    label = np.asarray(digits.label)[member]

    def far(state):
        image = np.asarray(method.sample(key(1), state, LABEL, method.public))
        image = image.reshape(200, -1)
        to = lambda i, c: np.linalg.norm(real[label == c] - image[i], axis=1).min()
        return np.mean([to(i, c) for i, c in enumerate(np.asarray(LABEL))])

    assert far(state) < 0.9 * far(first)
    assert float(state.votes.sum()) == 60  # each member voted once


def test_resampling_follows_the_weights():
    weight = jnp.array([0.0, 3.0, 1.0, 0.0])
    place = (jnp.arange(4, dtype=jnp.float32) + 0.3) / 4
    np.testing.assert_array_equal(inverse(weight, place), [1, 1, 1, 2])


def test_the_generator_of_public_data_passes_the_checks(digits):
    """Its samples are candidates, its state lies in `public`."""
    config = replace(SMALL, simulator=Fitted(), num_candidates=5, num_steps=2)
    build = lambda data, budget: config.make(DIGITS, budget)
    assert PUBLIC_SIMULATOR in build(digits, Budget(2.0, 1e-5)).guarantee.notes
    assert not SMALL.make(DIGITS, Budget(2.0, 1e-5)).guarantee.notes
    subject = Subject(build, DIGITS, Budget(2.0, 1e-5), digits)
    for name in ("closure", "flow", "ledger", "sensitivity", "keys"):
        assert CHECKS[name](subject) == ""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"simulator": "photos"}, "digits, letters, shapes"),
        ({"simulator": Fonts(characters=("a", "b"))}, "2 for 10 classes"),
        ({"simulator": Shapes(parts=0)}, "parts=0"),
        ({"degree": 1.5}, "at most 1"),
        ({"num_candidates": 0}, "num_candidates"),
    ],
)
def test_wrong_options_are_refused_by_name(wrong, message):
    with pytest.raises(InputError, match=message):
        replace(SMALL, **wrong).make(DIGITS, BUDGET)


def test_the_presets_are_made():
    for name, preset in PRESETS.items():
        side = 8 if name == "digits" else 28
        preset.make(DataSpec((side, side, 1), 10, 1000), FREE)
