"""The picture of a run: milliseconds a model and step, examples a second."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ppds_jax.harness.run import Row

PANELS = {
    "shadow_ms": "shadow models: ms a model and step",
    "dp_examples": "DP-SGD: examples a second",
    "width_ms": "each of M shadow models: ms a step",
    "mapper_ms": "ways to map: ms a model and step",
}


def draw(rows: list[Row], title: str, path: Path) -> None:
    """Writes a PNG with a panel for each kind of row that there is."""
    kinds = [k for k in PANELS if any(_key(row, k) for row in rows)]
    if not kinds:
        return
    down = -(-len(kinds) // 2)
    figure, axes = plt.subplots(
        down, 2, figsize=(12, 5 * down), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(kinds) :]:
        axis.set_visible(False)
    for axis, kind in zip(axes.flat, kinds, strict=False):
        found = [(_key(row, kind), row["value"]) for row in rows if _key(row, kind)]
        axis.set(title=PANELS[kind])
        ends = {name.split("/")[-1] for name, _ in found}
        if len(ends) > 1 and all(end.isdigit() for end in ends):
            _lines(axis, found)
            continue
        names = [name for name, _ in found][::-1]
        values = [value for _, value in found][::-1]
        ours = ["ours" in name or "/ghost" in name for name in names]
        ours = ours if any(ours) else [True] * len(names)
        bars = axis.barh(names, values, color=["C0" if x else "C7" for x in ours])
        labels = [f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in values]
        axis.bar_label(bars, labels, padding=3, fontsize=8)
        axis.set_xscale("log")
        axis.set_xlim(0.5 * min(values), 3 * max(values))
        axis.tick_params(axis="y", labelsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _lines(axis: Any, found: list[tuple[str, float]]) -> None:
    """Over the number of models, with which names end; a colour for each network."""
    series: dict[str, list[tuple[int, float]]] = {}
    for name, value in found:
        start, _, count = name.rpartition("/")
        series.setdefault(start, []).append((int(count), value))
    nets = list(dict.fromkeys(start.split("/")[0] for start in series))
    modes = list(dict.fromkeys(start.partition("/")[2] for start in series))
    for start, points in series.items():
        net, _, mode = start.partition("/")
        style = ["-", "--", "-.", ":"][modes.index(mode) % 4]
        colour = f"C{nets.index(net)}"
        axis.plot(
            *zip(*points, strict=True), style, color=colour, marker=".", label=start
        )
    axis.set(xscale="log", yscale="log", xlabel="models, M")
    columns = min(len(modes), 3)
    axis.legend(
        fontsize=7, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.14)
    )
    axis.grid(alpha=0.25)


def _key(row: Row, kind: str) -> str:
    """The rest of the name of a row of this kind, or nothing."""
    head, _, rest = row["name"].partition("/")
    return rest if head == kind else ""
