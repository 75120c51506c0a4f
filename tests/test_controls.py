"""The order of releases and the controls, as read from rows."""

import pytest

from ppds_jax.harness.controls import (
    ANEW,
    INDEPENDENT,
    MEMORISER,
    control_table,
    order,
    order_table,
)


def row(release, auc, half=0.02, subject="VAE", **more):
    base = {"subject": subject, "release": release, "signal": "nearest"}
    base |= {"attack": "lira", "control": "", "auc": auc}
    return base | {"auc_low": auc - half, "auc_high": auc + half} | more


def test_the_strongest_attack_stands_for_a_release():
    rows = [row("generator", 0.6), row("images", 0.52), row("images", 0.58)]
    rows += [row("classifier", 0.55), row("classifier", 0.99, control=ANEW)]
    steps = order(rows)
    assert [step.larger["auc"] for step in steps] == [0.6, 0.58]
    assert [step.smaller["auc"] for step in steps] == [0.58, 0.55]
    assert all(step.holds for step in steps)
    assert "No attack on a larger release" in order_table(rows)


def test_a_weak_attack_is_named():
    rows = [row("generator", 0.6), row("images", 0.52), row("classifier", 0.7)]
    assert [step.holds for step in order(rows)] == [True, False]
    page = order_table(rows)
    assert "FAILS" in page
    assert "the images of VAE are too weak" in page


def test_intervals_that_overlap_say_nothing():
    rows = [row("images", 0.52), row("classifier", 0.55)]
    assert order(rows)[0].holds
    assert order_table([row("classifier", 0.55, subject="CNN")]) == ""


@pytest.mark.parametrize(
    ("control", "release", "auc", "verdict"),
    [
        (MEMORISER, "images", 0.97, "holds"),
        (MEMORISER, "images", 0.9, "FAILS"),
        (MEMORISER, "classifier", 0.5, "No control"),
        (INDEPENDENT, "classifier", 0.515, "holds"),
        (INDEPENDENT, "images", 0.53, "FAILS"),
        (ANEW, "generator", 0.46, "FAILS"),
        ("", "images", 0.46, "No control"),
    ],
)
def test_controls_read_what_they_must(control, release, auc, verdict):
    assert verdict in control_table([row(release, auc, control=control)])


def test_a_memoriser_is_judged_by_its_best_attack():
    rows = [row("images", a, control=MEMORISER) for a in (0.6, 0.99, 0.8)]
    page = control_table(rows)
    assert page.count("<tr><td>") == 1
    assert "0.990" in page
