"""Two small private generators without a fault, made of parts that faults replace."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppds_jax.data.batches import decode
from ppds_jax.privacy import accounting
from ppds_jax.privacy.dpsgd import DPSGD, calibrated
from ppds_jax.privacy.mechanisms import gaussian_release
from ppds_jax.privacy.release import release
from ppds_jax.types import Budget, Dataset, DataSpec, Generator

SPEC = DataSpec((4, 4, 1), 3, 40)
BOUND = 1.5  # on the norm of an image's contribution


def dataset() -> Dataset:
    """80 random images, half of them members."""
    image, label = jax.random.split(jax.random.key(1))
    return Dataset(
        jax.random.randint(image, (80, *SPEC.image_shape), 0, 256, jnp.uint8),
        jax.random.randint(label, (80,), 0, SPEC.num_classes, jnp.int32),
        jnp.arange(80) % 2 == 0,
    )


def clipped(data: Dataset, bound: float = BOUND) -> jax.Array:
    """Each member's image, flat, its norm clipped; other rows are zero: [n d]."""
    x = jnp.where(data.member[:, None], decode(data.image).reshape(80, -1), 0.0)
    norm = jnp.sqrt(jnp.sum(x**2, axis=1, keepdims=True))
    return x * jnp.minimum(1, bound / jnp.maximum(norm, 1e-6))


def one_hot(data: Dataset) -> jax.Array:
    return jax.nn.one_hot(data.label, SPEC.num_classes)


def images(key, state, label, public):
    means = state["mean"].reshape(-1, *SPEC.image_shape)
    return jnp.clip(means[label % len(means)], 0, 1)


def gaussian(sigma: float) -> Any:
    return accounting.gaussian(sigma, accounting.ZERO_OUT)


class Means(NamedTuple):
    """Class means, released once."""

    rows: Callable = clipped
    sensitivity: float = BOUND
    divide: Callable = lambda total, data: total / SPEC.num_members
    sigma: Callable = lambda budget: accounting.calibrate(gaussian, budget)
    state: Callable = lambda mean, exact, data: {"mean": mean}
    sample: Callable = lambda data: images

    def __call__(self, data: Dataset, budget: Budget) -> Generator:
        sigma = self.sigma(budget)

        def init(key, data, public, start=None):
            total = one_hot(data).T @ self.rows(data)
            noisy = gaussian_release(
                key, total, sensitivity=self.sensitivity, noise_multiplier=sigma
            )
            return self.state(self.divide(noisy, data), total, data)

        def step(key, state, data, public):
            return state, {}

        return Generator(init, step, self.sample(data), 0, gaussian(sigma))


def coins(key, step, member, settings):
    """A Poisson batch, as weights."""
    return jax.random.bernoulli(key, settings.sampling_rate, member.shape) & member


def fresh(key, step, total, settings):
    deviation = settings.noise_multiplier * settings.clip_norm
    return deviation * jax.random.normal(key, total.shape)


def guarded(noisy, total, step, settings):
    sound = jnp.isfinite(total).all() & (step < settings.num_steps)
    return jnp.where(sound, noisy, jnp.nan)


class Batches(NamedTuple):
    """A running mean of noisy sums over Poisson batches."""

    batch: Callable = coins
    noise: Callable = fresh
    guard: Callable = guarded
    keys: Callable = jax.random.split
    steps: int = 0  # beyond those that are accounted for
    guarantee: Callable = lambda settings: settings.guarantee
    real: Callable = lambda settings: settings  # what is run, from what is stated

    def __call__(self, data: Dataset, budget: Budget) -> Generator:
        stated = settings(budget)
        run = self.real(stated)

        def init(key, data, public, start=None):
            del data
            return {"mean": jnp.zeros((1, 16)), "step": jnp.array(0, jnp.int32)}

        def step(key, state, data, public):
            batch_key, noise_key = self.keys(key)
            weight = self.batch(batch_key, state["step"], data.member, run)
            total = weight.astype(jnp.float32)[None] @ clipped(data, run.clip_norm)
            noisy = total + self.noise(noise_key, state["step"], total, run)
            noisy = self.guard(noisy, total, state["step"], run)
            noisy = release(total, noisy, stated.mechanism)
            mean = 0.5 * (state["mean"] + noisy / run.batch_size)
            return {"mean": mean, "step": state["step"] + 1}, {}

        guarantee = self.guarantee(stated)
        return Generator(init, step, images, run.num_steps + self.steps, guarantee)


def settings(budget: Budget) -> DPSGD:
    """Those of a sound run; batches are not cut off, and none of them is padded."""
    found = calibrated(
        SPEC, budget, clip_norm=BOUND, batch_size=10, num_steps=8, microbatch=40
    )
    return replace(found, microbatch=40)


SOUND = {"means": Means(), "batches": Batches()}
