"""The benchmark runs, times what it says, and its loop is the attack that it times."""

import pytest

from experiments import speed
from ppds_jax.types import InputError

SMALL = speed.Config(
    num_models=12, num_images=100, num_population=20, num_resamples=2, loop_images=10
)


def test_rows_are_named_by_their_size(capsys):
    rows = {row["name"]: row for row in speed.run(SMALL)}
    parts = [row for name, row in rows.items() if name.endswith("_seconds/12x100x2")]
    total = rows["score_seconds/12x100x2"]["value"]
    assert total == pytest.approx(sum(row["value"] for row in parts) - total, rel=0.01)
    assert 0.05 < rows["peak_memory/12x100x2"]["value"] < 64
    ratio = rows["loop_seconds_per_image"]["value"]
    ratio /= rows["lira_seconds_per_image"]["value"]
    assert rows["lira_speedup_vs_loop"]["value"] == pytest.approx(ratio, rel=0.01)
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


def test_a_loop_that_differs_is_caught(monkeypatch):
    monkeypatch.setattr(speed, "loop_lira", lambda phi, *_, **__: phi.mean(1))
    with pytest.raises(AssertionError, match="Not equal"):
        speed.score_seconds(SMALL)


def test_sizes_that_are_too_small_are_named():
    with pytest.raises(InputError, match="num_models=4"):
        speed.run(speed.Config(num_models=4))
