"""All attacks on all releases, from end to end, and again without training."""

import dataclasses
import re

import numpy as np
import pytest

from experiments import shadow_mia
from experiments.shadow_mia import Again, Config
from ppds_jax.attacks.canaries import KINDS
from ppds_jax.attacks.score import ATTACKS
from ppds_jax.classifiers import CNN
from ppds_jax.generators import VAE
from ppds_jax.harness import config
from ppds_jax.harness.controls import ANEW
from ppds_jax.harness.evidence import Evidence
from ppds_jax.harness.shadows import Shadows
from ppds_jax.sampling.balanced import Balanced
from ppds_jax.types import InputError

pytestmark = pytest.mark.xdist_group("shadow_mia")  # they share a finished run
CLASSIFIER = CNN(epochs=2, width=4, hidden=8)
TINY = Config(
    methods=(VAE(epochs=1, width=4),),
    data="digits",
    num_private=100,
    num_population=60,
    num_reference=40,
    num_shadows=6,
    num_targets=2,
    sampler=Balanced(num_images=100),
    classifier=CLASSIFIER,
    more_samples=1,
    num_resamples=10,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: (runtime, rows, the run's folder)."""
    runtime = config.Runtime(work_dir=tmp_path_factory.mktemp("runs"))
    rows = shadow_mia.run(TINY, runtime)
    (folder,) = runtime.work_dir.glob("shadow_mia-*")
    return runtime, rows, folder


def test_every_attack_on_every_signal_of_every_release(finished):
    _, rows, _ = finished
    plain = [r for r in rows if r["control"] != ANEW]
    of_images = {r["signal"] for r in plain if r["release"] == "images"}
    of_generator = {
        r["signal"]
        for r in plain
        if (r["subject"], r["release"]) == ("VAE", "generator")
    }
    assert of_generator == of_images | {"elbo"}
    assert len(of_images) == 10
    for signal in of_images:
        mine = [r for r in plain if r["subject"] == "VAE" and r["release"] == "images"]
        assert [r["attack"] for r in mine if r["signal"] == signal] == list(ATTACKS)


def test_one_attack_is_chosen_for_each_release_by_what_shadows_say(finished):
    _, rows, _ = finished
    for r in rows:
        assert 0 <= r["auc_low"] <= r["auc_high"] <= 1
    places = {(r["subject"], r["release"]) for r in rows}
    assert len(places) == 3 * 3 + 1
    for place in places:
        mine = [r for r in rows if (r["subject"], r["release"]) == place]
        mine = [r for r in mine if r["control"] != ANEW]
        (best,) = [r for r in mine if r["chosen"]]
        assert best["auc_on_shadows"] == max(r["auc_on_shadows"] for r in mine)


def test_controls(finished):
    _, rows, _ = finished
    memoriser = [
        r["auc"]
        for r in rows
        if r["subject"] == "Memoriser" and r["release"] == "images" and r["chosen"]
    ]
    assert max(memoriser) > 0.95


def test_again_without_training(finished, monkeypatch, tmp_path):
    runtime, rows, folder = finished
    monkeypatch.setattr(Shadows, "run", None)  # whoever trains fails
    again = shadow_mia.run(
        Again(phi=folder / "phi.npz", num_resamples=10),
        dataclasses.replace(runtime, work_dir=tmp_path),
    )
    assert again == rows
    (report,) = tmp_path.glob("*/report.html")
    page = report.read_text()
    text = re.sub(r'src="[^"]*"', "", page)
    for part in ("be trusted", "made from it", "vulnerable", "not a measure of", "PPV"):
        assert part in text
    assert not re.search(r"\bnan\b|\binf\b|None", text.split("<details>")[0])


def test_evidence_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        shadow_mia.run(Again(phi=tmp_path / "nothing.npz"))
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(InputError, match=r"not the phi\.npz"):
        Evidence(tmp_path / "other.npz")


def test_canaries_are_told_apart_by_kind(tmp_path):
    cfg = dataclasses.replace(
        TINY,
        methods=(CLASSIFIER,),
        controls=False,
        canaries=4,
        copies=3,
        num_private=60,
    )
    rows = shadow_mia.run(cfg, config.Runtime(work_dir=tmp_path))
    assert {r["kind"] for r in rows} == {"all", *KINDS}
    assert {r["num_private"] for r in rows} == {60 + 4 * 4 + 4 * 2}
    (path,) = tmp_path.glob("shadow_mia-*/phi.npz")
    evidence = Evidence(path)
    assert evidence.audited.member.shape == (8, 16)
    assert (evidence.audited.member.sum(0) == 4).all()
    assert evidence.released("CNN") is None


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"num_shadows": 5}, "num_shadows=5"),
        ({"num_targets": 1}, "num_targets=1"),
        ({"canaries": 3}, "canaries=3"),
        ({"fpr": 0.0}, "fpr=0.0"),
        ({"num_population": 0}, "num_population=0"),
        ({"queries": 19}, "queries=19"),
        ({"methods": (), "controls": False}, "methods"),
        ({"methods": (VAE(), VAE())}, "VAE is there twice"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"num_private": 1400}, "num_private"),
    ],
)
def test_wrong_configs_are_named_before_any_training(wrong, field, tmp_path):
    cfg = dataclasses.replace(TINY, **wrong)
    with pytest.raises(InputError, match=field):
        shadow_mia.run(cfg, config.Runtime(work_dir=tmp_path))
    assert not list(tmp_path.glob("trained"))
