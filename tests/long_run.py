"""A small shadow game to interrupt, and a program that is killed while it plays it.

    python -m tests.long_run FOLDER KILLS [MODE]

trains once in peace, then again under SIGKILL at random moments, as often as told, and
compares the files of the trained rows; it prints how often it was killed in training.
"""

import os
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppds_jax import devices
from ppds_jax.attacks.game import half_design
from ppds_jax.attacks.observe import Questions, classifier_observer
from ppds_jax.attacks.signals import OF_LOGITS
from ppds_jax.data.batches import draw_batch
from ppds_jax.harness import config, training
from ppds_jax.harness.progress import Progress
from ppds_jax.harness.shadows import Shadows, Subject
from ppds_jax.pipeline import classification, guarantees
from ppds_jax.privacy.accounting import non_private
from ppds_jax.types import Classifier, Dataset, Published

MODELS, STEPS = 4, 12
TRACES: list[int] = []  # one entry each time that a step is traced


class State(NamedTuple):
    """All that a state may hold: numbers, a typed key, nothing, an array of no size."""

    weights: Any
    key: Any
    step: Any
    nothing: Any
    empty: Any


def classifier(num_steps: int = STEPS, broken: int | None = None) -> Classifier:
    """Logistic regression; models that have image 0 turn NaN in the step `broken`."""

    def init(key, data, public, start=None):
        first, second = jax.random.split(key)
        weights = jax.random.normal(first, (16, 4))
        return State(weights, second, jnp.int32(0), None, jnp.zeros((0, 2)))

    def logits(state, image):
        return image.reshape(len(image), -1) @ state.weights

    def step(key, state, data, public):
        TRACES.append(1)
        image, label = draw_batch(key, data, 8)
        noise = jax.random.normal(state.key, state.weights.shape)

        def loss(weights):
            value = logits(state._replace(weights=weights), image)
            chosen = jax.nn.one_hot(label, 4) * jax.nn.log_softmax(value)
            return -chosen.mean()

        weights = state.weights - 0.1 * jax.grad(loss)(state.weights) + 1e-3 * noise
        if broken is not None:
            bad = (state.step + 1 == broken) & data.member[0]
            weights = jnp.where(bad, jnp.nan, weights)
        key = jax.random.split(state.key, 1)[0]
        return State(weights, key, state.step + 1, None, state.empty), {}

    return Classifier(init, step, logits, num_steps, non_private())


def subject(made: Classifier) -> Subject:
    look = classifier_observer(made, {"logit": OF_LOGITS["logit"]})
    return Subject(
        "walk",
        (made.num_steps,),
        (classification(made),),
        Published(classifier=((look,),)),
        guarantees(None, None, made),
    )


def shadows(runtime: config.Runtime, **options: Any) -> Shadows:
    rng = np.random.default_rng(0)
    image = rng.integers(256, size=(48, 4, 4, 1), dtype=np.uint8)
    label = np.arange(48, dtype=np.int32) % 4
    data = Dataset(jnp.asarray(image), jnp.asarray(label), jnp.ones(48, bool))
    asked = Questions(data.image, data.label, data.image, data.label)
    member = half_design(jax.random.key(1), label, MODELS)
    return Shadows(data, member, asked, 3, runtime, **options)


def rows(work_dir: Path) -> dict[str, bytes]:
    """The files of all trained rows."""
    return {p.name: p.read_bytes() for p in work_dir.glob("trained/*/row-*.npz")}


def play(work_dir: Path, made: Classifier, mode: Any) -> None:
    devices.prepare()
    at_once = 2 if mode == "vmap" else None
    runtime = config.Runtime(work_dir, mode, at_once=at_once, checkpoint_every=0)
    with open(os.devnull, "w") as nowhere:
        game = shadows(runtime)
        (work_dir / "ready").touch()
        game.run(subject(made), Progress(1, "models", file=nowhere))


def killed(folder: Path, kills: int, mode: str = "auto") -> int:
    """How many of the kills fell into the training of a model."""
    made = classifier(num_steps=20_000)
    training.SECONDS = 0.1
    peace, war = folder / "peace", folder / "war"
    took = _forked(peace, made, mode, None)
    expected = rows(peace)
    assert len(expected) == MODELS
    moments, hits, count = random.Random(0), 0, 0
    while count < kills:
        lived = _forked(war, made, mode, moments.uniform(0, took)) is not None
        count += not lived
        hits += not lived and len(rows(war)) < MODELS
        if lived:
            assert rows(war) == expected
            shutil.rmtree(war)
    _forked(war, made, mode, None)
    assert rows(war) == expected
    assert not list(war.glob("trained/*/checkpoints/*")), "they have served"
    return hits


def _forked(
    work_dir: Path, made: Classifier, mode: str, moment: float | None
) -> float | None:
    """Seconds from ready to the end; None if it was killed, `moment` after ready."""
    work_dir.mkdir(parents=True, exist_ok=True)
    ready = work_dir / "ready"
    ready.unlink(missing_ok=True)
    child = os.fork()  # the parent computes nothing: what it has imported is shared
    if not child:
        try:
            play(work_dir, made, mode)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    while not ready.exists():
        time.sleep(0.01)
    start = time.monotonic()
    while moment is None or time.monotonic() - start < moment:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return time.monotonic() - start
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


if __name__ == "__main__":
    print(killed(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
