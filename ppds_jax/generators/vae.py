"""A conditional variational autoencoder. Not private."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ppds_jax.data.batches import draw_batch
from ppds_jax.nets.vae import decoder, encoder
from ppds_jax.optimise import begin, descend, handed_over
from ppds_jax.privacy.accounting import non_private
from ppds_jax.types import Budget, DataSpec, Generator, check_numbers


class Model(NamedTuple):
    """Pure functions of the parameters of encoder and decoder.

    Attributes:
      init: key -> parameters.
      cost: (key, params, image [n h w c], label [n]) -> distortion and rate, each [n].
      sample: (key, params, label [m]) -> images in [0, 1], the decoder's means.
      elbo: (key, params, image, label) -> [n 1], see `VAE`.
    """

    init: Callable
    cost: Callable
    sample: Callable
    elbo: Callable


def autoencoder(spec: DataSpec, latent: int, width: int) -> Model:
    """What the variational autoencoders share."""
    encode, decode = encoder(latent, width), decoder(spec.image_shape, width)

    def condition(label):
        return jax.nn.one_hot(label, spec.num_classes)

    def init(key):
        encoder_key, decoder_key = jax.random.split(key)
        y = jnp.zeros((1, spec.num_classes))
        x, z = jnp.zeros((1, *spec.image_shape)), jnp.zeros((1, latent))
        return encode.init(encoder_key, x, y), decode.init(decoder_key, z, y)

    def cost(key, params, image, label):
        y = condition(label)
        mean, log_var = encode.apply(params[0], image, y)
        noise = jax.random.normal(key, mean.shape)
        logits = decode.apply(params[1], mean + jnp.exp(log_var / 2) * noise, y)
        distortion = optax.sigmoid_binary_cross_entropy(logits, image)
        rate = 0.5 * (mean**2 + jnp.exp(log_var) - 1 - log_var)
        return distortion.sum((1, 2, 3)), rate.sum(1)

    def sample(key, params, label):
        code = jax.random.normal(key, (label.size, latent))
        return jax.nn.sigmoid(decode.apply(params[1], code, condition(label)))

    def elbo(key, params, image, label):
        def once(key):
            distortion, rate = cost(key, params, image, label)
            return -(distortion + rate) / image[0].size

        return jax.lax.map(once, jax.random.split(key, 16)).mean(0)[:, None]

    return Model(init, cost, sample, elbo)


@dataclass(frozen=True, kw_only=True)
class VAE:
    """Convolutional encoder and decoder, both given the label.

    Maximises E_q(z|x,y) log p(x|z,y) - beta KL(q(z|x,y) || N(0, I)), with independent
    Bernoulli pixels. Samples are the decoder's means, which are smoother than images; a
    little noise on them makes up for some of that.

    Its white-box signal `elbo` is that bound per pixel, with beta 1, the mean over 16
    fixed z: larger for images that were trained on.

    **Privacy:** none.

    **Presets:** accuracy of a CNN, and time on one of two busy cores: MNIST: 0.938 ±
    0.02 (one seed) in 4 min; Fashion-MNIST: 0.807 ± 0.02 (one seed) in 6 min. By
    `python -m experiments.generators small --data FILE.npz --methods VAE` with mnist or
    fashion_mnist for FILE, see `experiments/results/`.

    **References:** Kingma and Welling, Auto-Encoding Variational Bayes, 2014, arXiv
    1312.6114; Sohn, Lee and Yan, Learning Structured Output Representation using Deep
    Conditional Generative Models, 2015.

    Attributes:
      latent: dimensions of z.
      width: channels of the first convolution.
      beta: weight of the divergence.
      noise: standard deviation of Gaussian noise on samples (pixels are in [0, 1]).
      epochs: passes over the private images (drawn with replacement).
      batch_size: images a step.
      learning_rate: of Adam.
    """

    latent: int = 16
    width: int = 16
    beta: float = 4.0
    noise: float = 0.0
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 2e-3

    def make(self, spec: DataSpec, budget: Budget) -> Generator:
        check_numbers(self, "beta", "noise")
        model = autoencoder(spec, self.latent, self.width)
        optimizer = optax.adam(self.learning_rate)
        batch_size = min(self.batch_size, spec.num_members)

        def init(key, data, public, start=None):
            params = model.init(key) if start is None else handed_over(start)
            return begin(optimizer, params)

        def loss(params, key, image, label):
            distortion, rate = model.cost(key, params, image, label)
            return (distortion + self.beta * rate).mean()

        def step(key, state, data, public):
            batch_key, noise_key = jax.random.split(key)
            image, label = draw_batch(batch_key, data, batch_size)
            value, gradient = jax.value_and_grad(loss)(
                state.params, noise_key, image, label
            )
            return descend(optimizer, state, gradient), {"loss": value}

        def sample(key, state, label, public):
            image = model.sample(key, state.params, label)
            if not self.noise:
                return image
            noise = jax.random.normal(jax.random.fold_in(key, 1), image.shape)
            return jnp.clip(image + self.noise * noise, 0, 1)

        def elbo(key, state, image, label, public):
            return model.elbo(key, state.params, image, label)

        num_steps = self.epochs * -(-spec.num_members // batch_size)
        return Generator(
            init, step, sample, num_steps, non_private(), signals={"elbo": elbo}
        )


PRESETS = {
    # for all images on a CPU: chosen by looking at accuracies
    "mnist": VAE(beta=1.0, noise=0.1, epochs=10),
    "fashion_mnist": VAE(latent=32, width=24, beta=0.5, noise=0.1, epochs=10),
}
