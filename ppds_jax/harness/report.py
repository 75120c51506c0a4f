"""One HTML file that a person wants to read, from the rows of a finished survey.

Reads rows and saved arrays only: a report never trains. Every number in the text is in
the rows.
"""

import base64
import html
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ppds_jax.harness import plots
from ppds_jax.harness.run import Row
from ppds_jax.harness.store import replacing

# The attack that plots and sentences show for each release: chosen beforehand, not
# because it scored best here. The table has them all.
HEADLINE = {"generator": "nearest", "images": "nearest", "classifier": "logit"}
RELEASES = {
    "generator": "the generator",
    "images": "the synthetic images",
    "classifier": "the classifier trained on synthetic images",
}
DIRECT = {
    "real_classifier": "classifier on real images",
    "dp_classifier": "DP-SGD classifier on real images",
}


def curve_name(row: Row) -> str:
    """Under which the ROC curve of a row is saved."""
    fields = ("subject", "release", "signal", "attack", "control")
    return "|".join(str(row[field]) for field in fields)


def headline(row: Row) -> bool:
    """Whether a row is shown in plots: LiRA on the release's signal, no control."""
    known = row["attack"] == "lira" and row["signal"] == HEADLINE[row["release"]]
    return known and not row["control"].startswith("membership")


def write_report(path: Path, rows: list[Row]) -> Path:
    """Writes report.html and its figures into a run directory; returns its path."""
    with (
        np.load(path / "samples.npz") as samples,
        np.load(path / "curves.npz") as curves,
    ):
        shown = [row for row in rows if headline(row)]
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
        file.write(_page(path, rows, figures).encode())
    return target.resolve()


def answer(rows: list[Row]) -> tuple[str, str]:
    """The answer in two sentences, computed from the rows."""
    shown = [row for row in rows if headline(row)]
    real, dp = (_only(shown, name) for name in DIRECT)
    images = [row for row in shown if row["release"] == "images" and not row["control"]]
    first = (
        f"Trained on {real['num_members']:,} real images the classifier reaches "
        f"{_percent(real['accuracy'])} on real test images, and, trained by DP-SGD at "
        f"epsilon {epsilon_text(dp['epsilon'])}, {_percent(dp['accuracy'])}"
    )
    if not images:
        return first + ".", "No generator was surveyed."
    private = [row for row in images if row["epsilon"] != "inf"]
    free = [row for row in images if row["epsilon"] == "inf"]
    parts = []
    if free:
        best = max(free, key=lambda row: row["accuracy"])
        parts.append(
            f"{_percent(best['accuracy'])} with {best['subject']}, without a guarantee"
        )
    if private:
        best = max(private, key=lambda row: row["accuracy"])
        parts.append(
            f"{_percent(best['accuracy'])} with {best['subject']} at epsilon "
            f"{epsilon_text(best['epsilon'])}"
        )
    first += f"; on synthetic images alone, {', and '.join(parts)}."
    best = max(images, key=lambda row: row["accuracy"])
    leaks = "; ".join(
        f"{RELEASES[row['release']]} {_interval(row, 'auc')}"
        for row in shown
        if row["subject"] == best["subject"]
    )
    second = (
        f"An attacker who asks whether an image was private (LiRA, AUC, 0.5 is chance) "
        f"reads from the classifier on real images {_interval(real, 'auc')}, from that "
        f"by DP-SGD {_interval(dp, 'auc')}, and, of {best['subject']}, from {leaks}."
    )
    return first, second


def _only(rows: list[Row], subject: str) -> Row:
    return next(row for row in rows if row["subject"] == subject)


def _page(path: Path, rows: list[Row], figures: dict[str, bytes]) -> str:
    env = json.loads((path / "env.json").read_text())
    config = json.loads((path / "config.json").read_text())
    ledger = json.loads((path / "ledger.json").read_text())
    first, second = answer(rows)
    row = rows[0]
    released = max(row["num_released"] for row in rows)
    asked = (
        f"Can synthetic images stand in for {row['num_private']:,} private images of "
        f"{html.escape(row['data'])}, and what does each release give away about which "
        f"images were among them? {row['num_shadows']} models of every pipeline were "
        f"trained, each on {row['num_members']:,} of the images, re-running "
        f"generation, sampling of {released:,} images and classification; each model "
        "in turn was attacked with the others as references."
    )
    figure = lambda name, text: (
        f'<figure><img alt="{html.escape(text)}" src="data:image/png;base64,'
        f'{base64.b64encode(figures[name]).decode()}"><figcaption>{text}</figcaption></figure>'
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ppds_jax survey: {html.escape(row["data"])}</title>
<style>{_STYLE}</style></head><body><main>
<h1>Can synthetic images replace real ones?</h1>
<p class="asked">{asked}</p>
<p class="answer">{html.escape(first)}</p>
<p class="answer">{html.escape(second)}</p>
<h2>What the generators draw</h2>
{
        figure(
            "grid",
            "Private images that one model was trained on, and what each generator "
            "trained on them draws; one row a class.",
        )
    }
<h2>Utility against leakage</h2>
{
        figure(
            "tradeoff",
            "Up and to the left is better. Bars: one standard deviation of the "
            "accuracy over models; 95 % interval of the AUC over models and images. "
            "Controls are grey.",
        )
    }
<h2>How well members are recognised</h2>
{
        figure(
            "roc",
            "Each attack's true-positive against its false-positive rate, on "
            "logarithmic axes; the dashed line is chance. The curves end where one "
            "non-member is the resolution.",
        )
    }
<p>Figures and sentences show one attack a release, chosen beforehand: LiRA on the
distance to the nearest synthetic image for a generator and for images, LiRA on the
logit for a classifier. The table has every attack.</p>
<h2>Controls</h2>
{_controls(rows)}
<h2>All rows</h2>
{_table(rows)}
{_notes(rows)}
<h2>What publishing the private ones together costs</h2>
{_together(ledger, rows[0]["delta"])}
<h2>How this was made</h2>
{_provenance(env, config)}
</main></body></html>
"""


def _controls(rows: list[Row]) -> str:
    """Whether each control reads what it must."""
    lines = []
    for row in rows:
        if not row["control"] or row["attack"] != "lira":
            continue
        if row["control"].startswith("returns"):
            if row["release"] != "images" or row["signal"] != "nearest":
                continue
            good, wanted = row["auc"] >= 0.95, "at least 0.95"
        else:
            good = row["auc_low"] <= 0.5 <= row["auc_high"]
            wanted = "0.5 within the interval"
        verdict = "good>holds" if good else "bad>FAILS"
        lines.append(
            f"<tr><td>{html.escape(row['subject'])}</td><td>{row['release']}</td>"
            f"<td>{row['signal']}</td><td>{html.escape(row['control'])}</td>"
            f"<td class=n>{_interval(row, 'auc')}</td><td>{wanted}</td>"
            f"<td class={verdict}</td></tr>"
        )
    head = ["subject", "release", "signal", "control", "AUC (LiRA)", "wanted", ""]
    return _html_table(head, lines) if lines else "<p>No control was surveyed.</p>"


def _table(rows: list[Row]) -> str:
    notes = _numbered(rows)
    lines = []
    for row in rows:
        marks = ", ".join(str(notes[note]) for note in _split(row["notes"]))
        delta = "" if row["epsilon"] == "inf" else f"{row['delta']:g}"
        private = row["epsilon"] != "inf"
        cells = [
            html.escape(row["subject"]),
            row["release"],
            row["signal"],
            row["attack"],
            html.escape(row["control"]),
            f"{_percent(row['accuracy'])} ± {100 * row['accuracy_std']:.1f}",
            _interval(row, "auc"),
            _interval(row, "tpr"),
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
    head += ["AUC", f"TPR at {_percent(rows[0]['fpr'], 0)} FPR", "ε", "δ", "neighbours"]
    return _html_table([*head, "notes"], lines)


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
    return _html_table(["subject", "neighbours", "ε alone", "ε so far"], lines) + (
        f"<p>One model of each, all its releases counted once, at δ {delta:g}. Totals "
        "under different relations are different statements, and are not added up. "
        "Beside a subject without a promise (ε ∞) no total holds.</p>"
    )


def _html_table(head: list[str], lines: list[str]) -> str:
    cells = "".join(f"<th>{name}</th>" for name in head)
    return (
        f"<div class=wide><table><thead><tr>{cells}</tr></thead><tbody>"
        f"{''.join(lines)}</tbody></table></div>"
    )


def _split(notes: str) -> list[str]:
    return [note for note in notes.split("; ") if note]


def _numbered(rows: list[Row]) -> dict[str, int]:
    every = [note for row in rows for note in _split(row["notes"])]
    return {note: i for i, note in enumerate(dict.fromkeys(every), 1)}


def _notes(rows: list[Row]) -> str:
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in _numbered(rows))
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


def _provenance(env: Any, config: Any) -> str:
    versions = ", ".join(f"{name} {v}" for name, v in env["versions"].items())
    return (
        f"<pre>{html.escape(env['command'])}</pre><p>Python {env['python']}, "
        f"{html.escape(versions)}; revision {env['revision']}; "
        f"{html.escape(env['platform'])}, {env['cores']} cores, {env['num_devices']} "
        f"devices ({html.escape(', '.join(env['devices']))}).</p><details><summary>The "
        f"whole configuration</summary><pre>{html.escape(json.dumps(config, indent=1))}"
        "</pre></details>"
    )


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def epsilon_text(value: float | str) -> str:
    """Three digits, rounded up: a privacy loss must not look smaller than it is."""
    if isinstance(value, str) or value == 0:
        return value if isinstance(value, str) else "0"
    scale = 10.0 ** (2 - math.floor(math.log10(value)))
    return f"{math.ceil(value * scale - 1e-9) / scale:.10g}"


def _interval(row: Row, name: str) -> str:
    return f"{row[name]:.3f} [{row[name + '_low']:.3f}, {row[name + '_high']:.3f}]"


_STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 30px; margin: 0 0 12px; } h2 { font-size: 20px; margin: 40px 0 8px; }
.asked { color: var(--soft); } .answer { font-size: 18px; }
figure { margin: 12px 0 0; } figure img { max-width: 100%; height: auto; }
figcaption, p, ol, details { max-width: 800px; }
figcaption { color: var(--soft); font-size: 14px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 12.5px; width: 100%; }
th { text-align: left; border-bottom: 2px solid var(--line); }
th, td { padding: 4px 8px 4px 0; vertical-align: top; }
td { border-bottom: 1px solid var(--line); }
.n { white-space: nowrap; font-variant-numeric: tabular-nums; }
.good { color: #1a7f37; } .bad { color: #cf222e; font-weight: 700; }
pre { background: #f6f8fa; padding: 12px; overflow-x: auto; white-space: pre-wrap;
  word-break: break-word; font-size: 13px; }
"""
