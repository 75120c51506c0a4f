"""Checkpoints of models in training: written by orbax, beside the training."""

import contextlib
import json
import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ppds_jax.harness.store import from_host, on_host, replacing
from ppds_jax.types import PyTree

WRITING = threading.Lock()


class Checkpoints:
    """The newest checkpoint of one batch of models: a record, and arrays.

    A write happens beside the training, and takes the place of the last one when it is
    complete: a process that is killed leaves one of the two. All arrays are kept as
    they are on the host, so that they can be read on whatever devices there are.

    One of several processes writes a file of its own and waits for it: of those orbax
    keeps host arrays for the first only. What one process wrote any other can read.
    """

    def __init__(self, path: Path):
        self.path = path
        self._opened: Any = None

    @property
    def _manager(self) -> Any:
        if self._opened is None:
            import orbax.checkpoint as ocp  # 0.3 s, which short runs do without

            logging.getLogger("absl").setLevel(logging.ERROR)  # it tells of each file
            alone = ocp.options.MultiprocessingOptions()
            if jax.process_count() > 1:  # wait for no other process
                alone = ocp.options.MultiprocessingOptions(0, {0}, "first")
            options = ocp.CheckpointManagerOptions(
                max_to_keep=1,
                create=False,
                multiprocessing_options=alone,
            )
            self.path.mkdir(parents=True, exist_ok=True)
            for path in self.path.iterdir():  # orbax would do it beside what comes next
                if path.is_dir() and not path.name.isdigit():
                    shutil.rmtree(path)  # half a write, of a process that was killed
            self._opened = ocp.CheckpointManager(self.path.resolve(), options=options)
        return self._opened

    def save_alone(self, number: int, record: dict[str, Any], tree: PyTree) -> None:
        """Writes to the end, one thread of the process at a time.

        orbax gives the writes of all its managers in a process numbers from one row:
        two at once have been seen to create a folder twice.
        """
        with WRITING:
            self.save(number, record, tree)
            if self._opened is not None:
                self._opened.wait_until_finished()

    def save(self, number: int, record: dict[str, Any], tree: PyTree) -> None:
        """Begins to write; waits only for the write before this one.

        Args:
          number: of this checkpoint, above that of the last.
          record: plain JSON values.
          tree: arrays.
        """
        if jax.process_count() > 1:
            words = np.frombuffer(json.dumps(record).encode(), np.uint8)
            with replacing(self._file) as file:
                np.savez(file, *on_host(tree), record=words, number=np.int64(number))
            return
        import orbax.checkpoint as ocp

        arrays: dict[str, Any] = {
            f"{i}": x for i, x in enumerate(on_host(tree)) if x.size
        }
        arrays["number"] = np.int64(number)  # a checkpoint without arrays is refused
        self._manager.save(
            number,
            args=ocp.args.Composite(
                record=ocp.args.JsonSave(record), arrays=ocp.args.StandardSave(arrays)
            ),
        )

    def record(self) -> dict[str, Any] | None:
        """The newest checkpoint's record, or None where there is no checkpoint."""
        if self._in_file():
            with np.load(self._file) as file:
                return json.loads(file["record"].tobytes())
        return self._read("Json", "record") if self.path.exists() else None

    def load(self, like: PyTree) -> PyTree:
        """Its arrays, in the structure of `like`."""
        if self._in_file():
            with np.load(self._file) as file:
                count = len(jax.tree.leaves(like))
                return from_host([file[f"arr_{i}"] for i in range(count)], like)
        arrays = self._read("Standard", "arrays")
        leaves = []
        for i, leaf in enumerate(jax.tree.leaves(like)):
            kept = f"{i}" in arrays  # orbax takes no array of size 0
            leaves.append(arrays[f"{i}"] if kept else np.zeros(leaf.shape, leaf.dtype))
        return from_host(leaves, like)

    @property
    def _file(self) -> Path:
        return self.path / "newest.npz"

    def _in_file(self) -> bool:
        """Whether the newest checkpoint is one of several processes'."""
        if not self._file.exists():
            return False
        step = self._manager.latest_step()
        with np.load(self._file) as file:
            return step is None or int(file["number"]) > step

    def _read(self, kind: str, item: str) -> Any:
        import orbax.checkpoint as ocp

        step = self._manager.latest_step()
        if step is None:
            return None
        read = {item: getattr(ocp.args, f"{kind}Restore")()}
        return self._manager.restore(step, args=ocp.args.Composite(**read))[item]

    def close(self) -> None:
        """Waits until all is written."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def remove(self) -> None:
        """Removes it, in one step: half of a checkpoint is none."""
        self.close()
        gone = self.path.with_name(f".{self.path.name}")
        shutil.rmtree(gone, ignore_errors=True)  # of a process killed in the next line
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
