"""Classifiers: one file a family. The registry is computed from the union below."""

from typing import get_args

from ppds_jax.classifiers.cnn import CNN
from ppds_jax.classifiers.dp_cnn import DPCNN
from ppds_jax.classifiers.dp_scatter import DPScatter
from ppds_jax.classifiers.mlp import MLP

AnyClassifier = CNN | DPCNN | DPScatter | MLP
ALL = get_args(AnyClassifier)
