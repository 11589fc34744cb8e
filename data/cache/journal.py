"""A file that only grows, line by line, for records that have to outlive the process that writes them.

What :func:`Journal.append` has returned from is in the hands of the operating system: killing the process loses none
of it. A power cut may lose what was appended since the last :meth:`Journal.sync`. A line counts once it ends in a line
break, so a write that was cut short is no record. The writer holds a lock on the file (``flock``), which the operating
system lets go when the process ends, in whatever way: so others can tell a journal in use from one left behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from l2d.data.errors import DataError

HINT = "free some space, or check the folder's permissions"


class Journal:
    """A journal that this process writes.

    Args:
        path: a new file.

    Raises:
        DataError: it cannot be made.
    """

    def __init__(self, path: Path):
        self.path, self.lines, self._synced = path, 0, 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except OSError as error:
            raise DataError(f"cannot write: {error.strerror or error}", where=path, hint=HINT) from error

    def append(self, line: bytes) -> None:
        """Add one line, given without its line break.

        Raises:
            DataError: it cannot be written; nothing of it counts.
        """
        rest = memoryview(line + b"\n")
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            with suppress(OSError):  # so that the next record does not begin in the middle of this one
                os.write(self._file, b"\n")
            raise DataError(f"cannot write: {error.strerror or error}", where=self.path, hint=HINT) from error
        self.lines += 1

    def sync(self) -> None:
        """Have everything so far on the disk."""
        if self._synced < self.lines:
            lines = self.lines
            os.fsync(self._file)
            self._synced = lines

    def close(self) -> None:
        os.close(self._file)


def lines_of(path: Path) -> list[bytes]:
    """The whole lines of a journal, those that a full disk cut short among them; none where it is gone."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # it has just become a part
        return []
    return content.split(b"\n")[:-1]


@contextmanager
def left_behind(path: Path) -> Iterator[bool]:
    """Whether no process writes a journal any more; while that is looked into, no other process finds so too."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = os.fstat(file).st_nlink > 0  # another may have made a part of it meanwhile
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK):
            raise
        ours = False
    try:
        yield ours
    finally:
        os.close(file)
