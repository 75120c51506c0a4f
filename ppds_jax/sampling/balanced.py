"""Independent draws, the same number from each class."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from ppds_jax.data.batches import encode
from ppds_jax.devices import loop_body
from ppds_jax.privacy.accounting import PUBLIC_COUNT, data_free
from ppds_jax.types import DataSpec, Sampler, Synthetic, check_numbers


@dataclass(frozen=True, kw_only=True)
class Balanced:
    """Draws as many images of each class (to within one), independently.

    **Privacy:** reads no private data: nothing is added to the generator's guarantee,
    but that the number of private images is public, where as many are released.

    Attributes:
      num_images: how many to release; None: as many as there are private images.
      batch_size: images drawn in one call of the generator.
    """

    num_images: int | None = None
    batch_size: int = 1000

    def make(self, spec: DataSpec) -> Sampler:
        check_numbers(self)
        count = spec.num_members if self.num_images is None else self.num_images
        size = min(self.batch_size, count)
        batches = -(-count // size)

        def draw(key, generator, state, data):
            del data  # post-processing
            label = jnp.arange(batches * size, dtype=jnp.int32) % spec.num_classes

            def batch(key_and_label):
                key, label = key_and_label
                return encode(generator.sample(key, state, label, generator.public))

            keys = jax.random.split(key, batches)
            image = jax.lax.map(loop_body(batch), (keys, label.reshape(batches, size)))
            image = image.reshape(-1, *spec.image_shape)[:count]
            return Synthetic(image, label[:count], jnp.ones(count))

        notes = (PUBLIC_COUNT,) if self.num_images is None else ()
        return Sampler(draw, replace(data_free(), notes=notes))
