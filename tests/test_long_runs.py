"""Long runs: they can be cut anywhere, stopped and killed, and nothing is lost."""

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import types
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from tqdm import tqdm

from experiments import survey
from ppds_jax.attacks.observe import Questions
from ppds_jax.devices import Layout
from ppds_jax.harness import config, training
from ppds_jax.harness.progress import Progress
from ppds_jax.harness.shadows import Shadows
from ppds_jax.mapping import Mapped
from ppds_jax.pipeline import classification
from ppds_jax.types import InputError
from tests import long_run
from tests.long_run import MODELS, STEPS, classifier, rows, shadows, subject

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def one_step_a_chunk(monkeypatch):
    """Places to stop at: after each step."""
    monkeypatch.setattr(training, "SECONDS", 0.0)


class At(Progress):
    """Calls `then` when so much work is done, once."""

    def __init__(self, units, then):
        super().__init__(MODELS * 2, "models", file=io.StringIO())
        self.then, self.units, self.notes = then, units, []

    def under_way(self, units, note=""):
        super().under_way(units, note)
        self.notes.append(note)
        if self._found + self._done + units >= self.units and self.then:
            then, self.then = self.then, None
            then()


def runtime(path, mode="map", **options):
    at_once = 2 if mode.endswith("vmap") else None
    every = options.pop("checkpoint_every", float("inf"))
    return config.Runtime(
        work_dir=path, mode=mode, at_once=at_once, checkpoint_every=every
    )


def run(here, made=None, then=None, units=0.0, **options):
    progress = At(units, then)
    shadows(here, **options).run(subject(made or classifier()), progress)
    return progress


def stopped(run, number, capsys):
    """Exit code and the one line that a run says which a signal ends."""
    with pytest.raises(SystemExit) as stop:
        config.main(lambda cfg, runtime: run(), survey.PRESETS, ["smoke"])
    (line,) = capsys.readouterr().err.splitlines()
    assert number.name in line
    return stop.value.code


def widths(path):
    """Models on each device, as a run has it on record."""
    (lines,) = path.glob("trained/*/layouts.jsonl")
    return [json.loads(line)["width_per_device"] for line in lines.open()]


def checkpoints(path):
    return list(path.glob("trained/*/checkpoints/*"))


@pytest.mark.parametrize("mode", ["map", "vmap", "shard-map", "shard-vmap"])
def test_a_stopped_run_goes_on_to_the_same_bits(mode, tmp_path, capsys):
    """SIGTERM in the middle of the second batch (the only one on 4 devices)."""
    made = classifier()
    run(runtime(tmp_path / "whole", mode), made)
    here = runtime(tmp_path / "cut", mode)
    term = lambda: os.kill(os.getpid(), signal.SIGTERM)
    cut = lambda: run(here, made, term, 1.5 if mode == "map" else 2.5)
    assert stopped(cut, signal.SIGTERM, capsys) == 75
    assert len(checkpoints(here.work_dir)) == 1
    assert 0 <= len(rows(here.work_dir)) < MODELS
    seen = run(here, made).notes
    first = int(re.search(r"step (\d+) of 12", seen[0])[1])
    assert 1 < first < STEPS, "it went on from the checkpoint"
    assert rows(here.work_dir) == rows(tmp_path / "whole")
    assert checkpoints(here.work_dir) == []


def test_chunks_of_any_size_share_one_program_and_its_bits(tmp_path, monkeypatch):
    made = classifier()
    run(runtime(tmp_path / "steps"), made)
    monkeypatch.setattr(training, "SECONDS", 0.01)
    traced = [len(long_run.TRACES)]
    run(runtime(tmp_path / "some"), made)
    traced.append(len(long_run.TRACES))
    monkeypatch.setattr(training, "SECONDS", 1e9)
    few = run(runtime(tmp_path / "whole"), made).notes
    assert len(few) == 2 + (MODELS - 1), "one step to see how long it takes, then all"
    traced.append(len(long_run.TRACES))
    assert np.diff(traced).max() <= 2, "for shapes alone; programs are there already"
    whole = rows(tmp_path / "whole")
    assert len(whole) == MODELS
    assert rows(tmp_path / "steps") == rows(tmp_path / "some") == whole


def test_what_a_killed_process_left_of_saved_models_goes(tmp_path, monkeypatch):
    """Killed after the last row, before its checkpoint is removed, or in removing."""
    here = runtime(tmp_path, checkpoint_every=0)
    with monkeypatch.context() as killed:
        killed.setattr(training.Trainer, "forget", lambda self: None)
        run(here)
    left = checkpoints(tmp_path)
    assert len(left) == MODELS
    left[0].rename(left[0].with_name(f".{left[0].name}"))
    before = rows(tmp_path)
    run(here)
    assert checkpoints(tmp_path) == []
    assert rows(tmp_path) == before


def test_fewer_models_leave_the_checkpoint_of_another(tmp_path, capsys):
    here, made = runtime(tmp_path), classifier()
    term = lambda: os.kill(os.getpid(), signal.SIGTERM)
    stopped(lambda: run(here, made, term, 2.5), signal.SIGTERM, capsys)
    (kept,) = checkpoints(tmp_path)
    half = kept / "99.orbax-checkpoint-tmp"  # as a kill in a write leaves it
    (half / "arrays").mkdir(parents=True)
    few = dataclasses.replace(shadows(here), member=shadows(here).member[:2])
    few.run(subject(made), At(0, None))
    assert checkpoints(tmp_path) == [kept]
    assert not half.exists()
    seen = run(here, made).notes
    assert int(re.search(r"step (\d+) of 12", seen[0])[1]) > 1


def test_fewer_models_leave_a_batch_that_others_belong_to(tmp_path, capsys):
    """A batch of models 2 and 3 is interrupted; then only 3 models are wanted."""
    here, made = runtime(tmp_path / "cut", "vmap"), classifier()
    run(runtime(tmp_path / "whole", "vmap"), made)
    term = lambda: os.kill(os.getpid(), signal.SIGTERM)
    stopped(lambda: run(here, made, term, 2.5), signal.SIGTERM, capsys)
    few = dataclasses.replace(shadows(here), member=shadows(here).member[:3])
    few.run(subject(made), At(0, None))
    assert len(rows(here.work_dir)) == 3
    seen = run(here, made).notes
    assert int(re.search(r"step (\d+) of 12", seen[0])[1]) > 1
    last = "row-00003.npz"
    assert rows(here.work_dir)[last] == rows(tmp_path / "whole")[last]


@pytest.mark.parametrize("last", ["stage", "look"])
def test_too_little_memory_is_found_before_training(last, tmp_path, monkeypatch):
    """Even where the last of the stages needs it, or what looks at the models."""
    stages = classification(classifier()), classification(classifier(7))
    place = 3 if last == "stage" else 0  # a stage's number; a look's questions
    is_last = lambda x: isinstance(x, Questions) or (isinstance(x, int) and x == 1)
    need = lambda self, shared, *rest: (
        1e12 * (len(shared) > place and is_last(shared[place])),
        0.0,
    )
    monkeypatch.setattr(Mapped, "_need", need)
    two = subject(classifier())._replace(stages=stages)
    here = config.Runtime(work_dir=tmp_path, mode="map", memory=10**10)
    with pytest.raises(InputError, match="memory=10GB"):
        shadows(here).run(two, At(0, lambda: pytest.fail("it was training")))
    assert rows(tmp_path) == {}


@pytest.mark.parametrize(("times", "fits"), [(0.9, False), (1.1, True)])
def test_what_is_seen_of_all_models_counts_as_memory(
    times, fits, tmp_path, monkeypatch
):
    here = config.Runtime(work_dir=tmp_path, mode="map", memory=10**10)
    game = shadows(here)
    seen = 4 * MODELS * len(game.questions.label)  # of one signal
    monkeypatch.setattr(Mapped, "_need", lambda self, *given: (0.0, 0.0))
    accuracy = 4 * MODELS
    monkeypatch.setattr(Layout, "free", lambda self, held=0: times * (seen + accuracy))
    monkeypatch.setattr(training, "COPIES", 0)
    if fits:
        assert len(game.run(subject(classifier()), At(0, None)).observations) == 1
    else:
        with pytest.raises(InputError, match=r"what is seen of 4 models takes"):
            game.run(subject(classifier()), At(0, lambda: pytest.fail("trained")))


def test_looks_are_as_wide_as_planned_before_training(tmp_path, monkeypatch):
    """Though a process that was killed had other memory free than the next has."""
    here, counted = runtime(tmp_path / "cut", "vmap"), []
    run(runtime(tmp_path / "whole", "vmap"))
    looks = lambda self, shared: isinstance(shared[0], Questions)
    counting = Mapped.chunk

    def one(self, shared, *rest, **how):
        counted.append(looks(self, shared))
        return 1 if counted[-1] else counting(self, shared, *rest, **how)

    with monkeypatch.context() as cut:
        cut.setattr(Mapped, "chunk", one)
        cut.setattr(Shadows, "_observe", lambda self, *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(here)
    assert any(counted)
    monkeypatch.setattr(Mapped, "chunk", lambda self, *given, **how: 1 / 0)
    run(here)  # counts nothing anew
    seen = lambda path: [
        json.loads(line)["width_per_device"]
        for file in (path / "observed").rglob("layouts.jsonl")
        for line in file.read_text().splitlines()
    ]
    assert (seen(here.work_dir), seen(tmp_path / "whole")) == ([1], [2])


def test_a_checkpoint_of_too_many_models_says_what_to_do(tmp_path, monkeypatch, capsys):
    """Less memory than the run had that wrote it; nothing of it is lost by asking."""
    made, here = classifier(), runtime(tmp_path, "vmap")
    term = lambda: os.kill(os.getpid(), signal.SIGTERM)
    stopped(lambda: run(here, made, term, 1.0), signal.SIGTERM, capsys)
    (kept,) = checkpoints(tmp_path)
    with monkeypatch.context() as few:
        few.setattr(training.Trainer, "fitting", _narrow)
        here = dataclasses.replace(here, memory=10**11)  # another plan
        with pytest.raises(InputError, match=r"2 models go on .* trained anew"):
            run(here, made)
    assert checkpoints(tmp_path) == [kept]


def _narrow(self, rows, joined=False):
    """One model at a time fits; results of two do not."""
    if joined:
        raise InputError("memory=1GB: too little")
    return 1


def test_a_width_that_memory_changes_is_on_record(tmp_path, monkeypatch, capsys):
    """As a vmap runs out of it in the middle of a training."""
    term = lambda: os.kill(os.getpid(), signal.SIGTERM)
    here = runtime(tmp_path / "cut", "vmap")
    calls, compiled = [], Mapped.program

    def program(self, shared, part):
        made, count = compiled(self, shared, part), len(part[0])

        def greedy(*args):
            calls.append(count)
            if count > 1 and len(calls) > 5:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: planted")
            return made(*args)

        greedy.memory_analysis = made.memory_analysis
        return greedy

    monkeypatch.setattr(Mapped, "program", program)
    with pytest.warns(RuntimeWarning, match="out of memory with 2 .* going on with 1"):
        run(runtime(tmp_path / "whole", "vmap"))
    assert widths(tmp_path / "whole")[:2] == [2, 1]
    assert widths(tmp_path / "whole")[-1] == 1
    assert len(rows(tmp_path / "whole")) == MODELS
    calls.clear()
    cut = lambda: run(here, None, term, 1.5)  # in the first batch, after it shrank
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert stopped(cut, signal.SIGTERM, capsys) == 75
    monkeypatch.setattr(Mapped, "program", compiled)  # there is memory again
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*last bits will differ")
        run(here)
    assert widths(here.work_dir)[:4] == [2, 1, 2, 1], "it goes on as it was"
    for name in ("row-00000.npz", "row-00001.npz"):
        assert rows(here.work_dir)[name] == rows(tmp_path / "whole")[name]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kills", "mode"),
    [
        (3, "auto"),
        pytest.param(20, "auto", marks=SLOW),
        pytest.param(20, "vmap", marks=SLOW),
    ],
)
def test_killed_at_random_moments_it_ends_with_the_same_bits(kills, mode, tmp_path):
    command = [sys.executable, "-m", "tests.long_run", str(tmp_path), str(kills), mode]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs")}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr
    # moments are drawn from the whole time, of which training is more than half
    assert int(done.stdout) >= kills // 4


def test_the_model_and_the_step_that_break_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SECONDS", 1e9)  # from step 2 on in one chunk
    here = runtime(tmp_path)
    broken = int(np.argmax(shadows(here).member[:, 0]))
    match = rf"walk, classifier: model {broken} .* after step 9 of 12: .*diverged"
    with pytest.raises(FloatingPointError, match=match):
        run(here, classifier(broken=9))
    assert list(rows(tmp_path)) == [f"row-{i:05d}.npz" for i in range(broken)]


def test_a_batch_with_one_broken_model_keeps_no_row(tmp_path):
    here = runtime(tmp_path, "vmap")
    with pytest.raises(FloatingPointError, match="after step 5 of 12"):
        run(here, classifier(broken=5))
    assert rows(tmp_path) == {}


def test_on_another_layout_it_goes_on_and_says_what_that_means(tmp_path, capsys):
    made = classifier()
    run(runtime(tmp_path / "whole"), made)
    here = tmp_path / "cut"
    interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)
    cut = lambda: run(runtime(here, "vmap"), made, interrupt, 1.0)
    assert stopped(cut, signal.SIGINT, capsys) == 130
    message = r"mapper vmap, now map.*the last bits will differ"
    with pytest.warns(RuntimeWarning, match=message):
        seen = run(runtime(here), made).notes
    assert re.search(r"step (\d+) of", seen[0])[1] != "1"
    assert rows(here).keys() == rows(tmp_path / "whole").keys()
    for path in (tmp_path / "whole").glob("trained/*/row-*.npz"):
        (other,) = here.glob(f"trained/*/{path.name}")
        with np.load(path) as a, np.load(other) as b:
            for name in a.files:
                np.testing.assert_allclose(a[name], b[name], atol=1e-4)


@pytest.mark.parametrize("asked", [False, True])
def test_a_width_holds_until_another_is_asked_for(asked, tmp_path, capsys, monkeypatch):
    """Though less memory may be free by now than when the width was decided."""
    made, here = classifier(), runtime(tmp_path / "cut", "vmap")
    run(runtime(tmp_path / "whole", "vmap"), made)
    interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)
    cut = lambda: run(here, made, interrupt, 1.0)
    assert stopped(cut, signal.SIGINT, capsys) == 130
    monkeypatch.setattr(training.Trainer, "fitting", lambda self, *rows, **how: 1)
    if asked:
        here = dataclasses.replace(here, memory=10**11)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run(here, made)
    found = [str(w.message) for w in said if "last bits will differ" in str(w.message)]
    assert len(found) == asked
    assert all(re.search(r"width_per_device 2, now 1", text) for text in found)
    if not asked:
        assert rows(here.work_dir) == rows(tmp_path / "whole")
    assert widths(here.work_dir) == [2, 1 if asked else 2]


def test_checkpoints_come_with_time_and_only_then(tmp_path, monkeypatch):
    seen = []
    save = training.Checkpoints.save
    keep = lambda self, number, *rest: seen.append(number) or save(self, number, *rest)
    monkeypatch.setattr(training.Checkpoints, "save", keep)
    run(runtime(tmp_path / "never"))
    assert seen == []
    clock = iter(range(10**6))
    told = types.SimpleNamespace(monotonic=lambda: next(clock))  # to this module alone
    monkeypatch.setattr(training, "time", told)
    run(runtime(tmp_path / "often", checkpoint_every=30), classifier(11))
    assert seen == [10] * MODELS, "it is asked three times a step"


def test_secret_keys_are_not_on_disk(tmp_path, capsys):
    here = runtime(tmp_path, checkpoint_every=0)
    term = lambda: os.kill(os.getpid(), signal.SIGTERM)
    cut = lambda: run(here, None, term, 1.5, secret=True)
    assert stopped(cut, signal.SIGTERM, capsys) == 75
    assert len(rows(tmp_path)) == 1
    assert checkpoints(tmp_path) == []


def test_a_wrong_interval_is_refused(tmp_path):
    for wrong in (-1.0, float("nan")):
        with pytest.raises(InputError, match="checkpoint_every"):
            config.Runtime(work_dir=tmp_path, checkpoint_every=wrong)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def said(total, seconds, every, file):
    """What is said of `total` units in so many seconds."""
    clock = Clock()
    progress = Progress(total, "shadow models", file=file, clock=clock)
    progress.found(28)
    while clock.now < seconds:
        clock.now += every
        share = (total - 28) * clock.now / seconds
        progress.under_way(share, "VAE, generator: step 9 of 10, 4 a second")
    progress(total - 28)
    progress.close()
    return file.getvalue()


def test_a_log_file_gets_plain_lines_and_few():
    text = said(128, 10 * 3600, 5, io.StringIO())
    assert not re.search(r"[\r\x1b]", text)
    lines = text.splitlines()
    assert 50 < len(lines) < 200
    shape = r"shadow models: \d+ of 128 \(\d+ %\), 10 an hour, .* left; VAE, .*"
    for line in lines[:-1]:
        assert re.fullmatch(shape, line), line
    assert lines[10].startswith(
        "shadow models: 29 of 128 (23 %), 10 an hour, 9 h 50 min"
    )
    assert lines[-1] == "shadow models: 128, in 10 h 0 min"


def test_a_short_run_says_nothing():
    assert said(128, 25, 5, io.StringIO()) == ""


def test_a_terminal_gets_a_bar_that_says_the_same(monkeypatch):
    now = Clock()
    monkeypatch.setattr("tqdm.std.time", now)
    monkeypatch.setattr(tqdm, "monitor_interval", 0)
    file, clock = Terminal(), Clock()
    progress = Progress(10, "models", file=file, clock=clock)
    for _ in range(4):
        clock.now += 30
        now.now += 30
        progress(1)
    assert "40%" in file.getvalue()
    assert "models: 4 of 10 (40 %), 2 a minute, 3 min left" in file.getvalue()
