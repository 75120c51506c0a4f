"""Two generators with a known answer, by which every attack is checked."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, UInt8

from ppds_jax.data.batches import decode
from ppds_jax.privacy.accounting import data_free, non_private
from ppds_jax.types import Budget, DataSpec, Generator


class MemoriserState(NamedTuple):
    image: UInt8[Array, "n h w c"]
    label: Int32[Array, " n"]  # -1: not a member


@dataclass(frozen=True, kw_only=True)
class Memoriser:
    """Returns training images: attacks on what it releases must read an AUC near 1.

    Each call draws without replacement within a class, and starts over in a new order
    where more images are asked for than the class has.

    **Privacy:** none at all.
    """

    def make(self, spec: DataSpec, budget: Budget) -> Generator:
        def init(key, data, public, start=None):
            image = jnp.where(data.member[:, None, None, None], data.image, 0)
            return MemoriserState(image, jnp.where(data.member, data.label, -1))

        def step(key, state, data, public):
            return state, {}

        def sample(key, state, label, public):
            classes = jnp.arange(spec.num_classes)
            order = jax.random.permutation(key, state.label.size)
            order = order[jnp.argsort(state.label[order], stable=True)]
            first = jnp.searchsorted(state.label[order], classes)
            count = jnp.searchsorted(state.label[order], classes, side="right") - first
            asked = jnp.cumsum(
                jax.nn.one_hot(label, classes.size, dtype=jnp.int32), axis=0
            )
            rank = jnp.take_along_axis(asked, label[:, None], axis=1)[:, 0] - 1
            rank = rank % jnp.maximum(count[label], 1)
            return decode(state.image[order[first[label] + rank]])

        return Generator(init, step, sample, num_steps=0, guarantee=non_private())


@dataclass(frozen=True, kw_only=True)
class Independent:
    """Ignores the data: no attack on what it releases can do better than chance.

    Samples are a public random template for each class, with noise.

    **Privacy:** perfect (epsilon 0): nothing is computed from the private images.
    """

    def make(self, spec: DataSpec, budget: Budget) -> Generator:
        shape = (spec.num_classes, *spec.image_shape)
        templates = jax.random.uniform(jax.random.key(0), shape)

        def init(key, data, public, start=None):
            del data
            return ()

        def step(key, state, data, public):
            return state, {}

        def sample(key, state, label, public):
            noise = jax.random.normal(key, (label.size, *spec.image_shape))
            return jnp.clip(public[label] + 0.2 * noise, 0, 1)

        return Generator(init, step, sample, 0, data_free(), public=templates)
