"""Secret keys are fresh and stored nowhere; notes and the ledger state what was run."""

import os

import jax
import numpy as np
import pytest

from ppds_jax.privacy import accounting
from ppds_jax.privacy.accounting import epsilon, gaussian
from ppds_jax.privacy.keys import RECORDED, RESUMED, SECRET, noted, secret_key
from ppds_jax.privacy.ledger import by_relation, ledger
from ppds_jax.types import InputError

ONE = gaussian(5.0, accounting.ZERO_OUT, "a")


def test_secret_keys_are_the_operating_systems_and_all_different(monkeypatch):
    keys = [jax.random.key_data(secret_key()).tolist() for _ in range(50)]
    assert len({tuple(key) for key in keys}) == 50
    monkeypatch.setattr(os, "urandom", lambda n: bytes(range(n)))
    data = np.asarray(jax.random.key_data(secret_key()))
    assert data.tobytes() == bytes(range(8))


def test_notes_say_where_keys_came_from():
    assert noted(ONE, secret=False).notes == ("a", RECORDED)
    assert noted(ONE, secret=True).notes == ("a", SECRET)
    assert noted(ONE, secret=True, resumed=True).notes == ("a", SECRET, RESUMED)
    free = accounting.non_private()
    assert noted(free, secret=False) == free
    # rows join their notes by semicolons
    assert not any(";" in note for note in (RECORDED, SECRET, RESUMED))


def test_a_ledger_adds_up_what_is_released():
    other = gaussian(5.0, accounting.ZERO_OUT)
    first, second = ledger({"x": ONE, "free": accounting.data_free(), "y": other}, 1e-5)
    assert first.total == first.epsilon == epsilon(ONE, 1e-5)
    both = epsilon(gaussian(5.0 / 2**0.5, accounting.ZERO_OUT), 1e-5)
    assert second.total == pytest.approx(both, rel=5e-3)
    assert (second.name, second.neighbours) == ("y", "zero-out")


def test_relations_are_not_added_up():
    mixed = {"x": ONE, "y": gaussian(5.0, accounting.ADD_OR_REMOVE)}
    with pytest.raises(InputError, match="neighbours="):
        ledger(mixed, 1e-5)
    entries = by_relation(mixed, 1e-5)
    assert [e.total for e in entries] == [e.epsilon for e in entries]
