"""How far a run is: a bar on a terminal, elsewhere a line now and then. Host only.

Nothing is said in the first seconds of a run. The lines come less and less often: a run
of ten hours has fewer than 200. They hold plain text, as a log file wants it.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from tqdm import tqdm

from ppds_jax.harness import signals

FIRST, OFTEN, RARELY = 30.0, 60.0, 300.0  # seconds up to, then between lines
GROWTH = 0.05  # of the time so far, between those two


class Progress:
    """Counts work, and says how fast it goes and how long it will take.

    Attributes:
      total: units of work in all.
      label: what a unit is.
      file: where to say it; by default standard error.
      clock: seconds that have passed.
    """

    def __init__(
        self,
        total: int,
        label: str,
        *,
        file: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.label = total, label
        self._file, self._clock = file or sys.stderr, clock
        self._found = self._done = self._part = 0.0
        self._note = ""
        self._start, self._due, self._lines = clock(), FIRST, 0
        shape = "{percentage:3.0f}%|{bar:24}| {desc}"
        self._bar = tqdm(
            total=total,
            file=self._file,
            bar_format=shape,
            delay=2,
            disable=None,
            leave=False,
        )

    def __call__(self, units: int) -> None:
        """So many units more are done."""
        self._done += units
        self._part, self._note = 0.0, ""
        self._show()

    def found(self, units: int) -> None:
        """So many were done before this run: they say nothing about its speed."""
        self._found += units
        self._show()

    def under_way(self, units: float, note: str = "") -> None:
        """Work worth so many units is done on some that are not; `note` says which."""
        self._part, self._note = units, note
        self._show()

    def text(self) -> str:
        """One line: the work done, its speed, the time left, what is under way."""
        fresh, passed = self._done + self._part, self._clock() - self._start
        done = min(self._found + fresh, self.total)
        share = done / max(self.total, 1)
        line = f"{self.label}: {int(done):,} of {self.total:,} ({int(100 * share)} %)"
        if fresh > 0 and passed > 0:
            speed = fresh / passed
            line += f", {rate(speed)}, {span((self.total - done) / speed)} left"
        return line + (f"; {self._note}" if self._note else "")

    def close(self) -> None:
        """Where lines were written, a last one for work that is all done."""
        self._bar.close()
        if self._lines and self._found + self._done >= self.total:
            passed = span(self._clock() - self._start)
            print(f"{self.label}: {self.total:,}, in {passed}", file=self._file)

    def _show(self) -> None:
        signals.check()
        if not self._bar.disable:
            self._bar.set_description_str(self.text(), refresh=False)
            self._bar.update(self._found + self._done + self._part - self._bar.n)
            return
        passed = self._clock() - self._start
        if passed >= self._due:
            print(self.text(), file=self._file, flush=True)
            self._due = passed + min(max(GROWTH * passed, OFTEN), RARELY)
            self._lines += 1


@contextmanager
def progress(total: int, label: str) -> Iterator[Progress]:
    """Progress up to `total` on standard error."""
    counted = Progress(total, label)
    try:
        yield counted
    finally:
        counted.close()


def rate(speed: float, unit: str = "") -> str:
    """Units a second, in words.

    >>> rate(4.06), rate(0.5), rate(0.001, "steps")
    ('4.1 a second', '30 a minute', '3.6 steps an hour')
    """
    unit = f" {unit}" if unit else ""
    for number, word in ((speed, "a second"), (60 * speed, "a minute")):
        if number >= 1:
            return f"{_brief(number)}{unit} {word}"
    return f"{_brief(3600 * speed)}{unit} an hour"


def span(seconds: float) -> str:
    """A time, in words.

    >>> span(59.2), span(4321), span(200_000)
    ('59 s', '1 h 12 min', '2 d 8 h')
    """
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 60:
        return f"{int(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def _brief(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
