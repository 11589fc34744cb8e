"""Names of files that are being written, and what dead processes left under such names."""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"

#: Temporary names in use by this process; others with its number are left over from an earlier one.
_LIVE: set[Path] = set()


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` that says which process of which machine writes there: ``.NAME.HOST.PID.UUID.tmp``."""
    unique = f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex}"
    temporary = path.parent / f".{path.name}.{unique}{TEMPORARY_SUFFIX}"
    _LIVE.add(temporary)
    return temporary


def forget(temporary: Path) -> None:
    """This process writes there no longer."""
    _LIVE.discard(temporary)


def sweep_orphans(folder: Path) -> list[Path]:
    """Remove temporary files that a dead process of this machine left beneath ``folder``; returns what went."""
    return _sweep(folder.rglob(f".*{TEMPORARY_SUFFIX}"))


#: Folders that this process has looked through already.
_SWEPT: set[Path] = set()


def sweep_beside(path: Path) -> None:
    """Remove what a dead process of this machine left in the folder of ``path``; once a process for each folder."""
    folder = path.parent
    if folder in _SWEPT or not folder.is_dir():
        return
    _SWEPT.add(folder)
    with suppress(OSError):  # a folder that cannot be listed can still be written to
        _sweep(folder.glob(f".*{TEMPORARY_SUFFIX}"))


def _sweep(found: Iterable[Path]) -> list[Path]:
    swept = []
    for temporary in found:
        host, process = _owner(temporary)
        ours = process == os.getpid() and temporary not in _LIVE  # a container gives each process the same number
        if host == socket.gethostname() and process is not None and (ours or not _alive(process)):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
            swept.append(temporary)
    return swept


def _owner(temporary: Path) -> tuple[str, int | None]:
    """Host and process that a temporary name says it belongs to: ``.NAME.HOST.PID.UUID.tmp``."""
    stem, _, unique = temporary.name.removesuffix(TEMPORARY_SUFFIX).rpartition(".")
    stem, _, process = stem.rpartition(".")
    if len(unique) != 32:
        return "", None
    matches = stem.endswith("." + socket.gethostname())  # a host name may itself contain dots
    return (socket.gethostname() if matches else ""), int(process) if process.isdigit() else None


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
