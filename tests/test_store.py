"""Files are written whole or not at all."""

import errno

import numpy as np
import pytest

from ppds_jax.harness.store import Store, complete, replacing


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")

    def full_disk():
        with replacing(path) as file:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        full_disk()
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_rows_come_back_as_they_were_saved(tmp_path):
    store, tree = Store(tmp_path), {"a": np.arange(3), "b": (np.float32(2), None)}
    assert 5 not in store
    store.save(5, tree)
    loaded = store.load(5, tree)
    np.testing.assert_array_equal(loaded["a"], tree["a"])
    assert loaded["b"] == (2, None)


def test_only_missing_rows_are_computed_and_told_of(tmp_path):
    store, asked, told = Store(tmp_path), [], []

    def compute(rows):
        asked.append(rows)
        if rows[0] == 3:
            raise KeyboardInterrupt
        return np.array(rows) * 10

    def again():
        complete(store, 5, compute, width=lambda missing: 2, done=told.append)

    store.save(1, np.array(10))
    with pytest.raises(KeyboardInterrupt):
        again()
    compute_all, asked[:] = asked[:], []
    assert compute_all == [[0, 2], [3, 4]]
    assert told == [1, 2]
    complete(store, 3, compute, width=lambda missing: 2, done=told.append)
    assert asked == []
    assert [int(store.load(i, 0)) for i in range(3)] == [0, 10, 20]
