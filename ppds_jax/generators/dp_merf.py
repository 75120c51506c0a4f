"""DP-MERF: one noisy mean of random features, then a generator fitted to it freely."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from ppds_jax.generators.matching import Matching, matched
from ppds_jax.nets.features import composed, convolutions, fourier, wavelets
from ppds_jax.types import Budget, DataSpec, Generator, InputError, check_numbers


@dataclass(frozen=True, kw_only=True)
class DPMerf(Matching):
    """Matches the noisy mean embeddings of the private images.

    With z(x) = [cos Wx; sin Wx] / sqrt(D/2), of norm 1, the sum over i of
    z(x_i) (x) e_{y_i} is released once, with the number of images of each class; a
    generator is then fitted to the classes' means by squared distance, for any number
    of steps.

    Unlike the paper's, the distance does not count pairs of an image with itself,
    which would make images of a class alike, and rows of W may be of several
    lengthscales. x may stand for an image's pixels, or for these beside fixed features.

    **Privacy:** zero-out. Each z(x) has norm 1, and an image is in one class; one
    Gaussian release (see `generators.matching`). W and the fixed features are public,
    made without the data.

    **Presets:** accuracy of a CNN, and time on one of two busy cores: MNIST, epsilon 1:
    0.817 ± 0.02 in 2 min; MNIST, epsilon 10: 0.817 ± 0.02 in 3 min; Fashion-MNIST,
    epsilon 1: 0.699 ± 0.03 in 2 min; Fashion-MNIST, epsilon 10: 0.692 ± 0.03 in 93 s.
    By `python -m experiments.generators small --data FILE.npz --methods DPMerf` with
    mnist or fashion_mnist for FILE, see `experiments/results/`.

    **References:** Harder, Adamczewski and Park, DP-MERF: Differentially Private Mean
    Embeddings with Random Features for Practical Privacy-Preserving Data Generation,
    2021, arXiv 2002.11603.

    Attributes:
      features: D, even.
      lengthscales: of Gaussian kernels on x, as multiples of the square root of its
        dimensions (pixels are in [0, 1]); as many features have each.
      on: what x is: "pixels"; with random "convolutions" of them; with their
        "scattering" by wavelets.
    """

    features: int = 1000
    lengthscales: tuple[float, ...] = (0.2, 0.4)
    on: Literal["pixels", "convolutions", "scattering"] = "pixels"

    def make(self, spec: DataSpec, budget: Budget) -> Generator:
        check_numbers(self)
        if self.features % 2:
            raise InputError(f"DPMerf.features={self.features}: must be even")
        features = fourier(self.features, self.lengthscales)
        if self.on != "pixels":
            net_key, shape = jax.random.key(1), spec.image_shape
            net = wavelets(shape) if self.on == "scattering" else convolutions(8)
            params = net.init(net_key, jnp.zeros((1, *shape)))
            features = composed(net, params, features)
        params = features.init(jax.random.key(0), spec.image_shape)
        return matched(self, spec, budget, features, params)


# Chosen by looking at accuracies, which epsilon does not cover. What they reach:
# python -m experiments.generators small --methods DPMerf --data mnist.npz
PRESETS = {
    "mnist": DPMerf(
        features=2000,
        lengthscales=(0.4,),
        width=200,
        num_steps=2000,
        batch_size=500,
    ),
}
PRESETS["fashion_mnist"] = PRESETS["mnist"]
