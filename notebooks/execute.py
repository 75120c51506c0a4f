"""Executes every notebook of this folder: `python -m notebooks.execute`.

A notebook that raises is an error. Files change only with --write, which saves the
outputs in place.
"""

import argparse
import tempfile
import time
from pathlib import Path

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


class ThisPython(KernelSpecManager):
    """Only the running interpreter, whatever kernels the user has installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


def execute(path: Path, write: bool) -> float:
    """Runs one notebook in its folder. Returns the seconds it took.

    Raises:
      CellExecutionError: a cell raised.
    """
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as sockets:
        client = NotebookClient(
            notebook,
            km=AsyncKernelManager(
                kernel_spec_manager=ThisPython(),
                transport="ipc",  # no other user of the machine can listen
                ip=f"{sockets}/kernel",
            ),
            resources={"metadata": {"path": str(path.parent)}},
            timeout=600,
            coalesce_streams=True,
            record_timing=False,  # times would change the file at each run
        )
        client.execute(cleanup_kc=True)  # stops the kernel
    seconds = time.perf_counter() - start
    if write:
        nbformat.write(notebook, path)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="save the outputs")
    write = parser.parse_args().write
    for path in sorted(FOLDER.glob("*.ipynb")):
        print(f"{path.name} {execute(path, write):.0f} s", flush=True)


if __name__ == "__main__":
    main()
