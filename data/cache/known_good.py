"""Files whose pages have been compared with their checksums, for readers that do not compare them themselves.

What was found sound is remembered: by this process, and of large files on disk too, so that the next process need not
read 100 million rows to look at a few. A file is taken for the one that was read if its path, size, inode, device,
time of change and its skeleton (:mod:`l2d.data.cache.integrity`) are the same. Every write moves the time of change,
which programs cannot set. So what goes unnoticed is what changes bytes on the disk beneath the file system, or a clock
that is put back; ``l2d verify`` reads everything in any case. A file that has changed in the last seconds is not
remembered, as times of change may be that coarse.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from l2d.data.cache import schema, store
from l2d.data.cache.mapped import read_back
from l2d.data.errors import L2DError

FORMAT = 1
WORTH_REMEMBERING = 64 << 20  # bytes: less is read again in a few hundredths of a second
SETTLED = 3.0  # seconds since a file's last change from which on its time of change tells it from later contents
THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Wanted:
    """Columns of a file that somebody is going to read, and the skeleton that the file has to have."""

    path: Path
    skeleton: str
    columns: tuple[str, ...]


def memory_folder() -> Path:
    """Where it is remembered between processes: ``l2d/verified`` in the user's folder for caches."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return Path(given if os.path.isabs(given) else Path("~/.cache").expanduser()) / "l2d" / "verified"


class KnownGood:
    """What was verified of the files beneath some folders.

    Args:
        folders: they tell one memory on disk from another.
    """

    def __init__(self, folders: Iterable[Path]):
        self._file = memory_folder() / f"{schema.digest(sorted(map(str, folders)))}.json"
        self._known: dict[str, list] = {}  # path -> its stamp, and the columns
        self._looked = False

    def verify(self, wanted: Iterable[Wanted], *, stop: Callable[[], bool] = lambda: False) -> None:
        """Compare the checksums of what is not known to be sound.

        Args:
            stop: asked before each file whether to leave it at that.

        Raises:
            CorruptPart: names the first file that is not what was written.
            FileNotFoundError: it is gone.
        """
        todo = [(one, stamp) for one in wanted if not self._knows(one, stamp := _stamp(one))]
        if todo and not self._looked and sum(stamp[0] for _, stamp in todo) >= WORTH_REMEMBERING:
            self._recall()
            todo = [(one, stamp) for one, stamp in todo if not self._knows(one, stamp)]
        began = time.time()
        with ThreadPoolExecutor(THREADS, thread_name_prefix="verifying") as pool:
            for (one, stamp), read in zip(
                todo, pool.map(lambda pair: _read(pair[0], pair[1], stop), todo), strict=True
            ):
                if read:
                    known = self._known.get(str(one.path), [None, []])
                    columns = set(one.columns) | set(known[1] if known[0] == stamp else [])
                    self._known[str(one.path)] = [stamp, sorted(columns)]
        if sum(stamp[0] for _, stamp in todo) >= WORTH_REMEMBERING and not stop():
            self._remember(began)

    def _knows(self, one: Wanted, stamp: list) -> bool:
        known = self._known.get(str(one.path))
        return known is not None and known[0] == stamp and set(one.columns) <= set(known[1])

    def _recall(self) -> None:
        self._looked = True
        with suppress(L2DError, OSError, ValueError):
            found = store.read_json(self._file)
            if found.get("format") == FORMAT:
                self._known = {**found["files"], **self._known}

    def _remember(self, began: float) -> None:
        settled = {path: known for path, known in self._known.items() if known[0][2] < (began - SETTLED) * 1e9}
        with suppress(L2DError, OSError):  # it is read again then
            store.commit_json(self._file, {"format": FORMAT, "files": settled}, replace=True)


def _stamp(one: Wanted) -> list:
    found = os.stat(one.path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev, one.skeleton]


def _read(one: Wanted, stamp: list, stop: Callable[[], bool]) -> bool:
    """Read a file back, unless there is no need any more; returns whether it was, and is the one of the stamp."""
    if stop():
        return False
    read_back(one.path, one.columns, skeleton=one.skeleton)
    return _stamp(one) == stamp
