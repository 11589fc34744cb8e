"""l2d installed beside a project that has a `data.py`, a package `data` and a `cli.py` of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RECIPE = """
[dataset]
path = "t.csv"
id = "id"
target_cla = "y"
features = ["x"]
[costs.cla]
kind = "zero_one"
[[agents]]
name = "theirs"
kind = "python"
file = "agent.py"
[[agents]]
name = "other"
kind = "python"
file = "elsewhere/agent.py"
"""
AGENT = """
import cli
import data


def ask(batch):
    import data.late
    return {"cla": [data.CLASS] * len(batch.ids) if cli.MINE == data.late.MINE else None}
"""
SCRIPT = """
import data, cli
assert data.CLASS == "the project's" and cli.MINE == "the project's", (data, cli)
from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import load_recipe
from l2d.data.cache.reader import CostCache
from l2d.rejector.estimator import DeferralRejector
from pathlib import Path
build(load_recipe("project/recipes/r.toml"), Path("cache"))
cache = CostCache("cache")
found = {a.name: set(cache.predictions(a.name, 0, ["pred_cla"])["pred_cla"].to_pylist()) for a in cache.agents}
assert found == {"theirs": {0}, "other": {1}}, found
import data as again
assert again is data and data.CLASS == "the project's"
import l2d
print("fine", l2d.__file__)
"""


def project(folder: Path, form: str) -> Path:
    """A script with modules of its own, a recipe in another folder with others, and an agent with yet others."""
    recipes = folder / "project" / "recipes"
    for place, value in ((folder, '"the project\'s"'), (recipes, "0"), (recipes / "elsewhere", "1")):
        place.mkdir(parents=True, exist_ok=True)
        if form == "module" and place == folder:
            (place / "data.py").write_text(f"CLASS = {value}\n")
        else:
            (place / "data").mkdir()
            (place / "data" / "__init__.py").write_text(f"CLASS = {value}\n")
            (place / "data" / "late.py").write_text(f"MINE = {value}\n")
        (place / "cli.py").write_text(f"MINE = {value}\n")
        (place / "agent.py").write_text(AGENT)
    (recipes / "r.toml").write_text(RECIPE)
    rows = "".join(f"{k},{k % 7},{'ab'[k % 2]}\n" for k in range(30))
    (recipes / "t.csv").write_text("id,x,y\n" + rows)
    (folder / "script.py").write_text(SCRIPT)
    return folder


#: The development environment may have an editable install, whose finder would come first.
WITHOUT_EDITABLE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if finder.__module__.startswith("_frozen_importlib")]
"""


def run_script(folder: Path, path: Path | None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
        (folder / "script.py").write_text(WITHOUT_EDITABLE + SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the sources without network."""
    if any(importlib.util.find_spec(name) is None for name in ("pip", "setuptools")):
        pytest.skip("needs pip and setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("needs git to know which files are the sources")
    for name in listed.stdout.splitlines():
        if name.startswith(("tests/", "benchmarks/", "docs/", "findings/")) or not (ROOT / name).is_file():
            continue
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", str(folder / "dist")]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(folder / "source")], check=True)
    (found,) = (folder / "dist").glob("*.whl")
    return found


def test_nothing_lands_at_the_top_but_l2d(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"l2d"}
    assert "l2d/cache_builder/recipes/support2.toml" in names
    sources = {f"l2d/{path.relative_to(ROOT).as_posix()}" for part in ("cache_builder", "data", "rejector")
               for path in (ROOT / part).rglob("*.py")}  # fmt: skip
    assert sources - set(names) == set()


def test_a_wheel_has_what_a_compiler_made_of_the_sources(wheel):
    if shutil.which("cc") is None or importlib.util.find_spec("Cython") is None:
        pytest.skip("needs a C compiler and Cython")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for source in (ROOT / "data" / "costs" / "image_ap.pyx", ROOT / "rejector" / "best" / "traversal.pyx"):
        stem = f"l2d/{source.relative_to(ROOT).with_suffix('').as_posix()}."
        assert [name for name in names if name.startswith(stem)], stem


@pytest.mark.parametrize("form", ["module", "package"])
def test_a_wheel_beside_a_project_with_modules_of_these_names(wheel, tmp_path, form):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    said = run_script(project(tmp_path / "work", form), tmp_path / "site")
    assert str(tmp_path / "site") in said


def test_an_editable_install_beside_a_project_with_modules_of_these_names(tmp_path):
    said = run_script(project(tmp_path, "package"), None)
    assert str(ROOT / "__init__.py") in said
