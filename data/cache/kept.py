"""Copies of parts that are kept between commands in one folder, within a limit.

Which columns a copy has stands beside it, in ``.NAME.held.json``. Processes may share the folder: what one removes, the
others fetch again.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from l2d.data.cache import store
from l2d.data.errors import L2DError
from l2d.data.sizes import parse_size

FOLDER_VARIABLE, LIMIT_VARIABLE = "L2D_PARTS_FOLDER", "L2D_PARTS_LIMIT"
LIMIT = "10GB"
SPARE = 0.05  # share of the limit that is free after parts were removed
#: Columns of a copy; None: all, it is whole.
Columns = frozenset[str] | None


def parts_folder() -> Path:
    """Where parts of caches in stores are kept: ``$L2D_PARTS_FOLDER``, or beneath the user's folder for caches."""
    given, caches = os.environ.get(FOLDER_VARIABLE, ""), os.environ.get("XDG_CACHE_HOME", "")
    if given:
        return Path(given).expanduser().absolute()
    return Path(caches if os.path.isabs(caches) else Path("~/.cache").expanduser()) / "l2d" / "parts"


def parts_limit() -> int:
    """How many bytes of them: ``$L2D_PARTS_LIMIT``.

    Raises:
        UsageError: that is not a size.
    """
    return parse_size(os.environ.get(LIMIT_VARIABLE, "") or LIMIT, "--parts-limit")


def write_down(part: Path, sha256: str, columns: Columns) -> None:
    """Say which columns the copy of a part with this SHA-256 has."""
    about = {"sha256": sha256, "columns": None if columns is None else sorted(columns)}
    store.commit_json(_about(part), about, replace=True, durable=False)


def columns_of_copy(part: Path, sha256: str) -> Columns | bool:
    """Which columns the copy of a part has, False if there is none, or it is of another part."""
    try:
        about = store.read_json(_about(part))
    except (L2DError, OSError):
        return False
    if about.get("sha256") != sha256 or not isinstance(about.get("columns"), list | None):
        return False
    return None if about["columns"] is None else frozenset(map(str, about["columns"]))


def remove(part: Path) -> None:
    """Remove the copy of a part."""
    for path in (_about(part), part):
        with suppress(FileNotFoundError):
            path.unlink()


def size_of(folder: Path) -> int:
    """Bytes on the disk of all copies beneath a folder."""
    return sum(size for _, size, _ in _copies(folder))


class Room:
    """Keeps the copies beneath a folder within a limit. Those being read come on top."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._size: int | None = None  # when it was last counted, and what has come since
        self._random, self._lock = random.Random(0), threading.Lock()

    def add(self, size: int, limit: int, *, used: Collection[Path], pinned: Collection[Path]) -> list[Path]:
        """Count what has come, and remove copies beyond the limit; returns them.

        Args:
            used: by this process; they go last, in no order: where all are needed in turn, the oldest is needed next.
            pinned: never go.
        """
        with self._lock:
            self._size = None if self._size is None else self._size + size
            if self._size is not None and self._size <= limit:
                return []
            copies = _copies(self.folder)
            self._size, gone = sum(size for _, size, _ in copies), []
            if self._size > limit:
                self._random.shuffle(copies)
                copies.sort(key=lambda one: (one[0] in used, 0.0 if one[0] in used else one[2]))
                for path, taken, _ in copies:
                    if self._size <= (1 - SPARE) * limit:
                        break
                    if path not in pinned:
                        remove(path)
                        self._size -= taken
                        gone.append(path)
            return gone


def _about(part: Path) -> Path:
    """The file that says which columns of a part are here."""
    return part.with_name(f".{part.name}.held.json")


def _copies(folder: Path) -> list[tuple[Path, int, float]]:
    """Copies beneath a folder: path, bytes that it takes on the disk, time of change."""
    found = []
    for path in folder.rglob("*.parquet"):
        with suppress(FileNotFoundError):
            about = path.stat()
            found.append((path, about.st_blocks * 512, about.st_mtime))
    return found
