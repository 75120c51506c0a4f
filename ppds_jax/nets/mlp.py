"""Networks of dense layers, in haiku."""

import haiku as hk
import jax
import jax.numpy as jnp

from ppds_jax.nets import Net, from_haiku


def network(code, condition):
        x = jnp.concatenate([code, condition], axis=-1)
        x = hk.nets.MLP((*hidden, height * width * channels))(x)
        return jax.nn.sigmoid(x).reshape(-1, height, width, channels)

    return from_haiku(hk.transform(network))


def mlp(hidden: tuple[int, ...], num_classes: int) -> Net:
    """Images [n h w c] in [0, 1] -> logits [n num_classes]."""

    def network(image):
        x = 2 * image.reshape(image.shape[0], -1) - 1
        return hk.nets.MLP((*hidden, num_classes))(x)

    return from_haiku(hk.transform(network))
