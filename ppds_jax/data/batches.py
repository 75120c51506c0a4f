"""Batches of images, drawn and decoded inside compiled code."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, UInt8

from ppds_jax.types import Dataset, Key, PyTree


def decode(image: UInt8[Array, "..."]) -> Float[Array, "..."]:
    """Stored bytes as float32 in [0, 1]."""
    return image.astype(jnp.float32) / 255


def encode(image: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """Images in [0, 1] as bytes, rounded to the nearest; values outside are cut off."""
    return jnp.round(jnp.clip(image, 0, 1) * 255).astype(jnp.uint8)


def draw_batch(
    key: Key, data: Dataset, size: int
) -> tuple[Float[Array, "size h w c"], Int32[Array, " size"]]:
    """`size` members, independently and uniformly, with replacement: (image, label).

    For methods without a guarantee: DP-SGD draws its own Poisson batches.
    """
    rank = jnp.cumsum(data.member, dtype=jnp.int32)  # 1 for the first member, ...
    wanted = jax.random.randint(key, (size,), 1, jnp.maximum(rank[-1], 1) + 1)
    index = jnp.searchsorted(rank, wanted)
    return decode(data.image[index]), data.label[index]


def blocks(rows: PyTree, size: int = 500) -> PyTree:
    """Rows [n ...] in blocks [b size ...]; the last block is filled up with zeros."""

    def split(x):
        fill = -x.shape[0] % size
        x = jnp.pad(x, [(0, fill)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(-1, size, *x.shape[1:])

    return jax.tree.map(split, rows)


def in_blocks(fn: Callable[..., PyTree], *rows: Array, size: int = 500) -> PyTree:
    """`fn(*rows)`, computed for `size` rows at a time to bound memory."""

    def join(x):
        return x.reshape(-1, *x.shape[2:])[: rows[0].shape[0]]

    out = jax.lax.map(lambda block: fn(*block), blocks(rows, size))
    return jax.tree.map(join, out)
