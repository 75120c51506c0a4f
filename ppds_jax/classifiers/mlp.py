"""Dense layers on pixels, or none: logistic regression. Not private."""

from dataclasses import dataclass

from ppds_jax.classifiers.supervised import in_one, supervised
from ppds_jax.nets.mlp import mlp
from ppds_jax.types import Budget, Classifier, DataSpec, check_numbers


@dataclass(frozen=True, kw_only=True)
class MLP:
    """Dense layers on pixels, by Adam; `hidden=()` is logistic regression.

    Cheap, and with another view of images than a convolutional network: a second
    opinion on synthetic ones.

    **Privacy:** none, where it is trained on private images.

    Attributes:
      hidden: units of the hidden layers.
      epochs: passes over the training images (drawn with replacement).
      batch_size: images a step.
      learning_rate: of Adam.
    """

    hidden: tuple[int, ...] = (128,)
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3

    def make(self, spec: DataSpec, budget: Budget) -> Classifier:
        check_numbers(self)
        net = mlp(self.hidden, spec.num_classes)
        return supervised(
            net,
            spec,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            gradient=in_one,
        )
