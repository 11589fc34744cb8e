"""The small cache that every reliability check builds, breaks and compares, and how it is compared."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.util import Finalize  # unlike atexit, it works in forked processes too
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
TEMPORARY = ".tmp"
CHUNK = 10

RECIPE = """
[dataset]
kind = "table"
path = "table.csv"
id = "id"
target_cla = "died"
target_reg = "stay"
features = ["x"]
[costs.cla]
kind = "brier"
[costs.reg]
kind = "absolute"
[build]
chunk_size = 10
batch_size = 5
"""
COLUMN = '[[agents]]\nname = "{0}"\nkind = "column"\nprob = "risk_{0}"\nreg = "stay_{0}"\n'
ASKED = '[[agents]]\nname = "asked"\nkind = "python"\nfile = "agent.py"\n'

AGENT = """
import os
import time
from pathlib import Path

HERE = Path(__file__).parent


def ask(batch):
    handle = os.open(HERE / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, "".join(f"{sample}\\n" for sample in batch.ids).encode())
    os.close(handle)
    time.sleep(float((HERE / "pause").read_text()))
    x = batch.columns["x"].to_numpy()
    wobble = (HERE / "wobble").read_text()
    wobble = os.getpid() % 1000 if wobble == "process" else float(wobble)
    return {"prob": [[1 - min(1, abs(v)), min(1, abs(v))] for v in x], "reg": 3 * x + wobble}
"""


@dataclass
class Outcome:
    """What a check found: how many cases it looked at, and what was wrong in them."""

    cases: int = 0
    problems: list[str] = field(default_factory=list)
    note: str = ""

    def expect(self, good: object, problem: str) -> None:
        if not good:
            self.problems.append(problem)

    def shown(self) -> str:
        return f"{len(self.problems)} problems in {self.cases} cases, such as {self.problems[:3]}"


class World:
    """A folder with a table, a recipe, an agent that writes down what it is asked, and a cache.

    Args:
        rows: samples, in chunks of 10; the agent ``asked`` is asked 5 at a time.
        asked: have the Python agent at all; without it three columns answer.
        pause: seconds that the Python agent takes for a batch.
        wobble: added to its answers; ``process``: another number in each process, as a sampling API answers.
        seed: of the table's values; ids are the same for every seed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rows: int = 40,
        asked: bool = True,
        pause: float = 0.0,
        wobble: str = "0",
        seed: int = 0,
    ):
        self.folder, self.out, self.log = folder, folder / "cache", folder / "log"
        self.settings = {"rows": rows, "asked": asked, "seed": seed}
        self.recipe_file = folder / "recipe.toml"
        if self.recipe_file.exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(seed)
        names = ["x", "stay", "risk_model", "stay_model", "risk_expert", "stay_expert"]
        columns = {name: generator.random(rows) for name in names}
        lines = [",".join(["id", "died", *names])]
        for row in range(rows):
            lines.append(",".join([f"p{row:04d}", str(row % 2), *(repr(float(columns[name][row])) for name in names)]))
        (folder / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / "agent.py").write_text(AGENT, encoding="utf-8")
        (folder / "pause").write_text(str(pause))
        (folder / "wobble").write_text(wobble)
        self.log.touch()
        agents = [COLUMN.format("model"), ASKED if asked else "", COLUMN.format("expert")]
        self.recipe_file.write_text(RECIPE + "".join(agents), encoding="utf-8")

    def build(self, out: Path | None = None, **options):
        """Build the cache in this process."""
        from l2d.cache_builder.builder import build
        from l2d.cache_builder.recipe import load_recipe

        return build(load_recipe(str(self.recipe_file)), out or self.out, device="cpu", **options)

    def command(self) -> list[str]:
        """What a user would type."""
        return ["build", str(self.recipe_file), "--out", str(self.out), "--device", "cpu"]

    def chunks_asked(self, start: int = 0) -> list[int]:
        """Chunks of the samples that the agent was asked about since the log was ``start`` bytes long."""
        return [int(line[1:]) // CHUNK for line in self.log.read_bytes()[start:].decode().split()]


@cache
def reference(rows: int = 40, asked: bool = True, seed: int = 0) -> Path:
    """The folder of an undisturbed build's world; read only."""
    folder = Path(tempfile.mkdtemp(prefix="l2d-reference-"))
    Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=1)
    World(folder, rows=rows, asked=asked, seed=seed).build()
    return folder


@contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="l2d-reliability-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def contents(cache_folder: Path) -> dict[str, pa.Table | dict]:
    """Every part and record of a cache, read without the project's own reader. Seals are left to ``verify``."""
    found = {}
    for path in sorted(cache_folder.rglob("*")):
        name = str(path.relative_to(cache_folder))
        if path.suffix == ".parquet":
            found[name] = pq.read_table(path)
        elif path.suffix == ".json" and not name.endswith(".seal.json"):
            found[name] = json.loads(path.read_text(encoding="utf-8"))
    return found


@cache
def truth(folder: Path) -> dict[str, pa.Table | dict]:
    """:func:`contents` of a reference world's cache."""
    return contents(folder / "cache")


#: Of a record: how long an agent took, which is another time each time, and the digest over it.
TIMED = ("seconds", "sha256_of_the_above")


def same(found: object, expected: object) -> bool:
    if isinstance(found, pa.Table):
        return found.equals(expected)
    if isinstance(found, dict) and isinstance(expected, dict) and "queries" in expected:
        found, expected = ({k: v for k, v in record.items() if k not in TIMED} for record in (found, expected))
    return found == expected


def temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(f"*{TEMPORARY}")]


def differences(world: World, *, verify: bool = True, temporary: bool = True) -> list[str]:
    """How a cache that was disturbed and finished differs from the undisturbed one: nothing, if all is well."""
    from l2d.data.cache.reader import CostCache
    from l2d.data.errors import L2DError

    expected = truth(reference(**world.settings))
    problems = [f"temporary file left: {name}" for name in temporaries(world.out)] if temporary else []
    try:
        found = contents(world.out)
        if verify:
            CostCache(world.out).verify()
    except (L2DError, OSError, ValueError, pa.ArrowException) as error:
        return [*problems, f"{type(error).__name__}: {error}"]
    problems += [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is extra" for name in found.keys() - expected.keys()]
    problems += [f"{name} differs" for name in found.keys() & expected.keys() if not same(found[name], expected[name])]
    return problems


def wrong_parts(world: World) -> list[str]:
    """Files under their final names that are not what an undisturbed build writes there; missing ones are fine."""
    expected, problems = truth(reference(**world.settings)), []
    for path in sorted(world.out.rglob("*")):
        name = str(path.relative_to(world.out))
        if path.is_file() and path.suffix in (".parquet", ".json") and not name.endswith(".seal.json"):
            try:
                read = pq.read_table(path) if path.suffix == ".parquet" else json.loads(path.read_text())
            except (OSError, ValueError, pa.ArrowException) as error:
                problems.append(f"{name}: {error}")
                continue
            if not same(read, expected.get(name)):
                problems.append(f"{name} holds other values")
    return problems
