"""DP-MEPF: noisy class means of perceptual features, then a fitted generator."""

from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import optax

from ppds_jax.generators.matching import Matching, matched
from ppds_jax.generators.simulators import SIMULATORS, Fonts
from ppds_jax.nets import Net
from ppds_jax.nets.features import composed, convolutions, each_alone, tangent
from ppds_jax.optimise import begin, descend
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
    """Matches class means of features of the pixels and a public network's output.

    With g(x) the pixels beside the network's output, of the same norm, phi(x) is the
    gradient of a random network of one hidden ReLU layer on g(x), scaled to norm 1, as
    in `DPNTK`. The sum over i of phi(x_i) (x) e_{y_i} is released once, with the number
    of images of each class; a generator is fitted to the classes' means by squared
    distance. The paper takes the first two moments of a deeper network's outputs,
    without the pixels.

    The network is two convolutions deep. It has learnt to tell a simulator's characters
    apart, or it is a random one. Another is given to `make`:

        DPMepf().make(spec, budget, extractor=(net, params))

    **Privacy:** zero-out. Each phi(x) has norm 1 at most, and an image is in one class;
    one Gaussian release (see `generators.matching`). Both networks are public.
    Characters are drawn by code of this package; images that a given network was
    trained on are not covered, and a note on the guarantee says so.

    **Presets:** accuracy of a CNN, and time on one of two busy cores: MNIST, epsilon 1:
    0.896 ± 0.02 in 4 min; MNIST, epsilon 10: 0.913 ± 0.02 (one seed) in 3 min;
    Fashion-MNIST, epsilon 1: 0.783 ± 0.02 (one seed) in 2 min; Fashion-MNIST, epsilon
    10: 0.785 ± 0.02 (one seed) in 2 min. By `python -m experiments.generators small
    --data FILE.npz --methods DPMepf` with mnist or fashion_mnist for FILE, see
    `experiments/results/`.

    **References:** Harder, Jalali, Sutherland and Park, Pre-trained Perceptual Features
    Improve Differentially Private Image Generation, 2023, arXiv 2205.12900. Yang et
    al., arXiv 2303.01687 (phi).

    Attributes:
      simulator: whose characters the network learns as it is made, once in a process:
        "letters" or "digits" (fonts); "none" for a random network.
      channels: of the network's first convolution; the second has twice as many.
        Neither matters where `make` is given an extractor.
      hidden: units of the random ReLU layer.
      bias: as in `DPNTK`.
    """

    simulator: str = "none"
    channels: int = 8
    hidden: int = 50
    bias: float = 0.1

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
        check_numbers(self, "bias")
        if self.simulator not in KNOWN:
            raise InputError(
                f"DPMepf.simulator={self.simulator!r}: use one of {', '.join(KNOWN)}, "
                "or give `make` an extractor"
            )
        net = convolutions(self.channels)
        if extractor is None:
            params = perceptual(self.simulator, self.channels, spec.image_shape)
        else:
            net, params = each_alone(extractor[0]), extractor[1]
        features = composed(net, params, tangent(self.hidden, self.bias))
        params = features.init(jax.random.key(1), spec.image_shape)
        notes = () if extractor is None else (PRETRAINED,)
        return matched(self, spec, budget, features, params, *notes)


PRETRAINED = "features of a given network: images it was trained on are not covered"
FONTS = {name: s for name, s in SIMULATORS.items() if isinstance(s, Fonts)}
KNOWN = ("none", *FONTS)
STEPS, BATCH, HIDDEN = 1500, 128, 128  # of learning the characters


@cache
def perceptual(
    simulator: str, channels: int, image_shape: tuple[int, int, int]
) -> PyTree:
    """Parameters of `convolutions(channels)`: random, or from learning characters.

    They depend on no private data, and are learnt once in a process.
    """
    with jax.ensure_compile_time_eval():  # whoever traces `make` gets numbers, too
        body = convolutions(channels)
        body_key, head_key, key = jax.random.split(jax.random.key(0), 3)
        first = body.init(body_key, jnp.zeros((1, *image_shape)))
        if simulator == "none":
            return first
        classes = len(FONTS[simulator].characters)
        drawn = FONTS[simulator].make(DataSpec(image_shape, classes, BATCH))

        def loss(params, image, label):
            x = body.apply(params[0], image).reshape(image.shape[0], -1)
            logits = jax.nn.relu(x @ params[1]) @ params[2]
            costs = optax.softmax_cross_entropy_with_integer_labels(logits, label)
            return costs.mean()

        def he(key, *shape):
            return jax.random.normal(key, shape) * (2 / shape[0]) ** 0.5

        size = jax.eval_shape(body.apply, first, jnp.zeros((1, *image_shape))).size
        a, b = jax.random.split(head_key)
        params = first, he(a, size, HIDDEN), he(b, HIDDEN, classes)
        optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, STEPS))

        def step(state, key):
            label_key, key = jax.random.split(key)
            label = jax.random.randint(label_key, (BATCH,), 0, classes)
            latent = drawn.random(key, label, drawn.public)
            image = drawn.render(latent, label, drawn.public)
            gradient = jax.grad(loss)(state.params, image, label)
            return descend(optimizer, state, gradient), None

        run = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys)[0])
        keys = jax.random.split(key, STEPS)
        return run(begin(optimizer, params), keys).params[0]


# Chosen by looking at accuracies, which epsilon does not cover.
PRESETS = {
    "mnist": DPMepf(
        simulator="letters", channels=16, hidden=100, num_steps=2000, batch_size=300
    )
}
PRESETS["fashion_mnist"] = PRESETS["mnist"]
