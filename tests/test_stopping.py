"""Signals end an experiment where nothing is lost, with a code that says so."""

import os
import signal
import sys

import pytest

from experiments import survey
from ppds_jax.harness import config, signals

CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}


def stopped(run, capsys):
    """The exit code of an experiment, and its one line on standard error."""
    before = [signal.getsignal(number) for number in CODES]
    with pytest.raises(SystemExit) as stop:
        config.main(lambda cfg, runtime: run(), survey.PRESETS, ["smoke"])
    assert [signal.getsignal(number) for number in CODES] == before
    (line,) = capsys.readouterr().err.splitlines()
    return stop.value.code, line


@pytest.mark.parametrize("number", CODES)
def test_a_signal_ends_the_process_with_its_code_and_one_line(number, capsys):
    code, line = stopped(lambda: os.kill(os.getpid(), number), capsys)
    assert code == CODES[number]
    assert number.name in line
    assert "goes on from there" in line


def test_a_held_signal_waits_for_a_safe_point(capsys):
    saved = []

    def run():
        with signals.held() as waiting:
            for step in range(10):
                if step == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                if waiting():
                    saved.append(step)
                    return
        pytest.fail("went on")

    assert stopped(run, capsys)[0] == 75
    assert saved == [3]


def test_a_signal_that_falls_into_a_destructor_is_not_lost(capsys, monkeypatch):
    class Dying:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            sum(range(10))  # where the handler runs, and what it raises is dropped

    def run():
        monkeypatch.setattr(sys, "unraisablehook", lambda lost: None)
        Dying()
        signals.check()
        pytest.fail("went on")

    assert stopped(run, capsys)[0] == 75


def test_a_second_signal_does_not_wait(capsys):
    def run():
        with signals.held():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("went on")

    assert stopped(run, capsys)[0] == 130


@pytest.mark.parametrize("echo", [0.0, 1.0])
def test_the_same_signal_at_once_is_an_echo(echo, capsys, monkeypatch):
    """A wrapper hands on what the process group got as well: saving goes on."""
    monkeypatch.setattr(signals, "ECHO", echo)
    saved = []

    def run():
        with signals.held():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            saved.append(1)

    assert stopped(run, capsys)[0] == 75
    assert saved == ([1] if echo else [])
