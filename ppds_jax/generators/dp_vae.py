"""A conditional variational autoencoder, trained by DP-SGD."""

from dataclasses import dataclass

import optax

from ppds_jax.generators.vae import autoencoder
from ppds_jax.optimise import begin, begin_average, descend, follow, handed_over
from ppds_jax.privacy.dpsgd import calibrated, dp_gradient
from ppds_jax.types import Budget, DataSpec, Generator, InputError, check_numbers


@dataclass(frozen=True, kw_only=True)
class DPVAE:
    """The model of `VAE` by DP-SGD: a baseline, the first to degrade.

    Images are drawn by a moving average of the parameters. Its white-box signal is the
    `elbo` of `VAE`.

    **Privacy:** DP-SGD under add-or-remove-one, on encoder and decoder together; the
    noise is calibrated so that all steps together keep within the budget.

    **Presets:** accuracy of a CNN, and time on one of two busy cores: MNIST, epsilon 1:
    0.289 ± 0.06 (one seed) in 2 min; MNIST, epsilon 10: 0.410 ± 0.08 in 72 s;
    Fashion-MNIST, epsilon 1: 0.214 ± 0.06 in 33 s; Fashion-MNIST, epsilon 10: 0.252 ±
    0.06 in 2 min. By `python -m experiments.generators small --data FILE.npz --methods
    DPVAE` with mnist or fashion_mnist for FILE, see `experiments/results/`.

    **References:** Kingma and Welling, Auto-Encoding Variational Bayes, 2014, arXiv
    1312.6114; Abadi et al., Deep Learning with Differential Privacy, 2016, arXiv
    1607.00133.

    Attributes:
      latent: dimensions of z.
      width: channels of the first convolution.
      beta: weight of the divergence.
      average: decay of the moving average of parameters.
      epochs: expected passes over the private images.
      batch_size: expected images a step.
      learning_rate: of Adam.
      clip_norm: bound on the norm of each image's gradient.
    """

    latent: int = 8
    width: int = 8
    beta: float = 1.0
    average: float = 0.99
    epochs: int = 20
    batch_size: int = 256
    learning_rate: float = 2e-3
    clip_norm: float = 1.0

    def make(self, spec: DataSpec, budget: Budget) -> Generator:
        check_numbers(self, "beta", "average")
        if self.average >= 1:
            raise InputError(f"DPVAE.average={self.average}: must be below 1")
        model = autoencoder(spec, self.latent, self.width)
        batch_size = min(self.batch_size, spec.num_members)
        settings = calibrated(
            spec,
            budget,
            clip_norm=self.clip_norm,
            batch_size=batch_size,
            num_steps=self.epochs * -(-spec.num_members // batch_size),
        )
        optimizer = optax.adam(self.learning_rate)

        def loss(key, params, image, label):
            distortion, rate = model.cost(key, params, image, label)
            return (distortion + self.beta * rate).mean()

        private = dp_gradient(loss, settings)

        def init(key, data, public, start=None):
            del data  # no private access: the first weights are random
            params = model.init(key) if start is None else handed_over(start)
            return begin_average(begin(optimizer, params, private.init(params)))

        def step(key, state, data, public):
            old = state.trained
            gradient, spent = private.apply(key, old.private, old.params, data)
            trained = descend(optimizer, old, gradient)._replace(private=spent)
            return follow(state, trained, self.average), {}

        def sample(key, state, label, public):
            return model.sample(key, state.average, label)

        def elbo(key, state, image, label, public):
            return model.elbo(key, state.average, image, label)

        return Generator(
            init,
            step,
            sample,
            settings.num_steps,
            settings.guarantee,
            signals={"elbo": elbo},
        )


PRESETS = {
    # for all images on a CPU: chosen by looking at accuracies
    "mnist": DPVAE(batch_size=128, epochs=2),
}
PRESETS["fashion_mnist"] = PRESETS["mnist"]
