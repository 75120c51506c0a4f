"""Run directories: config first, rows last. Rows are the mark that a run is done."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ppds_jax.devices import Layout
from ppds_jax.harness import config, hosts
from ppds_jax.harness.store import replacing, write_json

Row = dict[str, Any]  # one line of a table; plain JSON values, infinity as "inf"


class Run:
    """The directory of one experiment with one config: `NAME-IDENTITY`."""

    def __init__(self, runtime: config.Runtime, name: str, cfg: Any, *more: Any):
        self.path = runtime.work_dir / f"{name}-{config.identity(cfg, *more)}"
        self._config = {"experiment": name, "config": config.as_json(cfg)}
        self._layout = runtime.layout

    def rows(self) -> list[Row] | None:
        """The rows of a finished run, or None."""
        path = self.path / "rows.jsonl"
        if not path.exists():
            return None
        return [json.loads(line) for line in path.read_text().splitlines()]

    def start(self) -> None:
        if hosts.current().index == 0:
            write_json(self.path / "config.json", self._config)
            write_json(self.path / "env.json", environment(self._layout))

    def save(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Keeps arrays for the report as NAME.npz."""
        with replacing(self.path / f"{name}.npz") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    def note(self, name: str, records: Sequence[Any]) -> None:
        """Keeps NamedTuples for the report as NAME.json."""
        rows = [item._asdict() for item in records]
        write_json(self.path / f"{name}.json", config.as_json(rows))

    def finish(self, rows: list[Row]) -> None:
        """Writes rows.csv, then rows.jsonl: from then on the run is done."""
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with replacing(self.path / "rows.csv") as file:
            file.write(table.getvalue().encode())
        with replacing(self.path / "rows.jsonl") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def plain(row: Any) -> Row:
    """A dataclass as a row: infinities as "inf", notes joined."""
    row = dataclasses.asdict(row)
    return {
        key: "; ".join(value) if isinstance(value, tuple) else config.as_json(value)
        for key, value in row.items()
    }


def environment(layout: Layout | None = None) -> dict[str, Any]:
    """The machine, the versions, the layout and the command that made a run."""
    return {
        "command": _command(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "num_devices": jax.device_count(),
        "processes": hosts.current().count,
        "layout": (layout or Layout()).described(),
        "versions": _versions(),
        "revision": _revision(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor()


def _command() -> str:
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = f"python -m {module.name}" if module else f"python {sys.argv[0]}"
    return " ".join([program, *map(shlex.quote, sys.argv[1:])])


def _versions() -> dict[str, str]:
    """Of the libraries that there are: those that compute, and speed's rivals."""
    names = "ppds_jax jax jaxlib flax optax dm-haiku numpy jax-privacy dp-accounting"
    found = {}
    for name in [*names.split(), "torch", "opacus"]:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _revision() -> str:
    """The commit of the checkout that runs, with a + where files differ from it."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True
        )
    except OSError:
        return "unknown"
    if head.returncode:
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
