"""Columns of numbers in a file without a name, where they would take too much memory: it is gone with the process."""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from l2d.data.errors import DataError

FOLDER = "/var/tmp"  # /tmp may lie in memory


class Scratch:
    """A file that arrays are put into, one behind the other, by any thread.

    It lies in the folder ``TMPDIR``, or else in ``/var/tmp`` if there is one to write to.
    """

    def __init__(self) -> None:
        there = os.path.isdir(FOLDER) and os.access(FOLDER, os.W_OK)
        self.folder = os.environ.get("TMPDIR") or (FOLDER if there else tempfile.gettempdir())
        self._lock, self._end = threading.Lock(), 0
        with self._told():
            self._file = tempfile.TemporaryFile(prefix="l2d-", dir=self.folder, buffering=0)  # noqa: SIM115
        weakref.finalize(self, self._file.close)

    def put(self, values: np.ndarray) -> ScratchColumn:
        """An array, contiguous, as what it can be read back by.

        Raises:
            DataError: the disk is full.
        """
        with self._lock:
            place, self._end = self._end, self._end + values.nbytes
        with self._told():
            rest, at = values.reshape(-1).view(np.uint8).data, place
            while rest:
                written = os.pwrite(self._file.fileno(), rest, at)
                rest, at = rest[written:], at + written
        return ScratchColumn(self, place, values.shape, values.dtype)

    def read(self, into: np.ndarray, place: int) -> None:
        """Fill an array with the bytes from a place of the file on."""
        rest = into.reshape(-1).view(np.uint8).data
        with self._told():
            while rest:
                count = os.preadv(self._file.fileno(), [rest], place)
                if not count:
                    raise OSError("it ends too early")
                rest, place = rest[count:], place + count

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say of what the operating system raises where it is, and what to do."""
        try:
            yield
        except OSError as error:
            raise DataError(
                f"a temporary file: {error.strerror or error}",
                where=self.folder,
                hint="free some space, or name another folder for such files: TMPDIR=FOLDER",
            ) from error


class ScratchColumn:
    """An array (n,) or (n, several) in a :class:`Scratch`, of which rows are read as they are looked at."""

    def __init__(self, scratch: Scratch, place: int, shape: tuple[int, ...], dtype: np.dtype):
        self._scratch, self._place = scratch, place
        self.shape, self.dtype, self.ndim = shape, dtype, len(shape)

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        found = np.empty((max(0, stop - start), *self.shape[1:]), self.dtype)
        row = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        self._scratch.read(found, self._place + start * row)
        return found

    def __reduce__(self) -> tuple:
        return np.asarray, (self[:],)  # where it is sent the file is not
