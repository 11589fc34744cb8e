"""Imports go one way, and nothing that could run code from a file is used."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    [ROOT / "cli.py", *(p for name in ("data", "cache_builder", "rejector") for p in (ROOT / name).rglob("*.py"))]
)
MAY_IMPORT = {
    "data": {"data"},
    "cache_builder": {"data", "cache_builder"},
    "rejector": {"data", "rejector"},
    "cli.py": {"cli", "data", "cache_builder", "rejector"},
}


def imported(path: Path) -> set[str]:
    """First names of all modules a file imports, those inside functions too; of ours, the name below ``l2d``."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which floor a module is on"
            found = [node.module] if node.module != "l2d" else [f"l2d.{alias.name}" for alias in node.names]
        else:
            continue
        names |= {name.split(".")[1 if name.startswith("l2d.") else 0] for name in found}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    layer = path.relative_to(ROOT).parts[0]
    ours = imported(path) & {"cli", "data", "cache_builder", "rejector"}
    assert ours <= MAY_IMPORT[layer]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled(path):
    text = path.read_text(encoding="utf-8")
    assert not imported(path) & {"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
    assert "weights_only=False" not in text
    for call in re.findall(r"torch\.load\([^\n]*", text):
        assert "weights_only=True" in call


def test_every_package_is_installed():
    """The list of packages is written out, since the root is one of them: a new folder has to be on it."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"])
    folders = {path.parent.relative_to(ROOT) for path in SOURCES if path.name == "__init__.py"}
    assert listed == {"l2d", *(f"l2d.{folder.as_posix().replace('/', '.')}" for folder in folders)}


def test_only_the_store_writes():
    writers = {"write_text", "write_bytes", "write_table", "write_parquet", "write_csv", "savez", "save_file"}
    for path in SOURCES:
        calls = {
            node.func.attr
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if node.args or node.keywords or node.func.attr != "write_csv"  # which then gives a text
        }
        others = (
            "data/cache/store.py",
            "data/terminal/render.py",
            "data/terminal/formats.py",
            "data/support2/convert.py",
        )
        if path.relative_to(ROOT).as_posix() in others:
            continue  # the store itself; a result to stdout or an open file; the script that made the shipped table
        assert not calls & writers, path
