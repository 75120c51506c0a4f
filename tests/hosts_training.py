"""A small experiment on shadow models, to be run by several processes."""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ppds_jax import devices
from ppds_jax.attacks.game import half_design
from ppds_jax.attacks.observe import Questions
from ppds_jax.data.batches import decode
from ppds_jax.data.load import load
from ppds_jax.harness import config, hosts
from ppds_jax.harness.progress import Progress
from ppds_jax.harness.run import Row, Run
from ppds_jax.harness.shadows import Shadows, Subject
from ppds_jax.pipeline import generation
from ppds_jax.privacy.accounting import non_private
from ppds_jax.types import Dataset, Generator, Published

hosts.PATIENCE = 3


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is trained, and how it is disturbed.

    Attributes:
      num_shadows: models.
      pause: seconds after each of them.
      faulty: the process that fails, or -1.
    """

    num_shadows: int = 8
    pause: float = 0.0
    faulty: int = -1


def weights() -> Generator:
    """A little training that compiles at once: a neuron says 1/2 to every member."""

    def init(key, data, public, start=None):
        return jax.random.normal(key, (64,))

    def step(key, state, data, public):
        x = decode(data.image).reshape(-1, 64)
        loss = lambda w: (data.member * (jnp.tanh(x @ w) - 0.5) ** 2).sum()
        return state - 0.01 * jax.grad(loss)(state), {}

    def sample(key, state, label, public):
        return jnp.broadcast_to(state.reshape(8, 8, 1), (label.size, 8, 8, 1))

    return Generator(init, step, sample, 20, non_private())


class Pausing(Progress):
    """Makes the run so slow that a signal comes in the middle of it."""

    def __init__(self, total: int, label: str, pause: float):
        super().__init__(total, label)
        self.pause = pause

    def __call__(self, units: int) -> None:
        super().__call__(units)
        time.sleep(units * self.pause)


def run(cfg: Config, runtime: config.Runtime) -> list[Row]:
    devices.prepare(runtime.layout)
    x, y = load("digits")[1:3]
    image, label = jnp.asarray(x[:60]), jnp.asarray(y[:60])
    stages = (generation(weights()),)
    subject = Subject("weights", (), stages, Published(), Published())
    member = half_design(jax.random.key(3), y[:60], cfg.num_shadows)
    data, asked = (
        Dataset(image, label, jnp.ones(60, bool)),
        Questions(*[image, label] * 2),
    )
    shadows = Shadows(data, member, asked, 0, runtime)
    if hosts.current().index == cfg.faulty:
        raise FloatingPointError("planted")
    result = shadows.run(subject, Pausing(cfg.num_shadows, "models", cfg.pause))
    hosts.only_first()
    here = Run(runtime, "weights", cfg)
    here.start()
    sums = [float(abs(leaves(result, row)).sum()) for row in range(cfg.num_shadows)]
    here.finish([{"row": row, "sum": value} for row, value in enumerate(sums)])
    print(here.path)
    return here.rows() or []


def leaves(result, row: int) -> np.ndarray:
    return np.concatenate(
        [np.ravel(x) for x in jax.tree.leaves(result.published(row).generator)]
    )


if __name__ == "__main__":
    config.main(run, {"default": ("digits", Config())}, spreads=True)
