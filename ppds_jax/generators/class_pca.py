"""A Gaussian for each class, on the principal components that all classes share."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ppds_jax.data.batches import blocks, decode
from ppds_jax.generators.matching import BOUND, contributions, counts, means
from ppds_jax.nets.features import Features, summed
from ppds_jax.privacy import accounting
from ppds_jax.privacy.mechanisms import gaussian_release
from ppds_jax.types import Budget, DataSpec, Generator, check_numbers


class ClassPCAState(NamedTuple):
    mean: Float[Array, "classes d"]
    basis: Float[Array, "d k"]
    root: Float[Array, "classes k k"]  # of the covariance, on the basis


@dataclass(frozen=True, kw_only=True)
class ClassPCA:
    """Samples N(mu_y, V S_y V'), cut off to [0, 1]; V spans the main components.

    Three sums over the images are released, each made with the help of those before:
    the classes' images, which give mu_y; clip(x - mu_y) clip(x - mu_y)' over all
    classes, whose first eigenvectors are V; and, of V'(x - mu_y), the same for each
    class, which gives S_y. Negative eigenvalues of a noisy S_y become 0. Without a
    budget nothing is noisy: a baseline that is not private.

    **Privacy:** zero-out. Images are clipped to the norm C, residuals to R: one image
    moves the three sums by C (and its class's count), R^2 and R^2 at most. Three
    Gaussian releases with the same noise multiplier.

    **Presets:** accuracy of a CNN, and seconds on one of two cores: MNIST, epsilon 1:
    0.886 ± 0.02 in 3 s; MNIST, epsilon 10: 0.912 ± 0.02 in 3 s; Fashion-MNIST, epsilon
    1: 0.762 ± 0.02 in 1 s. By `python -m experiments.generators small --data mnist.npz
    --methods ClassPCA`, see `experiments/results/`.

    **References:** Dwork, Talwar, Thakurta and Zhang, Analyze Gauss: Optimal Bounds for
    Privacy-Preserving Principal Component Analysis, 2014 (the second release).

    Attributes:
      components: k, columns of V; no more than there are pixels.
      clip_norm: C as a share of the largest norm possible, sqrt(h w c).
      residual_norm: R, as a share of the same.
    """

    components: int = 40
    clip_norm: float = 0.4
    residual_norm: float = 0.25

    def make(self, spec: DataSpec, budget: Budget) -> Generator:
        check_numbers(self)
        pixels = math.prod(spec.image_shape)
        bound, radius = (s * pixels**0.5 for s in (self.clip_norm, self.residual_norm))
        components = min(self.components, pixels)
        expected = spec.num_members / spec.num_classes

        def run(sigma):
            once = accounting.gaussian(
                sigma, accounting.ZERO_OUT, accounting.PUBLIC_COUNT
            )
            return accounting.compose(once, once, once)

        sigma = accounting.calibrate(run, budget)

        def total(params, image, weight):
            return summed(weight, _clip(image.reshape(-1, pixels), bound) / bound)

        def init(key, data, public, start=None):
            mean_key, basis_key, root_key = jax.random.split(key, 3)

            def noisy(key, statistic, sensitivity):
                return gaussian_release(
                    key, statistic, sensitivity=sensitivity, noise_multiplier=sigma
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
            return ClassPCAState(mean, basis, root)

        def step(key, state, data, public):
            return state, {}

        def sample(key, state, label, public):
            # noise of the pixels, projected: signs of eigenvectors do not matter
            noise = jax.random.normal(key, (label.size, pixels)) @ state.basis
            noise = jnp.einsum("nij,nj->ni", state.root[label], noise) @ state.basis.T
            image = state.mean[label] + noise
            return jnp.clip(image, 0, 1).reshape(-1, *spec.image_shape)

        return Generator(init, step, sample, num_steps=0, guarantee=run(sigma))


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
