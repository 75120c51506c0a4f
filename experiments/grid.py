"""How do leakage and utility move with the budget, and by how much from run to run?

Surveys at several budgets and seeds, each a task on a Ray cluster: that of
`RAY_ADDRESS`, or the cores of this machine. Needs the extra `ray`.

    python -m experiments.grid smoke       tiny images
    python -m experiments.grid demo        Fashion-MNIST
    RAY_ADDRESS=HEAD:6379 python -m experiments.grid demo --work-dir /shared/runs

It writes one table of all rows. What to expect: the same command again computes
nothing, and after a failure only what failed or was not finished; a new budget or seed
computes its own surveys only. Every survey keeps its own report in `work_dir`.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments import survey
from ppds_jax.generators import DPMerf
from ppds_jax.harness import config
from ppds_jax.harness.cluster import run_all
from ppds_jax.harness.run import Row, Run
from ppds_jax.harness.source import code
from ppds_jax.types import InputError


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is surveyed.

    Attributes:
      base: of each survey; its epsilon and seed are the grid's.
      epsilons: privacy budgets.
      seeds: at each budget, one survey with each.
    """

    base: survey.Config = field(default_factory=survey.Config)
    epsilons: tuple[float, ...] = (1.0, 3.0, 10.0)
    seeds: tuple[int, ...] = (0, 1)


SMOKE = survey.PRESETS["smoke"][1]
PRESETS: dict[str, tuple[str, Config]] = {
    "smoke": (
        "8x8 digits, 2 budgets: shows that everything runs",
        Config(
            base=replace(SMOKE, generators=(DPMerf(features=200, num_steps=50),)),
            epsilons=(1.0, 10.0),
            seeds=(0,),
        ),
    ),
    "demo": (
        "Fashion-MNIST, DP-MERF at 3 budgets, 2 seeds",
        Config(base=survey.Config(generators=(DPMerf(),))),
    ),
}


def run(cfg: Config, runtime: config.Runtime | None = None) -> list[Row]:
    """Runs every survey of the grid, or serves the rows of a finished one.

    Raises:
      InputError: an empty grid, or Ray is not installed.
      RuntimeError: naming the surveys that failed, when all others are finished.
    """
    runtime = runtime or config.Runtime()
    points = [(epsilon, seed) for epsilon in cfg.epsilons for seed in cfg.seeds]
    if not points or len(set(points)) < len(points):
        raise InputError("epsilons, seeds: at least one of each, and none twice")
    surveys = [replace(cfg.base, epsilon=e, seed=s) for e, s in points]
    found = run_all(survey.run, surveys, runtime)
    rows = [
        {"budget": epsilon, "seed": seed} | row
        for (epsilon, seed), part in zip(points, found, strict=True)
        for row in part
    ]
    # Only now: what is recorded starts JAX, which would take a GPU from the tasks.
    here = Run(runtime, "grid", cfg, code(), Path(__file__).read_text())
    here.start()
    here.finish(rows)
    print(here.path / "rows.csv")
    return rows


if __name__ == "__main__":
    config.main(run, PRESETS)
