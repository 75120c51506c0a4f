"""Tables and figures of how useful synthetic images are. They read rows only.

Rows are those of `experiments.generators`; published numbers stand beside them.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ppds_jax.harness.page import epsilon_text
from ppds_jax.harness.plots import COLOURS, GREY, png
from ppds_jax.harness.run import Row

BENCH = (
    "DPImageBench, its README of 2026: best of three classifiers, one seed, "
    "δ = 1/(N ln N)"
)
SOK = "SoK: Privacy-Preserving Data Synthesis, S&P 2024: CNN"
DPDM = "Dockhorn et al., arXiv 2210.09929: CNN"
MEPF = "DP-MEPF, TMLR 2023: MLP"
BIE = "Bie et al., arXiv 2302.02936: 50 discriminator steps"
FETA = "FETA-Pro, arXiv 2601.06368"
HOLLOW: dict[str, Any] = {"s": 34, "marker": "D", "facecolors": "none", "zorder": 2}


class Published(NamedTuple):
    """An accuracy that somebody else reports, for synthetic images of `method`."""

    method: str
    data: str
    epsilon: float
    accuracy: float
    source: str


def _bench(method: str, mnist: tuple[float, float], fashion: tuple[float, float]):
    for data, values in (("mnist", mnist), ("fashion_mnist", fashion)):
        for epsilon, accuracy in zip((1.0, 10.0), values, strict=True):
            yield Published(method, data, epsilon, accuracy / 100, BENCH)


PUBLISHED = (
    *_bench("DPMerf", (80.3, 81.3), (62.2, 62.2)),
    *_bench("DPNTK", (50.0, 91.3), (64.4, 76.3)),
    *_bench("DPKernel", (94.0, 93.6), (68.4, 70.0)),
    *_bench("PrivateEvolution", (27.9, 32.7), (47.9, 57.8)),
    *_bench("DPGAN", (92.4, 92.7), (71.8, 70.3)),
    *_bench("DPDM", (89.2, 97.7), (76.4, 85.6)),
    *_bench("DPFETA", (95.6, 98.1), (81.7, 87.3)),
    Published("DPMerf", "mnist", 1.0, 0.839, SOK),
    Published("DPMerf", "mnist", 10.0, 0.832, SOK),
    Published("DPMerf", "fashion_mnist", 1.0, 0.724, SOK),
    Published("DPMepf", "mnist", 1.0, 0.893, MEPF),
    Published("DPMepf", "mnist", 10.0, 0.898, MEPF),
    Published("DPGAN", "mnist", 10.0, 0.930, BIE),
    Published("DPDM", "mnist", 1.0, 0.953, DPDM),
    Published("DPDM", "mnist", 10.0, 0.981, DPDM),
    Published("DPDM", "fashion_mnist", 1.0, 0.794, DPDM),
    Published("DPDM", "fashion_mnist", 10.0, 0.862, DPDM),
    Published("DPFETA", "mnist", 1.0, 0.971, FETA),
    Published("DPFETA", "mnist", 10.0, 0.986, FETA),
    Published("DPFETA", "fashion_mnist", 1.0, 0.823, FETA),
    Published("DPFETA", "fashion_mnist", 10.0, 0.883, FETA),
)


def groups(rows: list[Row]) -> Iterator[tuple[str, list[Row]]]:
    """The seeds of each method and budget."""
    for method, budget in dict.fromkeys((r["method"], r["budget"]) for r in rows):
        yield (
            method,
            [r for r in rows if (r["method"], r["budget"]) == (method, budget)],
        )


def published(method: str, data: str, budget: float | str) -> list[Published]:
    """What others report for a method, whatever its options here."""
    name = _bare(method.split("(")[0].split(".")[-1])
    wanted = name, data, budget
    return [p for p in PUBLISHED if (_bare(p.method), p.data, p.epsilon) == wanted]


def _bare(name: str) -> str:
    """DPFETA, DP-FETA and FETA are one method."""
    return name.lower().replace("-", "").removeprefix("dp")


def table(rows: list[Row], data: str) -> str:
    """A Markdown table: mean and standard deviation over seeds, a row a budget."""
    families = [name for name in rows[0] if name.startswith("accuracy/")]
    (distance,) = [name for name in rows[0] if name.startswith("frechet/")]
    head = ["method", "ε", "neighbours", "seeds"]
    head += [f"{name.removeprefix('accuracy/')}, %" for name in families]
    head += ["published, %", f"Fréchet, {distance.removeprefix('frechet/')}"]
    head += ["precision", "recall", "train, s", "images/s"]
    lines = [head, ["---"] * len(head)]
    sources: dict[str, int] = {}
    for method, these in groups(rows):
        others = published(method, data, these[0]["budget"])
        marks = [sources.setdefault(p.source, len(sources) + 1) for p in others]
        mean = lambda name, these=these: float(np.mean([r[name] for r in these]))
        spent = these[0]["epsilon"]
        cells = [method, "∞" if spent == "inf" else epsilon_text(spent)]
        cells += [these[0]["neighbours"] if _finite(spent) else "", str(len(these))]
        cells += [_spread([100 * r[name] for r in these]) for name in families]
        cells += [
            ", ".join(
                f"{100 * p.accuracy:.1f} [{mark}]"
                for p, mark in zip(others, marks, strict=True)
            ),
            f"{mean(distance):.3g}",
            f"{mean('precision'):.2f}",
            f"{mean('recall'):.2f}",
            f"{mean('train_seconds'):.0f}",
            f"{mean('images_per_second'):.3g}",
        ]
        lines.append(cells)
    row = rows[0]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    cited = "\n".join(f"[{mark}] {source}.  " for source, mark in sources.items())
    return (
        f"{text}\n\n{row['data']}: {row['num_private']:,} private images, "
        f"{row['num_images']:,} synthetic ones, δ {row['delta']:g}. Accuracies are on "
        "real test images, of classifiers trained on the synthetic ones alone, ± one "
        "standard deviation over seeds where there are several. Fréchet distance, "
        f"precision and recall compare {row['num_compared']:,} test images with as "
        "many synthetic ones; real images (the memoriser's) are not at 0 and 1. "
        f"Seconds include compiling; device: {row['device']}. Presets were chosen by "
        "looking at accuracies, which no ε covers.\n\n"
        f"{_notes(rows)}{cited}"
    ).rstrip()


def _finite(epsilon: float | str) -> bool:
    return epsilon not in ("inf", float("inf"))


def _notes(rows: list[Row]) -> str:
    """What else a reader of each epsilon must know, with the methods it is about."""
    methods: dict[str, dict[str, None]] = {}
    for row in rows:
        for note in filter(None, str(row["notes"]).split("; ")):
            if _finite(row["epsilon"]):
                methods.setdefault(note, {})[row["method"]] = None
    lines = [f"* {note}: {', '.join(names)}.\n" for note, names in methods.items()]
    return "Each ε of these rows supposes:\n\n" * bool(lines) + "".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    text = f"{np.mean(values):.1f}"
    return f"{text} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else text


def accuracies(rows: list[Row], data: str) -> bytes:
    """The first classifier's accuracy, a line a method; published ones are hollow."""
    family = next(name for name in rows[0] if name.startswith("accuracy/"))
    budgets = sorted({r["budget"] for r in rows}, key=float, reverse=True)
    colour = {b: COLOURS[i % len(COLOURS)] for i, b in enumerate(budgets)}
    methods = list(dict.fromkeys(r["method"] for r in rows))
    figure = Figure(figsize=(8.5, 1.6 + 0.34 * len(methods)), layout="constrained")
    axes = figure.add_subplot()
    for method, these in groups(rows):
        place, budget = methods.index(method), these[0]["budget"]
        values = [100 * r[family] for r in these]
        shift = 0.22 * (budgets.index(budget) - (len(budgets) - 1) / 2)
        at = place + shift
        axes.scatter(values, [at] * len(values), s=22, color=colour[budget], zorder=3)
        others = [100 * p.accuracy for p in published(method, data, budget)]
        axes.scatter(others, [at] * len(others), edgecolors=colour[budget], **HOLLOW)
    for budget in budgets:
        text = "not private" if budget == "inf" else f"ε {budget:g}"
        axes.scatter([], [], s=22, color=colour[budget], label=text)
    axes.scatter([], [], edgecolors=GREY, label="published", **HOLLOW)
    axes.set_yticks(range(len(methods)), methods, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel(f"accuracy on real test images, %, {family.split('/')[1]}")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    return png(figure)
