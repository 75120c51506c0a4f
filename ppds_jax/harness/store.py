"""Arrays of single shadow models on disk, written whole or not at all."""

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from ppds_jax.types import InputError, PyTree


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

    def note(self, layout: dict[str, Any]) -> None:
        """Records how the rows from here on are computed, as a line."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "layouts.jsonl").open("a") as file:
            file.write(json.dumps(layout) + "\n")

    def load(self, row: int, like: PyTree) -> PyTree:
        """The row's arrays in the structure of `like`."""
        with np.load(self._file(row)) as file:
            leaves = [file[f"arr_{i}"] for i in range(len(file.files))]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


class Group:
    """The processes that compute the rows of a store: here this one, alone."""

    index, count = 0, 1

    def agree(self, decide: Callable[[], Any]) -> Any:
        """What `decide` returns on the first process, for all of them: JSON values."""
        return decide()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Returns when another process has made `ready()` true."""


def complete(
    store: Store,
    rows: int,
    compute: Callable[[list[int]], PyTree],
    *,
    width: Callable[[int], int],
    done: Callable[[int], None],
    group: Group | None = None,
) -> None:
    """Computes and saves those of the first `rows` rows that the store lacks.

    Of k missing rows `compute` takes `width(k)` row numbers at a time and returns
    arrays with that leading axis; the last call is filled up by repeating a row. Batch
    i is computed by process i modulo their number; each returns when all are there.
    `done(k)` is told of k finished rows.

    Raises:
      InputError: processes of one group that work on different rows.
    """
    group = group or Group()
    name = f"{store.path.parent.name}/{store.path.name}"

    def decide() -> dict[str, Any]:
        missing = [row for row in range(rows) if row not in store]
        size = width(len(missing)) if missing else 1
        return {"store": name, "rows": rows, "missing": missing, "width": size}

    plan = group.agree(decide)
    if (plan["store"], plan["rows"]) != (name, rows):
        raise InputError(
            f"distributed: process {group.index} works on {rows} rows of {name}, "
            f"process 0 on {plan['rows']} of {plan['store']}: do they read the same "
            "data?"
        )
    missing, size = plan["missing"], plan["width"]
    done(rows - len(missing))
    batches = [missing[first : first + size] for first in range(0, len(missing), size)]
    for wanted in batches[group.index :: group.count]:
        batch = wanted + wanted[-1:] * (size - len(wanted))
        results = jax.device_get(compute(batch))
        for i, row in enumerate(wanted):
            store.save(row, jax.tree.map(lambda x, i=i: x[i], results))
        done(len(wanted))
    for i, wanted in enumerate(batches):
        if i % group.count != group.index:
            for row in wanted:
                group.wait(functools.partial(store.__contains__, row))
                done(1)
