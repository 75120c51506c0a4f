"""One trial of a generator: fitted, drawn from, its images judged on real ones."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppds_jax.classifiers import ALL as CLASSIFIERS
from ppds_jax.classifiers import CNN, MLP
from ppds_jax.data.batches import decode, in_blocks
from ppds_jax.data.load import Images
from ppds_jax.fit import fit
from ppds_jax.harness import config
from ppds_jax.harness.fitting import fit_kept
from ppds_jax.harness.plots import ten_of_each
from ppds_jax.harness.run import Row, environment
from ppds_jax.metrics.fidelity import features, frechet, precision_recall
from ppds_jax.pipeline import as_dataset, check_generator
from ppds_jax.privacy.accounting import NAMES, epsilon, promises
from ppds_jax.privacy.keys import noted
from ppds_jax.sampling.balanced import Balanced
from ppds_jax.types import Budget, Classifier, Dataset, DataSpec, Generator, Synthetic

FREE = float("inf")
CHUNKS = 50  # looks of the progress bar at one training, at most


@dataclass(frozen=True, kw_only=True)
class Judging:
    """By what synthetic images are judged.

    Attributes:
      data: a data set (see `ppds_jax.data.load`); all its training images are used.
      delta: of the budgets.
      classifiers: trained on the synthetic images, the same for all methods.
      num_images: synthetic images; None: as many as there are private ones.
      num_compared: of them and of the test images, for the measures of fidelity.
      extractor: of the features on which these are computed.
    """

    data: str
    delta: float = 1e-5
    classifiers: Annotated[tuple[Any, ...], config.methods_from(CLASSIFIERS)] = (
        CNN(epochs=3),
        MLP(epochs=3),
        MLP(hidden=(), epochs=3),
    )
    num_images: int | None = None
    num_compared: int = 5000
    extractor: str = "scattering"


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


class Bench:
    """What all cells share: the data, and programs that are compiled once."""

    def __init__(self, cfg: Judging, images: Images, every: float = 60.0):
        self.cfg, self.images, self.every = cfg, images, every
        shape, count = images.x_train.shape[1:], len(images.x_train)
        self.spec = DataSpec(shape, images.num_classes, count)
        self.num_images = cfg.num_images or count
        member = jnp.ones(count, bool)
        self.data = Dataset(
            jnp.asarray(images.x_train), jnp.asarray(images.y_train), member
        )
        compared = cfg.num_compared, cfg.extractor
        self.settings = cfg.delta, cfg.classifiers, self.num_images, compared
        self._programs = [self._program(c) for c in cfg.classifiers]

    def made(self, method: Any, value: float) -> Generator:
        return method.make(self.spec, Budget(value, self.cfg.delta))

    def row(self, cell: Cell, folder: Path) -> tuple[Row, np.ndarray]:
        """Fits, draws and measures one cell; `folder` is for its checkpoint.

        Returns:
          The row, and ten images of each class.
        """
        cfg, name = self.cfg, config.describe(cell.method)
        generator = self.made(cell.method, cell.epsilon)
        check_generator(name, generator, self.spec)
        title = f"{name}, epsilon {cell.epsilon:g}"
        drawn = self._drawn(title, generator, cell.seed, folder)
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

    def _drawn(self, name: str, generator: Generator, seed: int, folder: Path) -> Drawn:
        fit_key, draw_key = jax.random.split(jax.random.key(seed))
        state, trained, _ = fit_kept(
            fit_key,
            generator,
            self.data,
            name=name,
            folder=folder,
            chunk=min(max(generator.num_steps // CHUNKS, 1), 100),
            every=self.every,
        )
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
