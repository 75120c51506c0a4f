"""A network trained on labelled images by Adam. Not private."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from ppds_jax.data.batches import draw_batch
from ppds_jax.nets import Net
from ppds_jax.optimise import begin, descend, mean_gradient
from ppds_jax.privacy.accounting import non_private
from ppds_jax.types import Classifier, DataSpec


def cross_entropy(net: Net) -> Callable:
    """(params, image [n h w c], label [n]) -> the mean over the images."""

    def loss(params, image, label):
        logits = net.apply(params, image)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    return loss


def in_one(loss: Callable, params, *rows):
    """`mean_gradient` of the whole batch at once.

    For networks whose weights outweigh their activations: these are read but once.
    """
    return jax.value_and_grad(loss)(params, *rows)


def supervised(
    net: Net,
    spec: DataSpec,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    gradient: Callable = mean_gradient,
) -> Classifier:
    """Minimises the mean cross-entropy over batches drawn with replacement.

    **Privacy:** none.

    Args:
      gradient: `mean_gradient` or `in_one`.
    """
    optimizer = optax.adam(learning_rate)
    batch_size = min(batch_size, spec.num_members)
    loss = cross_entropy(net)

    def init(key, data, public, start=None):
        if start is not None:
            return start
        params = net.init(key, jnp.zeros((1, *spec.image_shape)))
        return begin(optimizer, params)

    def step(key, state, data, public):
        image, label = draw_batch(key, data, batch_size)
        value, slope = gradient(loss, state.params, image, label)
        return descend(optimizer, state, slope), {"loss": value}

    return Classifier(
        init=init,
        step=step,
        logits=lambda state, image: net.apply(state.params, image),
        num_steps=epochs * -(-spec.num_members // batch_size),
        guarantee=non_private(),
    )
