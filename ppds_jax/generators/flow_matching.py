"""A class-conditional flow along straight paths. Not private."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from ppds_jax.data.batches import draw_batch
from ppds_jax.generators.denoising import Conditional
from ppds_jax.nets.edm import heun
from ppds_jax.optimise import begin, begin_average, descend, follow, handed_over
from ppds_jax.privacy.accounting import non_private
from ppds_jax.types import Budget, DataSpec, Generator

TIMES = 0.1, 0.3, 0.5, 0.7, 0.9  # at which the signal is read
NOISES = 4  # of each


@dataclass(frozen=True, kw_only=True)
class FlowMatching(Conditional):
    """A U-Net learns the velocity of straight paths from noise to images.

    With x_t = (1 - t) n + t x, n ~ N(0, I), it minimises E ||v(x_t; t, y) - (x - n)||^2
    over t uniform in [0, 1]; images are drawn by following v from noise, in few steps
    of Heun's method.

    Its white-box signal `velocity_loss` is minus the logarithm of that loss at fixed t
    and n: larger for images that were trained on.

    **Privacy:** none.

    **Presets:** accuracy of a CNN, and time on one of two busy cores: MNIST: 0.961 ±
    0.02 (one seed) in 20 min; Fashion-MNIST: 0.835 ± 0.02 (one seed) in 22 min. By
    `python -m experiments.generators small --data FILE.npz --methods FlowMatching` with
    mnist or fashion_mnist for FILE, see `experiments/results/`.

    **References:** Lipman, Chen, Ben-Hamu, Nickel and Le, Flow Matching for Generative
    Modeling, 2023, arXiv 2210.02747, with sigma_min = 0.

    Attributes:
      epochs: passes over the private images (drawn with replacement).
      batch_size: images a step.
      learning_rate: of Adam, falling to 0 by a cosine.
    """

    sampler_steps: int = 8
    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 2e-3

    def make(self, spec: DataSpec, budget: Budget) -> Generator:
        net = self.net()
        batch_size = min(self.batch_size, spec.num_members)
        num_steps = self.epochs * -(-spec.num_members // batch_size)
        schedule = optax.cosine_decay_schedule(self.learning_rate, num_steps)
        optimizer = optax.adam(schedule)

        def init(key, data, public, start=None):
            if start is not None:
                return begin_average(begin(optimizer, handed_over(start)))
            x, y = jnp.zeros((1, *spec.image_shape)), jnp.zeros((1, spec.num_classes))
            params = net.init(key, x, jnp.zeros(1), y)
            return begin_average(begin(optimizer, params))

        def cost(params, image, condition, noise, t):
            x, t4 = 2 * image - 1, t[:, None, None, None]
            v = net.apply(params, (1 - t4) * noise + t4 * x, t, condition)
            return jnp.square(v - (x - noise)).mean((1, 2, 3))

        def loss(params, key, image, label):
            time_key, noise_key, drop_key = jax.random.split(key, 3)
            n = label.size
            condition = self.condition(drop_key, label, spec.num_classes)
            t = jax.random.uniform(time_key, (n,))
            noise = jax.random.normal(noise_key, image.shape)
            return cost(params, image, condition, noise, t).mean()

        def step(key, state, data, public):
            batch_key, loss_key = jax.random.split(key)
            image, label = draw_batch(batch_key, data, batch_size)
            value, gradient = jax.value_and_grad(loss)(
                state.trained.params, loss_key, image, label
            )
            trained = descend(optimizer, state.trained, gradient)
            return follow(state, trained, self.average), {"loss": value}

        def sample(key, state, label, public):
            y = jax.nn.one_hot(label, spec.num_classes)
            h = 1 / self.sampler_steps

            def velocity(x, t):
                t = jnp.broadcast_to(t, label.shape)
                v = net.apply(state.average, x, t, y)
                if self.guidance:
                    free = net.apply(state.average, x, t, jnp.zeros_like(y))
                    v = v + self.guidance * (v - free)
                return v

            step = lambda x, t: (heun(velocity, x, t, t + h), None)
            x = jax.random.normal(key, (label.size, *spec.image_shape))
            times = jnp.arange(self.sampler_steps, dtype=jnp.float32) * h
            x, _ = jax.lax.scan(step, x, times)
            return jnp.clip((x + 1) / 2, 0, 1)

        def velocity_loss(key, state, image, label, public):
            y = jax.nn.one_hot(label, spec.num_classes)

            def once(row):
                t, key = row
                noise = jax.random.normal(key, image.shape)
                t = jnp.broadcast_to(t, label.shape)
                return cost(state.average, image, y, noise, t)

            t = jnp.repeat(jnp.array(TIMES), NOISES)
            each = jax.lax.map(once, (t, jax.random.split(key, t.size)))
            mean = each.T.reshape(label.size, len(TIMES), NOISES).mean(2)
            return -jnp.log(mean + 1e-12)

        return Generator(
            init,
            step,
            sample,
            num_steps,
            non_private(),
            signals={"velocity_loss": velocity_loss},
        )


PRESETS = {
    # for all images on a CPU: chosen by looking at accuracies
    "mnist": FlowMatching(width=32, patch=4, epochs=12),
}
PRESETS["fashion_mnist"] = PRESETS["mnist"]
