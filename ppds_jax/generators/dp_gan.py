"""DP-GAN: only the discriminator sees private images, and it learns by DP-SGD."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from ppds_jax.generators.gan import GANState, pair
from ppds_jax.optimise import begin, begin_average, descend, follow
from ppds_jax.privacy.dpsgd import calibrated, dp_gradient
from ppds_jax.types import Budget, DataSpec, Generator, InputError, check_numbers


@dataclass(frozen=True, kw_only=True)
class DPGAN:
    """The networks of `GAN`; many private discriminator steps for one of the generator.

    Each private image is paired with one generated of the same label: the loss of
    the pair, softplus(-D(x, y)) + softplus(D(G(z, y), y)), is clipped as one. Noise
    slows the discriminator down, so it takes many steps before the generator moves.
    Signals are those of `GAN`.

    **Privacy:** DP-SGD on the discriminator, under add-or-remove-one; all its steps
    together keep within the budget. The generator learns from the discriminator alone:
    post-processing. Both may be published.

    **Presets:** accuracy of a CNN, and time on one of two busy cores: MNIST, epsilon 1:
    0.398 ± 0.06 (one seed) in 7 min; MNIST, epsilon 10: 0.525 ± 0.06 (one seed) in 8
    min; Fashion-MNIST, epsilon 1: 0.660 ± 0.02 (one seed) in 3 min; Fashion-MNIST,
    epsilon 10: 0.659 ± 0.02 (one seed) in 3 min. By `python -m experiments.generators
    small --data FILE.npz --methods DPGAN` with mnist or fashion_mnist for FILE, see
    `experiments/results/`.

    **References:** Xie, Lin, Wang, Wang and Zhou, Differentially Private Generative
    Adversarial Network, 2018, arXiv 1802.06739; Bie, Kamath and Zhang, Private GANs,
    Revisited, 2023, arXiv 2302.02936 (many discriminator steps).

    Attributes:
      latent: dimensions of z.
      width: channels of both networks' widest images.
      critic_steps: private steps of the discriminator before each of the generator.
      average: decay of the moving average of the generator.
      epochs: expected passes over the private images.
      batch_size: expected images a private step; also those of a generator's step.
      learning_rate: of Adam, for both.
      clip_norm: bound on the norm of each pair's gradient.
    """

    latent: int = 32
    width: int = 8
    critic_steps: int = 10
    average: float = 0.98
    epochs: int = 50
    batch_size: int = 256
    learning_rate: float = 1e-3
    clip_norm: float = 1.0

    def make(self, spec: DataSpec, budget: Budget) -> Generator:
        check_numbers(self, "average")
        if self.average >= 1:
            raise InputError(f"DPGAN.average={self.average}: must be below 1")
        model = pair(spec, self.latent, self.width)
        batch_size = min(self.batch_size, spec.num_members)
        updates = self.epochs * -(-spec.num_members // batch_size)
        num_steps = -(-updates // self.critic_steps)
        settings = calibrated(
            spec,
            budget,
            clip_norm=self.clip_norm,
            batch_size=batch_size,
            num_steps=num_steps * self.critic_steps,
        )
        optimizer = optax.adam(self.learning_rate, b1=0.5, b2=0.99)

        def against(forger):
            """The private gradient of the discriminator, the generator standing."""

            def expose(key, critic, image, label):
                fake = model.generate(key, forger, label)
                both = jnp.concatenate([image, fake]), jnp.concatenate([label, label])
                true, false = jnp.split(model.judge(critic, *both), 2)
                return (jax.nn.softplus(-true) + jax.nn.softplus(false)).mean()

            return dp_gradient(expose, settings)

        def init(key, data, public, start=None):
            del data  # no private access: the first weights are random
            params, critic = model.init(key)
            if start is not None:
                params = start.generator.average
                critic = start.discriminator.params
            spent = against(params).init(critic)
            return GANState(
                begin_average(begin(optimizer, params)), begin(optimizer, critic, spent)
            )

        def step(key, state, data, public):
            forger = state.generator.trained
            private = against(forger.params)

            def update(critic, key):
                gradient, spent = private.apply(
                    key, critic.private, critic.params, data
                )
                critic = descend(optimizer, critic, gradient)
                return critic._replace(private=spent), None

            critic_key, forger_key = jax.random.split(key)
            keys = jax.random.split(critic_key, self.critic_steps)
            critic, _ = jax.lax.scan(update, state.discriminator, keys)
            fool = lambda params: model.fool(
                forger_key, params, critic.params, batch_size
            )
            fooled, gradient = jax.value_and_grad(fool)(forger.params)
            forger = descend(optimizer, forger, gradient)
            state = GANState(follow(state.generator, forger, self.average), critic)
            return state, {"generator": fooled}

        def sample(key, state, label, public):
            return model.generate(key, state.generator.average, label)

        return Generator(
            init,
            step,
            sample,
            num_steps,
            settings.guarantee,
            signals=model.signals,
        )


PRESETS = {
    # for all images on a CPU: chosen by looking at accuracies
    "mnist": DPGAN(width=12, batch_size=64, epochs=6, critic_steps=4),
    # the published number of discriminator steps; awaits an accelerator
    "mnist_published": DPGAN(width=32, batch_size=128, epochs=200, critic_steps=50),
}
PRESETS["fashion_mnist"] = PRESETS["mnist"]
PRESETS["fashion_mnist_published"] = PRESETS["mnist_published"]
