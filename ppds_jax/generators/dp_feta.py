"""DP-FETA: a diffusion model sees noisy central images first, then trains by DP-SGD."""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax

from ppds_jax.data.batches import decode
from ppds_jax.devices import loop_body
from ppds_jax.generators.denoising import Model, denoising
from ppds_jax.generators.dpdm import DPDM, private_training, settings_of
from ppds_jax.optimise import begin, descend
from ppds_jax.privacy import accounting
from ppds_jax.privacy.mechanisms import subsampled_sums
from ppds_jax.types import Budget, Dataset, DataSpec, Generator, InputError, Key, PyTree


@dataclass(frozen=True, kw_only=True)
class DPFeta(DPDM):
    """DPDM, from a network that was trained on noisy central images of each class.

    A central image is the mean of a Poisson sample of clipped images of its class, with
    Gaussian noise. A few of them say what a class looks like for a small part of the
    budget; training on them costs nothing more.

    **Privacy:** add-or-remove-one: the Poisson-sampled Gaussian releases of the central
    images and those of DP-SGD, composed. Sums are divided by the nominal number of
    images of a class, never by how many were drawn.

    **References:** Li, Gong, Wang et al., From Easy to Hard: Building a Shortcut for
    Differentially Private Image Synthesis, 2025, arXiv 2504.01395.

    Attributes:
      central_images: released for each class.
      central_rate: probability with which an image is in the sample of a central image.
      central_share: of epsilon, that the central images would take alone.
      central_clip: bound on an image's norm, as a share of the largest, sqrt(h w c).
      pretrain_steps: on central images, 64 a step.
    """

    central_images: int = 20
    central_rate: float = 0.1
    central_share: float = 0.1
    central_clip: float = 0.4
    pretrain_steps: int = 500

    def make(self, spec: DataSpec, budget: Budget) -> Generator:
        model = denoising(self, spec, lambda state: state.average)
        for name in ("central_rate", "central_share"):
            if getattr(self, name) >= 1:
                raise InputError(
                    f"DPFeta.{name}={getattr(self, name)}: must be below 1"
                )

        def releases(noise_multiplier):
            return accounting.poisson_gaussian(
                noise_multiplier=noise_multiplier,
                sampling_rate=self.central_rate,
                num_steps=self.central_images,
                num_members=spec.num_members,
                capacity=spec.num_members,
                notes=(accounting.PUBLIC_COUNT,),
            )

        part = Budget(max(self.central_share * budget.epsilon, 0.01), budget.delta)
        central_noise = accounting.calibrate(releases, part)
        settings = settings_of(self, spec, budget)
        both = lambda sigma: accounting.compose(
            releases(central_noise), replace(settings, noise_multiplier=sigma).guarantee
        )
        sigma = accounting.calibrate(both, budget)

        def first(key, data):
            release_key, init_key, fit_key = jax.random.split(key, 3)
            image, label = self.release(release_key, data, spec, central_noise)
            return self.pretrain(fit_key, model, model.init(init_key), image, label)

        settings = replace(settings, noise_multiplier=sigma)
        return private_training(self, model, settings, first, both(sigma))

    def release(self, key: Key, data: Dataset, spec: DataSpec, noise_multiplier: float):
        """The noisy central images, and their labels: all that `init` reads."""
        total = subsampled_sums(
            key,
            decode(data.image).reshape(data.label.size, -1),
            data.label,
            data.member,
            count=self.central_images,
            sampling_rate=self.central_rate,
            num_classes=spec.num_classes,
            bound=self.central_clip * math.prod(spec.image_shape) ** 0.5,
            noise_multiplier=noise_multiplier,
        )
        equal = (spec.num_members / spec.num_classes,) * spec.num_classes
        nominal = self.central_rate * jnp.array(spec.class_counts or equal, jnp.float32)
        image = jnp.clip(total / jnp.maximum(nominal, 1e-6)[None, :, None], 0, 1)
        label = jnp.tile(
            jnp.arange(spec.num_classes, dtype=jnp.int32), self.central_images
        )
        return image.reshape(-1, *spec.image_shape), label

    def pretrain(
        self, key: Key, model: Model, params: PyTree, image: jax.Array, label: jax.Array
    ) -> PyTree:
        """Parameters fitted to released images."""
        optimizer = optax.adam(self.learning_rate)

        def step(state, key):
            row_key, loss_key = jax.random.split(key)
            rows = jax.random.randint(row_key, (64,), 0, label.size)
            loss = lambda params: model.loss(
                loss_key, params, image[rows], label[rows]
            ).mean()
            return descend(optimizer, state, jax.grad(loss)(state.params)), None

        keys = jax.random.split(key, self.pretrain_steps)
        state = begin(optimizer, params)
        return jax.lax.scan(loop_body(step), state, keys)[0].params
