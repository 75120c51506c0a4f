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
from ppds_jax.harness.store import Store, complete, plan, stack
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


class View(NamedTuple):
    """Some looks at a release, one on what the other saw, and where that is kept."""

    release: str
    looks: tuple[Look, ...]
    store: Store


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
        views = self._views(subject)
        trainer, store = self._trainer(subject)
        training = self._planning(trainer.fitting)
        training["interrupted"] = lambda: trainer.interrupted(store.__contains__)
        plan(store, len(self.member), **training)
        for view in views:  # before anything is trained
            fitting = functools.partial(self._seeing, views, trainer.published, view)
            plan(view.store, len(self.member), **self._planning(fitting))
        load = self._train(trainer, store, training, done)
        seen: dict[str, list[Observation]] = {}
        for view in views:
            observed = self._observe(subject, trainer.published, view, load, done)
            seen.setdefault(view.release, []).append(observed)
        return Result({name: _merged(parts) for name, parts in seen.items()}, load)

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

    def _views(self, subject: Subject) -> list[View]:
        """Of all releases that somebody looks at."""
        questions = [np.asarray(x) for x in jax.tree.leaves(self.questions)]
        path = self.runtime.work_dir / "observed" / self._folder(subject)
        found = []
        for release, views in _present(subject.observers).items():
            for i, looks in enumerate(views):
                seen = config.identity(
                    (release, i), subject.attacker, code(*_ON_PHI), *questions
                )
                found.append(View(release, looks, Store(path / f"{release}-{seen}")))
        return found

    def _trainer(self, subject: Subject) -> tuple[Trainer, Store]:
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
        return trainer, store

    def _train(
        self, trainer: Trainer, store: Store, planning: dict[str, Any], done: Progress
    ) -> Callable[[int], Published]:
        """Trains what is missing; returns the function that loads a row."""

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

        self._complete(store, compute, planning, saved, done.found, trainer.planned)
        return functools.partial(store.load, like=trainer.published)

    def _seeing(
        self, views: list[View], published: Published, view: View, rows: int
    ) -> int:
        """How many of `rows` models all looks of a view can take in one call.

        Raises:
          InputError: too little memory for one, or for what is seen of all models,
            which is kept on the host.
        """
        key, layout = jax.eval_shape(jax.random.key, 0), self.runtime.layout
        like, fit = getattr(published, view.release), rows
        for i, look in enumerate(view.looks):
            host = 2 * size_of(like)  # as they are loaded and stacked
            given = (self.questions, i), stacked_shapes(fit, (key, like))
            fit = _mapped_look(look, layout).chunk(*given, host, joined=False)
            like = jax.eval_shape(look, key, like, self.questions)
        if fit < rows:
            return self._seeing(views, published, view, fit)  # and all anew
        each = sum(size_of(self._seen(published, view)) for view in views)
        seen, free = each * len(self.member), layout.free()
        if layout.memory and layout.beside(seen) > free:
            raise InputError(
                f"memory={layout.memory / 1e9:.3g}GB: what is seen of "
                f"{len(self.member)} models takes {seen / 1e9:.3g} GB, on each device "
                f"{layout.beside(seen) / 1e9:.3g} of {max(free, 0) / 1e9:.3g} that are "
                "left: allow more memory, or fewer models, images or signals"
            )
        return fit

    def _seen(self, published: Published, view: View) -> Observation:
        """Shapes and types of what is seen of one model."""
        key, like = jax.eval_shape(jax.random.key, 0), getattr(published, view.release)
        for look in view.looks:
            like = jax.eval_shape(look, key, like, self.questions)
        return like

    def _observe(
        self, subject: Subject, published: Published, view: View, load, done
    ) -> Observation:
        layout, most = self.runtime.layout, 0

        def planned(width: int) -> None:
            nonlocal most
            most = width

        def compute(rows: list[int]) -> Observation:
            nonlocal most
            seen = stack(lambda row: getattr(load(row), view.release), rows)
            for i, look in enumerate(view.looks):
                run = _mapped_look(look, layout)
                seen = run((self.questions, i), (self._keys(rows), seen), most)
                if run.used != most:  # memory ran out
                    most = run.used
                    self._note(view.store, layout.described(most))
            return seen

        fitting = lambda rows: rows  # it is planned
        planning = self._planning(fitting)
        self._complete(view.store, compute, planning, done, done.found, planned)
        like = self._seen(published, view)
        seen = stack(lambda row: view.store.load(row, like), range(len(self.member)))
        _check_finite(subject, view.release, seen)
        return seen

    def _keys(self, rows: list[int]):
        base = jax.random.key(self.seed)
        return jax.vmap(lambda row: jax.random.fold_in(base, row))(jnp.array(rows))

    def _planning(self, fitting: Callable[[int], int]) -> dict[str, Any]:
        """What `plan` is to go by; `fitting` may lower the width."""
        layout, group = self.runtime.layout, hosts.current()

        def width(missing: int) -> int:
            size = layout.width(-(-missing // group.count))
            if layout.resolved.endswith("vmap") or layout.memory:
                size = fitting(size)  # or an error, before anything is trained
            return size

        kind = layout.described()
        kind |= {"processes": group.count, "memory": layout.memory}
        return {"width": width, "layout": kind, "group": group}

    def _complete(
        self,
        store: Store,
        compute: Callable[[list[int]], PyTree],
        planning: dict[str, Any],
        done: Callable[[int], None],
        found: Callable[[int], None],
        planned: Callable[[int], None],
    ) -> None:
        """Computes this process's share of the rows, and waits for the others."""

        def told(width: int) -> None:
            planned(width)
            if hosts.current().index == 0:
                self._note(store, self.runtime.layout.described(width))

        complete(
            store,
            len(self.member),
            compute,
            done=done,
            found=found,
            planned=told,
            **planning,
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
