"""One HTML file that a person wants to read, from the rows of a finished survey.

Reads rows and saved arrays only: a report never trains. Every number in the text is in
the rows.
"""

import html
import json
from pathlib import Path

import numpy as np

from ppds_jax.harness import plots
from ppds_jax.harness.controls import control_table, order_table
from ppds_jax.harness.page import (
    epsilon_text,
    figure,
    html_table,
    interval,
    numbered,
    page,
    percent,
    provenance,
    split_notes,
)
from ppds_jax.harness.run import Row
from ppds_jax.harness.store import replacing

# The attack that plots and sentences show for each release: chosen beforehand, not
# because it scored best here. The table has them all.
HEADLINE = {"generator": "nearest", "images": "nearest", "classifier": "logit"}
WELL_KNOWN = 64  # models from which on LiRA knows each image's distribution
RELEASES = {
    "generator": "the generator",
    "images": "the synthetic images",
    "classifier": "the classifier trained on synthetic images",
}
NAMES = {"lira": "LiRA", "rmia": "RMIA"}
DIRECT = {
    "real_classifier": "classifier on real images",
    "dp_classifier": "DP-SGD classifier on real images",
}


def curve_name(row: Row) -> str:
    """Under which the ROC curve of a row is saved."""
    fields = ("subject", "release", "signal", "attack", "control")
    return "|".join(str(row[field]) for field in fields)


def headlines(rows: list[Row]) -> list[Row]:
    """The rows that plots and sentences show: one attack for each release.

    RMIA where models are few, LiRA from 64 on; of a generator its white-box signal
    where it offers one, since whoever has the generator has that.
    """
    chosen: dict[tuple[str, str], Row] = {}
    for row in rows:
        attack = "lira" if row["num_shadows"] >= WELL_KNOWN else "rmia"
        white_box = row["signal"] not in HEADLINE.values()
        if (
            row["attack"] == attack
            and (white_box or row["signal"] == HEADLINE[row["release"]])
            and not row["control"].startswith("membership")
        ):
            of = row["subject"], row["release"]
            if white_box or of not in chosen:
                chosen[of] = row
    return list(chosen.values())


def write_report(path: Path, rows: list[Row]) -> Path:
    """Writes report.html and its figures into a run directory; returns its path."""
    with (
        np.load(path / "samples.npz") as samples,
        np.load(path / "curves.npz") as curves,
    ):
        shown = headlines(rows)
        figures = {
            "grid": plots.sample_grids(dict(samples)),
            "tradeoff": plots.tradeoff(shown),
            "roc": plots.roc_curves([(row, curves[curve_name(row)]) for row in shown]),
        }
    for name, png in figures.items():
        with replacing(path / f"{name}.png") as file:
            file.write(png)
    target = path / "report.html"
    with replacing(target) as file:
        file.write(
            page(f"ppds_jax survey: {rows[0]['data']}", _body(path, rows, figures))
        )
    return target.resolve()


def answer(rows: list[Row]) -> tuple[str, str]:
    """The answer in two sentences, computed from the rows."""
    shown = headlines(rows)
    real, dp = (_only(shown, name) for name in DIRECT)
    images = [row for row in shown if row["release"] == "images" and not row["control"]]
    first = (
        f"Trained on {real['num_members']:,} real images the classifier reaches "
        f"{percent(real['accuracy'])} on real test images, and, trained by DP-SGD at "
        f"epsilon {epsilon_text(dp['epsilon'])}, {percent(dp['accuracy'])}"
    )
    if not images:
        return first + ".", "No generator was surveyed."
    private = [row for row in images if row["epsilon"] != "inf"]
    free = [row for row in images if row["epsilon"] == "inf"]
    parts = []
    if free:
        best = max(free, key=lambda row: row["accuracy"])
        parts.append(
            f"{percent(best['accuracy'])} with {best['subject']}, without a guarantee"
        )
    if private:
        best = max(private, key=lambda row: row["accuracy"])
        parts.append(
            f"{percent(best['accuracy'])} with {best['subject']} at epsilon "
            f"{epsilon_text(best['epsilon'])}"
        )
    first += f"; on synthetic images alone, {', and '.join(parts)}."
    best = max(images, key=lambda row: row["accuracy"])
    leaks = "; ".join(
        f"{RELEASES[row['release']]} {interval(row, 'auc')}"
        for row in shown
        if row["subject"] == best["subject"]
    )
    second = (
        f"An attacker who asks whether an image was private ({NAMES[real['attack']]}, "
        f"AUC, 0.5 is chance) reads from the classifier on real images "
        f"{interval(real, 'auc')}, from that by DP-SGD {interval(dp, 'auc')}, and, of "
        f"{best['subject']}, from {leaks}."
    )
    return first, second


def _only(rows: list[Row], subject: str) -> Row:
    return next(row for row in rows if row["subject"] == subject)


def _body(path: Path, rows: list[Row], figures: dict[str, bytes]) -> str:
    env = json.loads((path / "env.json").read_text())
    config = json.loads((path / "config.json").read_text())
    ledger = json.loads((path / "ledger.json").read_text())
    first, second = answer(rows)
    row = rows[0]
    attack = headlines(rows)[0]["attack"]
    name = NAMES[attack]
    released = max(row["num_released"] for row in rows)
    asked = (
        f"Can synthetic images stand in for {row['num_private']:,} private images of "
        f"{html.escape(row['data'])}, and what does each release give away about which "
        f"images were among them? {row['num_shadows']} models of every pipeline were "
        f"trained, each on {row['num_members']:,} of the images, re-running "
        f"generation, sampling of {released:,} images and classification; each model "
        "in turn was attacked with the others as references."
    )
    return f"""<h1>Can synthetic images replace real ones?</h1>
<p class="asked">{asked}</p>
<p class="answer">{html.escape(first)}</p>
<p class="answer">{html.escape(second)}</p>
<h2>What the generators draw</h2>
{
        figure(
            figures["grid"],
            "Private images that one model was trained on, and what each generator "
            "trained on them draws; one row a class.",
        )
    }
<h2>Utility against leakage</h2>
{
        figure(
            figures["tradeoff"],
            "Up and to the left is better. Bars: one standard deviation of the "
            "accuracy over models; 95 % interval of the AUC over models and images. "
            "Controls are grey.",
        )
    }
<h2>How well members are recognised</h2>
{
        figure(
            figures["roc"],
            "Each attack's true-positive against its false-positive rate, on "
            "logarithmic axes; the dashed line is chance. The curves end where one "
            "non-member is the resolution.",
        )
    }
<p>Figures and sentences show one attack a release, chosen beforehand and not for its
result: {name} (RMIA with fewer than {WELL_KNOWN} models, LiRA from there on), on a
generator's own white-box signal where there is one, otherwise on the distance to the
nearest synthetic image, and on a classifier's logit. The table has every attack.</p>
<h2>Controls</h2>
{control_table([row for row in rows if row["attack"] == attack])}
{order_table(rows)}
<h2>All rows</h2>
{_table(rows)}
{_notes(rows)}
<h2>What publishing the private ones together costs</h2>
{_together(ledger, rows[0]["delta"])}
<h2>How this was made</h2>
{provenance(env, config)}
"""


def _table(rows: list[Row]) -> str:
    notes = numbered(rows)
    lines = []
    for row in rows:
        marks = ", ".join(str(notes[note]) for note in split_notes(row["notes"]))
        delta = "" if row["epsilon"] == "inf" else f"{row['delta']:g}"
        private = row["epsilon"] != "inf"
        cells = [
            html.escape(row["subject"]),
            row["release"],
            row["signal"],
            row["attack"],
            html.escape(row["control"]),
            f"{percent(row['accuracy'])} ± {100 * row['accuracy_std']:.1f}",
            interval(row, "auc"),
            interval(row, "tpr"),
            "∞" if not private else epsilon_text(row["epsilon"]),
            delta,
            row["neighbours"] if private else "",
            marks if private else "",
        ]
        numeric = range(5, 11)
        lines.append(
            "<tr>"
            + "".join(
                f"<td{' class=n' if i in numeric else ''}>{cell}</td>"
                for i, cell in enumerate(cells)
            )
            + "</tr>"
        )
    head = ["subject", "release", "signal", "attack", "control", "accuracy"]
    head += ["AUC", f"TPR at {percent(rows[0]['fpr'], 0)} FPR", "ε", "δ", "neighbours"]
    return html_table([*head, "notes"], lines)


def _together(ledger: list[Row], delta: float) -> str:
    """The running total of all private subjects, for each neighbour relation."""
    lines = [
        f"<tr><td>{html.escape(row['name'])}</td><td>{row['neighbours']}</td>"
        f"<td class=n>{epsilon_text(row['epsilon'])}</td>"
        f"<td class=n>{epsilon_text(row['total'])}</td></tr>"
        for row in ledger
    ]
    if not lines:
        return "<p>No subject promises anything.</p>"
    return html_table(["subject", "neighbours", "ε alone", "ε so far"], lines) + (
        f"<p>One model of each, all its releases counted once, at δ {delta:g}. Totals "
        "under different relations are different statements, and are not added up. "
        "Beside a subject without a promise (ε ∞) no total holds.</p>"
    )


def _notes(rows: list[Row]) -> str:
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in numbered(rows))
    resolution = rows[0]["fpr_resolution"]
    return (
        f"<ol>{notes}</ol><p>ε bounds what the release of one model reveals: it is "
        "(ε, δ)-differentially private under the relation named; ∞ means that nothing "
        "is promised. It does not cover the choice of this configuration, nor several "
        "rows together (see below). Intervals are 95 %, by resampling models and "
        f"images. The false-positive rate is resolved to {resolution:.1e}. The "
        "accuracy of a generator or of images is that of a classifier trained on them; "
        "± is its standard deviation over models.</p>"
    )
