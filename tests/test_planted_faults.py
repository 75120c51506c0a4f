"""Each check catches a fault, each fault is caught, and what is sound passes all."""

import functools
from pathlib import Path

import pytest

from ppds_jax.privacy.checks import CHECKS, check
from ppds_jax.types import Budget
from tests.planted_faults.faults import FAULTS
from tests.planted_faults.sound import SOUND, SPEC, dataset
from tests.planted_faults.table import CLAIM, TABLE, VISIBLE, audited, marks

BUDGET = Budget(2.0, 1e-5)


@functools.cache
def findings(build):
    return check(build, SPEC, BUDGET, dataset())


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_method_passes_every_check(name):
    assert findings(SOUND[name]) == dict.fromkeys(CHECKS, "")


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught(name):
    """By the check that has to see it; and the table states all that did."""
    build, expected = FAULTS[name]
    found = findings(build)
    assert found[expected]
    stated = marks(Path(TABLE).read_text())[name]
    assert {check for check, fault in found.items() if fault} == stated - {"audit"}


def test_no_row_and_no_column_of_the_table_is_empty():
    stated = marks(Path(TABLE).read_text())
    assert set(stated) == set(FAULTS)
    assert all(stated.values())
    assert set.union(*stated.values()) == {*CHECKS, "audit"}


@pytest.mark.parametrize("name", VISIBLE)
def test_an_audit_refutes_the_faults_that_it_can_see(name):
    assert audited(FAULTS[name][0], seed=1) > CLAIM.epsilon


@pytest.mark.parametrize("name", SOUND)
def test_an_audit_does_not_refute_what_is_sound(name):
    """Fails by chance with probability below 1e-3."""
    assert audited(SOUND[name], seed=1) <= CLAIM.epsilon
