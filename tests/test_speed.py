"""The benchmark runs, times what it says, and its loop is the attack that it times."""

from dataclasses import replace

import numpy as np
import pytest

from experiments import speed
from experiments.bench import contest, scoring, table
from ppds_jax.harness.config import Runtime
from ppds_jax.types import InputError

SMALL = scoring.Scoring(
    num_models=12, num_images=100, num_population=20, num_resamples=2, loop_images=10
)
SCORE = replace(speed.PRESETS["score"][1], scoring=SMALL)


def test_rows_are_named_by_their_size_and_kept(capsys, tmp_path):
    rows = {row["name"]: row for row in speed.run(SCORE, Runtime(tmp_path))}
    parts = [row for name, row in rows.items() if name.endswith("_seconds/12x100x2")]
    total = rows["score_seconds/12x100x2"]["value"]
    assert total == pytest.approx(sum(row["value"] for row in parts) - total, rel=0.01)
    assert 0.05 < rows["peak_memory/12x100x2"]["value"] < 64
    ratio = rows["loop_seconds_per_image"]["value"]
    ratio /= rows["lira_seconds_per_image"]["value"]
    assert rows["lira_speedup_vs_loop"]["value"] == pytest.approx(ratio, rel=0.01)
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 1
    again = speed.run(SCORE, Runtime(tmp_path))
    assert again == list(rows.values()), "timed anew"


def test_a_loop_that_differs_is_caught(monkeypatch):
    monkeypatch.setattr(scoring, "loop_lira", lambda phi, *_, **__: phi.mean(1))
    with pytest.raises(AssertionError, match="Not equal"):
        scoring.score_seconds(SMALL)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scoring", replace(SMALL, num_models=4), "num_models=4"),
        ("parts", ("all",), "parts='all': use some of shadows"),
        ("rounds", 0, "rounds=0"),
    ],
)
def test_what_cannot_be_timed_is_named(field, value, message):
    with pytest.raises(InputError, match=message):
        speed.run(replace(SCORE, **{field: value}))


def test_contestants_are_timed_in_turn_and_a_faster_one_is_seen():
    """Sleepers: one process of 0.2 s, two at once of 0.1 s each."""
    sleeper = lambda seconds, **more: contest.Contestant(
        "contest:sleeper", {"seconds": seconds}, **more
    )
    results = contest.contest(
        {"slow": sleeper(0.2), "pair": sleeper(0.1, cores=((0,), (0,)), units=2)}, 3
    )
    assert results["slow"].facts == {"slept": 0.2}
    assert all(len(result.seconds) == 3 for result in results.values())
    assert 2.5 < contest.ratio(results["slow"], results["pair"]) <= 4.1


def test_a_contestant_that_fails_is_not_passed_over():
    with pytest.raises(RuntimeError, match="contest:sleeper: ended early"):
        contest.contest({"bad": contest.Contestant("contest:sleeper", {})}, 1)


HEADLINES = """
shadow_speedup_vs_torch/maxpool shadow_speedup_vs_torch/stride
shadow_speedup_vs_torch/mlp shadow_speedup_vs_vmap/maxpool
dp_speedup_vs_opacus_hooks/stride dp_speedup_vs_opacus_ghost/stride
dp_speedup_vs_opacus_ghost/maxpool dp_over_plain/stride score_seconds/256x50000x2
"""


@pytest.fixture
def instant(monkeypatch):
    """The referee aside: contestants that take no time, and the last the longest."""

    def contest_(contestants, rounds):
        facts = {"flops": 1e9}
        return {
            name: contest.Result(np.full(rounds, 1.0 + i), facts, 1.0, one.units)
            for i, (name, one) in enumerate(contestants.items())
        }

    monkeypatch.setattr(table, "contest", contest_)
    monkeypatch.setattr(table, "_rivals", lambda: True)
    monkeypatch.setattr(table, "_seconds", lambda command, cache: 1.0)


GPU_ROWS = {
    "gpu1": "shadow_speedup_vs_torch_compiled/stride",
    "gpu2": "shadows_per_hour/maxpool-cifar/vmap/256",
    "gpu3": "shadow_speedup_vs_torch_func/wrn16-4 shadows_per_hour/wrn16-4-cifar/256",
    "gpu4": "dp_speedup_vs_opacus_ghost/stride dp_examples/maxpool/reference",
    "gpu5": "dpdm_step_seconds dp_merf_speedup_vs_torch sampling_speedup_vs_torch",
    "gpu6": "mapper_ms/wrn16-4-cifar/map/16",
    "gpu7": "first_step_seconds/maxpool/warm",
}


@pytest.mark.parametrize("part", GPU_ROWS)
def test_each_part_for_an_accelerator_gives_its_rows(part, instant, tmp_path):
    rows = speed.run(speed.PRESETS[part][1], Runtime(tmp_path))
    assert set(GPU_ROWS[part].split()) <= {row["name"] for row in rows}


def test_smoke_gives_every_headline(tmp_path, monkeypatch, instant):
    scored = [scoring.row("score_seconds/256x50000x2", 1.0, "s")]
    monkeypatch.setattr(table, "score_seconds", lambda _: scored)
    rows = speed.run(speed.PRESETS["smoke"][1], Runtime(tmp_path))
    found = {row["name"]: row["value"] for row in rows}
    assert set(HEADLINES.split()) <= set(found)
    # ours is first, PyTorch with threads second, with processes third
    assert found["shadow_speedup_vs_torch/stride"] == 2
    assert found["dp_over_plain/stride"] == 2


@pytest.mark.slow
def test_every_part_gives_its_rows(tmp_path):
    names = [
        row["name"] for row in speed.run(speed.PRESETS["tiny"][1], Runtime(tmp_path))
    ]
    for start in ("shadow_speedup_vs_vmap/maxpool", "shadow_ms/mlp/ours", "peak_share"):
        assert any(name.startswith(start) for name in names)
