"""The referee: contestants in processes of their own, asked in turn, on chosen cores.

Each contestant is prepared (imports, data, compilation) before any clock runs. Then
rounds: in each, every contestant does its work once, the others being idle. What is
reported is the median over rounds of a ratio within a round, so that a machine that
slows down slows down both sides.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar

import numpy as np

# contestants are on the accelerator together: none may take most of its memory at once
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


@dataclass(frozen=True)
class Contestant:
    """Work to be timed.

    Attributes:
      place: "module:function" of this package; the function is called with `options`,
        prepares, and returns (work, facts): a function without arguments, and what is
        to be told about it.
      options: plain JSON values.
      cores: one process for each entry, pinned to these cores; None: all.
      units: how much work one call is, of whatever is reported per unit.
    """

    place: str
    options: Mapping[str, Any] = field(default_factory=dict)
    cores: tuple[tuple[int, ...] | None, ...] = (None,)
    units: float = 1.0


@dataclass(frozen=True)
class Result:
    """Seconds of each round, facts of the first process, and peak memory in GiB."""

    seconds: np.ndarray
    facts: dict[str, Any]
    memory: float
    units: float

    @property
    def per_unit(self) -> float:
        """Median seconds a unit."""
        return float(np.median(self.seconds)) / self.units


Name = TypeVar("Name", bound=Hashable)


def contest(contestants: Mapping[Name, Contestant], rounds: int) -> dict[Name, Result]:
    """Runs all contestants, `rounds` times in turn.

    Raises:
      RuntimeError: a process that ends early, with the end of what it said.
    """
    with ExitStack() as stack:
        teams: dict[Name, list[_Process]] = {}
        for name, one in contestants.items():
            teams[name] = [_Process(one, cores, stack) for cores in one.cores]
        for team in teams.values():
            for process in team:
                process.facts = process.answer()
        seconds: dict[Name, list[float]] = {name: [] for name in teams}
        for _ in range(rounds):
            for name, team in teams.items():
                start = time.perf_counter()
                for process in team:
                    process.say("go")
                for process in team:
                    process.answer()
                seconds[name].append(time.perf_counter() - start)
        results = {}
        for name, team in teams.items():
            for process in team:
                process.say("end")
            memory = [process.answer()["memory"] for process in team]
            results[name] = Result(
                np.array(seconds[name]),
                team[0].facts,
                sum(memory),
                contestants[name].units,
            )
    return results


def ratio(slower: Result, faster: Result) -> float:
    """How many times the seconds a unit of one are those of the other."""
    return float(
        np.median(slower.seconds / slower.units / (faster.seconds / faster.units))
    )


class _Process:
    def __init__(self, one: Contestant, cores: tuple[int, ...] | None, stack):
        command = [sys.executable, "-m", __name__, one.place, json.dumps(one.options)]
        self._process = subprocess.Popen(
            [*command, json.dumps(cores)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=SHARED | os.environ,
        )
        self.place = one.place
        self.facts: dict[str, Any] = {}
        stack.callback(self._end)

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """The next JSON line; what a library prints besides is passed over."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.place}: ended early, see what it printed")


def peak_memory() -> float:
    """Of this process so far, in GiB."""
    with suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 2**20
    # elsewhere than on Linux; there it would count what the parent had at the start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def pin(cores: Sequence[int] | None) -> None:
    """Keeps this process on some cores, where the system can."""
    if cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(cores))


def sleeper(seconds: float) -> tuple[Any, dict[str, Any]]:
    """A contestant by which the referee is tested."""
    return lambda: time.sleep(seconds), {"slept": seconds}


def _serve(place: str, options: str, cores: str) -> None:
    pin(json.loads(cores))
    module, function = place.split(":")
    work, facts = getattr(import_module(f"{__package__}.{module}"), function)(
        **json.loads(options)
    )
    work()  # compiles, fills caches
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        work()
        print("{}", flush=True)
    print(json.dumps({"memory": peak_memory()}), flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
