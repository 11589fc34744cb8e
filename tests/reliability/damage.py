"""Check 3: a finished cache is damaged at random; what is read is the truth or a clean error, never another value."""

from __future__ import annotations

import random
import shutil
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
from sabotages import trusting
from small import Outcome, World, reference, same, scratch

ROWS = 30
KINDS = ("flip", "flips", "truncate", "zeros", "swap", "foreign", "record")
VIEWS = {"samples": ("samples", "features"), "predictions": ("predictions",), "costs": ("costs",)}
LOUD = ("L2DError", "CorruptPart", "DataError", "IncompleteCache", "FingerprintMismatch", "UsageError")


def damage(path: Path, kind: str, randomness: random.Random, foreign: Path) -> list[Path]:
    """Damage a part or record in one of :data:`KINDS`; returns the files touched."""
    content = bytearray(path.read_bytes())
    if kind in ("flip", "flips", "record"):
        for _ in range(1 if kind != "flips" else randomness.randrange(2, 40)):
            content[randomness.randrange(len(content))] ^= 1 << randomness.randrange(8)
    elif kind == "truncate":
        del content[randomness.choice([0, 1, 8, randomness.randrange(len(content)), len(content) - 1]) :]
    elif kind == "zeros":
        size = randomness.choice([16, 64, 512, 4096])
        start = randomness.randrange(len(content)) // size * size
        end = min(start + size, len(content))
        content[start:end] = bytes(end - start)
    elif kind == "foreign":
        content = foreign.read_bytes()
    elif kind == "swap":
        other = randomness.choice([file for file in sorted(path.parent.parent.rglob("*.parquet")) if file != path])
        content = other.read_bytes()
        other.write_bytes(path.read_bytes())
        path.write_bytes(content)
        return [path, other]
    path.write_bytes(content)
    return [path]


def _counterpart(path: Path, cache: Path, other: Path) -> Path:
    """The same part in another cache, whose costs stand in a folder of another name."""
    relative = path.relative_to(cache)
    if relative.parent.name.startswith("costs-"):
        (folder,) = (other / relative.parent.parent).glob("costs-*/")
        return folder / relative.name
    return other / relative


def damages(cases: int, *, reader: str, sabotage: bool = False, seed: int = 0) -> Outcome:
    """Damage a cache ``cases`` times and read it each time.

    Args:
        reader: ``python`` (:meth:`CostCache.chunks` and the training tables) or ``sql``.
        sabotage: read with all integrity checks patched out.
    """
    outcome, randomness = Outcome(), random.Random(seed)
    original = reference(ROWS, False)
    other = reference(ROWS, False, seed=1) / "cache"
    expected = _Truth(original / "cache")
    with scratch() as folder, trusting() if sabotage else nullcontext():
        shutil.copytree(original, folder, dirs_exist_ok=True)
        cache = World(folder, rows=ROWS, asked=False).out
        parts = sorted(cache.rglob("*.parquet"))
        records = sorted(cache.rglob("*.json"))
        refused = 0
        for _ in range(cases):
            kind = randomness.choice(KINDS[:-1] if sabotage else KINDS)
            path = randomness.choice(records if kind == "record" else parts)
            touched = damage(path, kind, randomness, _counterpart(path, cache, other))
            what = f"{kind} of {path.relative_to(cache)}"
            try:
                wrong = expected.wrong(cache, path, reader, randomness)
                outcome.expect(not wrong, f"{what}: {wrong}")
            except Exception as error:
                refused += 1
                name = type(error).__name__
                outcome.expect(sabotage or name in LOUD, f"{what}: raised {name}: {error}")
                named = any(str(place) in str(error) for place in [cache, *touched])
                outcome.expect(sabotage or named, f"{what}: the error names no file: {error}")
            for file in touched:
                shutil.copyfile(original / "cache" / file.relative_to(cache), file)
            outcome.cases += 1
    outcome.note = f"{refused} refused, {cases - refused} harmless"
    return outcome


class _Truth:
    """What each reader says of the undamaged cache."""

    def __init__(self, cache: Path):
        self.chunks = read_chunks(cache)
        self.tables = read_tables(cache)
        self.views = {
            view: read_view(cache, view) for view in ("samples", "features", "predictions", "costs", "agents")
        }

    def wrong(self, cache: Path, damaged: Path, reader: str, randomness: random.Random) -> str:
        """What is read otherwise than from the undamaged cache, if anything."""
        if reader == "sql":
            folder = damaged.parent.name.split("-")[0]
            view = randomness.choice(VIEWS.get(folder, ("samples", "predictions", "costs", "agents")))
            return "" if same(read_view(cache, view), self.views[view]) else f"other values in {view}"
        if randomness.random() < 0.5:
            return "" if read_tables(cache) == self.tables else "other values in the training tables"
        found = read_chunks(cache)
        return "" if all(map(same, found, self.chunks)) and len(found) == len(self.chunks) else "other values in chunks"


def read_chunks(cache: Path) -> list[pa.Table]:
    from l2d.data.cache.reader import CostCache

    opened = CostCache(cache)
    chunks = opened.chunks([agent.name for agent in opened.all_agents])
    rows = [[samples, *predictions, *costs] for samples, predictions, costs in chunks]
    return [table.replace_schema_metadata() for tables in rows for table in tables]


def read_tables(cache: Path) -> dict:
    from l2d.data.cache.reader import CostCache
    from l2d.rejector.rows.table import load_tables

    tables = load_tables(CostCache(cache), ("train", "validation", "test"), predictions=True)
    return {
        split: (
            table.ids,
            table.features.tolist(),
            table.raw.tolist(),
            {name: values.tolist() for name, values in table.targets.items()},
            {agent: {n: v.tolist() for n, v in found.items()} for agent, found in table.predictions.items()},
        )
        for split, table in tables.items()
    }


def read_view(cache: Path, view: str) -> pa.Table:
    from l2d.rejector.sql.query import query

    return query([cache], f"SELECT * FROM {view} ORDER BY ALL")
