"""DP-MERF: one noisy mean of random features, then a generator fitted to it freely."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ppds_jax.data.batches import blocks, decode
from ppds_jax.nets.mlp import mlp_generator
from ppds_jax.optimise import Trained, begin, descend
from ppds_jax.privacy import accounting
from ppds_jax.privacy.mechanisms import gaussian_release
from ppds_jax.types import Budget, DataSpec, Generator, InputError, check_numbers


class DPMerfState(NamedTuple):
    embedding: Float[Array, "features classes"]  # noisy: private data end here
    trained: Trained


@dataclass(frozen=True, kw_only=True)
class DPMerf:
    """Matches the noisy mean embedding of the private images.

    With z(x) = [cos Wx; sin Wx] / sqrt(D/2), of norm 1, the mean over i of
    z(x_i) (x) e_{y_i} is released once; a generator is then fitted to it by squared
    distance, for any number of steps.

    **Privacy:** zero-out. One image changes the mean by at most 1/N, N the public
    number of images; one Gaussian release. W is public, drawn without the data.

    **References:** Harder, Adamczewski and Park, DP-MERF: Differentially Private Mean
    Embeddings with Random Features for Practical Privacy-Preserving Data Generation,
    2021, arXiv 2002.11603.

    Attributes:
      features: D, even.
      lengthscale: of the Gaussian kernel on pixels in [0, 1], as a multiple of the
        square root of the number of pixels.
      latent: dimensions of the generator's input, besides the label.
      hidden: units of the generator's hidden layers.
      num_steps: free training steps after the release.
      batch_size: samples a step.
      learning_rate: of Adam, falling to 0 by a cosine.
    """

    features: int = 1000
    lengthscale: float = 0.4
    latent: int = 10
    hidden: tuple[int, ...] = (200, 500)
    num_steps: int = 600
    batch_size: int = 100
    learning_rate: float = 5e-3

    def make(self, spec: DataSpec, budget: Budget) -> Generator:
        check_numbers(self)
        if self.features % 2:
            raise InputError(f"DPMerf.features={self.features}: must be even")
        pixels = math.prod(spec.image_shape)
        scale = self.lengthscale * math.sqrt(pixels)
        shape = (pixels, self.features // 2)
        frequencies = jax.random.normal(jax.random.key(0), shape) / scale
        net = mlp_generator(spec.image_shape, self.hidden)
        schedule = optax.cosine_decay_schedule(self.learning_rate, self.num_steps)
        optimizer = optax.adam(schedule)

        def run(sigma):
            return accounting.gaussian(
                sigma, accounting.ZERO_OUT, accounting.PUBLIC_COUNT
            )

        noise_multiplier = accounting.calibrate(run, budget)

        def embed(image, label, weight, frequencies):
            """The sum over i of weight_i z(x_i) (x) e_{y_i}: [features classes]."""
            angle = image.reshape(image.shape[0], -1) @ frequencies
            z = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)
            y = jax.nn.one_hot(label, spec.num_classes) * weight[:, None]
            total = jnp.matmul(z.T, y, precision="highest")
            return total / math.sqrt(self.features // 2)

        def init(key, data, public, start=None):
            noise_key, net_key = jax.random.split(key)

            def add(total, rows):
                image, label, member = rows
                image = decode(image)
                return total + embed(
                    image, label, member.astype(jnp.float32), public
                ), None

            zero = jnp.zeros((self.features, spec.num_classes))
            total, _ = jax.lax.scan(add, zero, blocks(tuple(data)))
            embedding = gaussian_release(
                noise_key,
                total / spec.num_members,
                sensitivity=1 / spec.num_members,
                noise_multiplier=noise_multiplier,
            )
            code = jnp.zeros((1, self.latent))
            params = net.init(net_key, code, jnp.zeros((1, spec.num_classes)))
            return DPMerfState(embedding, begin(optimizer, params))

        def generate(params, key, label):
            code = jax.random.normal(key, (label.size, self.latent))
            return net.apply(params, code, jax.nn.one_hot(label, spec.num_classes))

        def loss(params, key, label, embedding, public):
            image = generate(params, key, label)
            weight = jnp.full(label.size, 1 / label.size)
            return jnp.sum((embedding - embed(image, label, weight, public)) ** 2)

        def step(key, state, data, public):
            del data  # the mean embedding is already released
            label_key, code_key = jax.random.split(key)
            label = _labels(label_key, self.batch_size, spec)
            value, gradient = jax.value_and_grad(loss)(
                state.trained.params, code_key, label, state.embedding, public
            )
            trained = descend(optimizer, state.trained, gradient)
            return DPMerfState(state.embedding, trained), {"loss": value}

        def sample(key, state, label, public):
            return generate(state.trained.params, key, label)

        return Generator(
            init, step, sample, self.num_steps, run(noise_multiplier), frequencies
        )


def _labels(key, size: int, spec: DataSpec):
    """Labels in the classes' public shares, or in equal ones; as evenly as may be."""
    counts = spec.class_counts or (1,) * spec.num_classes
    edges = jnp.cumsum(jnp.array(counts, jnp.float32)) / sum(counts)
    place = (jnp.arange(size, dtype=jnp.float32) + jax.random.uniform(key)) / size
    return jnp.minimum(jnp.searchsorted(edges, place), spec.num_classes - 1)
