"""Check 5: the disk is full."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

from faults import WRITES, nth_failures
from kills import real_builder
from sabotages import commit_in_place
from small import Outcome, World, differences, reference, scratch, temporaries, wrong_parts

PAGE = 4096


@contextmanager
def small_disk(folder: Path, size: str = "2m"):
    """A tmpfs of that size on ``folder``; yields False where one may not mount."""
    folder.mkdir()
    mounted = False
    if sys.platform == "linux" and os.geteuid() == 0:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "l2d-test", str(folder)]
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def full_disk(*, rows: int = 20, stride: int = 1, in_place: bool = False, command_line: bool = False) -> Outcome:
    """Leave 0, 1, 2, … pages free until a build fits; each one that does not fails cleanly and can go on.

    Where no file system can be mounted, writes fail with ENOSPC one after the other instead; ``note`` says which.

    Args:
        stride: pages more each time.
        in_place: sabotage: files are written under their final names.
        command_line: run the real command line each time, and look at its exit code.
    """
    with scratch() as folder, small_disk(folder / "disk") as mounted:
        if mounted:
            outcome = _full_disk(folder, rows, stride, in_place, command_line)
            outcome.note = "on a tmpfs of 2 MiB"
            return outcome
    outcome = nth_failures(rows=rows, stride=stride, kinds=WRITES, number=errno.ENOSPC, in_place=in_place)
    outcome.note = "no mount allowed here: ENOSPC injected into each write"
    return outcome


def _full_disk(folder: Path, rows: int, stride: int, in_place: bool, command_line: bool) -> Outcome:
    from l2d.data.cache import store
    from l2d.data.errors import DataError

    outcome, disk, pages = Outcome(), folder / "disk", 0
    reference(rows, False)
    while True:
        world = World(folder / f"world-{pages}", rows=rows, asked=False)
        world.out = disk / "cache"
        _fill(disk, pages)
        what, error = f"{pages} pages free", None
        with mock.patch.object(store, "commit", commit_in_place) if in_place else ExitStack():
            if command_line:
                process = real_builder(world)
                code, said = process.wait(), (world.folder / "stderr").read_text()
                fits = code == 0
                outcome.expect(fits or code == 3, f"{what}: exited with {code}: {said[-300:]}")
                outcome.expect(fits or str(world.out) in said, f"{what}: names no file: {said[-300:]}")
            else:
                try:
                    world.build()
                except Exception as raised:
                    error = raised
                fits = error is None
                outcome.expect(fits or isinstance(error, DataError), f"{what}: raised {error!r}")
                outcome.expect(fits or str(world.out) in str(error), f"{what}: names no file: {error}")
                outcome.expect(fits or "space" in str(error), f"{what}: does not say why: {error}")
        outcome.cases += 1
        outcome.problems += [f"{what}: {problem}" for problem in wrong_parts(world)]
        outcome.expect(not temporaries(world.out), f"{what}: left {temporaries(world.out)}")
        (disk / "ballast").unlink()
        try:
            world.build()
        except Exception as raised:
            outcome.problems.append(f"{what}: with space again it raised {raised!r}")
        outcome.problems += [f"{what}, with space again: {problem}" for problem in differences(world)]
        subprocess.run(["rm", "-rf", str(world.out)], check=True)
        if fits or len(outcome.problems) > 100:
            return outcome
        pages += stride


def _fill(disk: Path, pages: int) -> None:
    """Fill a disk up to so many pages."""
    free = os.statvfs(disk)
    with open(disk / "ballast", "wb") as file:
        file.write(b"\0" * max(0, free.f_bavail * free.f_frsize - pages * PAGE))
