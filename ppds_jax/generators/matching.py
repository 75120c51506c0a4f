"""Class means of features, released once, and a generator fitted to them freely.

What DP-MERF, DP-MEPF, DP-NTK and DP-Kernel have in common; they differ in the features,
and in how often these are released.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int32

from ppds_jax.data.batches import blocks, decode
from ppds_jax.nets.by_class import by_class
from ppds_jax.nets.features import Features
from ppds_jax.optimise import Trained, begin, descend
from ppds_jax.privacy import accounting
from ppds_jax.privacy.mechanisms import gaussian_release
from ppds_jax.types import Budget, Dataset, DataSpec, Generator, Key, PyTree

COUNT = 0.1  # what each image adds to its class's count: 0.5 % more noise elsewhere
BOUND = (1 + COUNT**2) ** 0.5  # on the norm of what an image contributes


def contributions(
    features: Features, params: PyTree, data: Dataset, num_classes: int
) -> Float[Array, "classes d+1"]:
    """The sum over members of [z(x_i), COUNT] (x) e_{y_i}, in one pass over the data.

    **Privacy:** exact. One image changes one class, by `BOUND` at most.
    """

    def add(total, rows):
        image, label, member = rows
        weight = jax.nn.one_hot(label, num_classes, axis=0) * member[None]
        sums = jax.vmap(features.total, (None, None, 0))(params, decode(image), weight)
        counts = COUNT * weight.sum(1, keepdims=True)
        return total + jnp.concatenate([sums, counts], axis=1), None

    rows = tuple(data._replace(member=data.member.astype(jnp.float32)))
    one = jax.tree.map(lambda x: x[:1], rows)
    zero = jnp.zeros(jax.eval_shape(add, 0.0, one)[0].shape)
    return jax.lax.scan(add, zero, blocks(rows))[0]


def counts(total: Float[Array, "classes d+1"], expected: float) -> Array:
    """Images in each class [classes], from noisy sums: a tenth of `expected` at least.

    The limit keeps noise from being blown up where there are next to no images.
    """
    return jnp.maximum(total[:, -1] / COUNT, 0.1 * expected)


def means(total: Float[Array, "classes d+1"], expected: float) -> Array:
    """Each class's mean features [classes d], from noisy sums and counts."""
    return total[:, :-1] / counts(total, expected)[:, None]


def distance(
    features: Features,
    params: PyTree,
    image: Float[Array, "classes m h w c"],
    target: Float[Array, "classes d"],
) -> Float[Array, ""]:
    """Squared distance between mean features, the mean over classes, less a constant.

    With m images of each class, |mean of z|^2 is too large by (1 - |mean|^2) / m on
    average, which would draw the images of a class towards each other. As |z| = 1, the
    factor m / (m - 1) sets its gradient right: the sum then is over pairs of different
    images.
    """
    m = image.shape[1]
    weight = jnp.full(m, 1 / m)
    mean = jax.vmap(features.total, (None, 0, None))(params, image, weight)
    squares = jnp.square(mean).sum(1) * m / max(m - 1, 1)
    return jnp.mean(squares - 2 * (mean * target).sum(1))


class Conditional(NamedTuple):
    """A network that turns noise and labels into images.

    `init(key) -> params`; `sample(params, key, label [n]) -> image [n h w c]`;
    `each(params, key, m) -> image [classes m h w c]`.
    """

    init: Callable[[Key], PyTree]
    sample: Callable[[PyTree, Key, Int32[Array, " n"]], Float[Array, "n h w c"]]
    each: Callable[[PyTree, Key, int], Float[Array, "classes m h w c"]]


def conditional(spec: DataSpec, latent: int, width: int) -> Conditional:
    """A dense network for each class, of `width` ReLUs beside a linear map.

    One convolutional network for all classes, as in the papers, fits them worse and
    mixes them up.
    """
    classes, pixels = spec.num_classes, math.prod(spec.image_shape)

    def init(key):
        keys = jax.random.split(key, 4)
        normal = lambda key, *shape: jax.random.normal(key, (classes, *shape))
        return {
            "linear": 0.3 * normal(keys[0], latent, pixels) / latent**0.5,
            "bias": -jnp.ones((classes, pixels)),
            "hidden": normal(keys[1], latent, width) / latent**0.5,
            "hidden_bias": normal(keys[2], width),
            "out": 0.3 * normal(keys[3], width, pixels) / width**0.5,
        }

    def images(params, code):
        """Of one class: params without their first axis, code [m latent]."""
        unit = jax.nn.relu(code @ params["hidden"] + params["hidden_bias"][None])
        logits = code @ params["linear"] + unit @ params["out"] + params["bias"][None]
        return jax.nn.sigmoid(logits).reshape(-1, *spec.image_shape)

    def each(params, key, m):
        return jax.vmap(images)(params, jax.random.normal(key, (classes, m, latent)))

    def sample(params, key, label):
        code = jax.random.normal(key, (label.size, latent))
        return by_class(images, params, code, label)

    return Conditional(init, sample, each)


class MatchedState(NamedTuple):
    """The embedding is noisy: private data end here. `target` are its class means."""

    embedding: Float[Array, "classes d+1"]
    target: Float[Array, "classes d"]
    trained: Trained


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Options of a generator that is fitted to released class means of features.

    Attributes:
      latent: dimensions of the generator's input.
      width: units of the generator's hidden layer, for each class.
      num_steps: free training steps after the release.
      batch_size: samples a step, rounded up to as many of each class.
      learning_rate: of Adam, falling to 0 by a cosine.
    """

    latent: int = 20
    width: int = 100
    num_steps: int = 600
    batch_size: int = 100
    learning_rate: float = 5e-3


def matched(
    config: Matching,
    spec: DataSpec,
    budget: Budget,
    features: Features,
    params: PyTree,
    *notes: str,
) -> Generator:
    """Releases class means of features once, then fits a generator to them by Adam.

    **Privacy:** zero-out. One image moves the sums by `BOUND` at most; one Gaussian
    release. The steps are post-processing.
    """
    net = conditional(spec, config.latent, config.width)
    decay = optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
    optimizer = optax.adam(decay)
    m = -(-config.batch_size // spec.num_classes)

    def run(sigma):
        return accounting.gaussian(
            sigma, accounting.ZERO_OUT, accounting.PUBLIC_COUNT, *notes
        )

    noise_multiplier = accounting.calibrate(run, budget)

    def init(key, data, public, start=None):
        noise_key, net_key = jax.random.split(key)
        embedding = gaussian_release(
            noise_key,
            contributions(features, public, data, spec.num_classes) / spec.num_members,
            sensitivity=BOUND / spec.num_members,
            noise_multiplier=noise_multiplier,
        )
        target = means(embedding, 1 / spec.num_classes)
        weights = net.init(net_key) if start is None else start.trained.params
        return MatchedState(embedding, target, begin(optimizer, weights))

    def step(key, state, data, public):
        del data  # the embedding is already released

        def loss(weights):
            return distance(features, public, net.each(weights, key, m), state.target)

        value, gradient = jax.value_and_grad(loss)(state.trained.params)
        trained = descend(optimizer, state.trained, gradient)
        return state._replace(trained=trained), {"loss": value}

    def sample(key, state, label, public):
        return net.sample(state.trained.params, key, label)

    guarantee = run(noise_multiplier)
    return Generator(init, step, sample, config.num_steps, guarantee, params)
