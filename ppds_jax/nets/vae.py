"""Convolutional encoder and decoder for images of any size."""

import flax.linen as nn
import jax.numpy as jnp

from ppds_jax.convolution import im2col
from ppds_jax.nets import Net, from_linen


class _Encoder(nn.Module):
    latent: int
    width: int

    @nn.compact
    def __call__(self, image, condition):
        x = 2 * image - 1
        for features in (self.width, 2 * self.width):
            conv = nn.Conv(features, (3, 3), (2, 2), conv_general_dilated=im2col)
            x = nn.relu(conv(x))
        x = jnp.concatenate([x.reshape(x.shape[0], -1), condition], axis=-1)
        x = nn.relu(nn.Dense(8 * self.width)(x))
        return jnp.split(nn.Dense(2 * self.latent)(x), 2, axis=-1)


class _Decoder(nn.Module):
    image_shape: tuple[int, int, int]
    width: int

    @nn.compact
    def __call__(self, code, condition):
        height, width, channels = self.image_shape
        rows, columns = -(-height // 4), -(-width // 4)
        x = jnp.concatenate([code, condition], axis=-1)
        x = nn.relu(nn.Dense(8 * self.width)(x))
        x = nn.relu(nn.Dense(rows * columns * 2 * self.width)(x))
        x = x.reshape(-1, rows, columns, 2 * self.width)
        x = nn.relu(_double(nn.Conv(4 * self.width, (3, 3))(x)))
        x = _double(nn.Conv(4 * channels, (3, 3))(x))
        return x[:, :height, :width]


def _double(x):
    """Twice the height and width from a quarter of the channels."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, 2 * h, 2 * w, c // 4)


def encoder(latent: int, width: int) -> Net:
    """(image [n h w c], condition [n k]) -> mean and log-variance, each [n latent]."""
    return from_linen(_Encoder(latent, width))


def decoder(image_shape: tuple[int, int, int], width: int) -> Net:
    """(code [n latent], condition [n k]) -> logits of pixels [n h w c]."""
    return from_linen(_Decoder(image_shape, width))
