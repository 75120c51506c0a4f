"""DPDM: a diffusion model trained by DP-SGD, with many noises for each image."""

from collections.abc import Callable
from dataclasses import dataclass

import optax

from ppds_jax.generators.denoising import Denoising, Model, denoising
from ppds_jax.optimise import begin, begin_average, descend, follow, handed_over
from ppds_jax.privacy.dpsgd import DPSGD, calibrated, dp_gradient
from ppds_jax.types import Budget, Dataset, DataSpec, Generator, Guarantee, Key, PyTree


@dataclass(frozen=True, kw_only=True)
class DPDM(Denoising):
    """EDM diffusion by DP-SGD, each image's loss an average over several noises.

    The gradients of K draws of (sigma, n) are averaged for each image before clipping:
    less variance at the same sensitivity. Signals are those of `Diffusion`.

    **Privacy:** DP-SGD under add-or-remove-one; the noise is calibrated so that all
    steps together keep within the budget. The moving average is computed from released
    parameters.

    **Presets:** accuracy of a CNN, and time on one of two busy cores: MNIST, epsilon 1:
    0.404 ± 0.06 (one seed) in 8 min; MNIST, epsilon 10: 0.607 ± 0.02 (one seed) in 8
    min; Fashion-MNIST, epsilon 1: 0.567 ± 0.06 (one seed) in 7 min; Fashion-MNIST,
    epsilon 10: 0.614 ± 0.02 (one seed) in 9 min. By `python -m experiments.generators
    small --data FILE.npz --methods DPDM` with mnist or fashion_mnist for FILE, see
    `experiments/results/`.

    **References:** Dockhorn, Cao, Vahdat and Kreis, Differentially Private Diffusion
    Models, 2023, arXiv 2210.09929.

    Attributes:
      multiplicity: K.
      epochs: expected passes over the private images.
      batch_size: expected images a step.
      learning_rate: of Adam.
      clip_norm: bound on the norm of each image's gradient.
    """

    multiplicity: int = 4
    epochs: int = 50
    batch_size: int = 256
    learning_rate: float = 2e-3
    clip_norm: float = 1.0

    def make(self, spec: DataSpec, budget: Budget) -> Generator:
        model = denoising(self, spec, lambda state: state.average)
        settings = settings_of(self, spec, budget)

        def first(key, data):
            del data  # no private access: the first weights are random
            return model.init(key)

        return private_training(self, model, settings, first, settings.guarantee)


def settings_of(config: DPDM, spec: DataSpec, budget: Budget) -> DPSGD:
    """The DP-SGD run of a config, which may spend the whole budget."""
    batch_size = min(config.batch_size, spec.num_members)
    return calibrated(
        spec,
        budget,
        clip_norm=config.clip_norm,
        batch_size=batch_size,
        multiplicity=config.multiplicity,
        num_steps=config.epochs * -(-spec.num_members // batch_size),
    )


def private_training(
    config: DPDM,
    model: Model,
    settings: DPSGD,
    first: Callable[[Key, Dataset], PyTree],
    guarantee: Guarantee,
) -> Generator:
    """DP-SGD on a diffusion model.

    Args:
      first: (key, data) -> the first parameters, where no stage before hands any over.
      guarantee: of `first` and the training together.
    """
    optimizer = optax.adam(config.learning_rate)

    def loss(key, params, image, label):
        return model.loss(key, params, image, label).mean()

    private = dp_gradient(loss, settings)

    def init(key, data, public, start=None):
        params = first(key, data) if start is None else handed_over(start)
        return begin_average(begin(optimizer, params, private.init(params)))

    def step(key, state, data, public):
        old = state.trained
        gradient, spent = private.apply(key, old.private, old.params, data)
        trained = descend(optimizer, old, gradient)._replace(private=spent)
        return follow(state, trained, config.average), {}

    def sample(key, state, label, public):
        return model.sample(key, state.average, label)

    return Generator(
        init, step, sample, settings.num_steps, guarantee, signals=model.signals
    )


_PUBLISHED = DPDM(
    width=64,  # 1.67 million parameters; the paper has 1.75
    patch=1,
    multiplicity=32,
    epochs=300,
    batch_size=4096,
    learning_rate=3e-4,
    sampler_steps=18,
)
PRESETS = {
    # for all images on a CPU: chosen by looking at accuracies
    "mnist": DPDM(
        patch=4,
        multiplicity=1,
        label_dropout=0.0,
        batch_size=1024,
        epochs=8,
        average=0.99,
        learning_rate=3e-3,
        sampler_steps=8,
    ),
    # sizes as published; they await an accelerator
    "mnist_published": _PUBLISHED,
    "fashion_mnist_published": _PUBLISHED,
}
PRESETS["fashion_mnist"] = PRESETS["mnist"]
