"""The experiment on full data sets, on tiny ones; and the classifiers' options."""

import csv
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments import dp_sgd
from ppds_jax.classifiers import DPCNN, DPScatter
from ppds_jax.harness import config
from ppds_jax.types import Budget, DataSpec, InputError

TINY = replace(
    dp_sgd.PRESETS["smoke"][1],
    # 2 steps an epoch, so that one chunk is all
    classifiers=(DPScatter(epochs=5, batch_size=720, learning_rate=4.0),),
)


def test_the_experiment_learns_and_is_served_again(tmp_path, capsys, monkeypatch):
    runtime = config.Runtime(work_dir=tmp_path)
    (row,) = dp_sgd.run(TINY, runtime)
    # chance is 0.1
    assert row["accuracy"] > 0.8
    assert 9.9 <= row["epsilon"] <= 10
    assert row["neighbours"] == "add-or-remove"
    assert row["num_private"] == 1437
    assert "accuracy" in capsys.readouterr().out
    monkeypatch.setattr(dp_sgd, "_compute", None)  # any work would fail
    assert dp_sgd.run(TINY, runtime) == [row]


def test_what_a_stopped_run_had_finished_is_not_trained_again(tmp_path, monkeypatch):
    runtime, trained = config.Runtime(work_dir=tmp_path), []
    fit_kept = dp_sgd.fit_kept

    def stopping(key, classifier, data, *, name, **options):
        trained.append(name)
        if len(trained) == 2:
            raise RuntimeError("stopped")
        return fit_kept(key, classifier, data, name=name, **options)

    monkeypatch.setattr(dp_sgd, "fit_kept", stopping)
    both = replace(TINY, seeds=(0, 1))
    with pytest.raises(RuntimeError, match="stopped"):
        dp_sgd.run(both, runtime)
    assert [row["seed"] for row in dp_sgd.run(both, runtime)] == [0, 1]
    assert len(trained) == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data": "nowhere/mnist.npz"}, "--data PATH.npz"),
        ({"classifiers": ()}, "name at least one"),
        ({"seeds": (-1,)}, "seeds"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"classifiers": (DPScatter(groups=5),)}, r"groups=5.*81"),
        ({"classifiers": (DPCNN(activation="gelu"),)}, "relu or tanh"),
    ],
)
def test_wrong_configs_are_refused_before_any_training(wrong, message, tmp_path):
    runtime = config.Runtime(work_dir=tmp_path)
    with pytest.raises(InputError, match=message):
        dp_sgd.run(replace(TINY, **wrong), runtime)


def test_a_diverged_training_is_named(tmp_path):
    wild = DPScatter(epochs=1, batch_size=1437, learning_rate=float("inf"))
    with pytest.raises(FloatingPointError, match=r"diverged"):
        dp_sgd.run(replace(TINY, classifiers=(wild,)), config.Runtime(tmp_path))


def test_the_state_of_dp_scatter_is_its_linear_layer():
    """Features of private images must not be released with it."""
    spec = DataSpec((28, 28, 1), 10, 60_000)
    method = DPScatter().make(spec, Budget(float("inf"), 1e-5))
    state = jax.eval_shape(method.init, jax.random.key(0), None, ())
    shapes = {x.shape for x in jax.tree.leaves(state)}
    assert shapes == {(7 * 7 * 81, 10), (10,), ()}  # and the count of steps


@pytest.mark.parametrize("shape", [(28, 28, 1), (8, 8, 3)])
def test_the_options_of_the_presets_make_logits(shape):
    method = dp_sgd.PRESETS["mnist"][1].classifiers[0]
    made = method.make(DataSpec(shape, 7, 100), Budget(float("inf"), 1e-5))
    state = jax.eval_shape(made.init, jax.random.key(0), None, ())
    image = jnp.zeros((5, *shape))
    assert jax.eval_shape(made.logits, state, image).shape == (5, 7)


@pytest.mark.parametrize(("preset", "goal"), [("mnist", 0.97), ("fashion", 0.85)])
def test_the_recorded_rows_are_those_of_the_presets(preset, goal):
    cfg = dp_sgd.PRESETS[preset][1]
    path = Path(dp_sgd.__file__).parent / f"results/dp_sgd_{preset}.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert row["data"] == cfg.data
        assert row["classifier"] == config.describe(cfg.classifiers[0])
        assert float(row["accuracy"]) >= goal
        assert float(row["epsilon"]) <= cfg.epsilon
    assert rows
