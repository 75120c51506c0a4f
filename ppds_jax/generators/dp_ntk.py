"""DP-NTK: one noisy mean of a random network's gradients, then a fitted generator."""

from dataclasses import dataclass

import jax

from ppds_jax.generators.matching import Matching, matched
from ppds_jax.nets.features import tangent
from ppds_jax.types import Budget, DataSpec, Generator, check_numbers


@dataclass(frozen=True, kw_only=True)
class DPNTK(Matching):
    """Matches class means of the parameter gradients of a fixed random network.

    phi(x) is the gradient of a network of one hidden ReLU layer, with respect to that
    layer, scaled to norm 1. Its sum over each class's images is released once, with
    the number of images; a generator is fitted to the means by squared distance. The
    sum is computed as two matrix products: no gradient of a single image is.

    **Privacy:** zero-out. Each phi(x) has norm 1, and an image is in one class; one
    Gaussian release (see `generators.matching`). The network is public, drawn without
    the data.

    **Presets:** accuracy of a CNN, and time on one of two busy cores: MNIST, epsilon 1:
    0.887 ± 0.02 in 3 min; MNIST, epsilon 10: 0.908 ± 0.02 (one seed) in 3 min;
    Fashion-MNIST, epsilon 1: 0.775 ± 0.02 (one seed) in 2 min; Fashion-MNIST, epsilon
    10: 0.815 ± 0.02 (one seed) in 2 min. By `python -m experiments.generators small
    --data FILE.npz --methods DPNTK` with mnist or fashion_mnist for FILE, see
    `experiments/results/`.

    **References:** Yang, Adamczewski, Sutherland, Li and Park, Differentially Private
    Neural Tangent Kernels (DP-NTK) for Privacy-Preserving Data Generation, 2023, arXiv
    2303.01687.

    Attributes:
      hidden: units of the random network's layer.
      bias: a constant input beside the pixels, as a multiple of the square root of
        their number; without it phi(x) does not know how bright x is.
    """

    hidden: int = 200
    bias: float = 0.2
    num_steps: int = 1000
    batch_size: int = 200

    def make(self, spec: DataSpec, budget: Budget) -> Generator:
        check_numbers(self, "bias")
        features = tangent(self.hidden, self.bias)
        params = features.init(jax.random.key(0), spec.image_shape)
        return matched(self, spec, budget, features, params)


# Chosen by looking at accuracies, which epsilon does not cover.
PRESETS = {"mnist": DPNTK(width=200, num_steps=3000, batch_size=1000)}
PRESETS["fashion_mnist"] = PRESETS["mnist"]
