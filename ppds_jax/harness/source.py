"""What code does, as a short hash: results are kept for as long as it stays the same.

Comments, docstrings and layout do not count.
"""

import ast
import hashlib
import inspect
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import ppds_jax

ROOT = Path(inspect.getfile(ppds_jax)).parent
DOCUMENTED: Any = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code(*excluded: str) -> str:
    """A hash of this package, without the named sub-packages and files."""
    paths = [path.relative_to(ROOT) for path in sorted(ROOT.rglob("*.py"))]
    return _hash(
        ROOT / path
        for path in paths
        if path.parts[0] not in excluded and path.as_posix() not in excluded
    )


def code_of(*objects: Any) -> str:
    """A hash of the files that define functions or classes, and of all they import.

    Of imports only those of this package count.
    """
    found: set[Path] = set()
    waiting = [Path(inspect.getfile(one)) for one in objects]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imported(path)
    return _hash(sorted(found))


def _hash(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        inside = path.is_relative_to(ROOT)
        place = path.relative_to(ROOT).as_posix() if inside else path.name
        digest.update(place.encode() + _meaning(path).encode())
    return digest.hexdigest()[:12]


@cache
def _meaning(path: Path) -> str:
    tree: Any = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False):
            del node.body[0]
    return ast.dump(tree)


@cache
def _imported(path: Path) -> list[Path]:
    found = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{n.name}" for n in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found += [path for name in names for path in _files(name)]
    return found


def _files(name: str) -> Iterator[Path]:
    """The file of a module of this package, if it is one."""
    first, *rest = name.split(".")
    if first == ROOT.name:
        place = ROOT.joinpath(*rest)
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                yield path
