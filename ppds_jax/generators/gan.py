"""A class-conditional generative adversarial network. Not private."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ppds_jax.data.batches import draw_batch
from ppds_jax.devices import loop_body
from ppds_jax.nets import gan
from ppds_jax.optimise import Averaged, Trained, begin, begin_average, descend, follow
from ppds_jax.privacy.accounting import non_private
from ppds_jax.types import (
    Budget,
    DataSpec,
    Generator,
    InputError,
    SignalFn,
    check_numbers,
)

SEARCH_STEPS = 30  # for the code of an image


class GANState(NamedTuple):
    generator: Averaged
    discriminator: Trained


class Pair(NamedTuple):
    """Pure functions of generator and discriminator.

    Attributes:
      init: key -> parameters of both.
      generate: (key, generator's params, label [m]) -> images in (0, 1).
      judge: (discriminator's params, image, label) -> logits [n], higher for real.
      fool: (key, both params, n) -> the generator's loss on n images.
      signals: white-box signals of a `GANState`, see `GAN`.
    """

    init: Callable
    generate: Callable
    judge: Callable
    fool: Callable
    signals: dict[str, SignalFn]


def pair(spec: DataSpec, latent: int, width: int) -> Pair:
    """What the adversarial networks share."""
    forge, look = gan.generator(spec.image_shape, width), gan.discriminator(width)

    def init(key):
        forge_key, look_key = jax.random.split(key)
        y = jnp.zeros((1, spec.num_classes))
        z, x = jnp.zeros((1, latent)), jnp.zeros((1, *spec.image_shape))
        return forge.init(forge_key, z, y), look.init(look_key, x, y)

    def generate(key, params, label):
        code = jax.random.normal(key, (label.size, latent))
        return forge.apply(params, code, jax.nn.one_hot(label, spec.num_classes))

    def judge(params, image, label):
        return look.apply(params, image, jax.nn.one_hot(label, spec.num_classes))

    def fool(key, params, critic, size):
        label_key, code_key = jax.random.split(key)
        label = jax.random.randint(label_key, (size,), 0, spec.num_classes)
        fake = generate(code_key, params, label)
        return jax.nn.softplus(-judge(critic, fake, label)).mean()

    def judged(key, state, image, label, public):
        return judge(state.discriminator.params, image, label)[:, None]

    def reconstructed(key, state, image, label, public):
        y, adam = jax.nn.one_hot(label, spec.num_classes), optax.adam(0.1)

        def far(code):
            found = forge.apply(state.generator.average, code, y)
            return jnp.square(found - image).mean((1, 2, 3))

        def closer(search, _):
            gradient = jax.grad(lambda code: far(code).sum())(search.params)
            return descend(adam, search, gradient), None

        code = jax.random.normal(key, (label.size, latent))
        search, _ = jax.lax.scan(
            loop_body(closer), begin(adam, code), length=SEARCH_STEPS
        )
        return -jnp.log(far(search.params) + 1e-12)[:, None]

    signals = {"discriminator": judged, "reconstruction": reconstructed}
    return Pair(init, generate, judge, fool, signals)


@dataclass(frozen=True, kw_only=True)
class GAN:
    """A generator learns to fool a discriminator; both are given the label.

    The discriminator minimises E softplus(-D(x, y)) + E softplus(D(G(z, y), y)) +
    gamma / 2 E ||grad_x D(x, y)||^2 (R1), the generator E softplus(-D(G(z, y), y)).
    Images are drawn by a moving average of the generator.

    Its white-box signals, larger for images that were trained on, are `discriminator`,
    D(x, y), and `reconstruction`: minus the logarithm of the mean square of G(z, y) - x
    at a z found by gradient descent from one drawn from the key.

    **Privacy:** none.

    **Presets:** accuracy of a CNN, and time on one of two busy cores: MNIST: 0.932 ±
    0.02 (one seed) in 3 min; Fashion-MNIST: 0.785 ± 0.02 (one seed) in 3 min. By
    `python -m experiments.generators small --data FILE.npz --methods GAN` with mnist or
    fashion_mnist for FILE, see `experiments/results/`.

    **References:** Goodfellow et al., Generative Adversarial Networks, 2014, arXiv
    1406.2661; Mescheder, Geiger and Nowozin, Which Training Methods for GANs do
    actually Converge?, 2018, arXiv 1801.04406 (R1); Hayes et al., LOGAN, 2019, arXiv
    1705.07663, and Chen et al., GAN-Leaks, 2020, arXiv 1909.03935 (the signals).

    Attributes:
      latent: dimensions of z.
      width: channels of both networks' widest images.
      critic_steps: updates of the discriminator before each of the generator.
      penalty: gamma, for pixels in [0, 1].
      average: decay of the moving average of the generator.
      epochs: passes over the private images (drawn with replacement).
      batch_size: images an update.
      learning_rate: of Adam, for both.
    """

    latent: int = 32
    width: int = 16
    critic_steps: int = 1
    penalty: float = 1.0
    average: float = 0.998
    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 1e-3

    def make(self, spec: DataSpec, budget: Budget) -> Generator:
        check_numbers(self, "penalty", "average")
        if self.average >= 1:
            raise InputError(f"GAN.average={self.average}: must be below 1")
        model = pair(spec, self.latent, self.width)
        batch_size = min(self.batch_size, spec.num_members)
        updates = self.epochs * -(-spec.num_members // batch_size)
        optimizer = optax.adam(self.learning_rate, b1=0.5, b2=0.99)

        def init(key, data, public, start=None):
            params, critic = model.init(key)
            if start is not None:
                params = start.generator.average
                critic = start.discriminator.params
            return GANState(
                begin_average(begin(optimizer, params)), begin(optimizer, critic)
            )

        def expose(critic, real, fake, label):
            grown = lambda x: model.judge(critic, x, label).sum()
            slope = jax.grad(grown)(real)
            image, twice = jnp.concatenate([real, fake]), jnp.concatenate([label] * 2)
            true, false = jnp.split(model.judge(critic, image, twice), 2)
            loss = jax.nn.softplus(-true) + jax.nn.softplus(false)
            return (loss + self.penalty / 2 * jnp.square(slope).sum((1, 2, 3))).mean()

        def step(key, state, data, public):
            forger = state.generator.trained

            def update(critic, key):
                batch_key, code_key = jax.random.split(key)
                real, label = draw_batch(batch_key, data, batch_size)
                fake = model.generate(code_key, forger.params, label)
                value, gradient = jax.value_and_grad(expose)(
                    critic.params, real, fake, label
                )
                return descend(optimizer, critic, gradient), value

            critic_key, forger_key = jax.random.split(key)
            keys = jax.random.split(critic_key, self.critic_steps)
            critic, exposed = jax.lax.scan(update, state.discriminator, keys)
            fool = lambda params: model.fool(
                forger_key, params, critic.params, batch_size
            )
            fooled, gradient = jax.value_and_grad(fool)(forger.params)
            forger = descend(optimizer, forger, gradient)
            state = GANState(follow(state.generator, forger, self.average), critic)
            return state, {"discriminator": exposed.mean(), "generator": fooled}

        def sample(key, state, label, public):
            return model.generate(key, state.generator.average, label)

        return Generator(
            init,
            step,
            sample,
            -(-updates // self.critic_steps),
            non_private(),
            signals=model.signals,
        )


PRESETS = {
    # for all images on a CPU: chosen by looking at accuracies
    "mnist": GAN(epochs=2),
}
PRESETS["fashion_mnist"] = PRESETS["mnist"]
