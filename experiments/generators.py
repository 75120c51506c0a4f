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
is kept as soon as it is done, whatever else was asked for with it: a command that was
killed goes on, and two with different `--seeds` share the work between two cores.

What to expect: images of the memoriser, which are the private ones, train a network to
nearly what all real ones do (20,000 of MNIST: 0.975, within 0.01); those of the
independent generator teach nothing (below 0.25). Everything else lies between.

A preset of a method for a data set, `PRESETS` in its file, takes the place of its
defaults. Presets were chosen by looking at accuracies; epsilon does not cover that.
"""

import inspect
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppds_jax import devices
from ppds_jax.classifiers import ALL as CLASSIFIERS
from ppds_jax.classifiers import CNN, MLP
from ppds_jax.data.batches import decode, in_blocks
from ppds_jax.data.load import Images, load
from ppds_jax.fit import fit, fit_chunks
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
from ppds_jax.harness.progress import progress
from ppds_jax.harness.run import Row, Run, environment
from ppds_jax.harness.source import code, code_of
from ppds_jax.harness.store import replacing, write_json
from ppds_jax.harness.utility import accuracies, table
from ppds_jax.metrics.fidelity import EXTRACTORS, features, frechet, precision_recall
from ppds_jax.pipeline import as_dataset, check_generator
from ppds_jax.privacy.accounting import NAMES, check_budget, epsilon, promises
from ppds_jax.privacy.keys import noted
from ppds_jax.sampling.balanced import Balanced
from ppds_jax.types import (
    Budget,
    Classifier,
    Dataset,
    DataSpec,
    Generator,
    InputError,
    Synthetic,
)

FREE = float("inf")
CHUNKS = 50  # looks of the progress bar at one training, at most


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is compared.

    Attributes:
      data: a data set (see `ppds_jax.data.load`); all its training images are used.
      methods: DPMerf, VAE(epochs=5), my_file.py:MyGenerator ... One that is given by
        its name alone takes its preset for the data set.
      epsilons: budgets of each private method; others are run once.
      delta: of the budget.
      seeds: one run of each method and epsilon with each.
      patience: seconds; a method that took longer to train and draw with the first seed
        gets no other.
      classifiers: trained on the synthetic images, the same for all methods.
      num_images: synthetic images; None: as many as there are private ones.
      num_compared: of them and of the test images, for the measures of fidelity.
      extractor: of the features on which these are computed.
      preset: ending of the names of presets that go before the others: "published" for
        those with a paper's sizes, where a method has them.
    """

    data: str
    methods: Annotated[tuple[Any, ...], config.methods_from(ALL)] = tuple(
        cls() for cls in ALL
    )
    epsilons: tuple[float, ...] = (FREE, 10.0, 1.0)
    delta: float = 1e-5
    seeds: tuple[int, ...] = (0, 1, 2)
    patience: float = 300.0
    classifiers: Annotated[tuple[Any, ...], config.methods_from(CLASSIFIERS)] = (
        CNN(epochs=3),
        MLP(epochs=3),
        MLP(hidden=(), epochs=3),
    )
    num_images: int | None = None
    num_compared: int = 5000
    extractor: str = "scattering"
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
        "sizes as published",
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


class Cell(NamedTuple):
    """One run: a method under a budget with a seed."""

    method: Any
    epsilon: float
    seed: int


class Drawn(NamedTuple):
    """What a fitted generator gave, and what that took."""

    images: Synthetic
    train_seconds: float
    images_per_second: float


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
        devices.prepare()
        rows = _compute(cfg, images, here, runtime.work_dir / "generated")
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


def _compute(cfg: Config, images: Images, here: Run, kept: Path) -> list[Row]:
    bench = Bench(cfg, images)
    methods = [preset(method, cfg) for method in cfg.methods]
    here.start()
    flat = images.x_train, images.y_train
    pictures = {"private images": ten_of_each(*flat, images.num_classes)}
    rows, failed = [], []
    stamp = inspect.getsource(Bench), config.identity(*images[1:5])
    parts = [fit, load, Balanced, frechet, check_generator, *map(type, cfg.classifiers)]
    names = config.names(methods)
    for name, method in zip(names, methods, strict=True):
        for cell in _cells(cfg, bench, method):
            made_by = code_of(type(method), *parts)
            place = kept / config.identity(cell, bench.settings, made_by, *stamp)
            try:
                row, sheet = _served(place, lambda cell=cell: bench.row(cell))
            except FloatingPointError as error:
                failed.append(f"{name}, epsilon {cell.epsilon}: {error}")
                continue
            took = row["train_seconds"] + row["num_images"] / row["images_per_second"]
            bench.seconds.setdefault((method, cell.epsilon), took)
            rows.append({"method": name, **row})
            title = name + (f", ε {cell.epsilon:g}" if cell.epsilon != FREE else "")
            pictures.setdefault(title, sheet)
    if failed:
        raise FloatingPointError("; ".join(failed))
    with replacing(here.path / "samples.png") as file:
        file.write(sample_grids(pictures))
    here.finish(rows)
    return rows


def preset(method: Any, cfg: Config) -> Any:
    """What the method's file has for the data set, if the method is at its defaults."""
    known = getattr(sys.modules[type(method).__module__], "PRESETS", {})
    stem = Path(cfg.data).stem
    found = known.get(f"{stem}_{cfg.preset}", known.get(stem))
    if method == type(method)() and type(found) is type(method):
        return found
    return method


def _cells(cfg: Config, bench: "Bench", method: Any) -> Iterator[Cell]:
    """All runs of a method: once for each epsilon where that makes a difference."""
    private = promises(bench.made(method, 10.0).guarantee)
    for value in cfg.epsilons if private else (FREE,):
        for seed in cfg.seeds:
            if bench.seconds.get((method, value), 0) <= cfg.patience:
                yield Cell(method, value, seed)


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


class Bench:
    """What all cells share: the data, and programs that are compiled once."""

    def __init__(self, cfg: Config, images: Images):
        self.cfg, self.images = cfg, images
        shape, count = images.x_train.shape[1:], len(images.x_train)
        self.spec = DataSpec(shape, images.num_classes, count)
        self.num_images = cfg.num_images or count
        member = jnp.ones(count, bool)
        self.data = Dataset(
            jnp.asarray(images.x_train), jnp.asarray(images.y_train), member
        )
        compared = cfg.num_compared, cfg.extractor
        self.settings = cfg.delta, cfg.classifiers, self.num_images, compared
        self.seconds: dict[tuple[Any, float], float] = {}
        self._programs = [self._program(c) for c in cfg.classifiers]

    def made(self, method: Any, value: float) -> Generator:
        return method.make(self.spec, Budget(value, self.cfg.delta))

    def row(self, cell: Cell) -> tuple[Row, np.ndarray]:
        """Fits, draws and measures one cell."""
        cfg, name = self.cfg, config.describe(cell.method)
        generator = self.made(cell.method, cell.epsilon)
        check_generator(name, generator, self.spec)
        drawn = self._drawn(f"{name}, epsilon {cell.epsilon:g}", generator, cell.seed)
        guarantee = noted(generator.guarantee, secret=False)
        private = promises(guarantee)
        key = jax.random.fold_in(jax.random.key(cell.seed), 2)
        row = {
            "config": name,
            "data": Path(cfg.data).name,
            "epsilon": config.as_json(epsilon(guarantee, cfg.delta)),
            "budget": config.as_json(cell.epsilon),
            "delta": cfg.delta,
            "neighbours": NAMES[guarantee.neighbours] if private else "",
            "notes": "; ".join(guarantee.notes),
            "seed": cell.seed,
            "num_private": self.spec.num_members,
            "num_images": self.num_images,
        }
        families = config.names(cfg.classifiers)
        for family, program in zip(families, self._programs, strict=True):
            right = program(key, as_dataset(drawn.images))
            row[f"accuracy/{family}"] = float(right)
        row |= self._fidelity(np.asarray(drawn.images.image))
        place = environment()
        row |= {
            "train_seconds": float(f"{drawn.train_seconds:.3g}"),
            "images_per_second": float(f"{drawn.images_per_second:.3g}"),
            "device": "{num_devices} x {devices[0]}, {cores} cores".format(**place),
        }
        image, label = np.asarray(drawn.images.image), np.asarray(drawn.images.label)
        return row, ten_of_each(image, label, self.spec.num_classes)

    def _drawn(self, name: str, generator: Generator, seed: int) -> Drawn:
        fit_key, draw_key = jax.random.split(jax.random.key(seed))
        start = time.perf_counter()
        chunk = min(max(generator.num_steps // CHUNKS, 1), 100)
        with progress(generator.num_steps, name) as advance:
            done = 0

            def callback(step, state, info):
                nonlocal done
                advance(step - done)
                done = step

            state = fit_chunks(
                fit_key, generator, self.data, chunk=chunk, callback=callback
            )
        jax.block_until_ready(state)
        trained = time.perf_counter() - start
        sampler = Balanced(num_images=self.num_images).make(self.spec)

        def draw(key, state, public):
            return sampler.draw(key, generator._replace(public=public), state, None)

        args = draw_key, state, generator.public
        program = jax.jit(draw).lower(*args).compile()
        start = time.perf_counter()
        images = jax.block_until_ready(program(*args))
        return Drawn(images, trained, self.num_images / (time.perf_counter() - start))

    def _program(self, config: Any) -> Callable:
        """(key, synthetic images) -> accuracy on real test images, compiled."""
        spec = replace(self.spec, num_members=self.num_images)
        classifier: Classifier = config.make(spec, Budget(FREE, self.cfg.delta))
        test, label = jnp.asarray(self.images.x_test), jnp.asarray(self.images.y_test)

        def accuracy(key, data):
            state, _ = fit(key, classifier, data)
            logits = lambda block: classifier.logits(state, decode(block))
            guess = in_blocks(logits, test, size=200).argmax(-1)
            return (guess == label).mean(dtype=jnp.float32)

        return jax.jit(accuracy)

    @cached_property
    def _real(self) -> np.ndarray:
        test = self.images.x_test[: self.cfg.num_compared]
        return features(self.cfg.extractor, test)

    def _fidelity(self, image: np.ndarray) -> Row:
        name = self.cfg.extractor
        count = min(len(self._real), len(image))
        seen = features(name, image[:count])
        precision, recall = precision_recall(self._real[:count], seen)
        return {
            "num_compared": count,
            f"frechet/{name}": frechet(self._real[:count], seen),
            "precision": precision,
            "recall": recall,
        }


if __name__ == "__main__":
    config.main(run, PRESETS)
