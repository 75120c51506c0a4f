"""Trains a batch of shadow models, stage by stage, in chunks of steps.

A chunk takes seconds. Between chunks it says how far it is, looks for NaN, writes
checkpoints, and stops where a signal asks it to. One compiled program serves chunks of
any size, and where they end changes no bit: on the same layout a resumed training
equals an uninterrupted one.
"""

import functools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ppds_jax.devices import Layout
from ppds_jax.fit import finite
from ppds_jax.harness import signals
from ppds_jax.harness.checkpoints import Checkpoints
from ppds_jax.harness.progress import Progress, rate
from ppds_jax.mapping import Mapped, map_shadows
from ppds_jax.pipeline import Stage, run_stages
from ppds_jax.types import Dataset, InputError, Key, Published, PyTree

SECONDS = 5.0  # that one chunk of steps should take
COPIES = 3  # of a model on the host, at most: as it is published, saved, kept by orbax


class Batch(NamedTuple):
    """Models that are trained together, by their row's number; one may be repeated."""

    rows: list[int]
    keys: Key  # [m]
    member: np.ndarray  # bool [m n]


class Place(NamedTuple):
    """How far a batch is: so many stages are done, and so many steps of the next."""

    stage: int = 0
    step: int = 0
    published: Published = Published()
    state: PyTree = None  # of the next stage, once it has made a step


class Trainer:
    """Trains batches of one pipeline's models.

    Attributes:
      name: of the pipeline, in messages.
      stages: its stages.
      data: what all models train on; its `member` is not used.
      layout: how models lie on devices.
      folder: where checkpoints are written; None writes none.
      every: seconds of training between two checkpoints.
      noted: told of the layout from here on, where memory changes it in a run.
    """

    def __init__(
        self,
        name: str,
        stages: tuple[Stage, ...],
        data: Dataset,
        layout: Layout,
        folder: Path | None = None,
        every: float = 60.0,
        noted: Callable[[dict[str, Any]], None] = lambda layout: None,
    ):
        self.name, self.stages, self.data, self.layout = name, stages, data, layout
        self.folder, self.every, self.noted = folder, every, noted
        self._speed: dict[Any, float] = {}  # steps a second, by stage
        self._steps = sum(stage.num_steps for stage in stages)
        self._last: Checkpoints | None = None  # of the batch trained last
        self.planned(0)

    def planned(self, width: int) -> None:
        """From here on so many models go in one call; 0: as many as fit."""
        self._plan = width
        self._width = width  # of the last call

    @functools.cached_property
    def published(self) -> Published:
        """Shapes and types of what one model publishes."""
        run = lambda key, data: run_stages(key, self.stages, data)
        return jax.eval_shape(run, jax.random.key(0), self.data)

    def fitting(self, rows: int, joined: bool = False) -> int:
        """How many of `rows` models every stage can train in one call.

        With all of the others' as well, where their results are `joined`.
        """
        host = COPIES * size_of(self.published)
        key = jax.eval_shape(lambda: jax.random.key(0))
        fit = rows
        for i, stage in enumerate(self.stages):
            row: tuple = key, self.data.member, self._until(i)
            shared = self._shared(i)
            begins = _begins(stage.begin, self.layout)
            like = stacked_shapes(rows if joined else fit, row)
            fit = min(fit, begins.chunk(shared, like, host, joined))
            if stage.advance is not None:
                row = *row, getattr(self.published, stage.release)
                run = _advances(stage.advance, self.layout)
                ends = 0, stage.num_steps
                like = stacked_shapes(rows if joined else fit, row)
                fit = min(fit, run.chunk((*shared, *ends), like, host, joined))
        return fit if joined or fit == rows else self.fitting(fit)  # and all anew

    def train(
        self, rows: list[int], batch: Callable[[list[int]], Batch], report: Progress
    ) -> Published:
        """Trains some models from their newest checkpoint on, or from the start.

        Args:
          rows: the models.
          batch: makes the arrays of such rows.
          report: told of work under way, in models.

        Raises:
          FloatingPointError: a model that is not finite: of its batch nothing is kept.
          Stopped: a signal came; what was trained is in a checkpoint.
        """
        at, kept, mine, most = Place(), None, rows, self._most(len(rows))
        if self.folder is not None:
            name = f"{rows[0]:05d}-{rows[-1]:05d}"
            kept = self._last = Checkpoints(self.folder / name)
            mine, at, most = self._newest(kept, rows, most)
        saved = time.monotonic()
        try:
            with signals.held() as stopping:
                places = self._places(batch(mine), at, most, report)
                for at in places:
                    stop = stopping()
                    due = stop or time.monotonic() - saved >= self.every
                    if kept is not None and due:
                        self._save(kept, mine, at)
                        saved = time.monotonic()
                    if stop:
                        break  # and out, by `Stopped`
        finally:
            if kept is not None:
                kept.close()
        if mine == rows:
            return at.published
        order = np.array([mine.index(row) for row in rows])
        return jax.tree.map(lambda x: x[order], jax.device_get(at.published))

    def forget(self) -> None:
        """The models trained last are saved: their checkpoint has served."""
        if self._last is not None:
            self._last.remove()

    def interrupted(self, saved: Callable[[int], bool]) -> list[list[int]]:
        """The batches that go on from a checkpoint.

        Others are removed: one that is not complete, and one of models that are all
        `saved`, as a process leaves it that is killed before `forget`.
        """
        if self.folder is None:
            return []
        found: list[list[int]] = []
        folders = filter(Path.is_dir, self.folder.glob("*"))
        for name in sorted({path.name.removeprefix(".") for path in folders}):
            kept = Checkpoints(self.folder / name)
            record = kept.record()
            kept.close()
            if record is None or all(map(saved, record["rows"])):
                kept.remove()
            else:
                found.append(list(dict.fromkeys(record["rows"])))
        return found

    def _most(self, rows: int) -> int:
        """How many of `rows` models go in one call: as planned, or as many as fit."""
        if rows <= self._plan:
            return self._plan
        try:
            return self.fitting(rows, joined=True)
        except InputError as error:
            raise InputError(
                f"{error}. {rows} models go on together from a checkpoint: without "
                f"{self.folder} and plan.json beside it, they are trained anew, fewer "
                "at once"
            ) from None

    def _places(
        self, batch: Batch, at: Place, most: int, report: Progress
    ) -> Iterator[Place]:
        """Trains from `at` to the end; yields wherever it can stop and go on."""
        for i in range(at.stage, len(self.stages)):
            stage, shared = self.stages[i], self._shared(i)
            models = batch.keys, batch.member, at.published
            step, state = at.step, at.state
            if not step:
                begins = _begins(stage.begin, self.layout)
                state, sound = begins(shared, models, most)
                self._went(begins.used)
                self._check(batch, stage, sound)
            while stage.advance is not None and step < stage.num_steps:
                started = time.monotonic()
                advances = _advances(stage.advance, self.layout)
                last = min(step + self._chunk(stage), stage.num_steps)
                run = lambda state, first, last, a=advances, s=shared, m=models: a(
                    (*s, first, last), (*m, state), most
                )
                after, sound = run(state, step, last)
                self._went(advances.used)
                self._check(batch, stage, sound, run, state, step, last)
                speed = (last - step) / (time.monotonic() - started)
                compiled = stage.advance in self._speed  # before this chunk
                self._speed[stage.advance] = speed
                state, step = after, last
                self._report(batch, i, step, compiled * speed, report)
                if step < stage.num_steps:
                    yield Place(i, step, at.published, state)
            at = Place(i + 1, 0, stage.publish(at.published, state))
            yield at

    def _went(self, width: int) -> None:
        """So many models went in the last call."""
        if self._width not in (0, width):
            self.noted(self._described(width))
        self._width = width

    def _chunk(self, stage: Stage) -> int:
        """Steps of the next chunk: one, until it is known how fast they are."""
        return max(1, int(SECONDS * self._speed.get(stage.advance, 0)))

    def _report(self, batch: Batch, i: int, step: int, speed: float, report) -> None:
        before = sum(stage.num_steps for stage in self.stages[:i])
        share = (before + step) / self._steps
        stage = self.stages[i]
        note = f"{self.name}, {stage.release}: step {step:,} of {stage.num_steps:,}"
        models = len(set(batch.rows))
        if speed:  # of all models together
            note += f", {rate(speed * models, 'steps')}"
        report.under_way(share * models, note)

    def _check(self, batch: Batch, stage: Stage, sound, run=None, *chunk) -> None:
        """Stops at the first model that is not sound, and says at which step it broke.

        The chunk is run again, its half, a quarter ...: a step replayed is the same.
        """
        sound = np.asarray(jax.device_get(sound))
        if sound.all():
            return
        place = int(np.argmin(sound))
        when = "as it begins"
        if run is not None:
            state, first, last = chunk
            total = f"{stage.num_steps:,}"
            while last - first > 1:
                middle = (first + last) // 2
                half, sound = run(state, first, middle)
                if jax.device_get(sound)[place]:
                    state, first = half, middle
                else:
                    last = middle
            when = f"after step {last:,} of {total}"
        raise FloatingPointError(
            f"{self.name}, {stage.release}: model {batch.rows[place]} is not finite "
            f"{when}: its training diverged (try a lower learning rate), or a private "
            "step failed; nothing of it is kept"
        )

    def _shared(self, i: int) -> tuple:
        return self.data.image, self.data.label, self.stages[i].public, i

    def _until(self, i: int) -> Published:
        """Shapes of what a model has published before stage i."""
        published = Published()
        for stage in self.stages[:i]:
            state = getattr(self.published, stage.release)
            published = stage.publish(published, state)
        return published

    def _save(self, kept: Checkpoints, rows: list[int], at: Place) -> None:
        done = sum(stage.num_steps + 1 for stage in self.stages[: at.stage])
        layout = self._described(self._width)
        record = {"rows": rows, "stage": at.stage, "step": at.step, "layout": layout}
        kept.save(done + at.step, record, (at.published, at.state))

    def _described(self, width: int) -> dict[str, Any]:
        """The layout that last bits depend on: in a vmap also on its width."""
        vmapped = self.layout.resolved.endswith("vmap")
        return self.layout.described(width if vmapped else None)

    def _newest(
        self, kept: Checkpoints, rows: list[int], most: int
    ) -> tuple[list[int], Place, int]:
        """The rows and the place of a checkpoint of these rows; else the start.

        And how many go in one call: as in the run that wrote it, if fewer went there.
        """
        record = kept.record()
        if record is None or set(record["rows"]) != set(rows):
            kept.remove()
            return rows, Place(), most
        rows, before = record["rows"], record["layout"]
        now = self._described(self.layout.even(len(rows), most))
        each = "width_per_device"
        if now | {each: 0} == before | {each: 0} and before[each] < now[each]:
            now, most = before, before[each] * self.layout.shape[0]
        if before != now:
            names = [name for name in now if before.get(name) != now[name]]
            other = ", ".join(f"{n} {before.get(n)}, now {now[n]}" for n in names)
            warnings.warn(
                f"{self.name}: goes on from a checkpoint made on another layout "
                f"({other}): the last bits will differ",
                RuntimeWarning,
                stacklevel=3,
            )
        stage, step = record["stage"], record["step"]
        state = None
        if step:
            state = getattr(self.published, self.stages[stage].release)
        like = stacked_shapes(len(rows), (self._until(stage), state))
        return rows, Place(stage, step, *kept.load(like)), most


# Cached, so that pipelines with a stage in common compile it once.


@functools.cache
def _begins(begin: Callable, layout: Layout) -> Mapped:
    """A stage's first state over rows, and whether it is finite."""

    def one(shared, row):
        image, label, public, i = shared
        key, member, published = row
        data = Dataset(image, label, member)
        state = begin(jax.random.fold_in(key, i), data, published, public)
        return state, finite(state)

    return map_shadows(one, layout, steps=False)


@functools.cache
def _advances(advance: Callable, layout: Layout) -> Mapped:
    """A stage's steps over rows, and whether the state after them is finite."""

    def one(shared, row):
        image, label, public, i, first, last = shared
        key, member, published, state = row
        data, key = Dataset(image, label, member), jax.random.fold_in(key, i)
        state = advance(key, state, data, published, public, first, last)
        return state, finite(state)

    return map_shadows(one, layout)


def size_of(tree: PyTree) -> int:
    """Bytes of its arrays."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def stacked_shapes(rows: int, tree: PyTree) -> PyTree:
    """Shapes and types of `rows` such trees."""
    like = lambda x: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype)
    return jax.tree.map(like, tree)
