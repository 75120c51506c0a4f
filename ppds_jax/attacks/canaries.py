"""Canaries: images made to be easy to detect, of several kinds. Host, NumPy.

Each kind leaves another trace. Out-of-distribution images are remembered by models and
hardly ever show in what a generator draws; mislabelled and repeated ones of the data's
own kind do (Meeus et al. 2025). So the headline is the worst of several kinds.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32, UInt8
from numpy import ndarray as Array

from ppds_jax.types import InputError


class Canaries(NamedTuple):
    """Canaries, each followed in `of` by which one every row is a copy of.

    Rows are all that is trained on: `of[i] == i` marks the canaries themselves, other
    rows are near-duplicates that are in a training set whenever their canary is.
    """

    image: UInt8[Array, "n h w c"]
    label: Int32[Array, " n"]
    kind: tuple[str, ...]  # of each row
    of: Int[Array, " n"]


def mislabelled(rng: np.random.Generator, image, label, num_classes: int):
    """Images of the data, with another label."""
    wrong = (label + rng.integers(1, num_classes, len(label))) % num_classes
    return image, wrong.astype(label.dtype)


def repeated(rng: np.random.Generator, image, label, num_classes: int):
    """Images of the data, as they are; `make_canaries` adds their near-duplicates."""
    return image, label


def rare_mode(rng: np.random.Generator, image, label, num_classes: int):
    """Images of the data upside down and negative: a mode that few images share."""
    return 255 - image[:, ::-1], label


def outside(rng: np.random.Generator, image, label, num_classes: int):
    """Uniform noise in 4 x 4 patches, with any label: out of distribution."""
    n, height, width, channels = image.shape
    patches = rng.integers(0, 256, (n, -(-height // 4), -(-width // 4), channels))
    noise = patches.repeat(4, axis=1).repeat(4, axis=2)[:, :height, :width]
    return noise.astype(np.uint8), rng.integers(0, num_classes, n).astype(label.dtype)


Kind = Callable[..., tuple[Array, Array]]
KINDS: dict[str, Kind] = {
    "mislabelled": mislabelled,
    "repeated": repeated,
    "rare_mode": rare_mode,
    "outside": outside,
}


def make_canaries(
    seed: int,
    image: UInt8[Array, "n h w c"],
    label: Int32[Array, " n"],
    num_classes: int,
    *,
    copies: int = 8,
) -> Canaries:
    """Canaries of all kinds, as many of each, from images that are used for no other.

    The canaries are in an order in which kinds and classes are mixed. Each `repeated`
    one has `copies` - 1 near-duplicates: itself with noise of 4 of 255 on each pixel.
    What an attack tells of these is the privacy of a group of `copies` images.

    Args:
      seed: of NumPy's generator.
      image, label: the images to make them of; an equal share goes to each kind.
      num_classes: of the labels.
      copies: how often a repeated canary is there, 1 or more.

    Raises:
      InputError: fewer images than two for each kind, or copies below 1.

    **References:** Aerni, Zhang and Tramer, Evaluations of Machine Learning Privacy
    Defenses are Misleading, 2024, arXiv 2404.17399; Meeus, Wutschitz, Zanella-Beguelin,
    Tople and Shokri, The Canary's Echo, 2025, arXiv 2502.14921.
    """
    each = len(image) // len(KINDS)
    if each < 2:
        raise InputError(
            f"image: {len(image)} images; must be at least {2 * len(KINDS)}"
        )
    if copies < 1:
        raise InputError(f"copies={copies}: must be at least 1")
    rng = np.random.default_rng(seed)
    made_image, made_label, kind = [], [], []
    for i, (name, make) in enumerate(KINDS.items()):
        share = slice(i * each, (i + 1) * each)
        x, y = make(rng, image[share], label[share], num_classes)
        made_image.append(x)
        made_label.append(y)
        kind += [name] * each
    x, y, of = (
        np.concatenate(made_image),
        np.concatenate(made_label),
        np.arange(len(kind)),
    )
    again = np.flatnonzero(np.array(kind) == "repeated").repeat(copies - 1)
    noise = np.round(rng.normal(0, 4, (len(again), *image.shape[1:])))
    near = np.clip(x[again] + noise, 0, 255).astype(np.uint8)
    return Canaries(
        np.concatenate([x, near]),
        np.concatenate([y, y[again]]),
        (*kind, *(["repeated"] * len(again))),
        np.concatenate([of, again]),
    )
