"""k-Same: averages of alike private images, an old way to publish no one's face."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ppds_jax.data.batches import decode
from ppds_jax.privacy.accounting import non_private
from ppds_jax.types import Budget, DataSpec, Generator, check_numbers


class KSameState(NamedTuple):
    image: Float[Array, "classes m h w c"]


@dataclass(frozen=True, kw_only=True)
class KSame:
    """Draws from averages of k images of a class: one of them and those nearest to it.

    Each average looks like no single image. That is a heuristic, not a bound: it tells
    of each of its k images, an outlier's neighbours are far away, and who knows k - 1
    of them has the last one. Attack it to see how much k helps.

    **Privacy:** none: epsilon is infinite. k-anonymity bounds neither what one image
    changes nor what an attacker who knows others can learn.

    **Presets:** accuracy of a CNN, and time on one of two busy cores: MNIST: 0.918 ±
    0.02 in 9 s; Fashion-MNIST: 0.812 ± 0.02 in 8 s. By `python -m
    experiments.generators small --data FILE.npz --methods KSame` with mnist or
    fashion_mnist for FILE, see `experiments/results/`.

    **References:** Newton, Sweeney and Malin, Preserving Privacy by De-Identifying Face
    Images, 2005; there each image has its average, here `per_class` drawn ones have.

    Attributes:
      k: images in an average; fewer where a class has fewer.
      per_class: averages of each class, each around an image drawn with replacement.
    """

    k: int = 10
    per_class: int = 200

    def make(self, spec: DataSpec, budget: Budget) -> Generator:
        check_numbers(self)

        def init(key, data, public, start=None):
            flat = decode(data.image).reshape(data.label.size, -1)
            size = jnp.square(flat).sum(1)

            def average(args):
                key, label = args
                own = data.member & (data.label == label)
                chance = jnp.where(own, 0.0, -jnp.inf)
                first = jax.random.categorical(key, chance, shape=(self.per_class,))
                far = size[None] - 2 * jnp.matmul(flat[first], flat.T)
                near, index = jax.lax.top_k(
                    jnp.where(own[None], -far, -jnp.inf), min(self.k, own.size)
                )
                weight = jnp.isfinite(near).astype(jnp.float32)  # only the class's own
                total = jnp.einsum("mk,mkd->md", weight, flat[index])
                count = weight.sum(1, keepdims=True)
                return jnp.where(count > 0, total / jnp.maximum(count, 1), 0.5)

            keys = jax.random.split(key, spec.num_classes)
            image = jax.lax.map(average, (keys, jnp.arange(spec.num_classes)))
            return KSameState(image.reshape(*image.shape[:2], *spec.image_shape))

        def step(key, state, data, public):
            return state, {}

        def sample(key, state, label, public):
            chosen = jax.random.randint(key, label.shape, 0, self.per_class)
            return state.image[label, chosen]

        return Generator(init, step, sample, num_steps=0, guarantee=non_private())
