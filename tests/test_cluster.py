"""Many configs as Ray tasks on a local cluster: resumed, and none lost by another."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import pytest

from ppds_jax import devices
from ppds_jax.data.load import load
from ppds_jax.harness import config
from ppds_jax.harness.cluster import run_all
from ppds_jax.harness.run import Row, Run
from ppds_jax.types import InputError


@dataclass(frozen=True)
class Config:
    scale: float


def run(cfg: Config, runtime: config.Runtime) -> list[Row]:
    """The mean brightness of the digits, scaled; computed once."""
    if cfg.scale < 0:
        raise InputError(f"scale={cfg.scale}: must be at least 0")
    here = Run(runtime, "mean", cfg)
    rows = here.rows()
    if rows is None:
        devices.prepare(runtime.layout)
        here.start()
        image = jnp.asarray(load("digits").x_train[:50], jnp.float32)
        mean = jax.jit(lambda x: cfg.scale * x.mean())(image)
        rows = [{"scale": cfg.scale, "mean": float(mean), "mesh": str(runtime.mesh)}]
        with (runtime.work_dir / "computed").open("a") as file:
            file.write(f"{cfg.scale}\n")
        here.finish(rows)
    return rows


def test_configs_run_as_tasks_are_resumed_and_a_failure_loses_no_other(tmp_path):
    ray = pytest.importorskip("ray")
    runtime = config.Runtime(tmp_path)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        with pytest.raises(RuntimeError, match=r"1 of 2 configs failed") as failure:
            run_all(run, [Config(1.0), Config(-1.0)], runtime)
        assert "config 1: InputError: scale=-1.0: must be" in str(failure.value)
        assert len(list(tmp_path.glob("mean-*/rows.jsonl"))) == 1
        first, second = run_all(run, [Config(2.0), Config(1.0)], runtime)
        with pytest.raises(InputError, match=r"mesh=\(64, 1\).*has 2"):
            run_all(run, [Config(3.0)], replace(runtime, mesh=(64, 1)))
    finally:
        ray.shutdown()
    assert first[0]["mean"] == pytest.approx(2 * second[0]["mean"])
    assert first[0]["mesh"] == "(1, 1)", "as many devices as the task was given cores"
    computed = (tmp_path / "computed").read_text().split()
    assert sorted(computed) == ["1.0", "2.0"], "each config is computed once"


@pytest.mark.slow
def test_a_grid_of_surveys_is_one_table_and_is_served(tmp_path):
    pytest.importorskip("ray")
    from experiments import grid
    from tests.test_survey import TINY

    cfg = grid.Config(
        base=replace(TINY, generators=()), epsilons=(1.0, 10.0), seeds=(0,)
    )
    runtime = config.Runtime(tmp_path)
    rows = grid.run(cfg, runtime)
    assert {(row["budget"], row["seed"]) for row in rows} == {(1.0, 0), (10.0, 0)}
    spent = {row["budget"]: row["epsilon"] for row in rows if row["epsilon"] != "inf"}
    assert all(0.9 * budget <= spent[budget] <= budget for budget in spent)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("row-*.npz")}
    assert grid.run(cfg, runtime) == rows
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert len(list(tmp_path.rglob("row-*.npz"))) == len(stamps)
