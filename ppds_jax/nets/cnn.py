"""A small convolutional classifier, without normalisation over the batch."""

import flax.linen as nn
import jax.numpy as jnp

from ppds_jax.convolution import im2col, max_pool
from ppds_jax.nets import Net, from_linen
from ppds_jax.types import InputError

ACTIVATIONS = {"relu": nn.relu, "tanh": nn.tanh}


class _CNN(nn.Module):
    width: int
    hidden: int
    num_classes: int
    kernels: tuple[int, int]
    activation: str
    pool: bool

    @nn.compact
    def __call__(self, image):
        bend = ACTIVATIONS[self.activation]
        x = 2 * image - 1
        for features, k in zip((self.width, 2 * self.width), self.kernels, strict=True):
            conv = nn.Conv(features, (k, k), (2, 2), conv_general_dilated=im2col)
            x = bend(conv(x))
            x = _pool(x) if self.pool else x
        x = bend(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes)(x)


class _PooledCNN(nn.Module):
    width: int
    hidden: int
    num_classes: int

    @nn.compact
    def __call__(self, image):
        x = 2 * image - 1
        for features in (self.width, 2 * self.width):
            x = nn.relu(max_pool(nn.Conv(features, (3, 3))(x)))  # in any order
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes)(x)


def pooled_cnn(width: int, hidden: int, num_classes: int) -> Net:
    """Two 3x3 convolutions, each with 2x2 max-pooling, a hidden layer, logits.

    The textbook form of `cnn`, with four times its work: see there.
    """
    return from_linen(_PooledCNN(width, hidden, num_classes))


def _pool(x):
    """The maximum over each 2x2 window, one at every pixel, as far as there are two."""
    x = jnp.maximum(x[:, 1:], x[:, :-1]) if x.shape[1] > 1 else x
    return jnp.maximum(x[:, :, 1:], x[:, :, :-1]) if x.shape[2] > 1 else x


def cnn(
    width: int,
    hidden: int,
    num_classes: int,
    *,
    kernels: tuple[int, int] = (3, 3),
    activation: str = "relu",
    pool: bool = False,
) -> Net:
    """Two convolutions of stride 2, a hidden layer, logits [n num_classes].

    Takes images [n h w c] in [0, 1]. Strides halve the size: faster on a CPU than
    pooling, and each convolution is one matrix product.

    Args:
      width: channels of the first convolution; the second has twice as many.
      hidden: units of the dense layer.
      num_classes: of the logits.
      kernels: sizes of the two convolutions' square kernels.
      activation: relu or tanh.
      pool: whether the maximum over 2x2 neighbours follows each convolution.

    Raises:
      InputError: another activation.
    """
    if activation not in ACTIVATIONS:
        names = " or ".join(ACTIVATIONS)
        raise InputError(f"activation={activation!r}: use {names}")
    return from_linen(_CNN(width, hidden, num_classes, kernels, activation, pool))
