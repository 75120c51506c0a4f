"""What the diffusion methods share: the denoiser's options, its loss, its samples."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from ppds_jax.nets import Net, denoiser_signals, edm
from ppds_jax.nets.edm import Denoiser
from ppds_jax.nets.unet import unet
from ppds_jax.types import DataSpec, InputError, Key, SignalFn, check_numbers

DEVIATION = 0.5  # of pixels in [-1, 1], as EDM has it for every data set


@dataclass(frozen=True, kw_only=True)
class Conditional:
    """Options of a U-Net that is shown labels, and of drawing images by it.

    Attributes:
      width: channels of the U-Net's finest scale.
      multipliers: channels of each of its scales, over `width`.
      blocks: residual blocks a scale.
      patch: squares of so many pixels a side are channels to the U-Net.
      label_dropout: share of images shown without their label, for guidance.
      average: decay of the moving average of parameters, by which images are drawn.
      sampler_steps: steps of Heun's method, two evaluations of the network each.
      guidance: weight of classifier-free guidance; 0 for none, which is cheaper.
    """

    width: int = 16
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 1
    patch: int = 2
    label_dropout: float = 0.1
    average: float = 0.999
    sampler_steps: int = 12
    guidance: float = 0.0

    def net(self, *zero_allowed: str) -> Net:
        """The U-Net.

        Args:
          zero_allowed: further fields that may be 0.

        Raises:
          InputError: a field outside its range.
        """
        check_numbers(self, "label_dropout", "guidance", "average", *zero_allowed)
        for name in ("label_dropout", "average"):
            if getattr(self, name) >= 1:
                raise InputError(f"{name}={getattr(self, name)}: must be below 1")
        if self.guidance and not self.label_dropout:
            raise InputError(
                f"guidance={self.guidance}: needs a label_dropout above 0, from which "
                "the network learns to do without labels"
            )
        return unet(
            width=self.width,
            multipliers=self.multipliers,
            blocks=self.blocks,
            patch=self.patch,
        )

    def condition(
        self, key: Key, label: Int32[Array, " n"], num_classes: int
    ) -> Float[Array, "n classes"]:
        """Labels as the U-Net sees them in training: some are zeros, which say none."""
        shown = jax.random.bernoulli(key, 1 - self.label_dropout, (label.size, 1))
        return jax.nn.one_hot(label, num_classes) * shown.astype(jnp.float32)


@dataclass(frozen=True, kw_only=True)
class Denoising(Conditional):
    """Options of an EDM diffusion model, besides those of `Conditional`.

    Attributes:
      median_level, spread_level: ln sigma ~ N(ln median, spread^2) in training.
      churn: noise added while sampling; 0 for the deterministic sampler.
    """

    median_level: float = 0.3
    spread_level: float = 1.2
    churn: float = 0.0


class Model(NamedTuple):
    """Pure functions of the U-Net's parameters.

    Attributes:
      init: key -> parameters.
      loss: (key, params, image [n h w c], label [n]) -> [n], levels and noises drawn
        from the key.
      sample: (key, params, label [m]) -> images in [0, 1].
      signals: white-box signals of a state, read by what `denoising` was given.
    """

    init: Callable
    loss: Callable
    sample: Callable
    signals: dict[str, SignalFn]


def denoising(
    config: Denoising, spec: DataSpec, read: Callable[[Any], Any], *zero_allowed: str
) -> Model:
    """The model of a config.

    Args:
      read: from a method's state to the parameters by which images are drawn.
      zero_allowed: further fields of the config that may be 0.

    Raises:
      InputError: a field outside its range.
    """
    net = config.net("churn", *zero_allowed)
    levels = edm.schedule(config.sampler_steps)

    def init(key):
        x = jnp.zeros((1, *spec.image_shape))
        return net.init(key, x, jnp.zeros(1), jnp.zeros((1, spec.num_classes)))

    def given(params, condition) -> Denoiser:
        told = condition * math.sqrt(spec.num_classes)  # mean square 1, as in EDM
        network = lambda x, level: net.apply(params, x, level, told)
        return edm.precondition(network, DEVIATION)

    def of_label(params, label) -> Denoiser:
        return given(params, jax.nn.one_hot(label, spec.num_classes))

    def loss(key, params, image, label):
        level_key, noise_key, drop_key = jax.random.split(key, 3)
        n = label.size
        condition = config.condition(drop_key, label, spec.num_classes)
        sigma = edm.random_levels(
            level_key, n, config.median_level, config.spread_level
        )
        noise = jax.random.normal(noise_key, image.shape)
        denoise = given(params, condition)
        return edm.error(denoise, 2 * image - 1, noise, sigma, DEVIATION)

    def sample(key, params, label):
        denoise = of_label(params, label)
        if config.guidance:
            free = given(params, jnp.zeros((label.size, spec.num_classes)))
            denoise = edm.guided(denoise, free, config.guidance)
        shape = (label.size, *spec.image_shape)
        x = edm.sample(key, denoise, shape, levels, config.churn)
        return jnp.clip((x + 1) / 2, 0, 1)

    def signal(of):
        def read_signal(key, state, image, label, public):
            return of(key, of_label(read(state), label), 2 * image - 1)

        return read_signal

    signals = {name: signal(of) for name, of in denoiser_signals.SIGNALS.items()}
    return Model(init, loss, sample, signals)
