"""Arrays of single shadow models on disk, written whole or not at all."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from ppds_jax.types import PyTree


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` at once, when all is written.

    A process killed half-way, or a full disk, leaves what was there before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_json(path: Path, value: Any) -> None:
    with replacing(path) as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())


class Store:
    """One file of arrays for each row: a shadow model, or what was seen of one."""

    def __init__(self, path: Path, description: Any = None):
        self.path = path
        if description is not None and not (path / "config.json").exists():
            write_json(path / "config.json", description)

    def _file(self, row: int) -> Path:
        return self.path / f"row-{row:05d}.npz"

    def __contains__(self, row: int) -> bool:
        return self._file(row).exists()

    def save(self, row: int, tree: PyTree) -> None:
        leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
        with replacing(self._file(row)) as file:
            np.savez(file, *leaves)

    def load(self, row: int, like: PyTree) -> PyTree:
        """The row's arrays in the structure of `like`."""
        with np.load(self._file(row)) as file:
            leaves = [file[f"arr_{i}"] for i in range(len(file.files))]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


def complete(
    store: Store,
    rows: int,
    compute: Callable[[list[int]], PyTree],
    *,
    width: int,
    done: Callable[[int], None],
) -> None:
    """Computes and saves those of the first `rows` rows that the store lacks.

    `compute` takes `width` row numbers and returns arrays with that leading axis; the
    last call is filled up by repeating a row. `done(k)` is told of k finished rows.
    """
    missing = [row for row in range(rows) if row not in store]
    done(rows - len(missing))
    for first in range(0, len(missing), width):
        wanted = missing[first : first + width]
        batch = wanted + wanted[-1:] * (width - len(wanted))
        results = jax.device_get(compute(batch))
        for i, row in enumerate(wanted):
            store.save(row, jax.tree.map(lambda x, i=i: x[i], results))
        done(len(wanted))
