"""A class-conditional diffusion model. Not private."""

from dataclasses import dataclass

import jax
import optax

from ppds_jax.data.batches import draw_batch
from ppds_jax.generators.denoising import Denoising, denoising
from ppds_jax.optimise import begin, begin_average, descend, follow, handed_over
from ppds_jax.privacy.accounting import non_private
from ppds_jax.types import Budget, DataSpec, Generator


@dataclass(frozen=True, kw_only=True)
class Diffusion(Denoising):
    """EDM diffusion: a U-Net learns to remove noise of any strength, given the label.

    Minimises E lambda(sigma) ||D(x + sigma n; sigma, y) - x||^2 over ln sigma and n
    normal; images are drawn by Heun's method.

    Its white-box signals are the denoising loss at fixed noises, SecMI, PIA and SimA:
    see `ppds_jax.nets.denoiser_signals`.

    **Privacy:** none.

    **Presets:** accuracy of a CNN, and time on one of two busy cores: MNIST: 0.951 ±
    0.02 (one seed) in 11 min; Fashion-MNIST: 0.827 ± 0.02 (one seed) in 20 min. By
    `python -m experiments.generators small --data FILE.npz --methods Diffusion` with
    mnist or fashion_mnist for FILE, see `experiments/results/`.

    **References:** Karras, Aittala, Aila and Laine, Elucidating the Design Space of
    Diffusion-Based Generative Models, 2022, arXiv 2206.00364.

    Attributes:
      epochs: passes over the private images (drawn with replacement).
      batch_size: images a step.
      learning_rate: of Adam, falling to 0 by a cosine.
    """

    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 2e-3

    def make(self, spec: DataSpec, budget: Budget) -> Generator:
        model = denoising(self, spec, lambda state: state.average)
        batch_size = min(self.batch_size, spec.num_members)
        num_steps = self.epochs * -(-spec.num_members // batch_size)
        schedule = optax.cosine_decay_schedule(self.learning_rate, num_steps)
        optimizer = optax.adam(schedule)

        def init(key, data, public, start=None):
            params = model.init(key) if start is None else handed_over(start)
            return begin_average(begin(optimizer, params))

        def step(key, state, data, public):
            batch_key, loss_key = jax.random.split(key)
            image, label = draw_batch(batch_key, data, batch_size)
            loss = lambda params: model.loss(loss_key, params, image, label).mean()
            value, gradient = jax.value_and_grad(loss)(state.trained.params)
            trained = descend(optimizer, state.trained, gradient)
            return follow(state, trained, self.average), {"loss": value}

        def sample(key, state, label, public):
            return model.sample(key, state.average, label)

        return Generator(
            init, step, sample, num_steps, non_private(), signals=model.signals
        )


PRESETS = {
    # for all images on a CPU; sizes are a compromise with time
    "mnist": Diffusion(width=32, patch=4, epochs=8),
}
PRESETS["fashion_mnist"] = PRESETS["mnist"]
