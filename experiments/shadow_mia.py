"""What does each release give away, to every attack there is?

Trains shadow models of a few methods, reads every signal of every release, and attacks
them with every calibration. What there is to choose (settings, and which attack to
report first) is chosen on shadow models, and then meets targets that nothing was chosen
on. Beside the methods go controls with a known answer: a memoriser, a generator that
ignores the data, and the classifier that is trained on the private images.

    python -m experiments.shadow_mia smoke     about a minute, tiny images
    python -m experiments.shadow_mia images    VAE and DP-MERF on Fashion-MNIST
    python -m experiments.shadow_mia average   an overfitted CNN, half of all images in
    python -m experiments.shadow_mia canaries  the same CNN, and what is worst for it
    python -m experiments.shadow_mia again --phi RUN/phi.npz     attacks, no training

What to expect: `experiments/results/shadow_mia.md`. It prints the path of an HTML
report; phi.npz beside it holds all that the last command needs.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppds_jax import classifiers, devices, generators
from ppds_jax.attacks.canaries import KINDS, make_canaries
from ppds_jax.attacks.game import half_design
from ppds_jax.attacks.guards import check_duplicates, check_population
from ppds_jax.attacks.observe import Known, Questions, known
from ppds_jax.classifiers import CNN
from ppds_jax.data.load import Images, load
from ppds_jax.generators import VAE, DPMerf, Independent, Memoriser
from ppds_jax.harness import config, hosts
from ppds_jax.harness.attack_report import write_attack_report
from ppds_jax.harness.attacking import attack_all
from ppds_jax.harness.controls import INDEPENDENT, MEMORISER
from ppds_jax.harness.evidence import (
    Audited,
    Evidence,
    Release,
    Released,
    write_evidence,
)
from ppds_jax.harness.progress import progress
from ppds_jax.harness.run import Row, Run
from ppds_jax.harness.shadows import Shadows, Subject
from ppds_jax.harness.source import code
from ppds_jax.harness.subjects import Attacker, Pipelines, check_classes, split
from ppds_jax.privacy.accounting import NAMES, check_budget, epsilon
from ppds_jax.privacy.keys import noted
from ppds_jax.sampling.balanced import Balanced
from ppds_jax.types import Budget, Dataset, DataSpec, InputError

METHODS = (*generators.ALL, *classifiers.ALL)
REAL = "real_classifier"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is attacked.

    Attributes:
      methods: generators, attacked on all their releases, or classifiers, trained on
        the private images: VAE, CNN(epochs=60), my_file.py:MyGenerator ...
      controls: whether a memoriser, an independent generator and the classifier on
        private images go beside them.
      data: a data set (see `ppds_jax.data.load`).
      num_private: private images. Without canaries all of them are audited, and each
        model trains on half of them.
      canaries: of each kind (see `ppds_jax.attacks.canaries`); above 0, they alone are
        audited, each model trains on half of them, and on all private images besides.
      copies: how often a repeated canary is there.
      num_population: images in no training set, with which attacks compare.
      num_reference: further public images, for attacks on images.
      num_shadows: models that attacks refer to, and are chosen on; even, at least 4.
      num_targets: further models, which are attacked; even.
      sampler: how the released images are drawn.
      classifier: trained on real and on synthetic images, and by the attacker.
      more_samples: see `ppds_jax.harness.subjects.Attacker`.
      queries: in how many ways a classifier is shown an image, 1 to 18.
      epsilon: privacy budget of each private method.
      delta: of the budget.
      fpr: false-positive rate at which members are to be recognised.
      num_resamples: of the bootstrap.
      seed: decides membership, training, noise and attacks.
    """

    methods: Annotated[tuple[Any, ...], config.methods_from(METHODS)] = (
        VAE(),
        DPMerf(),
    )
    controls: bool = True
    data: str = "fashion_mnist_5k"
    num_private: int = 2000
    canaries: int = 0
    copies: int = 8
    num_population: int = 1000
    num_reference: int = 1000
    num_shadows: int = 64
    num_targets: int = 16
    sampler: Balanced = field(default_factory=Balanced)
    classifier: CNN = field(default_factory=CNN)
    more_samples: int = 4
    queries: int = 2
    epsilon: float = 10.0
    delta: float = 1e-5
    fpr: float = 0.001
    num_resamples: int = 200
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Again:
    """Attacks on signals that are there already.

    Attributes:
      phi: the phi.npz of a finished run.
      fpr: see `Config`.
      num_resamples: of the bootstrap.
    """

    phi: Path = Path("phi.npz")
    fpr: float = 0.001
    num_resamples: int = 200


OVERFITTED = CNN(epochs=60, width=16, hidden=128)
PRESETS: dict[str, tuple[str, Any]] = {
    "smoke": (
        "8x8 digits, 8 shadows: shows that everything runs",
        Config(
            methods=(VAE(epochs=5),),
            data="digits",
            num_private=400,
            num_population=200,
            num_reference=200,
            num_shadows=8,
            num_targets=4,
            sampler=Balanced(num_images=200),
            classifier=CNN(epochs=10),
            more_samples=2,
            num_resamples=50,
        ),
    ),
    "images": ("VAE and DP-MERF with controls, all attacks on all releases", Config()),
    "average": (
        "an overfitted CNN, half of all images in each model",
        Config(
            methods=(OVERFITTED,),
            controls=False,
            num_targets=32,
            num_private=3000,
            num_population=800,
            num_reference=100,
        ),
    ),
    "canaries": (
        "an overfitted CNN on all images, half of the canaries in each model",
        Config(
            methods=(OVERFITTED,),
            controls=False,
            num_targets=32,
            num_private=2000,
            canaries=160,
            num_reference=100,
        ),
    ),
    "again": ("all attacks on the phi.npz of a finished run", Again()),
}


def run(cfg: Config | Again, runtime: config.Runtime | None = None) -> list[Row]:
    """Trains, observes and attacks, or serves the rows of a finished run.

    Raises:
      InputError: anything wrong with the config or the data, before any training.
    """
    runtime = runtime or config.Runtime()
    source = Path(__file__).read_text()
    if isinstance(cfg, Again):
        phi = np.frombuffer(_bytes(cfg.phi), np.uint8)
        here = Run(runtime, "shadow_mia", cfg, code(), source, phi)
        evidence = cfg.phi
    else:
        images = load(cfg.data)
        _check(cfg)
        here = Run(runtime, "shadow_mia", cfg, code(), source, *images[1:5])
        evidence = here.path / "phi.npz"
    rows = here.rows()
    if rows is None:
        if isinstance(cfg, Config) and not evidence.exists():
            devices.prepare(runtime.layout)
            _observe(cfg, images, here, runtime, evidence)
        hosts.only_first()
        here.start()
        rows, curves = attack_all(
            Evidence(evidence), fpr=cfg.fpr, num_resamples=cfg.num_resamples
        )
        here.save("curves", curves)
        here.finish(rows)
    hosts.only_first()
    print(write_attack_report(here.path, rows, Evidence(evidence)))
    return rows


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"phi={str(path)!r}: no such file")
    return path.read_bytes()


def _check(cfg: Config) -> None:
    """Refuses what would fail later, by the name of the field."""
    check_budget(Budget(cfg.epsilon, cfg.delta))
    for name, least in (("num_shadows", 4), ("num_targets", 2), ("num_private", 4)):
        value = getattr(cfg, name)
        if value < least or value % 2:
            raise InputError(f"{name}={value}: must be even and at least {least}")
    for name in ("num_population", "more_samples", "num_resamples", "copies"):
        if getattr(cfg, name) < 1:
            raise InputError(f"{name}={getattr(cfg, name)}: must be at least 1")
    if cfg.canaries < 0 or cfg.canaries % 2 or cfg.canaries == 2:
        raise InputError(f"canaries={cfg.canaries}: must be even, and 0 or at least 4")
    if not 0 < cfg.fpr < 1:
        raise InputError(f"fpr={cfg.fpr}: must lie between 0 and 1")
    if not 0 <= cfg.seed < 2**31:
        raise InputError(f"seed={cfg.seed}: must lie between 0 and 2^31 - 1")
    if not cfg.methods and not cfg.controls:
        raise InputError("methods: none, and no controls; name at least one")
    names = config.names(cfg.methods)
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"methods: {', '.join(twice)} is there twice")


class Game(NamedTuple):
    """Who trains on what, and who is asked for."""

    data: Dataset
    member: np.ndarray  # [m rows of data]
    audited: np.ndarray  # rows of data
    kind: np.ndarray  # of the audited ones
    population: np.ndarray  # rows of the training images
    known: Known


def _game(cfg: Config, images: Images) -> Game:
    split_key, member_key = jax.random.split(jax.random.key(cfg.seed))
    wanted = cfg.num_private + len(KINDS) * cfg.canaries
    private, population, reference = split(
        split_key, images, wanted, cfg.num_population, cfg.num_reference
    )
    check_classes(images.y_train[private[: cfg.num_private]], images.num_classes)
    models = cfg.num_targets + cfg.num_shadows
    x, y = images.x_train[private], images.y_train[private]
    audited, kind = np.arange(len(y)), np.full(len(y), "", dtype="U16")
    if not cfg.canaries:
        member = half_design(member_key, y, models)
    else:
        ordinary = cfg.num_private
        made = make_canaries(
            cfg.seed, x[ordinary:], y[ordinary:], images.num_classes, copies=cfg.copies
        )
        kinds = list(KINDS)
        own = made.of == np.arange(len(made.of))
        number = np.array([kinds.index(name) for name in made.kind])
        inside = half_design(member_key, number[own], models)
        member = np.ones((models, ordinary + len(made.of)), bool)
        member[:, ordinary:] = inside[:, made.of]
        x = np.concatenate([x[:ordinary], made.image])
        y = np.concatenate([y[:ordinary], made.label])
        audited = ordinary + np.flatnonzero(own)
        kind = np.array(made.kind)[own]
    check_population(x, images.x_train[population])
    check_duplicates(x, member)
    data = Dataset(jnp.asarray(x), jnp.asarray(y), jnp.ones(len(y), bool))
    public = known(jnp.asarray(images.x_train[reference]))
    return Game(data, member, audited, kind, population, public)


def _subjects(cfg: Config, images: Images, members: int):
    """What is attacked, each with the control that it is, or with nothing."""
    spec = DataSpec(images.x_train.shape[1:], images.num_classes, members)
    pipelines = Pipelines(
        cfg.sampler,
        cfg.classifier,
        spec,
        Budget(cfg.epsilon, cfg.delta),
        Attacker(cfg.more_samples, cfg.queries),
    )
    subjects: list[tuple[Subject, str]] = []
    for name, method in zip(config.names(cfg.methods), cfg.methods, strict=True):
        subjects.append((pipelines.subject(name, method), ""))
    if cfg.controls:
        subjects.append((pipelines.subject(REAL, cfg.classifier), ""))
        for method, control in ((Memoriser(), MEMORISER), (Independent(), INDEPENDENT)):
            name = type(method).__name__
            subjects.append((pipelines.subject(name, method), control))
    return subjects


def _observe(
    cfg: Config, images: Images, here: Run, runtime: config.Runtime, path: Path
) -> None:
    """Trains and observes all subjects, and writes what attacks need."""
    game = _game(cfg, images)
    members = int(game.member.sum(1).max())
    subjects = _subjects(cfg, images, members)
    here.start()
    asked = jnp.asarray(images.x_train[game.population])
    label = jnp.asarray(images.y_train[game.population])
    questions = Questions(
        jnp.concatenate([game.data.image[game.audited], asked]),
        jnp.concatenate([game.data.label[game.audited], label]),
        jnp.asarray(images.x_test),
        jnp.asarray(images.y_test),
        game.known,
    )
    shadows = Shadows(game.data, game.member, questions, cfg.seed, runtime)
    releases, released = {}, {}
    total = sum(shadows.cost(subject) for subject, _ in subjects)
    with progress(total, "shadow models") as done:
        for subject, control in subjects:
            result = shadows.run(subject, done)
            for name, seen in result.observations.items():
                guarantee = noted(getattr(subject.guarantees, name), secret=False)
                said = Release(
                    subject.name,
                    name,
                    config.describe(subject.config[0]),
                    control,
                    epsilon(guarantee, cfg.delta),
                    NAMES[guarantee.neighbours],
                    guarantee.notes,
                )
                releases[said] = np.asarray(seen.accuracy), seen.phi
            first = [result.published(model).images for model in (0, 1)]
            if first[0] is not None:
                released[subject.name] = Released(
                    np.stack([x.image for x in first]),
                    np.stack([x.label for x in first]),
                )
    hosts.only_first()
    facts = {
        "data": Path(cfg.data).name,
        "design": "canaries" if cfg.canaries else "half",
        "delta": cfg.delta,
        "num_targets": cfg.num_targets,
        "num_private": len(game.data.label),
        "num_members": members,
        "num_classes": images.num_classes,
    }
    audited = Audited(
        np.asarray(game.data.image)[game.audited],
        np.asarray(game.data.label)[game.audited],
        game.kind,
        game.member[:, game.audited],
        *_features(questions, images.num_classes, len(game.audited)),
    )
    write_evidence(path, facts, audited, releases, released)


def _features(questions: Questions, classes: int, audited: int) -> list[np.ndarray]:
    """What is public of an image: its label and its principal components."""
    hot = np.eye(classes)[np.asarray(questions.label)]
    place = questions.known.components(questions.image.astype(jnp.float32) / 255)
    return np.split(np.concatenate([hot, np.asarray(place)], axis=1), [audited])


if __name__ == "__main__":
    config.main(run, PRESETS, spreads=True)
