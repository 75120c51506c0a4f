"""A single model's training, stopped and gone on with: nothing lost, no bit changed."""

import signal
from concurrent.futures import ThreadPoolExecutor

import chex
import jax
import pytest

from ppds_jax.fit import fit_chunks
from ppds_jax.generators import VAE
from ppds_jax.harness import fitting, signals
from tests.conftest import BUDGET, DIGITS

METHOD = VAE(width=2, latent=2, epochs=4, batch_size=8).make(DIGITS, BUDGET)
KEY = jax.random.key(3)
OPTIONS = {"name": "VAE", "chunk": 5, "every": 1e9}


def stop_after(monkeypatch, looks):
    """Lets a signal come, to another thread, between two chunks."""
    seen = []

    def check():
        seen.append(1)
        if len(seen) > looks:
            raise signals.Stopped(signal.SIGTERM)

    monkeypatch.setattr(fitting.signals, "check", check)


@pytest.mark.parametrize("every", [1e9, 0.0])
def test_a_stopped_training_goes_on_to_the_same_bits(
    every, digits, tmp_path, monkeypatch
):
    options = OPTIONS | {"folder": tmp_path / "kept", "every": every}
    whole = fit_chunks(KEY, METHOD, digits, chunk=5)
    stop_after(monkeypatch, 5)
    with pytest.raises(signals.Stopped):
        fitting.fit_kept(KEY, METHOD, digits, **options)
    assert options["folder"].exists()
    monkeypatch.undo()
    begun = []
    init = METHOD.init

    def counted(*args):
        begun.append(1)
        return init(*args)

    found = fitting.fit_kept(KEY, METHOD._replace(init=counted), digits, **options)
    assert len(begun) == 1, "it was begun anew, and not only traced for its shapes"
    chex.assert_trees_all_equal(found.state, whole)
    assert found.resumed
    assert found.seconds > 0
    assert not options["folder"].exists()


def test_one_that_diverged_leaves_no_checkpoint(digits, tmp_path):
    wild = VAE(width=2, latent=2, epochs=4, learning_rate=1e30).make(DIGITS, BUDGET)
    options = OPTIONS | {"folder": tmp_path / "kept", "every": 0.0, "chunk": 1}
    with pytest.raises(FloatingPointError):
        fitting.fit_kept(KEY, wild, digits, **options)
    assert not options["folder"].exists()


def test_several_at_once_do_not_meet(digits, tmp_path):
    def one(seed):
        key, folder = jax.random.key(seed), tmp_path / str(seed)
        return fitting.fit_kept(
            key, METHOD, digits, **OPTIONS | {"folder": folder, "every": 0.0}
        ).state

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(one, range(2)))
    for seed, state in enumerate(found):
        alone = fit_chunks(jax.random.key(seed), METHOD, digits, chunk=5)
        chex.assert_trees_all_equal(state, alone)
