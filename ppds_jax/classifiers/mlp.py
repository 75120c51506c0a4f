"""Dense layers on pixels, or none: logistic regression. Not private."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from ppds_jax.data.batches import draw_batch
from ppds_jax.nets.mlp import mlp
from ppds_jax.optimise import begin, descend
from ppds_jax.privacy.accounting import non_private
from ppds_jax.types import Budget, Classifier, DataSpec, check_numbers


@dataclass(frozen=True, kw_only=True)
class MLP:
    """Dense layers on pixels, by Adam; `hidden=()` is logistic regression.

    Cheap, and with another view of images than a convolutional network: a second
    opinion on synthetic ones.

    **Privacy:** none, where it is trained on private images.

    Attributes:
      hidden: units of the hidden layers.
      epochs: passes over the training images (drawn with replacement).
      batch_size: images a step.
      learning_rate: of Adam.
    """

    hidden: tuple[int, ...] = (128,)
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3

    def make(self, spec: DataSpec, budget: Budget) -> Classifier:
        check_numbers(self)
        net = mlp(self.hidden, spec.num_classes)
        optimizer = optax.adam(self.learning_rate)
        batch_size = min(self.batch_size, spec.num_members)

        def init(key, data, public, start=None):
            if start is not None:
                return start
            params = net.init(key, jnp.zeros((1, *spec.image_shape)))
            return begin(optimizer, params)

        def loss(params, image, label):
            logits = net.apply(params, image)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

        def step(key, state, data, public):
            image, label = draw_batch(key, data, batch_size)
            # not `mean_gradient`: weights outweigh activations, so read them once
            value, gradient = jax.value_and_grad(loss)(state.params, image, label)
            return descend(optimizer, state, gradient), {"loss": value}

        return Classifier(
            init=init,
            step=step,
            logits=lambda state, image: net.apply(state.params, image),
            num_steps=self.epochs * -(-spec.num_members // batch_size),
            guarantee=non_private(),
        )
