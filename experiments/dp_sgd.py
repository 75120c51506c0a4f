"""How accurate is a classifier trained by DP-SGD on all of a well-known data set?

Checks the DP-SGD of this library and its speed on the two data sets for which the
literature has numbers (delta 1e-5, no public data). MNIST and Fashion-MNIST, as
.npz files with x_train, y_train, x_test, y_test, are yours to bring.

    python -m experiments.dp_sgd smoke                              seconds, 8x8 digits
    python -m experiments.dp_sgd mnist --data mnist.npz             3 to 4 minutes
    python -m experiments.dp_sgd fashion --data fashion_mnist.npz   5 to 8 minutes

Times are those of one of two shared CPU cores. Expected test accuracies are 0.980 and
0.895, within 0.005; the rows are in `experiments/results/dp_sgd_*.csv`. Published, at
an epsilon of about 3: 0.981 and 0.861 by Papernot et al. (arXiv 2007.14191), 0.987 and
0.897 with scattering features by Tramer and Boneh (arXiv 2011.11660).

The settings of the presets were chosen by training on the first 50,000 images and
looking at the other 10,000 of the training set. Epsilon does not cover that choice.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from ppds_jax import devices
from ppds_jax.classifiers import ALL, DPCNN, DPScatter
from ppds_jax.data.batches import decode, in_blocks
from ppds_jax.data.load import Images, load
from ppds_jax.harness import config
from ppds_jax.harness.fitting import fit_kept
from ppds_jax.harness.run import Row, Run, environment, plain
from ppds_jax.harness.source import code
from ppds_jax.harness.store import write_json
from ppds_jax.privacy.accounting import NAMES, check_budget, epsilon
from ppds_jax.privacy.keys import noted, secret_key
from ppds_jax.types import Budget, Classifier, Dataset, DataSpec, InputError, PyTree

CHUNK = 10  # steps between two looks of the progress bar


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is trained.

    Attributes:
      data: a data set (see `ppds_jax.data.load`); all its training images are used.
      classifiers: DPCNN(epochs=5), DPScatter, my_file.py:MyClassifier ...
      epsilon: privacy budget of each classifier.
      delta: of the budget.
      seeds: one run of each classifier with each.
      secret_noise: instead, each run by a key from the operating system, kept nowhere.
    """

    data: str
    classifiers: Annotated[tuple[Any, ...], config.methods_from(ALL)]
    epsilon: float = 3.0
    delta: float = 1e-5
    seeds: tuple[int, ...] = (0,)
    secret_noise: bool = False


TANH = DPCNN(hidden=32, kernels=(8, 4), activation="tanh", pool=True)
PRESETS: dict[str, tuple[str, Config]] = {
    "smoke": (
        "8x8 digits: shows that everything runs",
        Config(
            data="digits",
            classifiers=(DPCNN(epochs=2), DPScatter(epochs=10, batch_size=500)),
            epsilon=10.0,
        ),
    ),
    "mnist": (
        "MNIST at epsilon 3, by a convolutional network",
        Config(
            data="mnist.npz",
            classifiers=(replace(TANH, epochs=20, batch_size=2048, learning_rate=0.4),),
        ),
    ),
    "fashion": (
        "Fashion-MNIST at epsilon 3, on scattering features",
        Config(data="fashion_mnist.npz", classifiers=(DPScatter(),)),
    ),
}


@dataclass(frozen=True, kw_only=True)
class DPSGDRow:
    """One classifier trained once; `seconds` are those of compiling and training."""

    data: str
    classifier: str
    seed: int
    accuracy: float
    epsilon: float
    delta: float
    neighbours: str
    notes: tuple[str, ...]
    num_private: int
    num_steps: int
    seconds: float
    machine: str


def run(cfg: Config, runtime: config.Runtime | None = None) -> list[Row]:
    """Trains each classifier, or serves the rows of a finished run of the same config.

    Raises:
      InputError: anything wrong with the config or the data, before any training.
      FloatingPointError: a training that diverged.
    """
    runtime = runtime or config.Runtime()
    images = _checked(cfg)
    here = Run(runtime, "dp_sgd", cfg, code(), Path(__file__).read_text(), *images[1:5])
    rows = here.rows()
    if rows is None:
        devices.prepare()
        rows = _compute(cfg, images, here, runtime)
    for row in rows:
        print(
            f"{row['data']}, {row['classifier']}: accuracy {row['accuracy']:.4f} at "
            f"epsilon {row['epsilon']:.4g}, {row['seconds']:.0f} s"
        )
    print(here.path / "rows.csv")
    return rows


def _checked(cfg: Config) -> Images:
    """The data, after refusing what would fail later by the name of the field."""
    check_budget(Budget(cfg.epsilon, cfg.delta))
    if not cfg.classifiers:
        raise InputError("classifiers: none given; name at least one, as DPCNN")
    if not cfg.seeds or min(cfg.seeds) < 0 or max(cfg.seeds) >= 2**31:
        raise InputError(
            f"seeds={cfg.seeds}: whole numbers from 0 to 2^31 - 1, 1 or more"
        )
    if cfg.data.endswith(".npz") and not Path(cfg.data).expanduser().is_file():
        raise InputError(
            f"data={cfg.data!r}: no such file; this package does not bring it. Pass "
            "--data PATH.npz, a file with x_train, y_train, x_test, y_test"
        )
    return load(cfg.data)


def _compute(cfg: Config, images: Images, here: Run, runtime) -> list[Row]:
    spec = DataSpec(images.x_train.shape[1:], images.num_classes, len(images.x_train))
    made = [m.make(spec, Budget(cfg.epsilon, cfg.delta)) for m in cfg.classifiers]
    here.start()
    member = jnp.ones(spec.num_members, bool)
    data = Dataset(jnp.asarray(images.x_train), jnp.asarray(images.y_train), member)
    machine = "{num_devices} x {devices[0]}, {cores} cores".format(**environment())
    rows = []
    for method, classifier in zip(cfg.classifiers, made, strict=True):
        for seed in cfg.seeds:
            place = here.path / config.identity(method, seed)
            done = place.with_suffix(".json")
            if done.exists():  # by a run that was stopped in the middle of another
                rows.append(json.loads(done.read_text()))
                continue
            name = config.describe(method)
            key = secret_key() if cfg.secret_noise else jax.random.key(seed)
            state, seconds, resumed = fit_kept(
                key,
                classifier,
                data,
                name=name,
                folder=place,
                chunk=CHUNK,
                every=runtime.checkpoint_every,
            )
            row = DPSGDRow(
                data=Path(cfg.data).name,
                classifier=name,
                seed=seed,
                accuracy=accuracy(classifier, state, images.x_test, images.y_test),
                epsilon=epsilon(classifier.guarantee, cfg.delta),
                delta=cfg.delta,
                neighbours=NAMES[classifier.guarantee.neighbours],
                notes=noted(
                    classifier.guarantee, secret=cfg.secret_noise, resumed=resumed
                ).notes,
                num_private=spec.num_members,
                num_steps=classifier.num_steps,
                seconds=round(seconds, 1),
                machine=machine,
            )
            rows.append(plain(row))
            write_json(done, rows[-1])
    here.finish(rows)
    return rows


def accuracy(
    classifier: Classifier, state: PyTree, image: np.ndarray, label: np.ndarray
) -> float:
    """The share of images whose label has the largest logit, computed in blocks."""

    def guess(state, image):
        logits = lambda block: classifier.logits(state, decode(block))
        return in_blocks(logits, image, size=200).argmax(-1)

    return float(np.mean(np.asarray(jax.jit(guess)(state, image)) == label))


if __name__ == "__main__":
    config.main(run, PRESETS, ignores=("mode", "mesh", "at_once", "memory"))
