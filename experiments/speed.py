"""How fast is it, beside what a user would pick instead?

    python -m experiments.speed smoke     every headline ratio, a few minutes
    python -m experiments.speed full      the whole table
    python -m experiments.speed score     attack scoring alone, under a minute
    make bench-gpu PART=1                 on an accelerator: parts 1 to 7

Rivals need the extra `bench` (PyTorch, Opacus); without it their rows are left out, and
a line says so. Every ratio is of the same network, batch and number of steps, timed in
turn in one run (see `experiments.bench.contest`), in ways that the rows name:

* `shadow_speedup_vs_torch/NET`: 16 models in PyTorch, each a plain loop, by the faster
  of one process with two threads and two processes pinned to a core each;
  `..._tuned/NET`: by the latter with channels-last images and fused Adam.
  On an accelerator `torch` is one process, and its loops train `rival_models`.
* `dp_speedup_vs_opacus_MODE/NET`: DP-SGD on one pinned core; `.../2cores`: on each of
  two cores at once.
* `dp_merf_speedup_vs_torch`, `sampling_speedup_vs_torch`: the whole of DP-MERF, and
  10,000 images of its generator, on one pinned core.

What to expect on 2 cores: 1.3 or more on the CNNs and 1.1 on the dense network against
the plain loop, 8 or more against naive `vmap`; DP-SGD 8 times Opacus's hooks and 2.5
times its ghost clipping on the stride CNN. Committed figures, with their machine:
`experiments/results/speed_cpu.json`, and `speed_h200.json` beside it.
"""

import json
from dataclasses import replace
from pathlib import Path

from experiments.bench.figure import draw
from experiments.bench.scoring import Scoring
from experiments.bench.table import PARTS, Config
from ppds_jax.harness import config
from ppds_jax.harness.run import Row, Run, environment
from ppds_jax.harness.source import code
from ppds_jax.harness.store import write_json
from ppds_jax.types import InputError

TINY = Scoring(num_models=16, num_images=400, num_population=50, num_resamples=5)
GPU = Config(
    parts=("mappers",),
    models=64,
    rival_models=4,
    steps=40,
    functional=True,
    compiled=True,
    naive=(),
    modes=("vmap", "map"),
    memory_limit=48 * 10**9,
    mapper_widths=(1, 4, 16, 64, 256),
    mapper_steps=40,
    engines=("microbatch", "reference"),
    private_steps=40,
    by_core=False,
    published=True,
    peak_size=8192,
    merged=True,
)
WIDE = replace(
    GPU,
    nets=("wrn16-4",),
    width_nets=("wrn16-4",),
    sizes=("cifar",),
    models=16,
    widths=(1, 4, 16, 64, 256),
    width_steps=40,
    mapper_widths=(4, 16),
    rounds=2,
)
PRESETS: dict[str, tuple[str, Config]] = {
    "smoke": (
        "every headline ratio, a few minutes on 2 cores",
        Config(steps=8, rounds=4),
    ),
    "full": (
        "the whole table",
        Config(
            parts=tuple(PARTS),
            widths=(1, 4, 16, 64, 256),
            width_nets=("maxpool", "stride", "mlp"),
            mapper_widths=(1, 4, 16, 64),
            functional=True,
            naive=("vmap", "loop", "scan"),
            engines=("microbatch", "reference"),
            private_cores=(1, 2),
            rounds=7,
        ),
    ),
    "score": (
        "one target against 255 models on 50,000 images",
        Config(parts=("score",)),
    ),
    "tiny": (
        "shows that everything runs",
        Config(
            parts=tuple(PARTS),
            models=2,
            steps=1,
            functional=True,
            widths=(2, 4),
            mapper_widths=(2,),
            private_steps=1,
            rounds=1,
            scoring=TINY,
        ),
    ),
    "gpu1": ("accelerator: shadows against PyTorch", replace(GPU, parts=("shadows",))),
    "gpu2": (
        "accelerator: models an hour, CNN on MNIST and CIFAR",
        replace(GPU, sizes=("mnist", "cifar")),
    ),
    "gpu3": (
        "accelerator: WRN-16-4 on CIFAR against PyTorch, and an hour",
        replace(WIDE, parts=("shadows", "widths")),
    ),
    "gpu4": ("accelerator: DP-SGD against Opacus", replace(GPU, parts=("private",))),
    "gpu5": ("accelerator: whole methods", replace(GPU, parts=("methods",))),
    "gpu6": ("accelerator: ways to map WRN-16-4", replace(WIDE, parts=("mappers",))),
    "gpu7": (
        "accelerator: the time to a first step, attack scoring",
        replace(GPU, parts=("start", "score"), nets=("maxpool",)),
    ),
}


def run(cfg: Config, runtime: config.Runtime | None = None) -> list[Row]:
    """Times each part, prints a line for each number, and keeps them.

    A part that is done is not timed again with the same config and code: remove the
    run's folder, or give another --work-dir, to time anew.

    Raises:
      InputError: an unknown part, or sizes that are too small.
    """
    runtime = runtime or config.Runtime()
    _check(cfg)
    here = Run(runtime, "speed", cfg, code(), *_sources())
    rows = here.rows()
    if rows is None:
        here.start()
        rows = []
        for part in cfg.parts:
            path = here.path / f"part-{part}.json"
            if not path.exists():
                write_json(path, PARTS[part](cfg))
            rows += json.loads(path.read_text())
        here.finish(rows)
    for one in rows:
        print(json.dumps(one))
    draw(rows, _machine(), here.path / "speed.png")
    print(here.path / "rows.csv")
    return rows


def _machine() -> str:
    """What ran it, for the picture."""
    found = environment()
    devices = ", ".join(found["devices"])
    return f"{devices}, {found['cores']} cores; jax {found['versions']['jax']}"


def _sources() -> list[str]:
    files = [Path(__file__), *sorted((Path(__file__).parent / "bench").glob("*.py"))]
    return [path.read_text() for path in files]


def _check(cfg: Config) -> None:
    for part in cfg.parts:
        if part not in PARTS:
            raise InputError(f"parts={part!r}: use some of {', '.join(PARTS)}")
    least = {"num_models": 8, "num_images": 16, "num_queries": 1, "num_population": 1}
    least |= {"num_resamples": 1, "loop_images": 1}
    counts = {name: (getattr(cfg.scoring, name), least[name]) for name in least}
    for name in ("models", "steps", "naive_steps", "mapper_steps", "private_steps"):
        counts[name] = getattr(cfg, name), 1
    counts["rounds"] = cfg.rounds, 1
    counts["rival_models"] = cfg.rival_models, 0
    counts["peak_size"] = cfg.peak_size, 1
    for name, (value, smallest) in counts.items():
        if value < smallest:
            raise InputError(f"{name}={value}: must be at least {smallest}")


if __name__ == "__main__":
    options = "mode", "mesh", "at_once", "memory", "checkpoint_every"
    config.main(run, PRESETS, ignores=options)
