"""Check 6: the Nth operation on a file fails."""

from __future__ import annotations

import builtins
import errno
import io
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import pyarrow.parquet as pq
from sabotages import commit_in_place, fsync_forgiving
from small import Outcome, World, differences, reference, scratch, temporaries, wrong_parts

WRITES = ("write", "write_table")


class Faults:
    """Makes the Nth of the operations on files beneath a folder fail.

    Args:
        folder: operations elsewhere are not counted.
        fail_at: which one fails, from 1; 0 counts only.
        kinds: operations that are counted; all if None.
        number: the error's number.
    """

    def __init__(
        self, folder: Path, fail_at: int = 0, *, kinds: tuple[str, ...] | None = None, number: int = errno.EIO
    ):
        self.folder, self.fail_at, self.kinds, self.number = str(folder), fail_at, kinds, number
        self.count, self.failed = 0, ""

    @contextmanager
    def injected(self):
        with ExitStack() as stack:
            put = stack.enter_context
            for name in ("open", "link", "replace", "rename", "unlink", "mkdir"):
                put(mock.patch.object(os, name, self._failing(name, getattr(os, name))))
            put(mock.patch.object(os, "fsync", self._fsync(os.fsync)))
            opener = self._opener(io.open)
            put(mock.patch.object(io, "open", opener))
            put(mock.patch.object(builtins, "open", opener))
            put(mock.patch.object(pq, "write_table", self._write_table(pq.write_table)))
            yield self

    def step(self, kind: str, path: object) -> None:
        """Count an operation; raise if its turn has come."""
        if not str(path).startswith(self.folder) or (self.kinds is not None and kind not in self.kinds):
            return
        self.count += 1
        if self.count == self.fail_at:
            self.failed = f"{kind} {Path(str(path)).name}"
            raise OSError(self.number, os.strerror(self.number), str(path))

    def _failing(self, name: str, real):
        def operation(path, *arguments, **options):
            self.step(name, path)
            return real(path, *arguments, **options)

        return operation

    def _fsync(self, real):
        def fsync(handle: int) -> None:
            self.step("fsync", os.readlink(f"/proc/self/fd/{handle}"))
            real(handle)

        return fsync

    def _opener(self, real):
        def opener(path, mode="r", *arguments, **options):
            self.step("open", path)
            file = real(path, mode, *arguments, **options)
            writes = str(path).startswith(self.folder) and set(mode) & set("wax+")
            return _FailingFile(file, self, path) if writes else file

        return opener

    def _write_table(self, real):
        def write_table(table, path, *arguments, **options):
            real(table, path, *arguments, **options)
            try:
                self.step("write_table", path)
            except OSError:
                os.truncate(path, os.path.getsize(path) // 2)
                raise

        return write_table


class _FailingFile:
    def __init__(self, file, faults: Faults, path: object):
        self._file, self._faults, self._path = file, faults, path

    def write(self, content):
        try:
            self._faults.step("write", self._path)
        except OSError:
            self._file.write(content[: len(content) // 2])
            raise
        return self._file.write(content)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __getattr__(self, name: str):
        return getattr(self._file, name)


def nth_failures(
    *,
    rows: int = 10,
    stride: int = 1,
    kinds: tuple[str, ...] | None = None,
    number: int = errno.EIO,
    forgiving: bool = False,
    in_place: bool = False,
) -> Outcome:
    """Fail operation 1, 2, … of a build until one passes untouched; then build again.

    Args:
        stride: try every so many operations only.
        forgiving: sabotage: errors of fsync go unnoticed.
        in_place: sabotage: files are written under their final names.
    """
    from l2d.data.cache import store
    from l2d.data.errors import DataError, L2DError

    outcome = Outcome()
    reference(rows, False)
    fail_at = 1
    while True:
        with scratch() as folder, ExitStack() as stack:
            world = World(folder / "world", rows=rows, asked=False)
            if in_place:
                stack.enter_context(mock.patch.object(store, "commit", commit_in_place))
            faults, error = Faults(world.out, fail_at, kinds=kinds, number=number), None
            with faults.injected(), ExitStack() as inner:
                if forgiving:
                    inner.enter_context(mock.patch.object(os, "fsync", fsync_forgiving(os.fsync)))
                try:
                    world.build()
                except Exception as raised:
                    error = raised
            if not faults.failed:
                outcome.problems += [] if error is None else [f"untouched, yet {error!r}"]
                return outcome
            what = f"operation {fail_at} ({faults.failed})"
            outcome.cases += 1
            outcome.expect(error is None or isinstance(error, L2DError), f"{what}: raised {error!r}")
            if error is None:
                outcome.expect(not faults.failed.startswith("fsync"), f"{what}: reported as done")
            elif isinstance(error, L2DError) and number == errno.ENOSPC:
                outcome.expect(isinstance(error, DataError), f"{what}: {error!r}")
                outcome.expect(str(world.out) in str(error.where), f"{what}: names {error.where}, not the file")
            outcome.problems += [f"{what}: {problem}" for problem in wrong_parts(world)]
            left = temporaries(world.out)
            outcome.expect(not left or faults.failed.startswith("unlink"), f"{what}: left {left}")
            for name in left:  # as the sweep does once this process is gone
                next(world.out.rglob(name)).unlink()
            try:
                world.build()
            except Exception as raised:
                outcome.problems.append(f"{what}: the retry raised {raised!r}")
            outcome.problems += [f"{what}, after the retry: {problem}" for problem in differences(world)]
        fail_at += stride
