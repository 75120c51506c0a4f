"""Which generator makes images that a classifier can learn from, at which epsilon?

Every generator of the registry is fitted to all training images at each epsilon, some
seeds each; classifiers are trained on synthetic images alone and tested on real ones.
Beside the accuracy stand how far the synthetic images are from real ones, what they
took to make, and published numbers where there are some. MNIST and Fashion-MNIST, as
.npz files, are yours to bring.

    python -m experiments.generators smoke                    8x8 digits
    python -m experiments.generators small --data mnist.npz   hours on 2 cores
    python -m experiments.generators accelerator --data mnist.npz

`--methods DPMerf ClassMean` restricts it. Each combination of method, epsilon and seed
is kept as soon as it is done, whatever else was asked for with it, and what is being
trained every minute: a command that was killed goes on. As many are under way as there
are devices, on a CPU one on each core; their seconds are those of a busy machine.

What to expect: images of the memoriser, which are the private ones, train a network to
nearly what all real ones do (20,000 draws of MNIST's: 0.975, within 0.01); those of the
independent generator teach nothing (below 0.25). Everything else lies between.

A preset of a method for a data set, `PRESETS` in its file, takes the place of its
defaults. Presets were chosen by looking at accuracies; epsilon does not cover that.
"""

import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from ppds_jax import devices
from ppds_jax.classifiers import CNN, MLP
from ppds_jax.data.load import Images, load
from ppds_jax.fit import fit
from ppds_jax.generators import (
    ALL,
    ClassMean,
    DPMerf,
    Independent,
    Memoriser,
    PrivateEvolution,
)
from ppds_jax.harness import config
from ppds_jax.harness.plots import sample_grids, ten_of_each
from ppds_jax.harness.run import Row, Run
from ppds_jax.harness.source import code, code_of
from ppds_jax.harness.store import replacing, write_json
from ppds_jax.harness.trials import FREE, Bench, Cell, Judging
from ppds_jax.harness.utility import accuracies, table
from ppds_jax.metrics.fidelity import EXTRACTORS, frechet
from ppds_jax.pipeline import check_generator
from ppds_jax.privacy.accounting import check_budget, promises
from ppds_jax.sampling.balanced import Balanced
from ppds_jax.types import Budget, InputError


@dataclass(frozen=True, kw_only=True)
class Config(Judging):
    """What is compared, besides what `Judging` says.

    Attributes:
      methods: DPMerf, VAE(epochs=5), my_file.py:MyGenerator ... One whose options are
        all at their defaults takes its preset for the data set.
      epsilons: budgets of each private method; others are run once.
      seeds: one run of each method and epsilon with each.
      patience: seconds; after a seed that took longer to train and draw, a method gets
        no other at that epsilon.
      preset: ending of the names of presets that go before the others: "published" for
        those with a paper's sizes, where a method has them; "none" for no presets.
    """

    methods: Annotated[tuple[Any, ...], config.methods_from(ALL)] = tuple(
        cls() for cls in ALL
    )
    epsilons: tuple[float, ...] = (FREE, 10.0, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    patience: float = 300.0
    preset: str = ""


PRESETS: dict[str, tuple[str, Config]] = {
    "smoke": (
        "8x8 digits: shows that everything runs",
        Config(
            data="digits",
            methods=(
                DPMerf(features=200, num_steps=100),
                PrivateEvolution(simulator="digits", num_candidates=20),
                ClassMean(),
                Memoriser(),
                Independent(),
            ),
            epsilons=(FREE, 10.0),
            seeds=(0, 1),
            classifiers=(CNN(epochs=5), MLP(epochs=10)),
            num_compared=300,
        ),
    ),
    "small": (
        "a whole data set on a CPU",
        Config(
            data="mnist.npz",
            classifiers=(CNN(epochs=6), MLP(epochs=6), MLP(hidden=(), epochs=6)),
            num_images=20_000,
            patience=100.0,
        ),
    ),
    "accelerator": (
        "sizes as published, for the methods that have such presets",
        Config(
            data="mnist.npz",
            patience=FREE,
            classifiers=(
                CNN(epochs=10, width=32, hidden=128, pool=True),
                MLP(epochs=10, hidden=(512,)),
                MLP(hidden=(), epochs=10),
            ),
            num_compared=10_000,
            preset="published",
        ),
    ),
}


def run(cfg: Config, runtime: config.Runtime | None = None) -> list[Row]:
    """Fits and compares all methods, or serves the rows of a finished run.

    Raises:
      InputError: anything wrong with the config or the data, before any training.
      FloatingPointError: a training that diverged; all others are finished and kept.
    """
    runtime = runtime or config.Runtime()
    images = _checked(cfg)
    source = Path(__file__).read_text()
    here = Run(runtime, "generators", cfg, code(), source, *images[1:5])
    rows = here.rows()
    if rows is None:
        devices.prepare(threads=True)
        rows = _compute(cfg, images, here, runtime)
    with replacing(here.path / "table.md") as file:
        file.write((table(rows, Path(cfg.data).stem) + "\n").encode())
    with replacing(here.path / "accuracy.png") as file:
        file.write(accuracies(rows, Path(cfg.data).stem))
    print((here.path / "table.md").read_text())
    for name in ("rows.csv", "table.md", "accuracy.png", "samples.png"):
        print(here.path / name)
    return rows


def _checked(cfg: Config) -> Images:
    """The data, after refusing what would fail later by the name of the field."""
    for value in cfg.epsilons:
        check_budget(Budget(value, cfg.delta))
    for name in ("methods", "epsilons", "seeds", "classifiers"):
        values = getattr(cfg, name)
        if not values or len(set(map(str, values))) < len(values):
            raise InputError(f"{name}={values}: must be 1 or more, all different")
    if min(cfg.seeds) < 0 or max(cfg.seeds) >= 2**31:
        raise InputError(f"seeds={cfg.seeds}: whole numbers from 0 to 2^31 - 1")
    if cfg.extractor not in EXTRACTORS:
        raise InputError(
            f"extractor={cfg.extractor!r}: use one of {', '.join(EXTRACTORS)}"
        )
    if cfg.num_compared < 10:
        raise InputError(f"num_compared={cfg.num_compared}: must be at least 10")
    if cfg.data.endswith(".npz") and not Path(cfg.data).expanduser().is_file():
        raise InputError(
            f"data={cfg.data!r}: no such file; this package does not bring it. Pass "
            "--data PATH.npz, a file with x_train, y_train, x_test, y_test"
        )
    return load(cfg.data)


class Group(NamedTuple):
    """All seeds of a method under a budget: what one device does in turn."""

    name: str
    method: Any
    epsilon: float
    stamp: tuple[str, ...]  # of the code and the data that its results depend on


class Found(NamedTuple):
    """What a group gave: rows, ten images of each class for each, what went wrong."""

    rows: list[Row]
    sheets: list[np.ndarray]
    failed: list[str]


def _compute(cfg: Config, images: Images, here: Run, runtime) -> list[Row]:
    bench = Bench(cfg, images, runtime.checkpoint_every)
    kept = runtime.work_dir / "generated"
    methods = [preset(method, cfg) for method in cfg.methods]
    here.start()
    parts = [fit, load, Balanced, frechet, check_generator, *map(type, cfg.classifiers)]
    stamp = inspect.getsource(Bench), config.identity(*images[1:5])
    groups = [
        Group(name, method, value, (code_of(type(method), *parts), *stamp))
        for name, method in zip(config.names(methods), methods, strict=True)
        for value in _budgets(cfg, bench, method)
    ]
    work = lambda group: _group(cfg, bench, group, kept)
    found = devices.side_by_side(work, groups)
    if failed := [text for one in found for text in one.failed]:
        raise FloatingPointError("; ".join(failed))
    flat = images.x_train, images.y_train
    pictures = {"private images": ten_of_each(*flat, images.num_classes)}
    for group, one in zip(groups, found, strict=True):
        end = f", ε {group.epsilon:g}" if group.epsilon != FREE else ""
        pictures[group.name + end] = one.sheets[0]
    with replacing(here.path / "samples.png") as file:
        file.write(sample_grids(pictures))
    rows = [row for one in found for row in one.rows]
    here.finish(rows)
    return rows


def _budgets(cfg: Config, bench: Bench, method: Any) -> tuple[float, ...]:
    """Those that make a difference to a method."""
    return cfg.epsilons if promises(bench.made(method, 10.0).guarantee) else (FREE,)


def _group(cfg: Config, bench: Bench, group: Group, kept: Path) -> Found:
    """One seed after the other; a single one where that took long."""
    name, method, value, stamp = group
    found = Found([], [], [])
    for seed in cfg.seeds:
        cell = Cell(method, value, seed)
        place = kept / config.identity(cell, bench.settings, *stamp)
        try:
            row, sheet = _served(place, lambda c=cell, p=place: bench.row(c, p))
        except FloatingPointError as error:
            found.failed.append(f"{name}, epsilon {value}: {error}")
            continue
        found.rows.append({"method": name, **row})
        found.sheets.append(sheet)
        took = row["train_seconds"] + row["num_images"] / row["images_per_second"]
        if took > cfg.patience:
            break
    return found


def preset(method: Any, cfg: Config) -> Any:
    """What the method's file has for the data set, if the method is at its defaults."""
    if cfg.preset == "none" or config.describe(method) != type(method).__name__:
        return method
    known = getattr(sys.modules[type(method).__module__], "PRESETS", {})
    stem = Path(cfg.data).stem
    found = known.get(f"{stem}_{cfg.preset}", known.get(stem))
    return found if type(found) is type(method) else method


def _served(place: Path, compute: Callable) -> tuple[Row, np.ndarray]:
    """A cell's row and its ten images of each class, from disk if it is done."""
    done = place.with_suffix(".json")
    if not done.exists():
        row, sheet = compute()
        with replacing(place.with_suffix(".npz")) as file:
            np.savez_compressed(file, sheet=sheet)
        write_json(done, row)
    with np.load(place.with_suffix(".npz")) as file:
        return json.loads(done.read_text()), file["sheet"]


if __name__ == "__main__":
    config.main(run, PRESETS, ignores=("mode", "mesh", "at_once", "memory"))
