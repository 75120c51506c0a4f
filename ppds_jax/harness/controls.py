"""Controls with a known answer, and the order of releases: can attacks be trusted?

Reads rows of any experiment that has the fields of `ppds_jax.metrics.leakage.Leakage`
beside subject, release, signal, attack and control.
"""

import html
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from ppds_jax.harness.page import html_table, interval
from ppds_jax.harness.run import Row

MEMORISER = "returns its members"
INDEPENDENT = "ignores the data"
ANEW = "membership drawn anew"
RELEASES = ("generator", "images", "classifier")  # each made from the one before it


def control_table(rows: Sequence[Row]) -> str:
    """Whether each control reads what it must: a table.

    A memoriser's images must be recognised, by the best attack; everything of a
    generator that ignores the data, and whatever is read under a membership drawn anew,
    must be at chance.
    """
    lines = []
    copies = [row for row in rows if row["control"] == MEMORISER]
    copies = [row for row in copies if row["release"] == "images"]
    best = max(copies, key=lambda row: row["auc"], default=None)
    for row in rows:
        if not row["control"]:
            continue
        if row["control"] == MEMORISER:
            if row is not best:
                continue
            good, wanted = row["auc"] >= 0.95, "at least 0.95"
        else:
            good = row["auc_low"] <= 0.5 <= row["auc_high"]
            wanted = "0.5 within the interval"
        lines.append(
            f"<tr><td>{html.escape(row['subject'])}</td><td>{row['release']}</td>"
            f"<td>{row['signal']}</td><td>{row['attack']}</td>"
            f"<td>{html.escape(row['control'])}</td>"
            f"<td class=n>{interval(row, 'auc')}</td><td>{wanted}</td>{_verdict(good)}"
            "</tr>"
        )
    head = ["subject", "release", "signal", "attack", "control", "AUC", "wanted", ""]
    return html_table(head, lines) if lines else "<p>No control was run.</p>"


class Step(NamedTuple):
    """Two releases of one subject, the second made from the first."""

    larger: Row  # the attack with the largest AUC on it
    smaller: Row
    holds: bool  # larger.auc_high >= smaller.auc_low


def order(rows: Sequence[Row]) -> list[Step]:
    """Whether what is made from a release gives away no more than that release.

    Post-processing cannot add anything. Where an attack on the smaller release does
    better than all on the larger one, beyond the intervals, those on the larger one
    are too weak.
    """
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row["control"] == ANEW:
            continue
        place = row["subject"], row["release"]
        if place not in best or row["auc"] > best[place]["auc"]:
            best[place] = row
    steps = []
    for subject in dict.fromkeys(row["subject"] for row in rows):
        there = [best[subject, r] for r in RELEASES if (subject, r) in best]
        for larger, smaller in itertools.pairwise(there):
            holds = larger["auc_high"] >= smaller["auc_low"]
            steps.append(Step(larger, smaller, holds))
    return steps


def order_table(rows: Sequence[Row]) -> str:
    """The order of releases as a table, with what a violation means."""
    lines, weak = [], []
    for larger, smaller, holds in order(rows):
        cells = [
            f"<td>{row['release']}: {row['attack']} on {row['signal']}</td>"
            f"<td class=n>{interval(row, 'auc')}</td>"
            for row in (larger, smaller)
        ]
        subject = html.escape(larger["subject"])
        lines.append(f"<tr><td>{subject}</td>{''.join(cells)}{_verdict(holds)}</tr>")
        if not holds:
            weak.append(f"the {larger['release']} of {subject}")
    if not lines:
        return ""
    head = ["subject", "the larger release", "AUC", "made from it", "AUC", ""]
    text = (
        "What is made from a release gives away no more than it does (the strongest "
        "attack tried on each). "
    )
    if weak:
        text += f"The attacks tried on {', '.join(weak)} are too weak: do not read "
        text += "their numbers as what these releases give away."
    else:
        text += "No attack on a larger release is caught out as too weak."
    return html_table(head, lines) + f"<p>{text}</p>"


def _verdict(good: bool) -> str:
    return f"<td class={'good>holds' if good else 'bad>FAILS'}</td>"
