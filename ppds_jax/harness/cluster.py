"""Many configs over a cluster: Ray runs each as a task. The only file that imports it.

Tasks share `work_dir`, as hosts do. An experiment serves what is finished and goes on
with what is not, so to run all configs again is to resume them.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

from ppds_jax.harness import config, signals
from ppds_jax.harness.progress import progress
from ppds_jax.harness.run import Row
from ppds_jax.types import InputError


def run_all(
    run: Callable[[Any, config.Runtime], list[Row]],
    configs: Sequence[Any],
    runtime: config.Runtime,
    *,
    retries: int = 2,
) -> list[list[Row]]:
    """The rows of each config, computed by Ray: on `RAY_ADDRESS`, or on this machine.

    A task takes as many devices as the runtime's mesh has, by default one: GPUs where
    the cluster has any, else cores. The code must be installed on every node.

    Args:
      run: an experiment's pure function, importable by its name.
      configs: what it is called with, each once.
      runtime: how each task runs; its `work_dir` must be common to all nodes.
      retries: how often a task goes on after its worker process or node was lost.

    Raises:
      InputError: Ray is not installed, or a mesh of more devices than there are.
      RuntimeError: naming the configs that failed, when all others are finished. An
        exception of `run` is not tried again.
    """
    ray = _ray()
    mine = not ray.is_initialized()
    if mine:
        _connect(ray)
    try:
        return _results(ray, run, configs, runtime, retries)
    finally:
        if mine:
            ray.shutdown()


def _results(ray, run, configs, runtime, retries) -> list[list[Row]]:
    size = prod(runtime.mesh or (1, 1))
    there = ray.cluster_resources()
    on_gpus = there.get("GPU", 0) > 0
    most = int(there.get("GPU" if on_gpus else "CPU", 0))
    if size > most:
        raise InputError(
            f"mesh={runtime.mesh}: a task would take {size} devices, and the cluster "
            f"has {most}"
        )
    needs = {"num_gpus": size} if on_gpus else {"num_cpus": size}
    if not on_gpus and runtime.mode not in ("map", "vmap"):
        runtime = replace(runtime, mesh=runtime.mesh or (1, 1))
    runtime = replace(runtime, work_dir=runtime.work_dir.absolute())
    options = ray.remote(max_retries=retries, max_calls=1, **needs)
    task = options(lambda cfg: run(cfg, runtime))
    index = {task.remote(cfg): i for i, cfg in enumerate(configs)}
    rows: list[list[Row]] = [[] for _ in configs]
    failed: dict[int, str] = {}
    waiting = list(index)
    with progress(len(configs), "configs") as done:
        while waiting:
            ready, waiting = ray.wait(waiting)
            for ref in ready:
                try:
                    rows[index[ref]] = ray.get(ref)
                except ray.exceptions.RayError as error:
                    failed[index[ref]] = _cause(error)
            done(len(ready))
    if failed:
        lines = [f"  config {i}: {why}" for i, why in sorted(failed.items())]
        raise RuntimeError(
            f"{len(failed)} of {len(configs)} configs failed; the others are finished, "
            f"and are not computed again\n" + "\n".join(lines)
        )
    return rows


def _cause(error: Any) -> str:
    """One line: the exception of the task, or how its worker was lost."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {str(cause).splitlines()[0]}"


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError(
            "ray: is not installed; pip install 'ppds_jax[ray]' brings it"
        ) from None
    return ray


def _connect(ray: Any) -> None:
    if os.environ.get("RAY_ADDRESS"):
        with signals.unmoved():
            ray.init(address="auto", log_to_driver=False)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    with signals.unmoved():  # Ray takes SIGTERM for itself
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
