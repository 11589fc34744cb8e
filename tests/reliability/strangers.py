"""Caches and runs whose records say what cannot be, with digests that are right, through every command that reads them.

``python tests/reliability/strangers.py [SCALE]``: 60 crafted caches and 40 crafted runs, drawn with a fixed seed. A
command may do its work or refuse; it may not end in a traceback, print a control character, or write outside the folder
that it was given.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import random
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from small import Outcome, World, scratch

VALUES: list[Any] = [None, -1, 10**12, 0, 1.5, True, "\x1b[31m../..", "", [], [[]], {}, {"a": 1}, "ABSENT"]
CACHE_COMMANDS = [
    ["status", "{cache}"],
    ["verify", "{cache}"],
    ["audit", "{cache}"],
    ["describe", "{cache}"],
    [
        "query",
        "{cache}",
        "SELECT agent, count(*), avg(cost_reg) FROM costs JOIN samples USING (sample_id) GROUP BY ALL",
    ],
    ["push", "{cache}", "{out}/pushed"],
    ["fetch", "{cache}", "--out", "{out}/fetched"],
    ["train", "{cache}", "--out", "{out}/run", "--method", "multi-task", "--rejector", "linear", "--epochs", "1"],
]
RUN_COMMANDS = [
    ["evaluate", "{run}"],
    ["query", "{run}", "FROM scores"],
    ["route", "{run}", "{cache}", "--out", "{out}/routed.csv"],
    ["policy", "{run}", "--coverage", "0.5"],
    ["choose", "{run}", "--target", "coverage>=0"],
    ["report", "{run}", "--out", "{out}/report.html"],
]


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where a JSON value can be changed; of long lists the first two."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for key in range(min(2, len(value))):
            yield from places(value[key], (*path, key))


def crafted(value: dict, generator: random.Random) -> tuple[dict, str]:
    """A record with one place changed, and what was changed."""
    path, new = generator.choice(list(places(value))), generator.choice(VALUES)
    found = copy.deepcopy(value)
    owner: Any = found
    for key in path[:-1]:
        owner = owner[key]
    if new == "ABSENT":
        del owner[path[-1]]
    else:
        owner[path[-1]] = new
    return found, f"{'.'.join(map(str, path))} = {new!r}"


def outcome_of(words: list[str]) -> str | None:
    """What is wrong with how a command ended, or None."""
    import typer

    from l2d.cli import app
    from l2d.data.errors import L2DError

    said, problem = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            app(words, prog_name="l2d", standalone_mode=False)
    except (L2DError, SystemExit, typer.Exit):
        pass
    except Exception as error:
        if not type(error).__module__.startswith(("click", "typer")):
            frames = [
                f"{Path(one.filename).name}:{one.lineno}" for one in traceback.extract_tb(error.__traceback__)[-3:]
            ]
            problem = f"{type(error).__name__}: {error} at {'; '.join(frames)}"
    return problem or ("a control character is printed" if "\x1b[31m" in said.getvalue() else None)


def check(kind: str, count: int, world: Path, generator: random.Random) -> Outcome:
    """Craft caches or runs, and put each through the commands that read them."""
    from l2d.data.cache.integrity import json_digest
    from l2d.data.cache.store import DIGEST_FIELD

    outcome, refused = Outcome(), 0
    root = "cache" if kind == "cache" else "run"
    names = sorted(path.relative_to(world / root) for path in (world / root).rglob("*.json"))
    while outcome.cases < count:
        with scratch() as folder:
            shutil.copytree(world, folder / "in", symlinks=True)
            (folder / "out").mkdir()
            file = folder / "in" / root / generator.choice(names)
            value = json.loads(file.read_text(encoding="utf-8"))
            value.pop(DIGEST_FIELD)
            value, what = crafted(value, generator)
            value[DIGEST_FIELD] = json_digest(value)
            file.write_text(json.dumps(value), encoding="utf-8")
            outcome.cases += 1
            for command in CACHE_COMMANDS if kind == "cache" else RUN_COMMANDS:
                places_ = {"cache": folder / "in" / "cache", "run": folder / "in" / "run", "out": folder / "out"}
                problem = outcome_of([word.format(**places_) for word in command])
                refused += 1
                if problem:
                    outcome.problems.append(f"{file.name}: {what}: l2d {command[0]}: {problem}")
            outcome.expect(sorted(path.name for path in folder.iterdir()) == ["in", "out"], f"{what}: a file outside")
    outcome.note = f"{refused} commands"
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scale", nargs="?", type=float, default=1.0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    import l2d

    generator, bad = random.Random(0), 0
    with scratch() as folder:
        world = World(folder / "world", rows=100, asked=False)
        world.build()
        settings = {"method": "multi-task", "network": "linear", "epochs": 2}
        l2d.train(world.out, world.folder / "run", **settings)
        print("| crafted | cases | problems | | seconds |\n| --- | ---: | ---: | --- | ---: |", flush=True)
        for kind, count in (("cache", 60), ("run", 40)):
            begun = time.monotonic()
            outcome = check(kind, max(2, round(count * arguments.scale)), world.folder, generator)
            seconds = time.monotonic() - begun
            problems = len(outcome.problems)
            print(f"| {kind}s | {outcome.cases} | {problems} | {outcome.note} | {seconds:.0f} |", flush=True)
            if outcome.problems:
                print(outcome.shown(), file=sys.stderr)
            bad += problems
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
