"""A Gaussian for each class, on the principal components that all classes share."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ppds_jax.data.batches import blocks, decode
from ppds_jax.generators.matching import BOUND, contributions, counts, means
from ppds_jax.nets.features import Features, summed
from ppds_jax.privacy import accounting
from ppds_jax.privacy.mechanisms import gaussian_release
from ppds_jax.types import Budget, DataSpec, Generator, check_numbers

CHEAP = 2.0  # noise of a histogram's shares, as a multiple of the others'


class ClassPCAState(NamedTuple):
    mean: Float[Array, "classes d"]
    basis: Float[Array, "d k"]
    root: Float[Array, "classes k k"]  # of the covariance, on the basis
    drawn: Float[Array, "classes q"]  # quantiles of the Gaussian's pixels
    tones: Float[Array, "classes q"]  # those of the images' pixels


@dataclass(frozen=True, kw_only=True)
class ClassPCA:
    """Samples N(mu_y, V S_y V'), cut off to [0, 1]; V spans the main components.

    Three sums over the images are released, each made with the help of those before:
    the classes' images, which give mu_y; clip(x - mu_y) clip(x - mu_y)' over all
    classes, whose first eigenvectors are V; and, of V'(x - mu_y), the same for each
    class, which gives S_y. Negative eigenvalues of a noisy S_y become 0. Without a
    budget nothing is noisy: a baseline that is not private.

    A Gaussian's images are grey where real ones are black and white. With `tones` a
    fourth sum is released, the histogram of each class's pixels, and a curve for each
    class takes the quantiles of the Gaussian's pixels to those of the histogram.

    **Privacy:** zero-out. Images are clipped to the norm C, residuals to R: one image
    moves the three sums by C (and its class's count), R^2 and R^2 at most. Three
    Gaussian releases with the same noise multiplier. An image adds the shares of its
    pixels at each level to the histogram, of norm 1 at most: a fourth release, with
    twice the multiplier.

    **Presets:** accuracy of a CNN, and time on one of two busy cores: MNIST, epsilon 1:
    0.932 ± 0.02 in 4 s; MNIST, epsilon 10: 0.937 ± 0.02 in 9 s; Fashion-MNIST, epsilon
    1: 0.792 ± 0.03 in 14 s; Fashion-MNIST, epsilon 10: 0.830 ± 0.02 (one seed) in 4
    min. By `python -m experiments.generators small --data FILE.npz --methods ClassPCA`
    with mnist or fashion_mnist for FILE, see `experiments/results/`.

    **References:** Dwork, Talwar, Thakurta and Zhang, Analyze Gauss: Optimal Bounds for
    Privacy-Preserving Principal Component Analysis, 2014 (the second release).

    Attributes:
      components: k, columns of V; no more than there are pixels.
      clip_norm: C as a share of the largest norm possible, sqrt(h w c).
      residual_norm: R, as a share of the same.
      tones: levels of the histograms of pixels; 0: none is released, pixels are only
        cut off.
    """

    components: int = 40
    clip_norm: float = 0.4
    residual_norm: float = 0.25
    tones: int = 0

    def make(self, spec: DataSpec, budget: Budget) -> Generator:
        check_numbers(self, "tones")
        pixels = math.prod(spec.image_shape)
        bound, radius = (s * pixels**0.5 for s in (self.clip_norm, self.residual_norm))
        components = min(self.components, pixels)
        expected = spec.num_members / spec.num_classes

        def run(sigma):
            once = accounting.gaussian(
                sigma, accounting.ZERO_OUT, accounting.PUBLIC_COUNT
            )
            parts = [once, once, once]
            if self.tones:
                last = accounting.gaussian(
                    CHEAP * sigma, accounting.ZERO_OUT, accounting.PUBLIC_COUNT
                )
                parts.append(last)
            return accounting.compose(*parts)

        sigma = accounting.calibrate(run, budget)

        def total(params, image, weight):
            return summed(weight, _clip(image.reshape(-1, pixels), bound) / bound)

        def init(key, data, public, start=None):
            mean_key, basis_key, root_key, tone_key, draw_key = jax.random.split(key, 5)

            def noisy(key, statistic, sensitivity, multiplier=sigma):
                return gaussian_release(
                    key, statistic, sensitivity=sensitivity, noise_multiplier=multiplier
                )

            images = Features(lambda key, shape: (), total)
            sums = contributions(images, (), data, spec.num_classes)
            sums = noisy(mean_key, sums, BOUND)
            mean = bound * means(sums, expected)

            everything = jnp.ones((spec.num_classes, 1))
            second = _moments(data, mean, None, everything, radius)
            second = noisy(basis_key, second, radius**2)
            basis = jnp.linalg.eigh(_symmetric(second[0]))[1][:, -components:]

            each = jnp.eye(spec.num_classes)
            second = noisy(
                root_key, _moments(data, mean, basis, each, radius), radius**2
            )
            count = counts(sums, expected)[:, None, None]
            value, vector = jnp.linalg.eigh(_symmetric(second / count))
            value = jnp.sqrt(jnp.maximum(value, 0))
            root = jnp.einsum("cik,ck,cjk->cij", vector, value, vector)
            nothing = jnp.zeros((spec.num_classes, 0))
            state = ClassPCAState(mean, basis, root, nothing, nothing)
            if not self.tones:
                return state
            levels = _levels(data, spec.num_classes, self.tones)
            levels = noisy(tone_key, levels, 1.0, CHEAP * sigma)
            return state._replace(
                drawn=_quantiles(draw_key, state), tones=_inverse(levels)
            )

        def step(key, state, data, public):
            return state, {}

        def sample(key, state, label, public):
            image = _draw(key, state, label)
            if self.tones:
                curve = lambda x, label: jnp.interp(
                    x, state.drawn[label], state.tones[label]
                )
                image = jax.vmap(curve)(image, label)
            return jnp.clip(image, 0, 1).reshape(-1, *spec.image_shape)

        return Generator(init, step, sample, num_steps=0, guarantee=run(sigma))


def _draw(key, state, label):
    """Rows of pixels [n d] from each label's Gaussian."""
    # noise of the pixels, projected: signs of eigenvectors do not matter
    noise = jax.random.normal(key, (label.size, state.mean.shape[1])) @ state.basis
    noise = jnp.einsum("nij,nj->ni", state.root[label], noise) @ state.basis.T
    return state.mean[label] + noise


def _levels(data, num_classes, levels):
    """Sums over a class's members of the share of their pixels at each level: [c l]."""

    def add(sums, rows):
        image, label, member = rows
        x = decode(image).reshape(label.size, -1)
        level = jnp.clip((x * levels).astype(jnp.int32), 0, levels - 1)
        share = jax.nn.one_hot(level, levels).mean(1)
        weight = jax.nn.one_hot(label, num_classes) * member[:, None]
        return sums + jnp.matmul(weight.T, share, precision="highest"), None

    rows = tuple(data._replace(member=data.member.astype(jnp.float32)))
    return jax.lax.scan(add, jnp.zeros((num_classes, levels)), blocks(rows))[0]


SHARES = np.linspace(
    0, 1, 257, dtype=np.float32
)  # of a class's pixels, below each quantile


def _quantiles(key, state):
    """Of the pixels of images drawn from each class's Gaussian: [classes q]."""
    classes = state.mean.shape[0]
    image = _draw(key, state, jnp.repeat(jnp.arange(classes), 200))
    return jnp.quantile(image.reshape(classes, -1), SHARES, axis=1).T


def _inverse(levels):
    """Quantiles of the pixels that noisy histograms count: [c l] -> [classes q]."""
    count = levels.shape[1]
    levels = jnp.maximum(levels, 0) + 1e-6  # strictly rising sums, for the inverse
    below = jnp.cumsum(levels, axis=1) / levels.sum(1, keepdims=True)
    edge = jnp.linspace(0, 1, count + 1)
    below = jnp.concatenate([jnp.zeros_like(below[:, :1]), below], axis=1)
    return jax.vmap(lambda p: jnp.interp(SHARES, p, edge))(below)


def _moments(data, mean, basis, group, radius):
    """Sums over members of g_y (x) r r', with r = clip(V'(x - mu_y), R): [g k k].

    V is `basis`, or the identity.
    """
    k = mean.shape[1] if basis is None else basis.shape[1]

    def add(sums, rows):
        image, label, member = rows
        x = decode(image).reshape(label.size, -1) - mean[label]
        if basis is not None:
            x = jnp.matmul(x, basis, precision="highest")
        r = _clip(x, radius)
        weight = group[label] * member[:, None]
        return sums + jnp.einsum("ng,ni,nj->gij", weight, r, r, precision="highest"), 0

    rows = tuple(data._replace(member=data.member.astype(jnp.float32)))
    zero = jnp.zeros((group.shape[1], k, k))
    return jax.lax.scan(add, zero, blocks(rows))[0]


def _clip(rows, bound: float):
    norm = jnp.sqrt(jnp.square(rows).sum(1, keepdims=True))
    return rows * jnp.minimum(1, bound / jnp.maximum(norm, 1e-12))


def _symmetric(matrix):
    return (matrix + jnp.swapaxes(matrix, -1, -2)) / 2


PRESETS = {
    # for whole data sets: chosen by looking at accuracies
    "mnist": ClassPCA(components=120, tones=32),
    "fashion_mnist": ClassPCA(components=150),
}
