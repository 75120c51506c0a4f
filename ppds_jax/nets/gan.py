"""A conditional convolutional generator and its discriminator, for images of any size.

Nothing is normalised over a batch: each image's gradient is its own.
"""

import flax.linen as nn
import jax.numpy as jnp

from ppds_jax.convolution import im2col
from ppds_jax.nets import Net, drawn_at_once, from_linen
from ppds_jax.nets.unet import fold, normalise, unfold


class _Generator(nn.Module):
    image_shape: tuple[int, int, int]
    width: int

    @nn.compact
    def __call__(self, code, condition):
        height, width, channels = self.image_shape
        rows, columns = -(-height // 4), -(-width // 4)
        x = jnp.concatenate([code, condition], axis=-1)
        x = nn.Dense(rows * columns * 4 * self.width)(x)
        x = nn.relu(normalise(x.reshape(-1, rows, columns, 4 * self.width)))
        x = unfold(nn.Conv(8 * self.width, (3, 3))(x), 2)
        x = unfold(nn.Conv(4 * channels, (3, 3))(nn.relu(normalise(x))), 2)
        return nn.sigmoid(x[:, :height, :width])


class _Discriminator(nn.Module):
    width: int

    @nn.compact
    def __call__(self, image, condition):
        x = fold(2 * image - 1, 2)
        for times, stride in ((1, 1), (2, 2), (4, 2)):
            strides = (stride, stride)
            conv = nn.Conv(
                times * self.width, (3, 3), strides, conv_general_dilated=im2col
            )
            x = nn.leaky_relu(conv(x), 0.2)
        x = nn.leaky_relu(nn.Dense(8 * self.width)(x.reshape(x.shape[0], -1)), 0.2)
        match = nn.Dense(8 * self.width, use_bias=False)(condition)
        return nn.Dense(1)(x)[:, 0] + (x * match).sum(1) / (8 * self.width) ** 0.5


def generator(image_shape: tuple[int, int, int], width: int) -> Net:
    """(code [n latent], condition [n k]) -> images [n h w c] in (0, 1)."""
    return drawn_at_once(from_linen(_Generator(image_shape, width)))


def discriminator(width: int) -> Net:
    """(image [n h w c], condition [n k]) -> how real they look together: logits [n].

    The condition enters by a projection: Miyato and Koyama, cGANs with Projection
    Discriminator, 2018, arXiv 1802.05637.
    """
    return drawn_at_once(from_linen(_Discriminator(width)))
