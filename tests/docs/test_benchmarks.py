"""Benchmarks take minutes, so no test runs them; that what they import is still there is checked here. The one of GPUs
is rehearsed on the CPU: no minute on a GPU is to be spent on typing errors."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
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


def rehearse(tmp_path: Path, *options: str, path: Path | None = None) -> tuple[int, dict, str]:
    """Exit code, what it has written and what it has said."""
    found = tmp_path / "gpu.json"
    program = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    process = subprocess.run(
        [sys.executable, program, "--rehearse", "--out", found, *options],
        capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
    )  # fmt: skip
    return process.returncode, json.loads(found.read_text()), process.stdout + process.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)  # half a minute of processor time, on cores that other tests use as well
def test_every_part_of_the_gpu_benchmark_runs_and_finds_nothing_wrong(tmp_path):
    code, found, said = rehearse(tmp_path)
    assert code == 0, said
    assert found["rehearsal"]
    assert set(found["parts"].values()) == {"done"}
    checked = [line for line in found["results"] if line["state"] == "right"]
    assert {line["part"] for line in checked} == set(found["parts"]) - {"detectors"}  # which is all speed
    assert not [line for line in found["results"] if line["state"] in ("WRONG", "reached", "missed")]


BARE = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

class Few(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name not in ("polars", "pydantic", "duckdb", "altair", "kneed", "prompt_toolkit"):
            return PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Few]  # without what finds an editable installation
"""


@pytest.mark.slow
def test_a_machine_without_l2d_and_most_packages_measures_what_it_can(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BARE)
    code, found, said = rehearse(tmp_path, "--only", "nccl,detectors", path=tmp_path)
    assert code == 2, said
    assert found["parts"] == {"nccl": "done", "detectors": "did not run: pip install polars pydantic"}


@pytest.mark.parametrize(
    ("states", "ended", "code"),
    [
        (["right", "reached", ""], {"grid": "done"}, 0),
        (["right", "missed"], {"grid": "done"}, 0),
        (["right"], {"grid": "not to its end: its 60 s were over"}, 2),
        (["right", "WRONG"], {"grid": "done"}, 1),
        (["right"], {"grid": "WRONG: it ended with exit code 1, see above", "many": "did not run"}, 1),
    ],
)
def test_what_is_wrong_on_a_gpu_ends_with_an_exit_code_of_1(tmp_path, monkeypatch, states, ended, code):
    monkeypatch.syspath_prepend(BENCHMARKS[0].parent)
    gpu = importlib.import_module("gpu")
    lines = [{"part": "grid", "state": state} for state in states]
    assert gpu.Results(tmp_path / "gpu.json", False, lines=lines, ended=ended).code() == code
