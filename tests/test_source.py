"""What counts as a change of code."""

import importlib
from pathlib import Path

import pytest

from ppds_jax.generators import DPMerf, PrivateEvolution
from ppds_jax.harness import source


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A module of one function, written anew with each text."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str) -> str:
        path = tmp_path / "some_method.py"
        path.write_text(text)
        importlib.invalidate_caches()
        source._meaning.cache_clear()
        source._imported.cache_clear()
        module = importlib.import_module("some_method")
        return source.code_of(module.step)

    return write


def test_words_do_not_count_and_code_does(written):
    first = written("def step(x):\n    return x + 1\n")
    assert first == written(
        '"""Doc."""\n\ndef step(x):  # why\n    """D."""\n    return x+1'
    )
    assert first != written("def step(x):\n    return x + 2\n")


def test_only_what_is_imported_counts(monkeypatch):
    unmet = source.ROOT / "generators" / "simulators.py"
    met = source.ROOT / "nets" / "features.py"
    before = source.code_of(DPMerf), source.code_of(PrivateEvolution), source.code()
    true = source._meaning

    def changed(where: Path):
        return lambda path: true(path) + ("x" if path == where else "")

    monkeypatch.setattr(source, "_meaning", changed(unmet))
    after = source.code_of(DPMerf), source.code_of(PrivateEvolution), source.code()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, False]
    monkeypatch.setattr(source, "_meaning", changed(met))
    assert source.code_of(DPMerf) != before[0]
