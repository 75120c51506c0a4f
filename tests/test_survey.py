"""The main job from end to end, on tiny images; killed, resumed, extended."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments import survey
from ppds_jax.classifiers import CNN, DPCNN
from ppds_jax.generators import ALL, VAE, ClassMean, Independent, Memoriser
from ppds_jax.harness import config
from ppds_jax.harness.report import answer, epsilon_text, headlines
from ppds_jax.sampling.balanced import Balanced

pytestmark = pytest.mark.xdist_group("survey")  # they share a finished run
ROOT = Path(__file__).parent.parent
OPTIONS = "--num-private 100 --num-population 40 --more-samples 1 --num-resamples 20"
OPTIONS += " --classifier.epochs 2 --classifier.width 4 --classifier.hidden 8"
OPTIONS += " --sampler.num-images 100"
OPTIONS += " --dp-classifier.epochs 1 --dp-classifier.width 4 --dp-classifier.hidden 8"
TINY = replace(
    survey.PRESETS["smoke"][1],
    num_private=100,
    num_population=40,
    more_samples=1,
    num_resamples=20,
    sampler=Balanced(num_images=100),
    classifier=CNN(epochs=2, width=4, hidden=8),
    dp_classifier=DPCNN(epochs=1, width=4, hidden=8),
    generators=(Memoriser(), Independent(), ClassMean()),
)
SHUFFLE = '''
"""A generator of a user's own: the class means, in another order."""
from dataclasses import dataclass
import jax.numpy as jnp
from ppds_jax.data.batches import decode
from ppds_jax.privacy.accounting import non_private
from ppds_jax.types import Generator

@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Draws each image's label-mean brightness."""
    scale: float = 1.0
    def make(self, spec, budget):
        def init(key, data, public, start=None):
            hot = (data.label[:, None] == jnp.arange(spec.num_classes)[None])
            hot = (hot & data.member[:, None]).astype(jnp.float32)
            x = decode(data.image).mean((1, 2, 3))
            return (x @ hot) / jnp.maximum(hot.sum(0), 1)
        def step(key, state, data, public):
            return state, {}
        def sample(key, state, label, public):
            level = jnp.clip(self.scale * state[label], 0, 1)
            return jnp.broadcast_to(
                level[:, None, None, None], (label.size, *spec.image_shape))
        return Generator(init, step, sample, 0, non_private())
'''


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: (runtime, rows, the run's folder)."""
    runtime = config.Runtime(work_dir=tmp_path_factory.mktemp("runs"))
    rows = survey.run(TINY, runtime)
    (folder,) = runtime.work_dir.glob("survey-*")
    return runtime, rows, folder


def row(rows, **wanted):
    (found,) = [r for r in rows if all(r[k] == v for k, v in wanted.items())]
    return found


def test_controls_read_what_they_must(finished):
    _, rows, _ = finished
    memoriser = row(
        rows, subject="Memoriser", release="images", signal="nearest", attack="lira"
    )
    assert memoriser["auc"] >= 0.95
    for r in rows:
        if r["subject"] == "Independent" or r["control"].startswith("membership"):
            # 100 images, 4 models: 6 standard errors of the AUC, 0.029 each
            assert abs(r["auc"] - 0.5) < 0.18, r


def test_rows_are_complete_and_the_same_in_every_format(finished):
    _, rows, folder = finished
    assert {r["subject"] for r in rows} == {
        "real_classifier",
        "dp_classifier",
        "Memoriser",
        "Independent",
        "ClassMean",
    }
    private = row(rows, subject="dp_classifier", attack="lira")
    assert 9 <= private["epsilon"] <= 10
    assert private["neighbours"] == "add-or-remove"
    assert "seed" in private["notes"]
    assert row(rows, subject="real_classifier", attack="rmia", control="")[
        "epsilon"
    ] == ("inf")
    lines = (folder / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert len((folder / "rows.csv").read_text().splitlines()) == len(rows) + 1
    made = json.loads((folder / "config.json").read_text())
    assert made["config"]["num_private"] == 100


def test_every_number_of_the_report_is_in_the_rows(finished):
    _, rows, folder = finished
    assert "ClassMean" in answer(rows)[0]
    page = (folder / "report.html").read_text()
    for part in ("<h1>", "Controls", "All rows", "How this was made", "notes"):
        assert part in page
    assert page.count("data:image/png;base64,") == 3
    known = set()
    for r in rows:
        for value in r.values():
            if isinstance(value, (int, float)):
                known |= {f"{value:.3f}", f"{100 * value:.1f}", f"{value:.3g}"}
                known |= {f"{value:,}", f"{value:g}", f"{100 * value:.0f}"}
                known |= {f"{value:.1e}"}
        known.add(epsilon_text(r["epsilon"]))
    aside = r"<style>.*?</style>|src=\"[^\"]*\"|<h2>How this was made.*"
    text = re.sub(aside, "", page, flags=re.S)
    text = re.sub(r"<[^>]*>", " ", text)
    # what is said of every report: intervals, logarithms' ends, wanted values, notes
    known |= {"95", "0.5", "0.95", "1", "2", "3", "1.0", "0.500", "64"}
    numbers = set(re.findall(r"\d[\d,]*\.?\d*(?:e-?\d+)?", text))
    numbers = {n.rstrip(".,") for n in numbers}
    assert numbers - known == set()


@pytest.mark.parametrize(("num_shadows", "attack"), [(16, "rmia"), (64, "lira")])
def test_the_report_shows_a_white_box_before_a_black_box(num_shadows, attack):
    """An attack that is hidden in the table would make a generator look too private."""
    rows = [
        {
            "subject": "VAE",
            "release": release,
            "signal": signal,
            "attack": name,
            "control": control,
        }
        for release, signals in (
            ("generator", ("logit", "elbo", "nearest")),
            ("images", ("logit", "nearest")),
            ("classifier", ("logit",)),
        )
        for signal in signals
        for name in ("lira", "rmia")
        for control in ("", "membership drawn anew")
    ]
    rows = [row | {"num_shadows": num_shadows} for row in rows]
    shown = [(r["release"], r["signal"]) for r in headlines(rows)]
    assert shown == [
        ("generator", "elbo"),
        ("images", "nearest"),
        ("classifier", "logit"),
    ]
    assert {(r["attack"], r["control"]) for r in headlines(rows)} == {(attack, "")}


def test_the_same_config_is_served_without_work(finished, monkeypatch):
    runtime, rows, _ = finished
    monkeypatch.setattr(survey, "_compute", None)  # any work would fail
    assert survey.run(TINY, runtime) == rows


def stamps(runtime, folder="trained"):
    files = (runtime.work_dir / folder).rglob("row-*.npz")
    return {path: path.stat().st_mtime_ns for path in files}


def test_more_shadows_and_another_bootstrap_retrain_nothing(finished):
    runtime, _, _ = finished
    before = stamps(runtime) | stamps(runtime, "observed")
    more = replace(TINY, num_shadows=6, num_resamples=10)
    rows = survey.run(more, runtime)
    assert rows[0]["num_shadows"] == 6
    after = stamps(runtime) | stamps(runtime, "observed")
    assert {path: after[path] for path in before} == before
    # 5 pipelines get 2 models each; 2 classifiers and 3 x 3 releases are looked at
    assert len(after) - len(before) == 2 * 5 + 2 * 11


def test_another_attacker_looks_again_but_retrains_nothing(finished):
    runtime, _, _ = finished
    trained, seen = stamps(runtime), stamps(runtime, "observed")
    survey.run(replace(TINY, more_samples=2), runtime)
    assert stamps(runtime) == trained
    assert len(stamps(runtime, "observed")) > len(seen)


def test_a_generator_in_the_users_own_file(finished, tmp_path):
    runtime, _, _ = finished
    path = tmp_path / "my_pixels.py"
    path.write_text(SHUFFLE)
    mine = config.method(f"{path}:Pixels(scale=0.5)", ALL)
    rows = survey.run(replace(TINY, generators=(mine,)), runtime)
    assert {r["release"] for r in rows if r["subject"] == "Pixels"} == {
        "generator",
        "images",
        "classifier",
    }


def test_a_diverged_training_is_named(finished):
    runtime, _, _ = finished
    wild = replace(TINY, classifier=replace(TINY.classifier, learning_rate=1e30))
    with pytest.raises(FloatingPointError, match=r"real_classifier.*diverged"):
        survey.run(replace(wild, generators=()), runtime)


def test_a_diverged_generator_is_named_though_its_images_look_finite(finished):
    runtime, _, _ = finished
    wild = replace(TINY, generators=(VAE(epochs=3, learning_rate=1e30),))
    with pytest.raises(FloatingPointError, match=r"VAE, generator.*diverged"):
        survey.run(wild, runtime)


def test_an_epsilon_never_looks_smaller_than_it_is():
    shown = {1.0: "1", 1.004: "1.01", 10.04: "10.1", 0.9994: "1", 0.12345: "0.124"}
    assert {value: epsilon_text(value) for value in shown} == shown
    assert epsilon_text("inf") == "inf"


def test_a_killed_survey_goes_on_where_it_was(finished, tmp_path):
    """SIGKILL in the middle; the second run keeps the rows, and gives the same."""
    _, rows, _ = finished
    command = [sys.executable, "-m", "experiments.survey", "smoke", *OPTIONS.split()]
    command += ["--generators", "Memoriser", "Independent", "ClassMean"]
    command += ["--work-dir", str(tmp_path)]
    runtime = config.Runtime(work_dir=tmp_path)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while len(stamps(runtime)) < 6 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = stamps(runtime)
    assert len(kept) >= 6
    assert not list(tmp_path.glob("survey-*/rows.jsonl"))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1].endswith("report.html")
    for line in done.stderr.splitlines():  # on a slow machine a few are written
        assert re.match(r"(calibrating|shadow models|attacks): [\d,]+", line), line
    assert not re.search(r"[\r\x1b]", done.stderr)
    assert {path: stamps(runtime)[path] for path in kept} == kept
    (path,) = tmp_path.glob("survey-*/rows.jsonl")
    again = [json.loads(line) for line in path.read_text().splitlines()]
    np.testing.assert_allclose(
        [r["auc"] for r in again], [r["auc"] for r in rows], atol=0.02
    )
