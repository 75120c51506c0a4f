"""A small convolutional classifier. Not private."""

from dataclasses import dataclass

from ppds_jax.classifiers.supervised import supervised
from ppds_jax.nets.cnn import cnn, pooled_cnn
from ppds_jax.nets.precision import Precision, with_precision
from ppds_jax.types import Budget, Classifier, DataSpec, check_numbers


@dataclass(frozen=True, kw_only=True)
class CNN:
    """Two convolutions and a hidden layer, trained by Adam.

    Accuracy on the test images of fashion_mnist_5k, trained on 1,000 of its images:
    the row `real_classifier` of `python -m experiments.survey demo`.

    **Privacy:** none, where it is trained on private images.

    Attributes:
      width: channels of the first convolution; the second has twice as many.
      hidden: units of the dense layer.
      epochs: passes over the training images (drawn with replacement).
      batch_size: images a step.
      learning_rate: of Adam.
      pool: whether max-pooling halves the image instead of strides: four times the
        work.
      precision: of the network's passes; parameters stay float32. See
        `ppds_jax.nets.precision`.
    """

    width: int = 16
    hidden: int = 64
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 2e-3
    pool: bool = False
    precision: Precision = "default"

    def make(self, spec: DataSpec, budget: Budget) -> Classifier:
        check_numbers(self)
        make = pooled_cnn if self.pool else cnn
        net = make(self.width, self.hidden, spec.num_classes)
        net = with_precision(net, self.precision)
        return supervised(
            net,
            spec,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
        )
