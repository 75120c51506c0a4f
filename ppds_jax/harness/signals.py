"""Signals that end a process: first what has been computed is saved, then it stops.

SIGTERM and SIGUSR1 (how machines that may be taken away, and SLURM's `--signal`, say
so) end an experiment with exit code 75, from which a restart loop knows to go on;
SIGINT (Ctrl-C) ends it with 130. A second signal does not wait; the same one again
within a second is its echo: wrappers hand on what the whole process group got.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

GO_ON = 75  # EX_TEMPFAIL: the same command goes on from here
INTERRUPTED = 130
_WATCHED = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGUSR1"):  # not on every system
    _WATCHED.append(signal.SIGUSR1)


class Stopped(BaseException):
    """A signal on its way out. No `Exception`: nothing that goes on may catch it."""

    def __init__(self, number: int, hasty: bool = False):
        super().__init__(number)
        self.name = signal.Signals(number).name
        self.hasty = hasty  # it did not wait for what was being saved
        self.code = INTERRUPTED if number == signal.SIGINT else GO_ON


ECHO = 1.0  # seconds
_came: int | None = None  # the first signal since `watched` began
_when = 0.0  # it came
_held: list[int] | None = None  # signals that wait for the next safe point


def _arrived(number: int, frame: object) -> None:
    global _came, _when
    if number == _came and time.monotonic() - _when < ECHO:
        return
    if _came is None:
        _came, _when = number, time.monotonic()
    if _held is None or _held:
        raise Stopped(number, hasty=bool(_held))
    _held.append(number)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Within it the signals raise `Stopped`: at once, or where `held` lets them.

    Has no effect outside of a process's main thread.
    """
    global _came
    before = {}
    with contextlib.suppress(ValueError):
        for number in _WATCHED:
            before[number] = signal.signal(number, _arrived)
    try:
        yield
    finally:
        _came = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deadly() -> Iterator[None]:
    """Within it a signal ends the process at once: there is nothing to save yet."""
    with unmoved():
        with contextlib.suppress(ValueError):  # outside of the main thread
            for number in _WATCHED:
                signal.signal(number, signal.SIG_DFL)
        yield


@contextlib.contextmanager
def unmoved() -> Iterator[None]:
    """Whatever handles the signals before handles them after, whoever came between."""
    before = {number: signal.getsignal(number) for number in _WATCHED}
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # outside of the main thread
            for number, handler in before.items():
                signal.signal(number, handler)


def stop() -> None:
    """Sends this process a SIGTERM, unless a signal is stopping it already."""
    if _came is None:
        os.kill(os.getpid(), signal.SIGTERM)


def check() -> None:
    """Raises what a signal raised in vain: Python drops it within a destructor.

    Raises:
      Stopped: a signal came, and this process goes on all the same.
    """
    if _came is not None and _held is None:
        raise Stopped(_came)


@contextlib.contextmanager
def held() -> Iterator[Callable[[], bool]]:
    """Within it a first signal waits; yields whether one does. Then save, and leave.

    Inside another `held` it sees the signal that waits there, too.

    Raises:
      Stopped: on leaving, if a signal came.
    """
    global _held
    _held, outer = list(_held or []), _held
    waiting = _held
    try:
        yield lambda: bool(waiting)
    finally:
        _held = outer
    if waiting:
        raise Stopped(waiting[0])
