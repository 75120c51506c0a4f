"""A small U-Net that predicts an image from a noisy one, its noise level and its label.

Every parameter is the kernel or the bias of a dense layer or a convolution, used once:
normalisation has none of its own, and takes its scale and shift from the noise level
and the label. So DP-SGD finds most norms without per-example gradients.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from ppds_jax.nets import Net, drawn_at_once, from_linen
from ppds_jax.types import InputError


class _UNet(nn.Module):
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    patch: int

    @nn.compact
    def __call__(self, image, level, condition):
        height, width, channels = image.shape[1:]
        features = nn.Dense(4 * self.width)(_waves(level, self.width))
        features += nn.Dense(4 * self.width, use_bias=False)(condition)
        features = nn.silu(nn.Dense(4 * self.width)(nn.silu(features)))

        x = fold(image, self.patch)
        x = nn.Conv(self.width, (3, 3))(x)
        skips = []
        for i, times in enumerate(self.multipliers):
            if i:
                x = nn.Dense(times * self.width)(fold(x, 2))
            for _ in range(self.blocks):
                x = _Block(times * self.width)(x, features)
            skips.append(x)
        x = _Block(x.shape[-1])(x, features)
        for i, times in reversed(list(enumerate(self.multipliers))):
            x = jnp.concatenate([x, skips[i]], axis=-1)
            for _ in range(self.blocks):
                x = _Block(times * self.width)(x, features)
            if i:
                h, w, c = skips[i - 1].shape[1:]
                x = unfold(nn.Dense(4 * c)(x), 2)[:, :h, :w]
        x = nn.silu(normalise(x))
        x = nn.Conv(channels * self.patch**2, (3, 3), name="last")(x)
        return unfold(x, self.patch)[:, :height, :width]


class _Block(nn.Module):
    """Two convolutions beside an identity, scaled and shifted by the features."""

    width: int

    @nn.compact
    def __call__(self, x, features):
        scale, shift = jnp.split(nn.Dense(2 * self.width)(features), 2, axis=-1)
        h = nn.Conv(self.width, (3, 3))(nn.silu(normalise(x)))
        h = normalise(h) * (1 + scale[:, None, None]) + shift[:, None, None]
        h = nn.Conv(self.width, (3, 3), name="last")(nn.silu(h))
        return h + (x if x.shape[-1] == self.width else nn.Dense(self.width)(x))


def unet(
    *,
    width: int,
    multipliers: tuple[int, ...] = (1, 2),
    blocks: int = 1,
    patch: int = 1,
) -> Net:
    """(image [n h w c], level [n], condition [n k]) -> [n h w c]; zeros at first.

    A condition of zeros is no condition: it adds nothing to the features.

    Args:
      width: channels of the finest scale.
      multipliers: channels of each scale over `width`; each halves height and width.
      blocks: residual blocks a scale, on the way down and again on the way up.
      patch: squares of so many pixels a side become channels at first: a quarter of
        the work for 2, at some cost in detail.

    Raises:
      InputError: a width that is not even.
    """
    if width % 2:
        raise InputError(f"width={width}: must be even")
    return drawn_at_once(from_linen(_UNet(width, multipliers, blocks, patch)))


def normalise(x: jax.Array) -> jax.Array:
    """Group normalisation without parameters, at least four channels a group."""
    n, h, w, c = x.shape
    groups = math.gcd(max(c // 4, 1), 8)
    x = x.reshape(n, h * w, groups, c // groups)
    mean = x.mean((1, 3), keepdims=True)
    centred = x - mean
    variance = jnp.square(centred).mean((1, 3), keepdims=True)
    return (centred * jax.lax.rsqrt(variance + 1e-5)).reshape(n, h, w, c)


def fold(x: jax.Array, size: int) -> jax.Array:
    """Squares of pixels as channels, height and width filled up with zeros."""
    if size == 1:
        return x
    n, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % size), (0, -w % size), (0, 0)))
    h, w = -(-h // size), -(-w // size)
    x = x.reshape(n, h, size, w, size, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h, w, size * size * c)


def unfold(x: jax.Array, size: int) -> jax.Array:
    """Channels as squares of pixels: the inverse of `fold`."""
    if size == 1:
        return x
    n, h, w, c = x.shape
    c //= size * size
    x = x.reshape(n, h, w, size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h * size, w * size, c)


def _waves(level: jax.Array, size: int) -> jax.Array:
    """A number of order 1 as sines and cosines of 1/8 to 8 turns a unit: [n size]."""
    turns = 2.0 ** jnp.linspace(-3, 3, size // 2)
    angle = 2 * math.pi * level[:, None] * turns[None]
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
