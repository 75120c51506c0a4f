"""A linear classifier on scattering features, trained by DP-SGD."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
import optax

from ppds_jax.data.batches import in_blocks
from ppds_jax.nets import from_linen
from ppds_jax.nets.scattering import CHANNELS, normalise, scattering
from ppds_jax.optimise import begin, descend
from ppds_jax.privacy.dpsgd import calibrated, dp_gradient
from ppds_jax.types import Budget, Classifier, DataSpec, InputError, check_numbers


@dataclass(frozen=True, kw_only=True)
class DPScatter:
    """A linear classifier on fixed wavelet features, by DP-SGD with momentum.

    What is fixed costs no privacy, and what is learnt is convex and small. Features are
    computed anew for each batch, which takes most of the time, and never kept: the
    state, which is released, holds the linear layer alone.

    Accuracy on all of Fashion-MNIST: `python -m experiments.dp_sgd fashion`.

    **Privacy:** DP-SGD under add-or-remove-one; the noise is calibrated so that all
    steps together keep within the budget. The features of an image depend on it alone.

    **References:** Tramer and Boneh, Differentially Private Learning Needs Better
    Features (or Much More Data), 2021, arXiv 2011.11660.

    Attributes:
      groups: of the features of one place, normalised together over an image; a
        divisor of 81 times the image's channels.
      epochs: expected passes over the private images.
      batch_size: expected images a step.
      learning_rate, momentum: of stochastic gradient descent.
      clip_norm: bound on the norm of each image's gradient.
    """

    groups: int = 27
    epochs: int = 20
    batch_size: int = 4096
    learning_rate: float = 8.0
    momentum: float = 0.9
    clip_norm: float = 0.1

    def make(self, spec: DataSpec, budget: Budget) -> Classifier:
        check_numbers(self, "momentum")
        height, width, channels = spec.image_shape
        if CHANNELS * channels % self.groups:
            raise InputError(
                f"DPScatter.groups={self.groups}: must divide {CHANNELS * channels}"
            )
        transform = scattering(height, width)
        # zeros: all classes alike, the best start that needs no private access
        head = from_linen(nn.Dense(spec.num_classes, kernel_init=nn.initializers.zeros))
        optimizer = optax.sgd(self.learning_rate, self.momentum)
        batch_size = min(self.batch_size, spec.num_members)
        settings = calibrated(
            spec,
            budget,
            clip_norm=self.clip_norm,
            batch_size=batch_size,
            num_steps=self.epochs * -(-spec.num_members // batch_size),
        )

        def features(image):
            x = normalise(transform(image), self.groups)
            return x.reshape(x.shape[0], -1)

        def init(key, data, public, start=None):
            del data  # no private access
            params = head.init(key, features(jnp.zeros((1, *spec.image_shape))))
            params = params if start is None else start.params
            return begin(optimizer, params, private.init(params))

        def loss(key, params, image, label):
            logits = head.apply(params, features(image))
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

        private = dp_gradient(loss, settings)

        def step(key, state, data, public):
            gradient, spent = private.apply(key, state.private, state.params, data)
            state = descend(optimizer, state, gradient)
            return state._replace(private=spent), {}

        def logits(state, image):
            return in_blocks(
                lambda x: head.apply(state.params, features(x)), image, size=20
            )

        return Classifier(
            init=init,
            step=step,
            logits=logits,
            num_steps=settings.num_steps,
            guarantee=settings.guarantee,
        )
