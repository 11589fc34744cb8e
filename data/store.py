"""The only code that writes to a cache or a run.

Commit protocol: write to a unique temporary name in the same folder, fsync the file, hard-link it to its final name
(which fails if that name exists), unlink the temporary name, fsync the folder. The existence of the final name *is*
the commit, so a killed process leaves either the whole file or nothing, and two builders never overwrite each other.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import CorruptPart, DataError

TEMPORARY_SUFFIX = ".tmp"

# One plain, uncompressed page per column and row group: such a page can be read as a view of the mapped file.
ROW_GROUP_ROWS = 32_768
PARQUET_LAYOUT = {
    "compression": "none",
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,
    "data_page_size": 1 << 30,
    "write_batch_size": 1 << 20,
    "row_group_size": ROW_GROUP_ROWS,
}
if "max_rows_per_page" in pq.ParquetWriter.__init__.__code__.co_varnames:  # newer pyarrow cuts pages at 20,000 rows
    PARQUET_LAYOUT["max_rows_per_page"] = 1 << 30


def commit(path: Path, write: Callable[[Path], None], *, replace: bool = False) -> bool:
    """Make ``path`` appear whole or not at all.

    Args:
        path: final name; its folder is created.
        write: called with a temporary path in the same folder; writes the content there.
        replace: let the new file take the place of an old one (atomically) instead of leaving the old one be.

    Returns:
        True if this call committed the file, False if it was there already and ``replace`` is False.

    Raises:
        DataError: the disk is full, not writable, or has no hard links. Nothing is left under the final name.
    """
    temporary = path.parent / f".{path.name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _fsync(temporary)
        if replace:
            os.replace(temporary, path)
        else:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        _fsync(path.parent)
        return True
    except OSError as error:
        hints = {
            errno.ENOSPC: "free some space and run the same command again; everything finished is kept",
            errno.EPERM: "use a local POSIX file system (hard links are needed) for --out",
            errno.EOPNOTSUPP: "use a local POSIX file system (hard links are needed) for --out",
        }
        hint = hints.get(error.errno, "check the folder's permissions and run the same command again")
        raise DataError(f"cannot write: {error.strerror or error}", where=path, hint=hint) from error
    finally:
        temporary.unlink(missing_ok=True)


def commit_json(path: Path, value: object, *, replace: bool = False) -> bool:
    """:func:`commit` a JSON document."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return commit(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), replace=replace)


def commit_bytes(path: Path, content: bytes, *, replace: bool = False) -> bool:
    """:func:`commit` a file with this content."""
    return commit(path, lambda temporary: temporary.write_bytes(content), replace=replace)


def commit_table(path: Path, table: pa.Table, facts: dict[str, str] | None = None, *, replace: bool = False) -> bool:
    """:func:`commit` a table as Parquet with page checksums in the layout of :data:`PARQUET_LAYOUT`.

    Args:
        facts: what the part is (agent, chunk, fingerprint …), kept in the file's metadata.
    """
    if facts:
        table = table.replace_schema_metadata({f"l2d.{name}": value for name, value in facts.items()})
    return commit(path, lambda temporary: pq.write_table(table, temporary, **PARQUET_LAYOUT), replace=replace)


def commit_folder(path: Path, fill: Callable[[Path], None], *, replace: bool = False) -> None:
    """Make a folder appear with everything in it, or not at all.

    Raises:
        DataError: the folder is there already and ``replace`` is False, or it cannot be written.
    """
    if path.exists() and not replace:
        raise DataError("this folder is there already", where=path, hint="choose another --out, or type --overwrite")
    temporary = path.parent / f".{path.name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        for file in temporary.rglob("*"):
            _fsync(file)
        if path.exists():
            shutil.rmtree(path)
        os.rename(temporary, path)
        _fsync(path.parent)
    except OSError as error:
        raise DataError(
            f"cannot write: {error.strerror or error}", where=path, hint="check space and permissions"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sweep_orphans(folder: Path) -> list[Path]:
    """Remove temporary files that a dead process of this machine left beneath ``folder``; returns what went."""
    swept = []
    for temporary in folder.rglob(f".*{TEMPORARY_SUFFIX}"):
        host, process = _owner(temporary)
        if host == socket.gethostname() and process is not None and not _alive(process):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
            swept.append(temporary)
    return swept


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a committed Parquet file, verifying the checksum of every page read.

    Raises:
        CorruptPart: the file is damaged or truncated; the message names it.
        FileNotFoundError: there is no such file.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read(columns=columns)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, ValueError) as error:
        raise CorruptPart(
            f"cannot be read back as written: {str(error).splitlines()[0]}",
            where=path,
            hint="delete this file and run the `l2d build` that made the cache again; only this part is redone",
        ) from error


def facts_of(table: pa.Table) -> dict[str, str]:
    """What :func:`commit_table` was told the part is."""
    metadata = table.schema.metadata or {}
    return {k.decode()[4:]: v.decode() for k, v in metadata.items() if k.startswith(b"l2d.")}


def read_json(path: Path) -> dict:
    """Read a committed JSON document.

    Raises:
        CorruptPart: it is not JSON.
        FileNotFoundError: there is no such file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorruptPart(f"is not JSON: {error}", where=path, hint="restore this file from a copy") from error
    if not isinstance(value, dict):
        raise CorruptPart("is not a JSON object", where=path, hint="restore this file from a copy")
    return value


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _owner(temporary: Path) -> tuple[str, int | None]:
    """Host and process that a temporary name says it belongs to: ``.NAME.HOST.PID.UUID.tmp``."""
    stem, _, _ = temporary.name.removesuffix(TEMPORARY_SUFFIX).rpartition(".")
    stem, _, process = stem.rpartition(".")
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
