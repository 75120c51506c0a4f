"""The small convolutional classifier, trained by DP-SGD."""

from dataclasses import dataclass

import jax
import optax

from ppds_jax.classifiers.supervised import cross_entropy
from ppds_jax.nets.cnn import cnn
from ppds_jax.nets.precision import Precision, with_precision
from ppds_jax.optimise import begin, descend
from ppds_jax.privacy.dpsgd import Clipping, calibrated, dp_gradient
from ppds_jax.types import Budget, Classifier, DataSpec, check_numbers


@dataclass(frozen=True, kw_only=True)
class DPCNN:
    """The network of `CNN`, by DP-SGD with momentum: the baseline on real images.

    The defaults suit a thousand images; settings for all of MNIST, with their accuracy:
    `python -m experiments.dp_sgd mnist`.

    **Privacy:** DP-SGD under add-or-remove-one; the noise is calibrated so that all
    steps together keep within the budget. Covers the classifier, and nothing else that
    is computed from the images.

    **References:** Abadi et al., Deep Learning with Differential Privacy, 2016,
    arXiv 1607.00133. Papernot et al., Tempered Sigmoid Activations for Deep Learning
    with Differential Privacy, 2020, arXiv 2007.14191 (tanh).

    Attributes:
      width, hidden: as in `CNN`.
      kernels: sizes of the two convolutions' square kernels.
      activation: relu, or tanh, whose bounded outputs keep gradients bounded.
      pool: whether the maximum over 2x2 neighbours follows each convolution.
      epochs: expected passes over the private images.
      batch_size: expected images a step.
      learning_rate, momentum: of stochastic gradient descent.
      clip_norm: bound on the norm of each image's gradient.
      clipping: "global", or "per-layer".
      bands: steps over which noise is correlated; 1 for independent noise.
      precision: of the network's passes; norms, clipping, sums and noise stay float32.
    """

    width: int = 16
    hidden: int = 64
    kernels: tuple[int, int] = (3, 3)
    activation: str = "relu"
    pool: bool = False
    epochs: int = 15
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    clip_norm: float = 1.0
    clipping: Clipping = "global"
    bands: int = 1
    precision: Precision = "default"

    def make(self, spec: DataSpec, budget: Budget) -> Classifier:
        check_numbers(self, "momentum")
        net = cnn(
            self.width,
            self.hidden,
            spec.num_classes,
            kernels=self.kernels,
            activation=self.activation,
            pool=self.pool,
        )
        net = with_precision(net, self.precision)
        optimizer = optax.sgd(self.learning_rate, self.momentum)
        settings = calibrated(
            spec,
            budget,
            clip_norm=self.clip_norm,
            clipping=self.clipping,
            bands=self.bands,
            batch_size=self.batch_size,
            num_steps=self.epochs * -(-spec.num_members // self.batch_size),
        )

        def init(key, data, public, start=None):
            del data  # no private access: the first weights are random
            params = net.init(key, jax.numpy.zeros((1, *spec.image_shape)))
            params = params if start is None else start.params
            return begin(optimizer, params, private.init(params))

        mean_loss = cross_entropy(net)
        loss = lambda key, params, image, label: mean_loss(params, image, label)
        private = dp_gradient(loss, settings)

        def step(key, state, data, public):
            gradient, spent = private.apply(key, state.private, state.params, data)
            state = descend(optimizer, state, gradient)
            return state._replace(private=spent), {}

        return Classifier(
            init=init,
            step=step,
            logits=lambda state, image: net.apply(state.params, image),
            num_steps=settings.num_steps,
            guarantee=settings.guarantee,
        )
