"""DP-MEPF: noisy class means of perceptual features, then a fitted generator."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ppds_jax.generators.matching import Matching, matched
from ppds_jax.nets import Net
from ppds_jax.nets.features import composed, convolutions, each_alone
from ppds_jax.types import (
    Budget,
    DataSpec,
    Generator,
    InputError,
    PyTree,
    check_numbers,
)


@dataclass(frozen=True, kw_only=True)
class DPMepf(Matching):
    """Matches class means of random Fourier features on top of a fixed network's.

    With g(x) the network's features, and z(x) = [cos Wg(x); sin Wg(x)] / sqrt(D/2), of
    norm 1, the sum over i of z(x_i) (x) e_{y_i} is released once, with the number of
    images of each class; a generator is fitted to the classes' means by squared
    distance. The paper takes the first two moments of g; z stands for all of them.

    By itself the network is a random one, two convolutions deep, and nothing is public.
    A pretrained one is given to `make`:

        DPMepf().make(spec, budget, extractor=(net, params))

    **Privacy:** zero-out. Each z(x) has norm 1, and an image is in one class; one
    Gaussian release (see `generators.matching`). W and the network are public; images
    that it was trained on are not covered, and a note on the guarantee says so.

    **Presets:** accuracy of a CNN, and time on one of two busy cores: MNIST, epsilon 1:
    0.705 ± 0.05 in 94 s; MNIST, epsilon 10: 0.713 ± 0.03 in 45 s; Fashion-MNIST,
    epsilon 1: 0.619 ± 0.02 (one seed) in 2 min; Fashion-MNIST, epsilon 10: 0.620 ± 0.02
    (one seed) in 2 min. By `python -m experiments.generators small --data FILE.npz
    --methods DPMepf` with mnist or fashion_mnist for FILE, see `experiments/results/`.

    **References:** Harder, Jalali, Sutherland and Park, Pre-trained Perceptual Features
    Improve Differentially Private Image Generation, 2023, arXiv 2205.12900.

    Attributes:
      channels: of the random network's first convolution; the second has twice as many.
      features: D, even.
      lengthscales: of Gaussian kernels on g(x), as multiples of the square root of its
        dimensions; as many features have each.
    """

    channels: int = 8
    features: int = 1000
    lengthscales: tuple[float, ...] = (0.2, 0.4)

    def make(
        self,
        spec: DataSpec,
        budget: Budget,
        extractor: tuple[Net, PyTree] | None = None,
    ) -> Generator:
        """As always; `extractor` is a network of images, and its public parameters.

        It sees each image alone: one that mixed a batch's images (as batch
        normalisation does in training) would have no bounded sensitivity.
        """
        check_numbers(self)
        if self.features % 2:
            raise InputError(f"DPMepf.features={self.features}: must be even")
        net_key, key = jax.random.split(jax.random.key(0))
        net = convolutions(self.channels)
        if extractor is None:
            params = net.init(net_key, jnp.zeros((1, *spec.image_shape)))
        else:
            net, params = each_alone(extractor[0]), extractor[1]
        features = composed(net, params, self.features, self.lengthscales)
        params = features.init(key, spec.image_shape)
        notes = () if extractor is None else (PRETRAINED,)
        return matched(self, spec, budget, features, params, *notes)


PRETRAINED = "features of a given network: images it was trained on are not covered"


# Chosen by looking at accuracies, which epsilon does not cover.
PRESETS = {
    "mnist": DPMepf(features=2000, lengthscales=(0.4,), num_steps=1000, batch_size=300)
}
PRESETS["fashion_mnist"] = PRESETS["mnist"]
