"""One HTML file about attacks, from the rows and the evidence of a finished run.

A report never trains. Every number in the text is in the rows, but for the distances
between images that are computed from the evidence here.
"""

import html
import json
from pathlib import Path

import numpy as np

from ppds_jax.attacks.vulnerability import d_prime, most_vulnerable
from ppds_jax.harness import plots
from ppds_jax.harness.controls import ANEW, control_table, order_table
from ppds_jax.harness.evidence import Evidence
from ppds_jax.harness.page import (
    epsilon_text,
    figure,
    html_table,
    interval,
    numbered,
    page,
    percent,
    provenance,
)
from ppds_jax.harness.run import Row
from ppds_jax.harness.store import replacing
from ppds_jax.metrics.memorisation import (
    authenticity,
    data_copying,
    nearest_neighbour_ratio,
)


def write_attack_report(path: Path, rows: list[Row], evidence: Evidence) -> Path:
    """Writes report.html, its figures and table.md; returns the report's path."""
    chosen = [row for row in rows if row["chosen"] and row["control"] != ANEW]
    with np.load(path / "curves.npz") as curves:
        drawn = [({**r, "subject": _name(r)}, curves[_curve(r)]) for r in chosen]
    figures = {"roc": plots.roc_curves(drawn)}
    subjects = list(dict.fromkeys(row["subject"] for row in chosen))
    for subject in subjects:
        sheet = _vulnerable(subject, chosen, evidence)
        if sheet is not None:
            figures[f"vulnerable_{subject}"] = plots.neighbour_sheet(*sheet)
    for name, png in figures.items():
        with replacing(path / f"{name}.png") as file:
            file.write(png)
    with replacing(path / "table.md") as file:
        file.write(markdown(path, rows).encode())
    target = path / "report.html"
    title = f"ppds_jax attacks: {evidence.facts['data']}"
    with replacing(target) as file:
        file.write(page(title, _body(path, rows, chosen, figures, evidence)))
    return target.resolve()


def _name(row: Row) -> str:
    """A subject, or one kind of canaries on it."""
    return row["subject"] + ("" if row["kind"] == "all" else f", {row['kind']}")


def _curve(row: Row) -> str:
    return f"{row['subject']}|{row['release']}|{row['kind']}"


def _body(path, rows, chosen, figures, evidence: Evidence) -> str:
    env = json.loads((path / "env.json").read_text())
    config = json.loads((path / "config.json").read_text())
    facts, row = evidence.facts, rows[0]
    every = (
        "half of all canaries of each kind, and on all other images"
        if facts["design"] == "canaries"
        else "half of them"
    )
    asked = (
        f"Whose images were among {facts['num_private']:,} private ones of "
        f"{html.escape(facts['data'])}? {row['num_shadows'] + row['num_targets']} "
        f"models of every pipeline were trained, each on {every}. "
        f"{row['num_targets']} of them are targets; all settings, thresholds, and the "
        "attack that is reported first, were chosen on the others."
    )
    sheets = "".join(
        figure(
            png,
            f"{html.escape(name.removeprefix('vulnerable_'))}: the private images "
            "whose membership shows most (left, with their d'), what is nearest to "
            "them among the images released by a model that had them (middle), and "
            "by one that had not (right).",
        )
        for name, png in figures.items()
        if name.startswith("vulnerable_")
    )
    return f"""<h1>What does each release give away?</h1>
<p class="asked">{asked}</p>
{"".join(f'<p class="answer">{html.escape(line)}</p>' for line in answers(chosen))}
<h2>The attack chosen for each release</h2>
{_table(chosen, rows)}
{_reading(rows)}
{
        figure(
            figures["roc"],
            "True-positive against false-positive rate of the chosen attacks, on "
            "logarithmic axes; the dashed line is chance.",
        )
    }
<h2>Can these attacks be trusted?</h2>
{control_table([row for row in rows if row["chosen"]])}
{order_table([row for row in rows if row["kind"] == "all"])}
{_claims(chosen)}
{"<h2>The most vulnerable images</h2>" + sheets if sheets else ""}
{_memorisation(chosen, evidence)}
<h2>All attacks</h2>
<details><summary>{len(rows)} rows</summary>{_table(rows, rows)}</details>
{_notes(rows)}
<h2>How this was made</h2>
{provenance(env, config)}
"""


def answers(chosen: list[Row]) -> list[str]:
    """What was found, in a sentence for each method that is no control."""
    lines = []
    for subject in dict.fromkeys(row["subject"] for row in chosen):
        mine = [row for row in chosen if row["subject"] == subject]
        if mine[0]["control"]:
            continue
        parts = []
        for row in mine:
            name = row["release"] if row["kind"] == "all" else f"{row['kind']} canaries"
            parts.append(
                f"{name}: AUC {interval(row, 'auc')}, "
                f"{percent(row['tpr'])} of members at {percent(row['fpr'])} "
                f"false positives{'' if row['resolved'] else ' (too few to say)'}"
            )
        lines.append(f"{subject}. " + "; ".join(parts) + ".")
    return lines


def markdown(path: Path, rows: list[Row]) -> str:
    """A table for people: of each release all attacks on the chosen signal."""
    env = json.loads((path / "env.json").read_text())
    signals = {
        (row["subject"], row["release"]): row["signal"] for row in rows if row["chosen"]
    }
    head = ["subject", "release", "images", "signal", "attack", "AUC"]
    head += [f"TPR at {percent(rows[0]['fpr'])} FPR", "TPR at 1 %"]
    lines = [" | ".join(head), "|".join(["---"] * len(head))]
    for row in rows:
        if row["control"] == ANEW:
            continue
        if row["signal"] != signals[row["subject"], row["release"]]:
            continue
        setting = f" ({row['setting']})" if row["setting"] else ""
        cells = [
            row["subject"] + (f" ({row['control']})" if row["control"] else ""),
            row["release"],
            row["kind"],
            row["signal"],
            row["attack"] + setting + (" ★" if row["chosen"] else ""),
            interval(row, "auc"),
            interval(row, "tpr") + ("" if row["resolved"] else " †"),
            percent(row["tpr_at_1_percent"]),
        ]
        lines.append(" | ".join(cells))
    first = rows[0]
    about = (
        f"{first['data']}: {first['num_shadows']} shadow models to refer to and choose "
        f"on, {first['num_targets']} targets, {first['num_private']:,} private images, "
        f"accuracy {percent(first['accuracy'])} ({first['subject']}). "
        f"{env['platform']}, {env['cores']} cores. Intervals are 95 %, over targets "
        "and images. ★ the attack, and all settings, as chosen on shadows. † fewer "
        "than 10 non-members are within the false-positive rate."
    )
    table = "".join(f"| {line} |\n" for line in lines)
    return f"    {env['command']}\n\n{about}\n\n{table}"


def _table(shown: list[Row], rows: list[Row]) -> str:
    notes = numbered(rows)
    lines = []
    for row in shown:
        private = row["epsilon"] != "inf"
        marks = [str(notes[x]) for x in row["notes"].split("; ") if x and private]
        cells = [
            html.escape(row["subject"]),
            row["release"],
            row["kind"],
            row["signal"],
            row["attack"] + (" ★" if row["chosen"] else ""),
            row["setting"],
            html.escape(row["control"]),
            interval(row, "auc"),
            interval(row, "tpr") + ("" if row["resolved"] else " †"),
            percent(row["tpr_at_1_percent"]),
            f"{row['balanced_accuracy']:.3f}",
            " / ".join(
                "–" if row[f"ppv_{p}"] is None else f"{row[f'ppv_{p}']:.2f}"
                for p in (1, 10, 50)
            ),
            "∞" if not private else epsilon_text(row["epsilon"]),
            ", ".join(marks),
        ]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = ["subject", "release", "images", "signal", "attack", "setting", "control"]
    head += ["AUC", f"TPR at {percent(rows[0]['fpr'])} FPR", "TPR at 1 %"]
    head += ["balanced accuracy", "PPV at 1 / 10 / 50 %", "ε", "notes"]
    return html_table(head, lines)


def _reading(rows: list[Row]) -> str:
    low = min(row["fpr_resolution"] for row in rows)
    return (
        "<p>★ chosen on shadow models, as are all settings and thresholds. † fewer "
        "than 10 non-members are within that rate: read the next column. "
        "Intervals are 95 %, by resampling targets and images. PPV: the share of "
        "members among the images called so, if 1, 10 or 50 % of all were members, at "
        "a threshold that lets 1 % of the shadows' non-members pass. The "
        f"false-positive rate is resolved to {low:.1e} at best.</p>"
    )


def _claims(chosen: list[Row]) -> str:
    """What attacks measured beside what is promised."""
    lines = []
    for row in chosen:
        if row["epsilon"] == "inf" or row["epsilon_estimate"] is None:
            continue
        measured = row["epsilon_estimate"]
        good = measured != "inf" and measured <= row["epsilon"]
        lines.append(
            f"<tr><td>{html.escape(row['subject'])}</td><td>{row['release']}</td>"
            f"<td class=n>{epsilon_text(measured)}</td>"
            f"<td class=n>{epsilon_text(row['epsilon'])}</td>"
            f"<td class={'good>holds' if good else 'bad>FAILS'}</td></tr>"
        )
    if not lines:
        return ""
    head = ["subject", "release", "ε of a Gaussian with this AUC", "ε promised", ""]
    return html_table(head, lines) + (
        "<p>At the low end of the AUC's interval, for average images and this attack, "
        "and no bound: <code>python -m experiments.audit</code> bounds the ε of the "
        "worst record from below, and shows that a mechanism without its noise is "
        "caught.</p>"
    )


def _vulnerable(subject: str, chosen: list[Row], evidence: Evidence):
    """Images, their d', and the neighbours of each with and without it."""
    released = evidence.released(subject)
    mine = [
        row
        for row in chosen
        if row["subject"] == subject and row["release"] == "images"
    ]
    if released is None or not mine:
        return None
    (release,) = [
        r for r in evidence.releases if (r.subject, r.release) == (subject, "images")
    ]
    case = dict(evidence.cases(release))[mine[0]["signal"]]
    audited = evidence.audited
    distance = d_prime(case.phi, audited.member)
    worst = most_vulnerable(distance, 8)
    neighbours = []
    for i in worst:
        pair = []
        for model in (0, 1) if audited.member[0, i] else (1, 0):
            image, label = released.image[model], released.label[model]
            same = np.flatnonzero(label == audited.label[i])
            far = image[same].astype(float) - audited.image[i]
            near = np.argsort((far**2).sum((1, 2, 3)), kind="stable")[:4]
            pair.append(image[np.resize(same[near], 4)])
        neighbours.append(np.stack(pair))
    return subject, audited.image[worst], distance[worst], np.stack(neighbours)


def _memorisation(chosen: list[Row], evidence: Evidence) -> str:
    """How much released images look like copies."""
    if evidence.facts["design"] != "half":
        return ""
    audited, lines = evidence.audited, []
    flat = lambda x: x.reshape(len(x), -1) / 255
    inside = audited.member[0]
    parts = [flat(audited.image[side]) for side in (inside, ~inside)]
    cells = [audited.label[side] for side in (inside, ~inside)]
    for subject in dict.fromkeys(row["subject"] for row in chosen):
        released = evidence.released(subject)
        if released is None:
            continue
        drawn = flat(released.image[0])
        copying = data_copying(
            parts[0],
            parts[1],
            drawn,
            training_cell=cells[0],
            held_out_cell=cells[1],
            generated_cell=released.label[0],
        )
        size = min(map(len, parts))
        ratio = nearest_neighbour_ratio(parts[0][:size], parts[1][:size], drawn)
        lines.append(
            f"<tr><td>{html.escape(subject)}</td><td class=n>{copying:.2f}</td>"
            f"<td class=n>{authenticity(parts[0], drawn):.3f}</td>"
            f"<td class=n>{ratio:.3f}</td></tr>"
        )
    if not lines:
        return ""
    head = ["subject", "data copying C<sub>T</sub>", "authenticity", "distance ratio"]
    return (
        "<h2>Are the images copies? (not a measure of privacy)</h2>"
        + html_table(head, lines)
        + "<p>In pixels, of the first model's images. C<sub>T</sub> well below 0: "
        "closer to the training images than held-out images are, within the label. "
        "Authenticity: the share that is further from its nearest training image than "
        "that is from the next. Ratio of the distances to the nearest training and "
        "held-out image, 1 where both are alike. A generator may give away its members "
        "without copies: the attacks above say what it gives away.</p>"
    )


def _notes(rows: list[Row]) -> str:
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in numbered(rows))
    return (
        f"<ol>{notes}</ol><p>ε bounds what the release of one model reveals; ∞ means "
        "that nothing is promised.</p>"
    )
