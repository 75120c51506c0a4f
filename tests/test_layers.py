"""The shape of the house: who may import whom, and how long a file may be."""

import ast
from pathlib import Path

import pytest

import ppds_jax

ROOT = Path(ppds_jax.__file__).parent
# Each may import from those before it, and from types.
LAYERS = "types jaxprs convolution devices mapping optimise data privacy fit pipeline "
LAYERS += "nets generators sampling classifiers metrics attacks harness"
LAYERS = LAYERS.split()
FILES = sorted(ROOT.rglob("*.py"))


def imports(path):
    """The modules imported, but for those that only a type checker sees."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "ppds_jax":
            yield from (f"ppds_jax.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def layer(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_imports_upward(path):
    if path.parent == ROOT and path.name == "__init__.py":
        return
    here = LAYERS.index(layer(path))
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "ppds_jax" and len(parts) > 1:
            assert LAYERS.index(parts[1]) <= here, f"{path} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_above_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize(
    "library", ["jax_privacy", "dp_accounting", "tyro", "tqdm", "ray", "orbax"]
)
def test_one_file_imports_each_of_these(library):
    users = [
        path.name
        for path in FILES
        if any(module.split(".")[0] == library for module in imports(path))
    ]
    assert len(users) == 1, users
