"""Does a private mechanism keep its promise, as far as one can tell from outside?

Each method goes through the checks of `ppds_jax.privacy.checks`, and is then audited:
trained many times with and without one record, to see how well an attacker who knows
all the rest can tell which. That gives a lower bound on the epsilon that it spends.
Beside it, the same method without its noise: the audit must refute that one.

    python -m experiments.audit smoke       one method, two seeds: does everything run?
    python -m experiments.audit default     three methods, 20 seeds, under 10 minutes
    python -m experiments.audit default --methods my_file.py:MyGenerator

What to expect: with the claimed noise no bound is above the claim in any seed; without
noise the Clopper-Pearson bound is above it in every one. A bound below the claim is no
proof; the checks look at the code itself. Prints the path of a figure and of the rows.

The attacker's data hold the audited record or nothing: neighbours as different as can
be, under a public number of records. Bounds each hold with 99.9 % confidence. The one
from a Gaussian's trade-off curve is an estimate where the mechanism has another curve,
as DP-SGD has; the one from a single run sees a hundred records, each in by a coin.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from ppds_jax import classifiers, devices, generators
from ppds_jax.attacks.audit import (
    Player,
    distinguish,
    epsilon_clopper_pearson,
    epsilon_gaussian,
    epsilon_one_run,
    error_bounds,
    guess,
    player,
)
from ppds_jax.data.load import Images, load
from ppds_jax.harness import config
from ppds_jax.harness.plots import audit_bounds
from ppds_jax.harness.progress import progress
from ppds_jax.harness.run import Row, Run, plain
from ppds_jax.harness.source import code
from ppds_jax.harness.store import replacing, write_json
from ppds_jax.privacy.accounting import NAMES, check_budget, epsilon
from ppds_jax.privacy.checks import check
from ppds_jax.types import Budget, Dataset, DataSpec, InputError

METHODS = (*generators.ALL, *classifiers.ALL)
CLAIMED, WITHOUT = "as claimed", "without noise"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is audited.

    Attributes:
      methods: private generators or classifiers: ClassMean, my_file.py:MyGenerator ...
      data: a data set (see `ppds_jax.data.load`), from which records are taken.
      epsilon: the claim, at most 3: a bound from this many runs cannot be much above.
      delta: of the claim.
      seeds: how many audits of each method, with seeds 0, 1, ...
      runs: of each method in each audit, with the record and as many without.
      num_private: public number of records in those runs.
      canaries: records of the audit of a single run.
      guesses: how many of them are guessed.
      checks: whether the code is checked first.
    """

    methods: Annotated[tuple[Any, ...], config.methods_from(METHODS)] = (
        generators.ClassMean(),
        generators.DPMerf(features=200, width=2, num_steps=1),
        classifiers.DPCNN(width=4, hidden=16, epochs=5, batch_size=8),
    )
    data: str = "digits"
    epsilon: float = 2.0
    delta: float = 1e-5
    seeds: int = 20
    runs: int = 1000
    num_private: int = 32
    canaries: int = 100
    guesses: int = 40
    checks: bool = True


PRESETS = {
    "smoke": (
        "one method, two seeds",
        Config(methods=(generators.ClassMean(),), seeds=2, runs=400, checks=False),
    ),
    "default": ("three methods, 20 seeds", Config()),
}


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """One audit. The bounds are lower bounds on epsilon, 99.9 % each."""

    method: str
    noise: str
    seed: int
    claim: float
    delta: float
    neighbours: str
    clopper_pearson: float
    gaussian: float
    one_run: float
    auc: float
    runs: int
    canaries: int


def run(cfg: Config, runtime: config.Runtime | None = None) -> list[Row]:
    """Audits each method, or serves the rows of a finished run of the same config.

    Raises:
      InputError: anything wrong with the config or the data, before any training; a
        method without a finite claim.
    """
    runtime = runtime or config.Runtime()
    images = _checked(cfg)
    here = Run(runtime, "audit", cfg, code(), Path(__file__).read_text(), *images[1:3])
    rows = here.rows()
    if rows is None:
        devices.prepare(runtime.layout)
        made = [_made(cfg, images, method, runtime) for method in cfg.methods]
        here.start()
        names = config.names(cfg.methods)
        if cfg.checks:
            faults = _faults(cfg, images, names)
            write_json(here.path / "checks.json", faults)
        rows = []
        with progress(2 * cfg.seeds * len(names), "audits") as done:
            for name, method in zip(names, made, strict=True):
                for row in _audited(cfg, images, name, *method):
                    rows.append(plain(row))
                    done(1)
        here.finish(rows)
    with replacing(here.path / "bounds.png") as file:
        file.write(audit_bounds(rows))
    print(_table(rows))
    print(here.path / "rows.csv")
    print(here.path / "bounds.png")
    return rows


def _checked(cfg: Config) -> Images:
    check_budget(Budget(cfg.epsilon, cfg.delta))
    if not cfg.epsilon <= 3:
        raise InputError(
            f"epsilon={cfg.epsilon}: at most 3 can be refuted by this audit"
        )
    for name, least in {"seeds": 1, "runs": 8, "num_private": 1, "canaries": 2}.items():
        if getattr(cfg, name) < least:
            raise InputError(f"{name}={getattr(cfg, name)}: must be at least {least}")
    if not 2 <= cfg.guesses <= cfg.canaries:
        raise InputError(f"guesses={cfg.guesses}: from 2 to canaries={cfg.canaries}")
    if not cfg.methods:
        raise InputError("methods: none given; name at least one, as ClassMean")
    images = load(cfg.data)
    if len(images.x_train) < max(cfg.canaries, 120):
        raise InputError(
            f"data={cfg.data!r}: has {len(images.x_train)} training images; canaries="
            f"{cfg.canaries} and the checks need {max(cfg.canaries, 120)}"
        )
    return images


def _made(
    cfg: Config, images: Images, method: Any, runtime: config.Runtime
) -> tuple[Player, Player, str]:
    """Players with one record and with many, and the neighbours of the claim."""
    shape, budget = images.x_train.shape[1:], Budget(cfg.epsilon, cfg.delta)
    players = []
    for size in (cfg.num_private, cfg.canaries):
        spec = DataSpec(shape, images.num_classes, size)
        made, twin = method.make(spec, budget), method.make(spec, Budget(np.inf, 1e-5))
        spent = epsilon(made.guarantee, cfg.delta)
        if not 0 < spent < np.inf:
            raise InputError(
                f"methods: {config.describe(method)} claims epsilon {spent}; only a "
                "finite claim above 0 can be audited"
            )
        image, label = images.x_train[:size].copy(), images.y_train[:size].copy()
        if size == cfg.num_private:
            image[0] = 255  # the canary: as bright as may be
        data = Dataset(jnp.asarray(image), jnp.asarray(label), jnp.ones(size, bool))
        players.append(player(made, twin, data, runtime.layout))
    return players[0], players[1], NAMES[made.guarantee.neighbours]


def _faults(cfg: Config, images: Images, names: list[str]) -> dict[str, Any]:
    """What the checks find in each method; raises nothing, prints what is wrong."""
    member = jnp.arange(120) % 2 == 0
    image, label = jnp.asarray(images.x_train[:120]), jnp.asarray(images.y_train[:120])
    data = Dataset(image, label, member)
    spec = DataSpec(images.x_train.shape[1:], images.num_classes, 60)
    found = {}
    with progress(len(names), "checks") as done:
        for name, method in zip(names, cfg.methods, strict=True):
            build = lambda data, budget, method=method: method.make(spec, budget)
            found[name] = check(build, spec, Budget(cfg.epsilon, cfg.delta), data)
            done(1)
    for name, faults in found.items():
        wrong = {key: fault for key, fault in faults.items() if fault}
        print(f"{name}: {len(faults) - len(wrong)} of {len(faults)} checks passed")
        for key, fault in wrong.items():
            print(f"  {key}: {fault}")
    return found


def _audited(
    cfg: Config, images: Images, name: str, one: Player, many: Player, relation: str
) -> Iterator[AuditRow]:
    absent = np.zeros(cfg.num_private, bool)
    for noise in (CLAIMED, WITHOUT):
        if noise == WITHOUT:
            one, many = (p._replace(run=p.twin) for p in (one, many))
        for seed in range(cfg.seeds):
            first, second = jax.random.split(jax.random.key(seed))
            inside, outside = distinguish(one, first, absent, 0, cfg.runs)
            errors = error_bounds(inside, outside)
            right = guess(many, second, cfg.canaries, cfg.guesses)
            above = np.sign(inside[:, None] - outside[None])
            yield AuditRow(
                method=name,
                noise=noise,
                seed=seed,
                claim=cfg.epsilon,
                delta=cfg.delta,
                neighbours=relation,
                clopper_pearson=epsilon_clopper_pearson(errors, cfg.delta),
                gaussian=epsilon_gaussian(errors, cfg.delta),
                one_run=epsilon_one_run(right, cfg.guesses, cfg.canaries, cfg.delta),
                auc=float((above.mean() + 1) / 2),
                runs=cfg.runs,
                canaries=cfg.canaries,
            )


BOUNDS = ("clopper_pearson", "gaussian", "one_run")


def _table(rows: list[Row]) -> str:
    """For each method, with and without noise, how many seeds are above the claim."""
    lines = ["| method | noise | claim | " + " | ".join(BOUNDS) + " |"]
    lines.append("|---" * 6 + "|")
    groups = dict.fromkeys((row["method"], row["noise"]) for row in rows)
    for method, noise in groups:
        these = [r for r in rows if (r["method"], r["noise"]) == (method, noise)]
        cells = [f"{method} | {noise} | {these[0]['claim']}"]
        for bound in BOUNDS:
            values = [row[bound] for row in these]
            above = sum(v > row["claim"] for v, row in zip(values, these, strict=True))
            cells.append(
                f"{np.median(values):.2f} [{min(values):.2f}, {max(values):.2f}], "
                f"{above} of {len(values)} above"
            )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    config.main(run, PRESETS, ignores=("checkpoint_every",))
