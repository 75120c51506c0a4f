"""The survey of utility, on tiny images: complete, resumable, beside what is known."""

import csv
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from experiments import generators as survey
from ppds_jax.classifiers import CNN, MLP
from ppds_jax.generators import (
    ALL,
    VAE,
    ClassMean,
    Independent,
    Memoriser,
)
from ppds_jax.harness import config
from ppds_jax.harness.utility import PUBLISHED, published, table
from ppds_jax.types import InputError

pytestmark = pytest.mark.xdist_group("generators")  # they share a finished run
TINY = replace(
    survey.PRESETS["smoke"][1],
    methods=(ClassMean(), Memoriser(), Independent()),
    epsilons=(survey.FREE, 1.0),
    classifiers=(MLP(hidden=(), epochs=5, learning_rate=1e-2),),
    num_images=600,
    num_compared=100,
    extractor="pixels",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runtime = config.Runtime(work_dir=tmp_path_factory.mktemp("runs"))
    return runtime, survey.run(TINY, runtime)


def of(rows, method, budget="inf"):
    return [r for r in rows if (r["method"], r["budget"]) == (method, budget)]


def test_the_controls_read_what_they_must(finished):
    """Real images teach, a generator without data does not."""
    _, rows = finished
    for row in of(rows, "Memoriser"):
        assert row["accuracy/MLP"] > 0.85
        assert row["precision"] > 0.6
        assert row["recall"] > 0.6
    for row in of(rows, "Independent"):
        # chance is 0.1; templates unlike digits may send all digits to a few classes
        assert row["accuracy/MLP"] < 0.4
        assert row["precision"] == row["recall"] == 0
        assert row["frechet/pixels"] > 3 * of(rows, "Memoriser")[0]["frechet/pixels"]


def test_private_methods_run_at_each_epsilon_and_others_once(finished):
    _, rows = finished
    assert [len(of(rows, "ClassMean", b)) for b in ("inf", 1.0)] == [2, 2]
    assert [len(of(rows, "Memoriser", b)) for b in ("inf", 1.0)] == [2, 0]
    for row in of(rows, "ClassMean", 1.0):
        assert 0.99 <= row["epsilon"] <= 1
        assert row["neighbours"] == "zero-out"
        assert "seed" in row["notes"]
    assert of(rows, "Independent")[0]["epsilon"] == 0


def test_a_run_leaves_rows_a_table_and_figures(finished):
    runtime, rows = finished
    (folder,) = runtime.work_dir.glob("generators-*")
    with (folder / "rows.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows) == 8
    text = (folder / "table.md").read_text()
    assert "| ClassMean | 1 | zero-out | 2 |" in text
    assert "±" in text
    for name in ("accuracy.png", "samples.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_finished_cells_are_kept_and_shared(finished, monkeypatch):
    """A killed run, or another choice of methods, computes only what there is not."""
    runtime, rows = finished
    computed = []

    def failing(self, cell, folder):
        computed.append(cell)
        raise RuntimeError("killed")

    monkeypatch.setattr(survey.Bench, "row", failing)
    fewer = replace(TINY, methods=(ClassMean(), Independent()))
    assert survey.run(fewer, runtime) == [r for r in rows if r["method"] != "Memoriser"]
    assert computed == []
    with pytest.raises(RuntimeError, match="killed"):
        survey.run(replace(TINY, seeds=(0, 7)), runtime)
    assert {cell.seed for cell in computed} == {7}
    assert survey.run(TINY, runtime) == rows


def test_a_diverged_cell_does_not_stop_the_others(finished):
    runtime, _ = finished
    wild = VAE(epochs=1, width=2, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"VAE.*diverged"):
        survey.run(replace(TINY, methods=(wild, ClassMean())), runtime)


def test_a_slow_method_gets_one_seed(finished):
    runtime, _ = finished
    rows = survey.run(replace(TINY, patience=0.0), runtime)
    assert [r["seed"] for r in rows] == [0] * 4


def test_a_preset_takes_the_place_of_defaults_only(monkeypatch):
    known = {"digits": VAE(epochs=7), "digits_published": VAE(epochs=9), "mnist": 1}
    monkeypatch.setattr(sys.modules[VAE.__module__], "PRESETS", known, raising=False)
    assert survey.preset(VAE(), TINY) == VAE(epochs=7)
    assert survey.preset(VAE(), replace(TINY, preset="published")) == VAE(epochs=9)
    assert survey.preset(VAE(epochs=3), TINY) == VAE(epochs=3)
    assert survey.preset(VAE(), replace(TINY, data="a/mnist.npz")) == VAE()
    assert survey.preset(ClassMean(), TINY) == ClassMean()
    assert survey.preset(VAE(), replace(TINY, preset="none")) == VAE()


def test_a_method_of_ones_own_may_have_options_without_defaults():
    @dataclass(frozen=True)
    class Mine:
        size: int

    assert survey.preset(Mine(3), TINY) == Mine(3)


def test_published_numbers_stand_beside_their_method(finished):
    _, rows = finished
    assert len(published("DPFETA(epochs=3)", "mnist", 1.0)) == 2
    assert published("FETA", "mnist", 1.0) == published("DPFETA", "mnist", 1.0)
    assert published("VAE", "mnist", 1.0) == []
    assert all(0.2 < p.accuracy < 1 for p in PUBLISHED)
    renamed = [{**row, "method": "DPMerf", "budget": 1.0} for row in rows[:2]]
    text = table(renamed, "mnist")
    assert "80.3 [1], 83.9 [2]" in text
    assert "[2] SoK" in text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data": "nowhere/mnist.npz"}, "--data PATH.npz"),
        ({"methods": ()}, "methods"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"seeds": (-1,)}, "seeds"),
        ({"epsilons": (0.0,)}, "epsilon"),
        ({"extractor": "inception"}, "scattering"),
        ({"num_compared": 2}, "num_compared"),
        ({"classifiers": (CNN(), CNN())}, "classifiers"),
    ],
)
def test_wrong_configs_are_refused_before_any_training(wrong, message, tmp_path):
    with pytest.raises(InputError, match=message):
        survey.run(replace(TINY, **wrong), config.Runtime(work_dir=tmp_path))


RESULTS = Path(survey.__file__).parent / "results"
PROMISED = re.compile(r"(MNIST|Fashion-MNIST)(?:, epsilon (\d+))?: (0\.\d+) ± (0\.\d+)")


CONTROLS = (Memoriser, Independent)


def committed():
    for file in RESULTS.glob("generators_*.csv"):
        with file.open(newline="") as lines:
            yield from csv.DictReader(lines)


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_accuracies_in_docstrings_are_those_of_the_committed_rows(cls):
    promised = PROMISED.findall(" ".join(cls.__doc__.split()))
    measured = {row["method"].split("(")[0] for row in committed()}
    assert bool(promised) == (cls.__name__ in measured and cls not in CONTROLS)
    for data, budget, accuracy, tolerance in promised:
        file = RESULTS / f"generators_{data.lower().replace('-', '_')}.csv"
        with file.open(newline="") as lines:
            found = [
                float(row["accuracy/CNN"])
                for row in csv.DictReader(lines)
                if row["method"].split("(")[0] == cls.__name__
                and float(row["budget"]) == float(budget or "inf")
            ]
        assert found
        assert float(np.mean(found)) == pytest.approx(float(accuracy), abs=6e-4)
        assert np.abs(np.array(found) - float(accuracy)).max() <= float(tolerance)
