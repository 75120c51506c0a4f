"""Several processes share the work of one run: the same rows, or one clear end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ppds_jax.devices import Layout
from ppds_jax.harness import config
from tests import hosts_training
from tests.test_survey import OPTIONS

ROOT = Path(__file__).parent.parent
VMAP = ("--mode", "shard-vmap", "--at-once", "2")
pytestmark = pytest.mark.xdist_group("hosts")  # not several of these at a time


def start(count, work_dir, *options, module="tests.hosts_training", preset="default"):
    """`count` processes on this machine; of several work_dirs each gets its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", module, preset, *options]
    places = work_dir if isinstance(work_dir, list) else [work_dir] * count
    environment = os.environ | {"NPROC": "1"}
    if count == 1:
        several = [[]]
    else:
        shared = ["--distributed", "--coordinator", f"localhost:{port}"]
        shared += ["--num-processes", str(count), "--process-id"]
        several = [[*shared, str(i)] for i in range(count)]
    return [
        subprocess.Popen(
            [*command, "--work-dir", str(place), *more],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for place, more in zip(places, several, strict=True)
    ]


def ended(processes):
    """Exit codes, and what was printed on both streams."""
    try:
        shown = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], shown


def finished(processes):
    codes, shown = ended(processes)
    assert codes == [0] * len(processes), shown
    return [out.strip().splitlines() for out, _ in shown]


def rows(work_dir):
    """The arrays of each row, under its path."""
    found = {}
    for path in sorted(work_dir.glob("trained/*/row-*.npz")):
        with np.load(path) as file:
            found[path.relative_to(work_dir)] = [file[name] for name in file.files]
    return found


def assert_same(one, other, atol=0.0):
    assert one.keys() == other.keys()
    for name, arrays in one.items():
        for a, b in zip(arrays, other[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Rows of one process with one device, and of one with four."""
    one, four = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("four")
    finished(start(1, one, "--mode", "map"))
    finished(start(1, four, *VMAP, "--mesh", "shadow=4"))
    return rows(one), rows(four)


def test_two_processes_of_two_devices_train_what_one_does(alone, tmp_path):
    shown = finished(start(2, tmp_path, *VMAP, "--mesh", "shadow=2"))
    one, four = alone
    assert len(one) == 8
    assert_same(rows(tmp_path), four)
    assert_same(rows(tmp_path), one, atol=1e-5)
    (folder,) = tmp_path.glob("weights-*")
    assert str(folder) in shown[0]
    assert str(folder) not in shown[1], "only process 0 prints"
    environment = json.loads((folder / "env.json").read_text())
    assert environment["processes"] == 2
    assert environment["layout"]["shadow_devices"] == 2
    (line,) = next(tmp_path.glob("trained/*/layouts.jsonl")).read_text().splitlines()
    assert json.loads(line)["width_per_device"] == 2
    assert not list(tmp_path.glob("hosts/*")), "the meeting place is left tidy"


@pytest.mark.slow
def test_four_processes_train_what_one_does(alone, tmp_path):
    finished(start(4, tmp_path, "--mode", "shard-vmap", "--mesh", "shadow=1"))
    assert_same(rows(tmp_path), alone[1])


@pytest.mark.slow
def test_a_survey_by_two_processes_has_the_rows_of_one(tmp_path):
    survey = {"module": "experiments.survey", "preset": "smoke"}
    options = [*OPTIONS.split(), "--mesh", "shadow=2", "--generators", "ClassMean"]
    tables = []
    for count in (1, 2):
        place = tmp_path / str(count)
        finished(start(count, place, *options, **survey))
        (table,) = place.glob("survey-*/rows.csv")
        tables.append(table.read_text())
    assert tables[0] == tables[1]


def test_a_signal_to_one_ends_all_and_the_same_command_goes_on(alone, tmp_path):
    options = [*VMAP, "--mesh", "shadow=1"]
    processes = start(2, tmp_path, *options, "--pause", "1")
    deadline = time.monotonic() + 120
    while not rows(tmp_path):
        assert time.monotonic() < deadline
        assert {process.poll() for process in processes} == {None}
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    codes, shown = ended(processes)
    assert codes == [75, 75], shown
    assert "stopped by process 1 (SIGTERM)" in shown[0][1]
    kept = {path: (tmp_path / path).stat().st_mtime_ns for path in rows(tmp_path)}
    assert len(kept) < 8
    finished(start(2, tmp_path, *options))
    assert {path: (tmp_path / path).stat().st_mtime_ns for path in kept} == kept
    assert_same(rows(tmp_path), alone[1])


@pytest.mark.slow
def test_a_failure_of_one_ends_all_with_its_name(tmp_path):
    codes, shown = ended(start(2, tmp_path, "--faulty", "1", "--pause", "1"))
    assert codes == [1, 1], shown
    assert "process 1 (FloatingPointError: planted)" in shown[0][1]


def test_a_folder_that_is_not_shared_is_refused(tmp_path):
    codes, shown = ended(start(2, [tmp_path / "a", tmp_path / "b"]))
    assert codes == [2, 2], shown
    for (_, said), place in zip(shown, "ab", strict=True):
        assert f"work_dir={tmp_path / place}: processes [1] do not see" in said
        assert "Traceback" not in said


WRONG = {
    "mesh=8": "mesh='8': write it as shadow=4",
    "mesh=shadow=0": "mesh='shadow=0': write it as",
    "mesh=shadow=2,model=2": "mesh='shadow=2,model=2': write it as",
    "mesh=shadow=2,shadow=2": "mesh='shadow=2,shadow=2'",
    "memory=4XB": "memory='4XB': write it as 4GB, 500MB or in bytes",
    "memory=0": "memory='0'",
    "at-once=0": "at_once=0: must be at least 1",
    "coordinator=here:1": "coordinator: give all of distributed, coordinator",
}


@pytest.mark.parametrize("option", WRONG)
def test_wrong_layouts_are_one_line(option, tmp_path, capsys):
    name, _, value = option.partition("=")
    words = ["default", "--work-dir", str(tmp_path), f"--{name}", value]
    presets = {"default": ("", hosts_training.Config())}
    with pytest.raises(SystemExit) as stop:
        config.main(hosts_training.run, presets, words, spreads=True)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {WRONG[option]}")


def test_an_experiment_of_one_process_says_so(capsys):
    presets = {"default": ("", hosts_training.Config())}
    with pytest.raises(SystemExit) as stop:
        config.main(hosts_training.run, presets, ["default", "--distributed"])
    assert stop.value.code == 2
    assert "distributed: this experiment runs in one" in capsys.readouterr().err


def test_words_become_a_layout(tmp_path):
    runtime, seen = config.Runtime(tmp_path, mesh=(4, 2), memory=10**9), []
    presets = {"default": ("", hosts_training.Config())}
    words = ["default", "--work-dir", str(tmp_path), "--memory", "1GB"]
    words += ["--mesh", "shadow=4,data=2"]
    config.main(lambda cfg, runtime: seen.append(runtime), presets, words)
    assert seen == [runtime]
    assert seen[0].layout == Layout("auto", (4, 2), None, 10**9)
