"""Arrays of single shadow models on disk, written whole or not at all."""

import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from ppds_jax.harness import signals
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
        with replacing(self._file(row)) as file:
            np.savez(file, *on_host(tree))

    def note(self, layout: dict[str, Any]) -> None:
        """Records how the rows from here on are computed, as a line."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "layouts.jsonl").open("a") as file:
            file.write(json.dumps(layout) + "\n")

    def plan(self) -> dict[str, Any] | None:
        """The last plan of `complete`, or None."""
        path = self.path / "plan.json"
        return json.loads(path.read_text()) if path.exists() else None

    def load(self, row: int, like: PyTree) -> PyTree:
        """The row's arrays in the structure of `like`."""
        with np.load(self._file(row)) as file:
            leaves = [file[f"arr_{i}"] for i in range(len(file.files))]
        return from_host(leaves, like)


def on_host(tree: PyTree) -> list[np.ndarray]:
    """All leaves as NumPy arrays, typed keys as their words."""
    leaves = jax.tree.leaves(tree)
    words = [jax.random.key_data(x) if _is_key(x) else x for x in leaves]
    return [np.asarray(x) for x in jax.device_get(words)]


def from_host(leaves: Sequence[np.ndarray], like: PyTree) -> PyTree:
    """The tree of which `on_host` made the leaves, in the structure of `like`."""
    kinds, structure = jax.tree.flatten(like)
    typed = [_typed(x, kind) for x, kind in zip(leaves, kinds, strict=True)]
    return jax.tree.unflatten(structure, typed)


def _is_key(x: Any) -> bool:
    kind = getattr(x, "dtype", None)
    return kind is not None and jax.dtypes.issubdtype(kind, jax.dtypes.prng_key)


def _typed(leaf: np.ndarray, like: Any) -> Any:
    if not _is_key(like):
        return leaf
    impl = jax.random.key_impl(jnp.empty((), like.dtype))
    return jax.random.wrap_key_data(jnp.asarray(leaf), impl=impl)


def stack(load: Callable[[int], PyTree], rows: Sequence[int]) -> PyTree:
    """The trees of several rows as one with a leading axis; they are loaded in turn."""
    like, whole = None, []
    for i, row in enumerate(rows):
        tree = load(row)
        leaves = on_host(tree)
        if not i:
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
            whole = [np.empty((len(rows), *x.shape), x.dtype) for x in leaves]
        for into, leaf in zip(whole, leaves, strict=True):
            into[i] = leaf
        del tree, leaves  # before the next are loaded
    return from_host(whole, like)


class Group:
    """The processes that compute the rows of a store: here this one, alone."""

    index, count = 0, 1

    def agree(self, decide: Callable[[], Any]) -> Any:
        """What `decide` returns on the first process, for all of them: JSON values."""
        return decide()

    def wait(self, ready: Callable[[], bool]) -> None:
        """Returns when another process has made `ready()` true."""


def plan(
    store: Store,
    rows: int,
    *,
    width: Callable[[int], int],
    layout: dict[str, Any] | None = None,
    interrupted: Callable[[], list[list[int]]] = list,
    group: Group | None = None,
) -> dict[str, Any]:
    """Which of the rows that the store lacks are computed together: `complete`'s plan.

    It is made once, and kept in plan.json: a run that goes on where it was killed, on
    the same layout, computes the same batches.

    Args:
      store, rows: as for `complete`.
      width: of k missing rows, how many are computed at a time. Asked where a plan is
        made.
      layout: what a plan is good for besides its rows.
      interrupted: batches to be finished before others, when a plan is made. Asked
        always, before any row is computed.
      group: the processes that share the work: the first decides.

    Raises:
      InputError: processes of one group that work on different rows.
    """
    group = group or Group()
    name = f"{store.path.parent.name}/{store.path.name}"

    def decide() -> dict[str, Any]:
        missing = {row for row in range(rows) if row not in store}
        waiting = interrupted()
        plan = store.plan() or {}
        for_this = (plan.get("rows"), plan.get("layout")) == (rows, layout)
        planned = {row for batch in plan.get("batches", []) for row in batch}
        if missing and not (for_this and missing <= planned):
            size = width(len(missing))
            batches = [b for b in waiting if missing & {*b} and max(b) < rows]
            taken = {row for batch in batches for row in batch}
            rest = sorted(missing - taken)
            batches += [rest[i : i + size] for i in range(0, len(rest), size)]
            plan = {"rows": rows, "layout": layout, "width": size, "batches": batches}
            write_json(store.path / "plan.json", plan)
        batches = [b for b in plan.get("batches", []) if missing & {*b}]
        return plan | {"store": name, "rows": rows, "batches": batches}

    plan = group.agree(decide)
    if (plan["store"], plan["rows"]) != (name, rows):
        raise InputError(
            f"distributed: process {group.index} works on {rows} rows of {name}, "
            f"process 0 on {plan['rows']} of {plan['store']}: do they read the same "
            "data?"
        )
    return plan


def complete(
    store: Store,
    rows: int,
    compute: Callable[[list[int]], PyTree],
    *,
    done: Callable[[int], None],
    found: Callable[[int], None] | None = None,
    planned: Callable[[int], None] = lambda width: None,
    group: Group | None = None,
    **planning: Any,
) -> None:
    """Computes and saves those of the first `rows` rows that the store lacks.

    Of k missing rows `compute` takes `width(k)` row numbers at a time and returns
    arrays with that leading axis; the last call is filled up by repeating a row. Batch
    i is computed by process i modulo their number; each returns when all are there.

    Args:
      store, rows, compute: as above.
      done: told of k finished rows.
      found: told of k rows that were there; by default as `done`.
      planned: told how many rows `compute` is about to take at a time.
      group: the processes that share the work.
      planning: `width` and more that `plan` takes.

    Raises:
      InputError: processes of one group that work on different rows.
      Stopped: a signal came: the batch that was being computed is finished and saved,
        unless `compute` has stopped at it.
    """
    group = group or Group()
    made = plan(store, rows, group=group, **planning)
    todo = [[row for row in batch if row not in store] for batch in made["batches"]]
    (found or done)(rows - sum(map(len, todo)))
    if todo:
        planned(made["width"])
    for i, (batch, wanted) in enumerate(zip(made["batches"], todo, strict=True)):
        if i % group.count != group.index:
            continue
        padded = batch + batch[-1:] * (made["width"] - len(batch))
        signals.check()
        with signals.held():
            results = jax.device_get(compute(padded))
            for row in wanted:
                place = batch.index(row)
                store.save(row, jax.tree.map(lambda x, i=place: x[i], results))
            done(len(wanted))
            del results  # before the next ones are computed
    for i, wanted in enumerate(todo):
        if i % group.count != group.index:
            for row in wanted:
                group.wait(functools.partial(store.__contains__, row))
                done(1)
