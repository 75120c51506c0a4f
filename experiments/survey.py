"""Can synthetic images replace real ones, and what does each release give away?

Trains every generator on private images, releases the generator, synthetic images and a
classifier, and attacks each release with shadow pipelines; beside them a classifier
trained on the private images, without and with differential privacy.

    python -m experiments.survey smoke     about a minute, tiny images
    python -m experiments.survey demo      under 5 minutes on 2 cores
    python -m experiments.survey full      hours on 2 cores; meant for an accelerator

What to expect of every preset: the memoriser's images are recognised (AUC above 0.95),
those of the independent generator are not (0.5 within its interval), and the membership
drawn anew reads 0.5. It prints the path of an HTML report.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from ppds_jax import devices
from ppds_jax.attacks.game import half_design
from ppds_jax.attacks.guards import check_duplicates, check_population
from ppds_jax.attacks.observe import Questions
from ppds_jax.attacks.score import ATTACKS, Case, score_all
from ppds_jax.attacks.signals import SIGNALS
from ppds_jax.classifiers import CNN, DPCNN
from ppds_jax.data.load import Images, load
from ppds_jax.generators import ALL, VAE, ClassMean, DPMerf, Independent, Memoriser
from ppds_jax.harness import config, hosts
from ppds_jax.harness.controls import ANEW, INDEPENDENT, MEMORISER
from ppds_jax.harness.plots import ten_of_each
from ppds_jax.harness.progress import progress
from ppds_jax.harness.report import curve_name, write_report
from ppds_jax.harness.run import Row, Run, plain
from ppds_jax.harness.shadows import Result, Shadows, Subject
from ppds_jax.harness.source import code
from ppds_jax.harness.subjects import Attacker, Pipelines, check_classes, split
from ppds_jax.metrics.leakage import Leakage, leakage
from ppds_jax.metrics.roc import Roc, roc
from ppds_jax.privacy.accounting import NAMES, check_budget, epsilon
from ppds_jax.privacy.keys import noted
from ppds_jax.privacy.ledger import by_relation
from ppds_jax.sampling.balanced import Balanced
from ppds_jax.types import Budget, Dataset, DataSpec, InputError

FPR = 0.01
CALIBRATIONS = ("lira", "rmia")  # the others are in `experiments.shadow_mia`
REAL, DP = "real_classifier", "dp_classifier"  # releases without a generator


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is surveyed.

    Attributes:
      data: a data set (see `ppds_jax.data.load`).
      num_private: images that are audited; each model trains on half of them.
      num_population: further images, in no training set, for attacks that need them.
      num_shadows: models of each pipeline; even, at least 4.
      generators: what to survey: VAE, DPMerf(features=2000), my_file.py:MyGenerator ...
      sampler: how the released images are drawn.
      classifier: trained on real and on synthetic images, and by the attacker.
      dp_classifier: trained on real images with differential privacy.
      more_samples: how many times the released number of images an attacker draws from
        a released generator.
      epsilon: privacy budget of each private method.
      delta: of the budget.
      num_resamples: of the bootstrap.
      seed: decides membership, training, noise and attacks.
      secret_noise: private keys come from the operating system, and are kept nowhere.
    """

    data: str = "fashion_mnist_5k"
    num_private: int = 2000
    num_population: int = 1000
    num_shadows: int = 16
    generators: Annotated[tuple[Any, ...], config.methods_from(ALL)] = (
        VAE(),
        DPMerf(),
        ClassMean(),
        Memoriser(),
        Independent(),
    )
    sampler: Balanced = field(default_factory=Balanced)
    classifier: CNN = field(default_factory=CNN)
    dp_classifier: DPCNN = field(default_factory=DPCNN)
    more_samples: int = 4
    epsilon: float = 10.0
    delta: float = 1e-5
    num_resamples: int = 200
    seed: int = 0
    secret_noise: bool = False


PRESETS: dict[str, tuple[str, Config]] = {
    "smoke": (
        "8x8 digits, 4 shadows: shows that everything runs",
        Config(
            data="digits",
            num_private=400,
            num_population=200,
            num_shadows=4,
            generators=(
                VAE(epochs=5),
                DPMerf(features=200, num_steps=50),
                ClassMean(),
                Memoriser(),
                Independent(),
            ),
            classifier=CNN(epochs=10),
            dp_classifier=DPCNN(epochs=5),
            sampler=Balanced(num_images=400),
            more_samples=2,
            num_resamples=50,
        ),
    ),
    "demo": ("Fashion-MNIST, 16 shadows, under 5 minutes on 2 cores", Config()),
    "full": (
        "all embedded images, 64 shadows, longer training",
        Config(
            num_private=4000,
            num_shadows=64,
            generators=(
                VAE(epochs=100, width=32),
                DPMerf(features=4000, num_steps=4000),
                ClassMean(),
                Memoriser(),
                Independent(),
            ),
            classifier=CNN(epochs=60, width=32, hidden=128),
            num_resamples=1000,
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class SurveyRow(Leakage):
    """One release of one subject under one attack.

    `accuracy` is the mean over models, on real test images, of the classifier that the
    release is or yields, and `accuracy_std` its standard deviation over models.
    """

    data: str
    subject: str
    release: str
    signal: str
    attack: str
    control: str
    accuracy: float
    accuracy_std: float
    epsilon: float
    delta: float
    neighbours: str
    notes: tuple[str, ...]
    method: str
    num_shadows: int
    num_private: int
    num_members: int
    num_released: int


def run(cfg: Config, runtime: config.Runtime | None = None) -> list[Row]:
    """Runs the survey, or serves the rows of a finished run with the same config.

    Raises:
      InputError: anything wrong with the config or the data, before any training.
    """
    runtime = runtime or config.Runtime()
    images = load(cfg.data)
    _check(cfg, images)
    here = Run(runtime, "survey", cfg, code(), Path(__file__).read_text(), *images[1:5])
    rows = here.rows()
    if rows is None:
        devices.prepare(runtime.layout)
        rows = _compute(cfg, images, here, runtime)
    hosts.only_first()
    print(write_report(here.path, rows))
    return rows


def _compute(cfg: Config, images: Images, here: Run, runtime) -> list[Row]:
    shadows = _shadows(cfg, images, runtime)
    with progress(2 + len(cfg.generators), "calibrating") as done:
        subjects = _subjects(cfg, images, done)
    here.start()
    results = {}
    with progress(sum(map(shadows.cost, subjects)), "shadow models") as done:
        for subject in subjects:
            results[subject.name] = shadows.run(subject, done)
    hosts.only_first()
    rows, curves = [], {}
    with progress(len(subjects), "attacks") as done:
        for subject in subjects:
            for row, curve in _attacked(cfg, subject, results[subject.name], shadows):
                rows.append(plain(row))
                curves[curve_name(rows[-1])] = np.stack([curve.fpr, curve.tpr])
            done(1)
    last = {s.name: s.guarantees.classifier for s in subjects}  # covers all before
    here.note("ledger", by_relation(last, cfg.delta))
    here.save("curves", curves)
    here.save("samples", _pictures(images, shadows, results))
    here.finish(rows)
    return rows


def _check(cfg: Config, images: Images) -> None:
    """Refuses what would fail later, by the name of the field."""
    check_budget(Budget(cfg.epsilon, cfg.delta))
    if cfg.num_private < 4 * images.num_classes or cfg.num_private % 2:
        raise InputError(
            f"num_private={cfg.num_private}: must be even, and at least 4 for each of "
            f"the {images.num_classes} classes"
        )
    if cfg.num_population < 1:
        raise InputError(f"num_population={cfg.num_population}: must be at least 1")
    if cfg.num_shadows < 4 or cfg.num_shadows % 2:
        raise InputError(f"num_shadows={cfg.num_shadows}: must be even and at least 4")
    if not 0 <= cfg.seed < 2**31:
        raise InputError(f"seed={cfg.seed}: must lie between 0 and 2^31 - 1")
    for name in ("more_samples", "num_resamples"):
        if getattr(cfg, name) < 1:
            raise InputError(f"{name}={getattr(cfg, name)}: must be at least 1")
    names = config.names(cfg.generators)
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"generators: {', '.join(twice)} is there twice")


def _shadows(cfg: Config, images: Images, runtime: config.Runtime) -> Shadows:
    """Chooses the private and the population images, and who is in which model."""
    split_key, member_key = jax.random.split(jax.random.key(cfg.seed))
    private, population, _ = split(
        split_key, images, cfg.num_private, cfg.num_population
    )
    asked = np.append(private, population)
    label = images.y_train[private]
    check_classes(label, images.num_classes)
    member = half_design(member_key, label, cfg.num_shadows)
    check_population(images.x_train[private], images.x_train[population])
    check_duplicates(images.x_train[private], member)
    return Shadows(
        data=Dataset(
            jnp.asarray(images.x_train[private]),
            jnp.asarray(label),
            jnp.ones(len(label), bool),
        ),
        member=member,
        questions=Questions(
            jnp.asarray(images.x_train[asked]),
            jnp.asarray(images.y_train[asked]),
            jnp.asarray(images.x_test),
            jnp.asarray(images.y_test),
        ),
        seed=cfg.seed,
        runtime=runtime,
        secret=cfg.secret_noise,
    )


def _subjects(cfg: Config, images: Images, done: Callable) -> list[Subject]:
    """Real classifiers, then each generator's pipeline, with what attacks them."""
    members = cfg.num_private // 2
    spec = DataSpec(images.x_train.shape[1:], images.num_classes, members)
    budget = Budget(cfg.epsilon, cfg.delta)
    attacker = Attacker(cfg.more_samples, of_logits=("logit",), of_images=("nearest",))
    pipelines = Pipelines(cfg.sampler, cfg.classifier, spec, budget, attacker)
    subjects = [pipelines.subject(REAL, cfg.classifier)]
    subjects.append(pipelines.subject(DP, cfg.dp_classifier))
    done(2)
    for name, method in zip(config.names(cfg.generators), cfg.generators, strict=True):
        subjects.append(pipelines.subject(name, method))
        done(1)
    return subjects


CONTROLS = {Memoriser: MEMORISER, Independent: INDEPENDENT}


def _attacked(
    cfg: Config, subject: Subject, result: Result, shadows: Shadows
) -> Iterator[tuple[SurveyRow, Roc]]:
    """Every attack on every signal of every release, with its ROC curve."""
    designs = {CONTROLS.get(type(subject.config[0]), ""): shadows.member}
    if subject.name == REAL:
        key = jax.random.fold_in(jax.random.key(cfg.seed), cfg.num_shadows)
        label = np.asarray(shadows.data.label)
        designs[ANEW] = half_design(key, label, cfg.num_shadows)
    for release, seen in result.observations.items():
        guarantee = getattr(subject.guarantees, release)
        guarantee = noted(guarantee, secret=cfg.secret_noise)
        spent = epsilon(guarantee, cfg.delta)
        for (name, phi), attack in product(seen.phi.items(), CALIBRATIONS):
            audited, population = np.split(phi, [cfg.num_private], axis=1)
            for control, member in designs.items():
                case = Case(SIGNALS[name], audited, member, population)
                score = score_all(ATTACKS[attack], case)
                leaked = leakage(
                    score, member, fpr=FPR, num_resamples=cfg.num_resamples
                )
                row = SurveyRow(
                    **asdict(leaked),
                    data=cfg.data,
                    subject=subject.name,
                    release=release,
                    signal=name,
                    attack=attack,
                    control=control,
                    accuracy=float(np.mean(seen.accuracy)),
                    accuracy_std=float(np.std(seen.accuracy)),
                    epsilon=spent,
                    delta=cfg.delta,
                    neighbours=NAMES[guarantee.neighbours],
                    notes=guarantee.notes,
                    method=config.describe(subject.config[0]),
                    num_shadows=cfg.num_shadows,
                    num_private=cfg.num_private,
                    num_members=cfg.num_private // 2,
                    num_released=_released(result),
                )
                yield row, roc(score, member)


def _released(result: Result) -> int:
    images = result.published(0).images
    return 0 if images is None else len(images.label)


def _pictures(images: Images, shadows: Shadows, results: dict[str, Result]) -> dict:
    """Ten images of each class, [classes 10 h w c]: private, then of each generator."""
    member = shadows.member[0]
    sources = {
        "private images": (shadows.data.image[member], shadows.data.label[member])
    }
    for name, result in results.items():
        if result.published(0).images is not None:
            sources[name] = result.published(0).images[:2]
    return {
        name: ten_of_each(np.asarray(x), np.asarray(y), images.num_classes)
        for name, (x, y) in sources.items()
    }


if __name__ == "__main__":
    config.main(run, PRESETS, spreads=True)
