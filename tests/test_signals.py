"""Signals of membership against NumPy in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from ppds_jax.attacks.image_signals import k_nearest
from ppds_jax.attacks.signals import (
    SIGNALS,
    hinge,
    minus_loss,
    probability,
    scaled_logit,
)
from ppds_jax.types import Synthetic


def nearest(synthetic, image, label):
    return k_nearest(synthetic, image, label, k=1)[:, 0]


def log_odds(logits, label):
    rows = zip(np.asarray(logits, np.float64), label, strict=True)
    return np.array([z[y] - logsumexp(np.delete(z, y)) for z, y in rows])


def random_logits(scale):
    rng = np.random.default_rng(0)
    logits = (scale * rng.normal(size=(50, 7))).astype(np.float32)
    return logits, rng.integers(7, size=50, dtype=np.int32)


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
def test_scaled_logit_is_log_odds(scale):
    logits, label = random_logits(scale)
    phi = scaled_logit(jnp.array(logits), jnp.array(label))
    np.testing.assert_allclose(phi, log_odds(logits, label), atol=1e-5 * (1 + scale))


def test_scaled_logit_is_stable():
    one = 700 * np.eye(4, dtype=np.float32)
    extreme, label = np.concatenate([one, -one, 2 * one - 700]), np.arange(12) % 4
    phi = scaled_logit(jnp.array(extreme), jnp.array(label, jnp.int32))
    np.testing.assert_allclose(phi, log_odds(extreme, label), rtol=1e-6)
    logits, label = random_logits(3.0)
    for constant in (-700, 700):  # float32 rounds logits near 700 by 3e-5
        phi = scaled_logit(jnp.array(logits + np.float32(constant)), jnp.array(label))
        np.testing.assert_allclose(phi, log_odds(logits, label), atol=5e-4)


@pytest.mark.parametrize("scale", [1.0, 30.0, 700.0])
def test_other_signals_of_logits(scale):
    logits, label = random_logits(scale / 3)
    inputs = jnp.array(logits), jnp.array(label)
    wide = logits.astype(np.float64)
    log_p = wide[np.arange(50), label] - logsumexp(wide, axis=1)
    close = {"rtol": 1e-5, "atol": 1e-6 * scale}
    np.testing.assert_allclose(minus_loss(*inputs), log_p, **close)
    np.testing.assert_allclose(probability(*inputs), np.exp(log_p), **close)
    rows = zip(wide, label, strict=True)
    margin = [z[y] - np.delete(z, y).max() for z, y in rows]
    np.testing.assert_allclose(hinge(*inputs), margin, **close)


@pytest.mark.parametrize("signal", [scaled_logit, hinge, minus_loss, probability])
def test_signals_of_logits_are_stable_and_higher_where_the_label_is(signal):
    extreme = jnp.array([[-700.0, 700, 0], [0, 0, 0], [700, -700, 0]], jnp.float32)
    phi = np.asarray(signal(extreme, jnp.zeros(3, jnp.int32)))
    assert np.isfinite(phi).all()
    assert (np.diff(phi) > 0).all()


def released():
    rng = np.random.default_rng(0)
    return Synthetic(
        image=jnp.array(rng.integers(256, size=(40, 6, 5, 2)), jnp.uint8),
        label=jnp.array(rng.integers(3, size=40), jnp.int32),
        weight=jnp.array(rng.random(40) < 0.7, jnp.float32),
    )


def test_nearest_is_brute_force():
    points, given, weight = map(np.asarray, released())
    rng = np.random.default_rng(1)
    image = rng.random((300, 6, 5, 2), np.float32)  # more than one block
    label = rng.integers(4, size=300, dtype=np.int32)  # nothing released of label 3
    phi = np.asarray(nearest(released(), jnp.array(image), jnp.array(label)))
    expected = []
    for x, y in zip(image.astype(np.float64), label, strict=True):
        same = points[(given == y) & (weight > 0)] / 255
        expected.append(-min((np.mean((x - s) ** 2) ** 0.5 for s in same), default=1))
    np.testing.assert_allclose(phi, expected, atol=1e-3)
    assert (phi[label == 3] == -1).all()


def test_nearest_of_copies_is_zero():
    synthetic = released()
    copy, kept = synthetic.image.astype(jnp.float32) / 255, synthetic.weight > 0
    phi = np.asarray(nearest(synthetic, copy, synthetic.label))
    np.testing.assert_allclose(phi[kept], 0, atol=1e-3)
    assert (phi[~kept] < -0.1).all()  # a dropped row is not there
    assert (nearest(synthetic, copy, (synthetic.label + 1) % 3) < -0.1).all()


RANGES = {  # where a signal does not lie anywhere below 0
    "nearest": (-1, 0),
    "nearest_in_pca": (-1, 0),
    "gan_leaks": (-1, 0),
    "gan_leaks_calibrated": (-1, 1),
    "probability": (1e-6, 1),
    "neighbourhood": (0, 1),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_probabilities_increase(name):
    p = SIGNALS[name].probability(np.linspace(*RANGES.get(name, (-30, 0)), 99))
    assert ((p > 0) & (p <= 1)).all()
    assert (np.diff(p) > 0).all()
