"""Strict numerics, four simulated devices, and a small data set for every test."""

import os

os.environ.setdefault("NPROC", "1")
# Simulated devices share the cores of a slow machine: a collective may wait long.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_collective_call_terminate_timeout_seconds=600"
)

import jax

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

import jax.numpy as jnp
import numpy as np
import pytest

from ppds_jax.data.load import load
from ppds_jax.types import Budget, Dataset, DataSpec
from tests.methods import HEAVY, PIPELINES, name

DIGITS = DataSpec((8, 8, 1), 10, 60)
BUDGET = Budget(10.0, 1e-5)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """120 digits, every other a member."""
    images = load("digits")
    member = jnp.asarray(np.arange(120) % 2 == 0)
    image, label = jnp.asarray(images.x_train[:120]), jnp.asarray(images.y_train[:120])
    return Dataset(image, label, member)


def pytest_collection_modifyitems(items):
    """Conformance of methods that take long to compile is slow, but for what is not."""
    for item in items:
        config = getattr(item, "callspec", None) and item.callspec.params.get("config")
        quick = "lowers" in item.name or "budget" in item.name or "range" in item.name
        if config is None or quick:
            continue
        whole = "whole_pipeline" in item.name and name(config) not in PIPELINES
        if whole or name(config) in HEAVY:
            item.add_marker(pytest.mark.slow)
