"""One experiment on many hosts: each process trains its own share of the models.

The processes share `work_dir`, and no array travels between them: each trains on its
own devices, and its rows on disk are what the others wait for. Process 0 decides which
rows are missing; it alone attacks, writes tables and prints. On disk, for each start:

    hosts/TOKEN/start.json      who runs what; that all can read it is checked first
    hosts/TOKEN/plan-0000.json  the rows that one store lacks, and how many at once
    hosts/TOKEN/stop-1.json     process 1 has stopped, and why: the others stop too
    hosts/TOKEN/end             process 0 has finished

A process that stops (SIGTERM: exit code 75) ends all, at their next safe point, with
its exit code. One that dies without a word is missed by `jax.distributed`: that aborts
the others (code 134) within two minutes. The same command on all goes on from there.
"""

import atexit
import contextlib
import itertools
import json
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ppds_jax import devices
from ppds_jax.harness import signals
from ppds_jax.harness.store import Group, write_json
from ppds_jax.types import InputError

if TYPE_CHECKING:
    from ppds_jax.harness.config import Runtime

PATIENCE = 10  # seconds that a shared folder may take to show a new file


class Left(BaseException):
    """A process whose share is done, on its way out with exit code 0."""


class Hosts(Group):
    """The processes of one start, which know each other by a folder."""

    def __init__(self, index: int, count: int, folder: Path):
        self.index, self.count, self.folder = index, count, folder
        self._plans = itertools.count()
        self.stopped: dict[str, Any] | None = None  # by whom, and why

    def agree(self, decide: Callable[[], Any]) -> Any:
        path = self.folder / f"plan-{next(self._plans):04d}.json"
        if self.index == 0:
            write_json(path, decide())
        self.wait(path.exists)
        return json.loads(path.read_text())

    def wait(self, ready: Callable[[], bool]) -> None:
        pause = 0.01
        while not ready():
            signals.check()
            time.sleep(pause)  # a signal interrupts it, and so does `watch`
            pause = min(1.5 * pause, 1.0)

    def watch(self, over: threading.Event) -> None:
        """Stops this process when another one has stopped. Runs in a thread."""
        while not over.wait(0.5):
            for path in self.folder.glob("stop-*.json"):
                if path.name != self._mark.name:
                    self.stopped = json.loads(path.read_text())
                    return signals.stop()

    @property
    def _mark(self) -> Path:
        return self.folder / f"stop-{self.index}.json"

    def tell(self, name: str, code: int) -> None:
        who = f"process {self.index} ({name})"
        write_json(self._mark, {"name": who, "code": code})


_current = Group()


def current() -> Group:
    """The processes that this one works with."""
    return _current


def only_first() -> None:
    """What follows is done by process 0: the others wait for its end, and leave here.

    Raises:
      Left: on another process than 0, when process 0 has finished.
    """
    if isinstance(_current, Hosts) and _current.index:
        _current.wait((_current.folder / "end").exists)
        raise Left


@contextlib.contextmanager
def together(runtime: "Runtime", identity: str) -> Iterator[None]:
    """Starts `jax.distributed` if the runtime asks for it; then `current` is its group.

    `identity` names the work, which must be the same on all processes.

    Raises:
      InputError: no cluster, different work, or no common `work_dir`.
      Stopped: with the exit code of another process that has stopped.
    """
    global _current
    if not runtime.distributed:
        yield
        return
    _start(runtime)
    try:
        hosts = _current = _meet(runtime.work_dir, identity)
        with _telling(hosts):
            yield
    except BaseException as error:
        if not isinstance(error, Left):
            atexit.register(_leave, _code(error))
        raise
    finally:
        _current = Group()
        jax.distributed.shutdown()  # waits for all
    if hosts.index == 0:
        shutil.rmtree(hosts.folder, ignore_errors=True)


@contextlib.contextmanager
def _telling(hosts: Hosts) -> Iterator[None]:
    """Tells the others how the work within ends, and ends it when one of them stops."""
    over = threading.Event()
    threading.Thread(target=hosts.watch, args=(over,), daemon=True).start()
    try:
        yield
        if hosts.index == 0:
            (hosts.folder / "end").touch()
    except Left:
        raise
    except signals.Stopped as stop:
        if hosts.stopped:
            stop.name, stop.code = hosts.stopped["name"], hosts.stopped["code"]
        else:
            hosts.tell(stop.name, stop.code)
        raise
    except BaseException as error:
        hosts.tell(f"{type(error).__name__}: {error}", _code(error))
        raise
    finally:
        over.set()


def _code(error: BaseException) -> int:
    """The exit code that `config.main` gives to an exception."""
    if isinstance(error, signals.Stopped):
        return error.code
    return 2 if isinstance(error, InputError) else 1


def _leave(code: int) -> None:
    """Ends the process without the rest of its clean-up.

    After an exception JAX's sometimes crashes in a distributed run (segmentation fault
    in jax 0.10.2), and its exit code is what a restart loop goes by.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _start(runtime: "Runtime") -> None:
    devices.prepare(runtime.layout)
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours
    try:
        with signals.deadly():  # no Python runs while it waits, up to minutes
            jax.distributed.initialize(
                runtime.coordinator, runtime.num_processes, runtime.process_id
            )
    except ValueError as error:
        raise InputError(
            f"distributed: {error} Neither SLURM nor a TPU pod is found here: give "
            "--coordinator HOST:PORT --num-processes N --process-id I"
        ) from None


def _meet(work_dir: Path, identity: str) -> Hosts:
    """Agrees on a folder for this start, and checks that all processes see it."""
    index, count = jax.process_index(), jax.process_count()
    mine = np.array([secrets.randbits(31), int(identity[:7], 16)], np.int32)
    told = _gathered(mine)
    other = [i for i in range(count) if told[i, 1] != told[0, 1]]
    if other:
        raise InputError(
            f"distributed: processes {other} were given another config than process "
            "0, or run other code: start the same command everywhere"
        )
    folder = work_dir / "hosts" / f"{told[0, 0]:08x}"
    start = folder / "start.json"
    if index == 0:
        write_json(start, {"processes": count, "identity": identity})
    deadline = time.monotonic() + PATIENCE
    while not start.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    seen = _gathered(np.array([start.exists()], np.int32))
    blind = [i for i in range(count) if not seen[i, 0]]
    if blind:
        raise InputError(
            f"work_dir={work_dir}: processes {blind} do not see there what process 0 "
            "wrote: give a folder that all hosts share (NFS, Filestore, Lustre)"
        )
    return Hosts(index, count, folder)


def _gathered(mine: np.ndarray) -> np.ndarray:
    """[processes, values]"""
    told = multihost_utils.process_allgather(mine)
    return np.asarray(told).reshape(jax.process_count(), -1)
