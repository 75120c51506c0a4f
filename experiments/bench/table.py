"""The parts of the speed table: what is timed in each, and beside what.

A part is a function of the `Config` that gives rows (name, value, unit).
"""

import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from experiments.bench.contest import Contestant, Result, contest, ratio
from experiments.bench.scoring import Scoring, row, score_seconds
from ppds_jax.devices import Mode
from ppds_jax.harness.run import Row
from ppds_jax.privacy.engines import Engine

Net = Literal["maxpool", "stride", "mlp", "wrn16-4"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is timed.

    Attributes:
      parts: of the table: shadows, widths, mappers, private, score, methods, start.
      nets: maxpool, stride, mlp, wrn16-4.
      sizes: of the images: mnist (28x28x1), cifar (32x32x3); the contest with PyTorch
        is at the first.
      models: shadow models in the contest with PyTorch.
      rival_models: those that PyTorch trains in its loops, whose cost is one's times
        their number; 0: as many.
      steps: of each model, batch 128.
      functional: whether `torch.func`, all models in one `vmap`, is a rival too.
      compiled: whether PyTorch's compiler, with CUDA graphs, is one.
      naive: ways to map the max-pool CNN as a tutorial would: vmap, loop, scan.
      naive_steps: of each model mapped so, which is slow on a CPU.
      width_nets: networks of which the cost of one of many is shown.
      widths: numbers of models for which it is.
      width_steps: of each of them.
      modes: mappings to compare on these networks.
      mapper_widths: numbers of models at which they are.
      mapper_steps: of each model in that.
      memory_limit: bytes that each M may take; all M are there at once.
      engines: of DP-SGD, besides a plain step and ghost clipping.
      private_cores: on how many cores DP-SGD is timed, one process on each.
      private_steps: of DP-SGD, expected batch 256.
      by_core: whether a rival also is a process on each core, and DP-SGD on one core;
        else all have the whole machine.
      published: whether the step of DPDM is one of its published size.
      peak_size: of the square matrices whose product is the peak.
      merged: whether all of a part's contestants are prepared at once, where compilers
        take longer than the work, and memory is ample.
      rounds: of each contest, or a multiple (`OFTENER`); ratios are medians over them.
      scoring: the attacks that are timed.
    """

    parts: tuple[str, ...] = ("shadows", "private", "score")
    nets: tuple[Net, ...] = ("maxpool", "stride", "mlp")
    sizes: tuple[Literal["mnist", "cifar"], ...] = ("mnist",)
    models: int = 16
    rival_models: int = 0
    steps: int = 16
    functional: bool = False
    compiled: bool = False
    naive: tuple[Literal["vmap", "loop", "scan"], ...] = ("vmap",)
    naive_steps: int = 1
    width_nets: tuple[Net, ...] = ("maxpool",)
    widths: tuple[int, ...] = (4, 256)
    width_steps: int = 8
    modes: tuple[Mode, ...] = ("shard-map", "shard-vmap", "map", "vmap")
    mapper_widths: tuple[int, ...] = (16,)
    mapper_steps: int = 2
    memory_limit: int = 4 * 10**9
    engines: tuple[Engine, ...] = ()
    private_cores: tuple[int, ...] = (1,)
    private_steps: int = 4
    by_core: bool = True
    published: bool = False
    peak_size: int = 1024
    merged: bool = False
    rounds: int = 3
    scoring: Scoring = field(default_factory=Scoring)


def _rivals() -> bool:
    """Whether PyTorch and Opacus are there; says so where they are not."""
    found = all(importlib.util.find_spec(name) for name in ("torch", "opacus"))
    if not found:
        print(
            "no rivals: pip install -e '.[bench]' for PyTorch's rows", file=sys.stderr
        )
    return found


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


Groups = dict[str, dict[str, Contestant]]
OFTENER = {"stride": 2, "mlp": 3}  # rounds of what is short, for steadier medians


def _contests(cfg: Config, groups: Groups, rounds: int) -> dict[str, dict[str, Result]]:
    """Results of contestants that are compared within groups."""
    if not cfg.merged:
        return {
            place: contest(entries, rounds * OFTENER.get(place, 1))
            for place, entries in groups.items()
        }
    pairs = [(place, name) for place, entries in groups.items() for name in entries]
    found = contest({pair: groups[pair[0]][pair[1]] for pair in pairs}, rounds)
    return {place: {n: found[place, n] for n in groups[place]} for place in groups}


def shadows(cfg: Config) -> list[Row]:
    """Shadow models against PyTorch, and the max-pool CNN against naive JAX."""
    rows: list[Row] = []
    groups: Groups = {net: _shadows(cfg, net) for net in cfg.nets}
    for net, results in _contests(cfg, groups, cfg.rounds).items():
        peak = results.pop("peak")
        share = peak.per_unit * results["ours"].facts["flops"]
        share /= peak.facts["flops"] * results["ours"].per_unit
        for rival in ("torch", "torch_tuned", "torch_func", "torch_compiled"):
            sides = [r for name, r in results.items() if name.startswith(f"{rival}/")]
            if sides:
                fastest = min(sides, key=lambda r: r.per_unit)
                rows.append(
                    _ratio(f"shadow_speedup_vs_{rival}/{net}", fastest, results)
                )
        rows += [_ms(f"shadow_ms/{net}/{name}", r) for name, r in results.items()]
        for name, result in results.items():
            unit = "GiB of main memory"
            rows.append(row(f"shadow_memory/{net}/{name}", result.memory, unit))
        rate = share * peak.facts["flops"] / peak.per_unit / 1e9
        rows.append(row(f"gflops/{net}", rate, "thousand million operations a second"))
        rows.append(row(f"peak_share/{net}", share, "of the matrix-product peak"))
    return rows + (_naive(cfg) if cfg.naive and "maxpool" in cfg.nets else [])


def _shadows(cfg: Config, net: str) -> dict[str, Contestant]:
    """One network's contestants."""
    work: dict[str, Any] = {"net": net, "steps": cfg.steps, "size": cfg.sizes[0]}
    all_of = work | {"models": cfg.models}
    units = cfg.models * cfg.steps
    entries = {"ours": Contestant("ours:shadows", all_of, units=units)}
    if _rivals():
        entries |= _loops(cfg, work)
        if cfg.functional:
            options = all_of | {"threads": len(_cores())}
            entries["torch_func/threads"] = Contestant(
                "rivals:together", options, units=units
            )
    peak = {"size": cfg.peak_size, "repeats": 20}
    return entries | {"peak": Contestant("ours:matrix_product", peak)}


def _loops(cfg: Config, work: dict[str, Any]) -> dict[str, Contestant]:
    """PyTorch's loops over models."""
    place, cores = "rivals:shadows", _cores()
    models = cfg.rival_models or cfg.models
    work, units = work | {"models": models}, models * cfg.steps
    threads = {"threads": len(cores)}
    entries = {"torch/threads": Contestant(place, work | threads, units=units)}
    if cfg.by_core:
        part = work | {"models": max(1, models // len(cores))}
        total = part["models"] * len(cores) * cfg.steps
        each = tuple((core,) for core in cores)
        for name, tuned in (("torch", False), ("torch_tuned", True)):
            entries[f"{name}/processes"] = Contestant(
                place, part | {"tuned": tuned}, each, total
            )
    else:
        faster = work | threads | {"tuned": True}
        entries["torch_tuned/threads"] = Contestant(place, faster, units=units)
    if cfg.compiled:
        faster = work | {"tuned": True, "compiled": True}
        entries["torch_compiled/process"] = Contestant(place, faster, units=units)
    return entries


def _naive(cfg: Config) -> list[Row]:
    """The max-pool CNN as a tutorial would map it."""
    units = cfg.models * cfg.naive_steps
    work = {"models": cfg.models, "steps": cfg.naive_steps}
    entries = {
        "ours": Contestant("ours:shadows", work | {"net": "maxpool"}, units=units)
    }
    for mode in cfg.naive:
        entries[mode] = Contestant("ours:textbook", work | {"mode": mode}, units=units)
    results, rows = contest(entries, min(3, cfg.rounds)), []
    for mode in cfg.naive:
        name = f"shadow_speedup_vs_{mode}/maxpool"
        rows.append(_ratio(name, results[mode], results))
        rows.append(_ms(f"shadow_ms/maxpool/naive_{mode}", results[mode]))
    return rows


EPOCHS, BATCHES = 20, 8  # of a shadow model: 1,000 images in batches of 128


def widths(cfg: Config) -> list[Row]:
    """Models an hour and memory over M, by the default mapping, in limited memory."""
    rows = []
    for net, size in itertools.product(cfg.width_nets, cfg.sizes):
        work = {"net": net, "size": size, "memory": cfg.memory_limit}
        work["steps"] = cfg.width_steps
        entries = {}
        for models in cfg.widths:
            # few models several times: a neighbour on the machine meets all M alike
            repeats = max(1, 64 // models) if cfg.by_core else 1
            entries[str(models)] = Contestant(
                "ours:shadows",
                work | {"models": models, "repeats": repeats},
                units=models * cfg.width_steps * repeats,
            )
        place = f"{net}-{size}"
        results = contest(entries, cfg.rounds)
        for many, result in results.items():
            name = f"{place}/{many}"
            rows.append(_ms(f"width_ms/{name}", result))
            rows.append(_hourly(name, result))
            unit = "GiB of main memory"
            rows.append(row(f"peak_memory/{name}", result.memory, unit))
        others = [*results.values()][1:] or [*results.values()]
        costs = np.array([result.seconds / result.units for result in others])
        medians = np.median(costs / costs.mean(axis=0), axis=1)  # each in its round
        spread = float(medians.max() / medians.min())
        unit = "dearest M over cheapest, above the first"
        rows.append(row(f"cost_spread/{place}", spread, unit))
    return rows


def mappers(cfg: Config) -> list[Row]:
    """Which way to map is the fastest for each network and M: why the default is."""
    groups: Groups = {}
    each = itertools.product(cfg.width_nets, cfg.sizes, cfg.mapper_widths)
    for net, size, models in each:
        work: dict[str, Any] = {"net": net, "models": models, "size": size}
        work |= {"steps": cfg.mapper_steps, "memory": cfg.memory_limit}
        units = models * cfg.mapper_steps
        groups[f"{net}-{size}/{models}"] = {
            mode: Contestant("ours:shadows", work | {"mode": mode}, units=units)
            for mode in cfg.modes
        }
    rows = []
    for place, results in _contests(cfg, groups, min(3, cfg.rounds)).items():
        where, many = place.split("/")
        for mode, result in results.items():
            rows.append(_ms(f"mapper_ms/{where}/{mode}/{many}", result))
            rows.append(_hourly(f"{where}/{mode}/{many}", result))
    return rows


def private(cfg: Config) -> list[Row]:
    """DP-SGD, examples a second: our engines, a plain step, and Opacus."""
    rows, cores = [], _cores()
    nets = [net for net in cfg.nets if net in ("maxpool", "stride")]
    groups = {
        net + ("" if count == 1 else f"/{count}cores"): _private(cfg, net, count)
        for net in nets
        for count in cfg.private_cores
        if count <= len(cores)
    }
    for place, results in _contests(cfg, groups, cfg.rounds).items():
        net, _, label = place.partition("/")
        label = label and f"/{label}"
        for name, result in results.items():
            speed = 1 / result.per_unit
            rows.append(row(f"dp_examples/{net}/{name}{label}", speed, "a second"))
        over = ratio(results["ghost"], results["plain"])
        rows.append(row(f"dp_over_plain/{place}", over, "times the plain step"))
        for mode in ("hooks", "ghost"):
            if f"opacus_{mode}" in results:
                name = f"dp_speedup_vs_opacus_{mode}/{place}"
                rival = results[f"opacus_{mode}"]
                rows.append(row(name, ratio(rival, results["ghost"]), "times"))
    return rows


def _private(cfg: Config, net: str, count: int) -> dict[str, Contestant]:
    """One network's contestants, on so many cores."""
    work = {"net": net, "steps": cfg.private_steps}
    units = cfg.private_steps * 256 * count
    cores = tuple((core,) for core in _cores()[:count]) if cfg.by_core else (None,)
    places = {
        name: ("ours:private", {"engine": name})
        for name in ("plain", "ghost", *cfg.engines)
    }
    if _rivals():
        for mode in ("hooks", "ghost"):
            places[f"opacus_{mode}"] = "rivals:private", {"mode": mode}
    return {
        name: Contestant(place, work | options, cores, units)
        for name, (place, options) in places.items()
    }


def score(cfg: Config) -> list[Row]:
    """Attack scoring: see `experiments.bench.scoring`."""
    return score_seconds(cfg.scoring)


def methods(cfg: Config) -> list[Row]:
    """Whole methods: DP-MERF's fit, drawing from its generator, a step of DPDM."""
    steps, count = 10 * cfg.steps, 10_000
    cores = ((_cores()[0],) if cfg.by_core else None,)
    work: dict[str, tuple[dict[str, Any], int]] = {
        "dp_merf": ({"steps": steps}, 1),
        "sampling": ({"count": count}, count),
    }
    sides = ("ours", "rivals") if _rivals() else ("ours",)
    entries = {
        f"{side}:{name}": Contestant(f"{side}:{name}", options, cores, units)
        for side in sides
        for name, (options, units) in work.items()
    }
    dpdm = {"steps": 1 if cfg.published else 2, "published": cfg.published}
    entries["dpdm"] = Contestant("ours:dpdm", dpdm, units=dpdm["steps"])
    results = contest(entries, cfg.rounds)
    what = "4,096 images expected, 32 noises" if cfg.published else "64 images expected"
    merf, drawn = (results[f"ours:{name}"] for name in work)
    rows = [
        row(f"dp_merf_seconds/{steps}_steps", merf.per_unit, "s"),
        row("dpdm_step_seconds", results["dpdm"].per_unit, f"s, {what}"),
        row("dp_merf_samples", 1 / drawn.per_unit, "images a second"),
    ]
    for name in work if "rivals" in sides else ():
        times = ratio(results[f"rivals:{name}"], results[f"ours:{name}"])
        rows.append(row(f"{name}_speedup_vs_torch", times, "times"))
    return rows


def start(cfg: Config) -> list[Row]:
    """Seconds from a process's start to its first step: cold, then with the cache."""
    code = "from experiments.bench.ours import first_step; first_step({!r})"
    rows = []
    for net in cfg.nets:
        with tempfile.TemporaryDirectory() as cache:
            for name in ("cold", "warm"):
                seconds = _seconds([sys.executable, "-c", code.format(net)], cache)
                rows.append(row(f"first_step_seconds/{net}/{name}", seconds, "s"))
    return rows


def _seconds(command: list[str], cache: str) -> float:
    begun = time.perf_counter()
    environment = os.environ | {"XDG_CACHE_HOME": cache}
    subprocess.run(command, check=True, env=environment)
    return time.perf_counter() - begun


def _ratio(name: str, rival: Result, results: dict[str, Result]) -> Row:
    return row(name, ratio(rival, results["ours"]), "times")


def _hourly(place: str, result: Result) -> Row:
    hourly = 3600 / (result.per_unit * EPOCHS * BATCHES)
    unit = f"models of {EPOCHS} epochs of 1,000 images"
    return row(f"shadows_per_hour/{place}", hourly, unit)


def _ms(name: str, result: Result) -> Row:
    return row(name, 1e3 * result.per_unit, "ms a model and step")


PARTS: dict[str, Callable[[Config], list[Row]]] = {
    part.__name__: part
    for part in (shadows, widths, mappers, private, score, methods, start)
}
