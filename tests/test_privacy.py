"""Conformance: every private method of the registries keeps to its guarantee.

The checks themselves are held to planted faults in test_planted_faults.py. Resumption,
and that membership is a mask, are tested for all methods in test_methods.py.
"""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppds_jax.classifiers import DPCNN
from ppds_jax.privacy.accounting import epsilon
from ppds_jax.privacy.checks import CHECKS
from ppds_jax.privacy.subject import Subject
from ppds_jax.types import Budget, Dataset
from tests.conftest import DIGITS
from tests.methods import METHODS, name, small

BUDGET = Budget(2.0, 1e-5)


def private(config):
    spent = epsilon(config.make(DIGITS, BUDGET).guarantee, BUDGET.delta)
    return 0 < spent < float("inf")


PRIVATE = [config for config in METHODS if private(config)]
# the options of the training loop, on one method that has them
OPTIONS = [
    replace(small(DPCNN), bands=2),
    replace(small(DPCNN), clipping="per-layer"),
]


def describe(config):
    changed = [
        f"{f}={v}" for f, v in vars(config).items() if f in ("bands", "clipping")
    ]
    return name(config) + ("-" + "-".join(changed) if config in OPTIONS else "")


@cache
def subject(config, data_id):
    return Subject(
        lambda data, budget: config.make(DIGITS, budget), DIGITS, BUDGET, DATA
    )


DATA: Dataset


@pytest.fixture(autouse=True)
def _data(digits):
    global DATA
    DATA = digits


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("config", PRIVATE + OPTIONS, ids=describe)
def test_it_passes(config, check):
    assert CHECKS[check](subject(config, 0)) == ""


@pytest.mark.parametrize("config", PRIVATE, ids=name)
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_searched_neighbour_moves_a_statistic_too_far(config, data):
    """Hypothesis looks for a record whose removal or replacement breaks the bound."""
    s = subject(config, 0)
    row = data.draw(st.integers(0, 119), "row")
    removed = data.draw(st.booleans(), "removed")
    pixels = st.lists(st.sampled_from([0, 1, 127, 254, 255]), min_size=4, max_size=64)
    pattern = np.resize(data.draw(pixels, "pixels"), (8, 8, 1)).astype(np.uint8)
    label = data.draw(st.integers(0, 9), "label")
    if removed:
        change = DATA._replace(member=DATA.member.at[row].set(~DATA.member[row]))
    else:
        change = Dataset(
            DATA.image.at[row].set(pattern),
            DATA.label.at[row].set(label),
            DATA.member.at[row].set(True),
        )
    allowed = 2 if not removed and bool(DATA.member[row]) else 1
    stack = jax.tree.map(lambda x: x[None], change)
    for stage, args, found in runs(config):
        released = [x.released for x in found]
        moved = stage.replay(released, args[0], stack, *args[2:])
        for (mechanism, times), a, b in zip(
            stage.mechanisms, found, moved, strict=True
        ):
            shift = (b.statistic[0] - a.statistic).reshape(times, -1)
            far = float(jnp.linalg.norm(shift, axis=1).max())  # of each release
            assert far <= allowed * mechanism.sensitivity * (1 + 1e-4) + 1e-4
    assert s.method.guarantee


@cache
def runs(config):
    return list(subject(config, 0).run(3))[:3]
