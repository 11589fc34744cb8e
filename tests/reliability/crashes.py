"""Check 2: every state that a crash of the machine could leave, rebuilt from a recording of a build's file operations.

The model is stricter than any common file system: content that was not synced may be lost whole or in part, and any
name made, moved or removed since its folder was last synced may come back as it was, one by one.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

from crowd import mixed
from recorder import FOLDER, Recorder
from small import TEMPORARY, Outcome, World, differences, reference, same, scratch, truth

DEAD = 4_999_999  # above every process id


class Disk:
    """What the recorded operations have left, and what of it is certain."""

    def __init__(self):
        self.names: dict[str, int] = {}
        self.synced_names: dict[str, int] = {}
        self.content: dict[int, bytes] = {}
        self.synced_content: dict[int, bytes] = {}

    def do(self, operation: tuple) -> None:
        kind, what = operation[:2]
        if kind == "content":
            self.content[what] = operation[2]
        elif kind == "names":
            self.names = dict(what)
        elif self.names.get(what, FOLDER) != FOLDER:
            self.synced_content[self.names[what]] = self.content[self.names[what]]
        else:
            keep = {name: own for name, own in self.synced_names.items() if str(Path(name).parent) != what}
            self.synced_names = keep | {n: own for n, own in self.names.items() if str(Path(n).parent) == what}

    def states(self, randomness: random.Random, subsets: int):
        """Folders that a crash now could leave: name -> content, None for a folder."""
        every = {*self.names, *self.synced_names}
        names = [name for name in sorted(every) if self.names.get(name) != self.synced_names.get(name)]
        files = [own for own in sorted(self.content) if self.content[own] != self.synced_content.get(own)]
        unsure = [*names, *files]
        yield self._state([])
        yield self._state(unsure)
        yield self._state(files)
        yield self._state(names)
        yield from (self._state([one]) for one in unsure)
        for _ in range(subsets):
            yield self._state([one for one in unsure if randomness.random() < 0.5], randomness)

    def _state(self, lost: list, randomness: random.Random | None = None) -> dict[str, bytes | None]:
        """The state in which these names and contents did not reach the disk."""
        state: dict[str, bytes | None] = {}
        for name in sorted({*self.names, *self.synced_names}):
            own = (self.synced_names if name in lost else self.names).get(name)
            parent = str(Path(name).parent)
            if own is None or (parent != "." and parent not in state):
                continue  # a folder that is not there takes what is in it along
            if own == FOLDER:
                state[name] = None
            else:
                content = self.content.get(own, b"")
                if own in lost:
                    length = randomness.randrange(len(content) + 1) if randomness else 0
                    content = self.synced_content.get(own, content[:length])
                state[name] = content
        return state


def crash_states(recorder: Recorder, settled: int, *, subsets: int, seed: int = 0) -> list[tuple[int, dict]]:
    """Every distinct state that a crash after any number of operations could leave, with that number.

    Args:
        settled: so many of the first operations are long on the disk.
    """
    disk, seen, states, randomness = Disk(), set(), [], random.Random(seed)
    for operation in recorder.operations[:settled]:
        disk.do(operation)
    disk.synced_names, disk.synced_content = dict(disk.names), dict(disk.content)
    for position, operation in enumerate([("names", disk.names), *recorder.operations[settled:]]):
        disk.do(operation)
        for state in disk.states(randomness, subsets):
            key = hashlib.sha256(repr(sorted(state.items(), key=str)).encode()).digest()
            if key not in seen:
                seen.add(key)
                states.append((position, state))
    return states


def replay(*, rows: int, subsets: int, resumes: int, redo: bool = False, sync: bool = True, seed: int = 0) -> Outcome:
    """Crash after each operation of a build; no part may be there half, and the build must go on from there.

    Args:
        subsets: random sets of lost writes tried after each operation, beside all, none and each alone.
        resumes: how many states, chosen at random, are opened and built to the end; the rest are looked at.
        redo: record not a first build, but the one that asks anew what was deleted; answers have changed meanwhile.
        sync: False sabotages every fsync of the recorded build.
    """
    outcome, randomness = Outcome(), random.Random(seed)
    with scratch() as folder:
        world = World(folder / "world", rows=rows, asked=redo)
        world.out.mkdir()
        recorder = Recorder(world.out)
        if redo:
            world.build()
            (world.out / "agents/asked/predictions/00000.parquet").unlink()
            (world.folder / "wobble").write_text("1.5")
            recorder.look()
        settled = len(recorder.operations)
        with recorder.recording(), nullcontext() if sync else mock.patch.object(os, "fsync", return_value=None):
            world.build()
        whole: dict[str, set[bytes]] = {}
        for operation in recorder.operations:
            if operation[0] == "names":  # what a name stood for once its file was finished
                for name, own in operation[1].items():
                    whole.setdefault(name, set()).add(recorder.content.get(own, b""))
        good = []
        for position, state in crash_states(recorder, settled, subsets=subsets, seed=seed):
            broken = [
                name
                for name, content in state.items()
                if content is not None and not name.endswith(TEMPORARY) and content not in whole[name]
            ]
            outcome.cases += 1
            outcome.expect(not broken, f"after operation {position}: {broken} there, but not whole")
            if not broken:
                good.append((position, state))
        chosen = randomness.sample(good, min(resumes, len(good)))
        for number, (position, state) in enumerate(chosen):
            again = World(folder / f"again-{number}", rows=rows, asked=redo, wobble="1.5" if redo else "0")
            materialise(state, again.out)
            problems = _resumed(again, mixed) if redo else _opened(again) + _resumed(again, differences)
            outcome.problems += [f"after operation {position}: {problem}" for problem in problems]
            shutil.rmtree(again.folder)
        outcome.note = f"{len(recorder.operations) - settled} operations, {len(chosen)} states built to the end"
    return outcome


def materialise(state: dict[str, bytes | None], folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, content in sorted(state.items()):
        path = folder / name.replace(f".{os.getpid()}.", f".{DEAD}.")  # the process died with the machine
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)


def _opened(world: World) -> list[str]:
    """What a reader sees before anyone resumes: what was written, or an error of ours."""
    from l2d.data.cache.reader import CostCache
    from l2d.data.errors import CorruptPart, L2DError

    expected = truth(reference(**world.settings))
    try:
        cache = CostCache(world.out)
        for name in sorted(expected):
            path = world.out / name
            if path.is_file() and path.parent.name == "predictions":
                table = cache.predictions(path.parts[-3], int(path.stem))
                if not same(table.replace_schema_metadata(), expected[name].replace_schema_metadata()):
                    return [f"{name} reads as something else"]
        cache.verify()
    except CorruptPart as error:
        return [f"found damage: {error}"]
    except L2DError:
        pass
    return []


def _resumed(world: World, compare: Callable[[World], list[str]]) -> list[str]:
    from l2d.data.errors import CorruptPart

    try:
        world.build()
    except CorruptPart as error:
        return [f"resuming found damage: {error}"]
    except Exception as error:
        return [f"resuming failed with {type(error).__name__}: {error}"]
    return compare(world)
