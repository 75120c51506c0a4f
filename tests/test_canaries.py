"""Canaries of each kind, and who is a copy of whom."""

import numpy as np
import pytest

from ppds_jax.attacks.canaries import KINDS, make_canaries
from ppds_jax.types import InputError

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (40, 9, 9, 3), dtype=np.uint8)
LABEL = RNG.integers(0, 5, 40).astype(np.int32)


def made(copies=4, seed=0):
    return make_canaries(seed, IMAGE, LABEL, 5, copies=copies)


def test_kinds_are_equally_many_and_copies_belong_to_repeated_ones():
    canaries = made()
    own = canaries.of == np.arange(len(canaries.of))
    kind = np.array(canaries.kind)
    assert [int((kind[own] == name).sum()) for name in KINDS] == [10] * 4
    assert (~own).sum() == 3 * 10
    assert set(kind[~own]) == {"repeated"} == set(kind[canaries.of[~own]])
    np.testing.assert_array_equal(np.bincount(canaries.of[~own])[10:20], 3)
    assert canaries.image.dtype == np.uint8
    assert canaries.label.dtype == np.int32


def test_each_kind_is_what_it_says():
    canaries = made()
    kind, of = np.array(canaries.kind), canaries.of
    wrong = np.flatnonzero(kind == "mislabelled")
    np.testing.assert_array_equal(canaries.image[wrong], IMAGE[:10])
    assert (canaries.label[wrong] != LABEL[:10]).all()
    assert ((canaries.label >= 0) & (canaries.label < 5)).all()
    again = np.flatnonzero(of != np.arange(len(of)))
    far = canaries.image[again].astype(int) - canaries.image[of[again]]
    assert 2 < far.std() < 5
    assert (far != 0).any((1, 2, 3)).all()  # near-duplicates, no duplicates
    np.testing.assert_array_equal(canaries.label[again], canaries.label[of[again]])
    rare = canaries.image[kind == "rare_mode"]
    np.testing.assert_array_equal(255 - rare[:, ::-1], IMAGE[20:30])
    noise = canaries.image[kind == "outside"]
    assert (noise[:, :4, :4] == noise[:, :1, :1]).all()
    assert noise.std() > 60


def test_a_seed_decides():
    one, same, other = made(), made(), made(seed=1)
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (one.image != other.image).any()


def test_bad_input_is_named():
    with pytest.raises(InputError, match="image: 7 images"):
        make_canaries(0, IMAGE[:7], LABEL[:7], 5)
    with pytest.raises(InputError, match="copies=0"):
        made(copies=0)
    assert len(made(copies=1).label) == 40
