"""Targets among their references, audited populations and split copies are refused."""

import jax
import numpy as np
import pytest

from ppds_jax.attacks.game import Pool, half_design, leave_one_out, score_pool
from ppds_jax.attacks.guards import (
    check_duplicates,
    check_population,
    check_references,
)
from ppds_jax.attacks.lira import lira
from ppds_jax.data.load import load
from ppds_jax.types import InputError


def game(num_models=6, num_images=40):
    rng = np.random.default_rng(0)
    member = half_design(jax.random.key(0), np.zeros(num_images, int), num_models)
    return rng.normal(size=(num_models, num_images, 2)).astype(np.float32), member


def test_a_target_in_its_own_pool_is_caught():
    phi, member = game()
    check_references(phi[0], phi[1:])
    with pytest.raises(InputError, match=r"references \[2\] are the target"):
        check_references(phi[0], phi[[3, 1, 0, 4]])
    with pytest.raises(InputError, match=r"\[0, 3\] are both targets and references"):
        score_pool(lira, phi, member, Pool(np.array([0, 3]), np.arange(6)))


def test_a_model_that_is_there_twice_is_caught():
    """Rows appended a second time, under another number."""
    phi, member = game()
    with pytest.raises(InputError, match="the target itself"):
        leave_one_out(lira, np.tile(phi, (2, 1, 1)), np.tile(member, (2, 1)))


def test_signals_that_agree_by_nature_are_no_copies():
    phi, member = game()
    coarse = np.where(phi > 0, 1.0, 0.0)  # agrees on some images, not on all
    coarse[:, 0] = 0
    check_references(coarse[0], coarse[1:])
    check_references(0 * phi[0], 0 * phi[1:])  # a broken model, or one without signal
    same = np.broadcast_to(phi[:1], phi.shape)  # a release that ignores the data
    assert leave_one_out(lira, same, member).shape == member.shape


def test_a_population_that_is_audited_is_caught():
    images = load("digits").x_train
    check_population(images[:100], np.unique(images[:0], axis=0))
    unique = np.unique(images, axis=0)
    check_population(unique[:100], unique[100:150])
    with pytest.raises(InputError, match="1 of its 50 images are audited"):
        check_population(unique[:100], unique[99:149])
    with pytest.raises(InputError, match="one kind"):
        check_population(unique[:100], unique[100:150] / 255)


def test_copies_with_another_membership_are_caught():
    _, member = game()
    image = np.unique(load("digits").x_train, axis=0)[:40]
    check_duplicates(image, member)
    image[7] = image[3]
    with pytest.raises(InputError, match="1 images have an equal one"):
        check_duplicates(image, member)
    member[:, 7] = member[:, 3]  # a canary that is there twice
    check_duplicates(image, member)
