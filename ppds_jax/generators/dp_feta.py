"""DP-FETA: a diffusion model sees noisy central images first, then trains by DP-SGD."""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32

from ppds_jax.data.batches import decode
from ppds_jax.devices import loop_body
from ppds_jax.generators.denoising import Model, denoising
from ppds_jax.generators.dpdm import DPDM, private_training, settings_of
from ppds_jax.optimise import begin, descend
from ppds_jax.privacy import accounting
from ppds_jax.privacy.mechanisms import subsampled_sums
from ppds_jax.types import Budget, Dataset, DataSpec, Generator, InputError, Key, PyTree

Central = tuple[Float[Array, "m h w c"], Int32[Array, " m"]]


LEAST = 0.01  # epsilon of a part: what the accountant resolves


@dataclass(frozen=True, kw_only=True)
class DPFeta(DPDM):
    """DPDM, from a network that was trained on noisy central images of each class.

    A central image is the mean of a Poisson sample of clipped images of its class, with
    Gaussian noise. A few of them say what a class looks like for a small part of the
    budget; training on them costs nothing more.

    **Privacy:** add-or-remove-one: the Poisson-sampled Gaussian releases of the central
    images and those of DP-SGD, composed. Sums are divided by the nominal number of
    images of a class, never by how many were drawn.

    **Presets:** accuracy of a CNN, and time on one of two busy cores: MNIST, epsilon 1:
    0.697 ± 0.02 (one seed) in 8 min; MNIST, epsilon 10: 0.820 ± 0.02 (one seed) in 9
    min; Fashion-MNIST, epsilon 1: 0.638 ± 0.02 (one seed) in 6 min; Fashion-MNIST,
    epsilon 10: 0.711 ± 0.02 (one seed) in 7 min. By `python -m experiments.generators
    small --data FILE.npz --methods DPFeta` with mnist or fashion_mnist for FILE, see
    `experiments/results/`.

    **References:** Li, Gong, Li, Zhao, Hou and Wang, From Easy to Hard: Building a
    Shortcut for Differentially Private Image Synthesis, 2025, arXiv 2504.01395.

    Attributes:
      central_images: released for each class.
      central_rate: probability with which an image is in the sample of a central image.
      central_share: of epsilon, that the central images would take alone.
      central_clip: bound on an image's norm, as a share of the largest, sqrt(h w c).
      pretrain_steps: on central images, 64 a step, within `init`.
    """

    central_images: int = 20
    central_rate: float = 0.1
    central_share: float = 0.1
    central_clip: float = 0.4
    pretrain_steps: int = 500

    def make(self, spec: DataSpec, budget: Budget) -> Generator:
        model = denoising(self, spec, lambda state: state.average)
        for name in ("central_rate", "central_share"):
            if (value := getattr(self, name)) >= 1:
                raise InputError(f"DPFeta.{name}={value}: must be below 1")

        known: tuple[str, ...] = (accounting.PUBLIC_COUNT,)
        if spec.class_counts:
            known = *known, accounting.PUBLIC_COUNTS

        def releases(noise_multiplier):
            return accounting.poisson_gaussian(
                noise_multiplier=noise_multiplier,
                sampling_rate=self.central_rate,
                num_steps=self.central_images,
                num_members=spec.num_members,
                capacity=spec.num_members,
                notes=known,
            )

        if budget.epsilon < 2 * LEAST:
            raise InputError(
                f"epsilon={budget.epsilon}: DPFeta divides it, and needs {2 * LEAST}"
            )
        share = max(self.central_share * budget.epsilon, LEAST)
        part = Budget(share, budget.delta)
        central_noise = accounting.calibrate(releases, part)
        settings = settings_of(self, spec, budget)
        both = lambda sigma: accounting.compose(
            releases(central_noise), replace(settings, noise_multiplier=sigma).guarantee
        )
        sigma = accounting.calibrate(both, budget)

        def first(key, data):
            release_key, init_key, fit_key = jax.random.split(key, 3)
            central = central_images(release_key, self, data, spec, central_noise)
            return pretrained(fit_key, self, model, model.init(init_key), central)

        settings = replace(settings, noise_multiplier=sigma)
        return private_training(self, model, settings, first, both(sigma))


def central_images(
    key: Key, config: DPFeta, data: Dataset, spec: DataSpec, noise_multiplier: float
) -> Central:
    """The noisy central images with their labels: all that is read before DP-SGD."""
    total = subsampled_sums(
        key,
        decode(data.image).reshape(data.label.size, -1),
        data.label,
        data.member,
        count=config.central_images,
        sampling_rate=config.central_rate,
        num_classes=spec.num_classes,
        bound=config.central_clip * math.prod(spec.image_shape) ** 0.5,
        noise_multiplier=noise_multiplier,
    )
    equal = (spec.num_members / spec.num_classes,) * spec.num_classes
    nominal = config.central_rate * jnp.array(spec.class_counts or equal, jnp.float32)
    image = jnp.clip(total / jnp.maximum(nominal, 1e-6)[None, :, None], 0, 1)
    label = jnp.arange(spec.num_classes, dtype=jnp.int32)
    return (
        image.reshape(-1, *spec.image_shape),
        jnp.tile(label, config.central_images),
    )


def pretrained(
    key: Key, config: DPFeta, model: Model, params: PyTree, central: Central
) -> PyTree:
    """The parameters, fitted to released images."""
    optimizer = optax.adam(config.learning_rate)

    def step(state, key):
        row_key, loss_key = jax.random.split(key)
        rows = jax.random.randint(row_key, (64,), 0, central[1].size)
        image, label = (x[rows] for x in central)
        loss = lambda params: model.loss(loss_key, params, image, label).mean()
        return descend(optimizer, state, jax.grad(loss)(state.params)), None

    keys = jax.random.split(key, config.pretrain_steps)
    return jax.lax.scan(loop_body(step), begin(optimizer, params), keys)[0].params


_PUBLISHED = DPFeta(  # the sizes of DPDM, as in `ppds_jax.generators.dpdm`
    width=64,
    patch=1,
    multiplicity=32,
    epochs=300,
    batch_size=4096,
    learning_rate=3e-4,
    sampler_steps=18,
    central_images=50,
    central_rate=0.01,
    pretrain_steps=2000,
)
PRESETS = {
    # for all images on a CPU: chosen by looking at accuracies
    "mnist": DPFeta(
        patch=4,
        multiplicity=1,
        label_dropout=0.0,
        batch_size=1024,
        epochs=8,
        learning_rate=3e-3,
        average=0.99,
        sampler_steps=8,
        central_rate=0.02,
    ),
    # they await an accelerator
    "mnist_published": _PUBLISHED,
    "fashion_mnist_published": _PUBLISHED,
}
PRESETS["fashion_mnist"] = PRESETS["mnist"]
