"""Shadow models, trained and observed row by row, and kept on disk.

A trained row is keyed by its pipeline, its data and its number: more shadows, or other
attacks, retrain nothing. The data's way: keys and membership rows -> stages, mapped ->
`Published` on disk -> observers, mapped -> `Observation` on disk -> phi.
"""

import functools
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppds_jax.attacks.observe import Look, Observation, Questions
from ppds_jax.devices import Layout
from ppds_jax.harness import config, hosts
from ppds_jax.harness.progress import Progress
from ppds_jax.harness.source import code
from ppds_jax.harness.store import Store, complete, stack
from ppds_jax.harness.training import Batch, Trainer, size_of, stacked_shapes
from ppds_jax.mapping import Mapped, map_shadows
from ppds_jax.pipeline import Stage
from ppds_jax.privacy.keys import secret_key
from ppds_jax.types import Dataset, InputError, Published, PyTree


class Subject(NamedTuple):
    """A pipeline under attack, and how an attacker looks at each of its releases."""

    name: str
    config: Any  # whatever decides its results: part of its rows' identity
    stages: tuple[Stage, ...]
    observers: (
        Published  # for each release some views: tuples of Looks, an Observer last
    )
    guarantees: Published  # a Guarantee for each release, or None
    attacker: Any = None  # whatever else decides what the attacker sees


class Result(NamedTuple):
    """Of one subject: the observations of each release, stacked over models."""

    observations: dict[str, Observation]  # NumPy arrays with a leading axis of models
    published: Callable[[int], Published]  # what a model published


@dataclass(frozen=True)
class Shadows:
    """One private data set with its membership rows, on which subjects are trained.

    Attributes:
      data: the audited images; its `member` is not used.
      member: bool [m n], a row for each model.
      questions: the images on which every model is asked.
      seed: of row m's key, fold_in(key(seed), m).
      runtime: how to run.
      secret: whether rows are trained with keys from the operating system instead, of
        which none is stored, and so no checkpoint either: a model that is interrupted
        starts anew. What the attacker does follows from the seed all the same.
    """

    data: Dataset
    member: np.ndarray
    questions: Questions
    seed: int
    runtime: config.Runtime
    secret: bool = False

    def run(self, subject: Subject, done: Progress) -> Result:
        """Trains and observes what is not on disk yet; `done` counts finished work.

        The work of a subject is `cost(subject)` units.
        """
        load = self._train(subject, done)
        releases = _present(subject.observers)
        observations = {
            release: _merged(
                [
                    self._observe(subject, release, i, looks, load, done)
                    for i, looks in enumerate(views)
                ]
            )
            for release, views in releases.items()
        }
        return Result(observations, load)

    def cost(self, subject: Subject) -> int:
        """Units of work: one for each model's training, and one for each view of it."""
        views = sum(map(len, _present(subject.observers).values()))
        return len(self.member) * (1 + views)

    def _folder(self, subject: Subject) -> str:
        """Named after all that decides the subject's rows: never another's."""
        first = self.member[:1]  # the others follow from the same seed
        arrays = [np.asarray(x) for x in (self.data.image, self.data.label, first)]
        identity = config.identity(
            subject.config,
            (self.seed, self.secret),
            code("attacks", "metrics", "harness"),
            *arrays,
        )
        return re.sub(r"\W+", "-", subject.name) + "-" + identity

    def _train(self, subject: Subject, done: Progress) -> Callable[[int], Published]:
        """Trains what is missing; returns the function that loads a row."""
        path = self.runtime.work_dir / "trained" / self._folder(subject)
        store = Store(path, config.as_json(subject.config))
        trainer = Trainer(
            subject.name,
            subject.stages,
            self.data,
            self.runtime.layout,
            None if self.secret else path / "checkpoints",
            self.runtime.checkpoint_every,
            functools.partial(self._note, store),
        )

        def batch(rows: list[int]) -> Batch:
            keys = self._keys(rows)
            if self.secret:
                keys = jnp.stack([secret_key() for _ in rows])
            return Batch(rows, keys, self.member[np.array(rows)])

        def compute(rows: list[int]) -> Published:
            return trainer.train(rows, batch, done)

        def saved(count: int) -> None:
            trainer.forget()
            done(count)

        def fitting(rows: int) -> int:
            fit = trainer.fitting(rows)
            if self.runtime.layout.memory:  # is it enough for what comes after, too?
                self._foresee(subject, trainer.published, rows)
            return fit

        interrupted = functools.partial(trainer.interrupted, store.__contains__)
        self._complete(
            store, compute, done, saved, fitting, trainer.planned, interrupted
        )
        return functools.partial(store.load, like=trainer.published)

    def _foresee(self, subject: Subject, published: Published, rows: int) -> None:
        """Decides how many of `rows` models each look can take; an error, if none.

        Also where the observations of all models, kept on the host, are too many.
        """
        key, seen, layout = jax.eval_shape(jax.random.key, 0), 0, self.runtime.layout
        for release, views in _present(subject.observers).items():
            for looks in views:
                like = getattr(published, release)
                for i, look in enumerate(looks):
                    run, row = _mapped_look(look, layout), (key, like)
                    host = 2 * size_of(like)  # as they are loaded and stacked
                    run.chunk((self.questions, i), stacked_shapes(rows, row), host)
                    like = jax.eval_shape(look, key, like, self.questions)
                seen += size_of(like) * len(self.member)
        free = layout.free()
        if layout.beside(seen) > free:
            raise InputError(
                f"memory={(layout.memory or 0) / 1e9:.3g}GB: what is seen of "
                f"{len(self.member)} models takes {seen / 1e9:.3g} GB, on each device "
                f"{layout.beside(seen) / 1e9:.3g} of {max(free, 0) / 1e9:.3g} that are "
                "left: allow more memory, or fewer models, images or signals"
            )

    def _observe(
        self,
        subject: Subject,
        release: str,
        view: int,
        looks: tuple[Look, ...],
        load,
        done,
    ) -> Observation:
        questions = [np.asarray(x) for x in jax.tree.leaves(self.questions)]
        seen = config.identity(
            (release, view), subject.attacker, code(*_ON_PHI), *questions
        )
        path = self.runtime.work_dir / "observed" / self._folder(subject)
        store = Store(path / f"{release}-{seen}")

        def compute(rows: list[int]) -> Observation:
            seen = stack(lambda row: getattr(load(row), release), rows)
            for i, look in enumerate(looks):
                run = _mapped_look(look, self.runtime.layout)
                seen = run((self.questions, i), (self._keys(rows), seen))
            return seen

        self._complete(store, compute, done)
        like = getattr(load(0), release)
        for look in looks:
            like = jax.eval_shape(look, jax.random.key(0), like, self.questions)
        seen = stack(lambda row: store.load(row, like), range(len(self.member)))
        _check_finite(subject, release, seen)
        return seen

    def _keys(self, rows: list[int]):
        base = jax.random.key(self.seed)
        return jax.vmap(lambda row: jax.random.fold_in(base, row))(jnp.array(rows))

    def _complete(
        self,
        store: Store,
        compute: Callable[[list[int]], PyTree],
        done: Progress,
        saved: Callable[[int], None] | None = None,
        fitting: Callable[[int], int] = lambda rows: rows,
        planned: Callable[[int], None] = lambda width: None,
        interrupted: Callable[[], list[list[int]]] = list,
    ) -> None:
        """Computes this process's share of the rows, and waits for the others."""
        layout, group = self.runtime.layout, hosts.current()

        def width(missing: int) -> int:
            size = layout.width(-(-missing // group.count))
            if layout.resolved.endswith("vmap") or layout.memory:
                size = fitting(size)  # or an error, before anything is trained
            return size

        def told(width: int) -> None:
            planned(width)
            if group.index == 0:
                self._note(store, layout.described(width))

        complete(
            store,
            len(self.member),
            compute,
            width=width,
            done=saved or done,
            found=done.found,
            layout=layout.described()
            | {"processes": group.count, "memory": layout.memory},
            planned=told,
            interrupted=interrupted,
            group=group,
        )

    def _note(self, store: Store, layout: dict[str, Any]) -> None:
        store.note(layout | {"processes": hosts.current().count})


def _check_finite(subject: Subject, release: str, seen: Observation) -> None:
    """Stops at the first model of which a NaN or an infinity is seen."""
    leaves = jax.tree.leaves(seen)
    for i, leaf in itertools.product(range(len(leaves[0])), leaves):
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf[i]).all():
            raise FloatingPointError(
                f"{subject.name}, {release}: model {i} is not finite; its training "
                "diverged: try a lower learning rate"
            )


# What works on observations only: a change there observes nothing anew.
_HOST = (
    "audit baselines canaries game guards lira rmia score shrunk sides vulnerability"
)
_ON_PHI = ("metrics", "harness", *(f"attacks/{name}.py" for name in _HOST.split()))


def _merged(views: list[Observation]) -> Observation:
    """One release's signals, and the accuracy of the first view that tells one."""
    phi = {name: x for view in views for name, x in view.phi.items()}
    accuracy = [view.accuracy for view in views if view.accuracy is not None]
    return Observation(phi, accuracy[0])


_ATTACKER = 2**31 - 1  # folded into a row's key for what the attacker does with it


@functools.cache
def _mapped_look(look: Look, layout: Layout) -> Mapped:
    def one(shared, row):
        questions, i = shared
        key, artefact = row
        key = jax.random.fold_in(jax.random.fold_in(key, _ATTACKER), i)
        return look(key, artefact, questions)

    return map_shadows(one, layout)


def _present(releases: Published) -> dict[str, Any]:
    return {name: x for name, x in releases._asdict().items() if x is not None}
