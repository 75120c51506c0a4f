"""Figures of a report, as PNG. They draw rows and saved arrays, nothing else."""

import io
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = {"generator": "^", "images": "s", "classifier": "o"}
GREY = "#8c959f"


def sample_grids(samples: dict[str, np.ndarray]) -> bytes:
    """One panel for each source; each has one row a class ([classes k h w c] bytes)."""
    columns = min(3, len(samples))
    rows = -(-len(samples) // columns)
    figure = Figure(figsize=(3.5 * columns, 3.75 * rows), layout="constrained")
    for i, (name, images) in enumerate(samples.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        classes, count, height, width, channels = images.shape
        padded = np.pad(
            images,
            ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)),
            constant_values=255,
        )
        sheet = padded.transpose(0, 2, 1, 3, 4).reshape(
            classes * (height + 2), count * (width + 2), channels
        )
        axes.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(name, fontsize=11)
        axes.axis("off")
    return png(figure)


def ten_of_each(image: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    """The first ten images of each class, over again where there are fewer."""
    rows = [image[label == c][:10] for c in range(num_classes)]
    return np.stack([np.resize(x, (10, *image.shape[1:])) for x in rows])


def tradeoff(rows: list[dict[str, Any]]) -> bytes:
    """Accuracy against AUC of the attack, with intervals; one colour a subject."""
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    axes = figure.add_subplot()
    colours = _colours(rows)
    for row in rows:
        low, high = row["auc"] - row["auc_low"], row["auc_high"] - row["auc"]
        axes.errorbar(
            row["auc"],
            100 * row["accuracy"],
            xerr=[[max(low, 0)], [max(high, 0)]],
            yerr=100 * row["accuracy_std"],
            fmt=MARKERS[row["release"]],
            color=colours[row["subject"]],
            markersize=7,
            capsize=2,
            linewidth=1,
            zorder=2 if row["control"] else 3,
        )
    axes.axvline(0.5, color=GREY, linestyle="--", linewidth=1)
    axes.set_xlabel("AUC of membership inference (0.5 is chance)")
    axes.set_ylabel("accuracy on real test images, %")
    axes.grid(alpha=0.25)
    _legend(figure, rows, colours)
    return png(figure)


def roc_curves(curves: list[tuple[dict[str, Any], np.ndarray]]) -> bytes:
    """Log-log ROC curves [2 v] of (fpr, tpr), a panel for each release."""
    colours = _colours([row for row, _ in curves])
    releases = [r for r in MARKERS if any(row["release"] == r for row, _ in curves)]
    figure = Figure(figsize=(2.5 + 2.8 * len(releases), 4.4), layout="constrained")
    panels = figure.subplots(1, len(releases), sharey=True, squeeze=False)[0]
    floor = min(row["fpr_resolution"] for row, _ in curves)
    for axes, release in zip(panels, releases, strict=True):
        for row, (fpr, tpr) in curves:
            if row["release"] != release:
                continue
            axes.step(
                np.maximum(fpr, floor),
                np.maximum(tpr, floor),
                where="post",
                color=colours[row["subject"]],
                linewidth=1.3,
            )
        axes.plot([floor, 1], [floor, 1], color=GREY, linestyle="--", linewidth=1)
        axes.set(xscale="log", yscale="log", xlim=(floor, 1), ylim=(floor, 1.1))
        axes.set_title(release, fontsize=11)
        axes.set_xlabel("false-positive rate")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("true-positive rate")
    _legend(figure, [row for row, _ in curves], colours, markers=False)
    return png(figure)


def neighbour_sheet(
    title: str, image: np.ndarray, score: np.ndarray, neighbours: np.ndarray
) -> bytes:
    """A row for each image [k h w c], with neighbours [k 2 n h w c] of two sides.

    `score` [k] stands beside the images.
    """
    count, wide = len(image), neighbours.shape[2]
    figure = Figure(figsize=(0.62 * (2 * wide + 3), 0.62 * count + 0.6))
    grid = figure.add_gridspec(
        count, 2 * wide + 3, wspace=0.05, hspace=0.05, left=0.01, right=0.99,
        top=0.9, bottom=0.01,
    )  # fmt: skip
    for i in range(count):
        cells = [(1, image[i])]
        for side in (0, 1):
            first = 2 + side * (wide + 1)
            cells += [(first + j, neighbours[i, side, j]) for j in range(wide)]
        for column, picture in cells:
            axes = figure.add_subplot(grid[i, column])
            axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255)
            axes.axis("off")
        axes = figure.add_subplot(grid[i, 0])
        axes.text(0.9, 0.5, f"{score[i]:.2f}", ha="right", va="center", fontsize=9)
        axes.axis("off")
    place = lambda at: (at + 0.5) / (2 * wide + 3)
    for at, text in (
        (0.4, "d′"),
        (1, "private"),
        (2 + (wide - 1) / 2, "released with it"),
        (3 + wide + (wide - 1) / 2, "released without it"),
    ):
        figure.text(place(at), 0.94, text, ha="center", fontsize=9)
    return png(figure)


def audit_bounds(rows: list[dict[str, Any]]) -> bytes:
    """Lower bounds on epsilon, a point a seed, beside the claim: a panel a method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    kinds = list(dict.fromkeys(row["noise"] for row in rows))
    bounds = {
        "clopper_pearson": "two errors",
        "gaussian": "Gaussian",
        "one_run": "one run",
    }
    figure = Figure(figsize=(3.4 * len(methods) + 1, 4.2), layout="constrained")
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for axes, method in zip(panels, methods, strict=True):
        these = [row for row in rows if row["method"] == method]
        for i, bound in enumerate(bounds):
            for j, kind in enumerate(kinds):
                values = [row[bound] for row in these if row["noise"] == kind]
                place = i + 0.36 * (j - 0.5)
                spread = np.linspace(-0.1, 0.1, len(values))
                axes.scatter(
                    place + spread,
                    values,
                    s=16,
                    color=COLOURS[j],
                    label=kind if i == 0 else None,
                    zorder=3,
                )
        axes.axhline(these[0]["claim"], color="black", linewidth=1.2)
        axes.set_xticks(range(len(bounds)), list(bounds.values()), fontsize=9)
        axes.set_yscale("symlog", linthresh=4, linscale=3)
        axes.set_yticks([0, 1, 2, 3, 4, 10, 20], ["0", "1", "2", "3", "4", "10", "20"])
        axes.set_ylim(-0.15, 30)
        axes.set_title(method, fontsize=11)
        axes.grid(alpha=0.25, axis="y")
    panels[0].set_ylabel("epsilon: lower bounds, and the claim (line)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return png(figure)


def _colours(rows: list[dict[str, Any]]) -> dict[str, str]:
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    controls = {row["subject"] for row in rows if row["control"]}
    plain = [subject for subject in subjects if subject not in controls]
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(plain)}
    greys = ("#57606a", "#afb8c1")
    return colours | {
        name: greys[i % 2]
        for i, name in enumerate(s for s in subjects if s in controls)
    }


def _legend(
    figure: Figure, rows, colours: dict[str, str], markers: bool = True
) -> None:
    """Subjects by colour and releases by marker, beside the axes."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, linewidth=3, label=name)
        for name, colour in colours.items()
    ]
    if markers:
        handles += [
            Line2D([], [], color="black", marker=marker, linestyle="", label=release)
            for release, marker in MARKERS.items()
        ]
    figure.legend(handles=handles, loc="outside right upper", fontsize=9, frameon=False)


def png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
