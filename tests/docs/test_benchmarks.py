"""Benchmarks take minutes, so no test runs them; that what they import is still there is checked here."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

BENCHMARKS = sorted((Path(__file__).resolve().parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.stem)
def test_what_a_benchmark_imports_is_there(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    ours = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("l2d")
    ]
    for node in ours:
        module = importlib.import_module(node.module)
        for name in node.names:
            if not hasattr(module, name.name):  # a module is an attribute once it is imported
                importlib.import_module(f"{node.module}.{name.name}")
