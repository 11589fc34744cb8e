"""The only code that writes to a cache or a run.

Commit protocol: write to a unique temporary name in the same folder, fsync the file, hard-link it to its final name
(which fails if that name exists), unlink the temporary name, fsync the folder. The existence of the final name *is*
the commit, so a killed process leaves either the whole file or nothing, and two builders never overwrite each other.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from l2d.data.cache.integrity import SKELETON_BLANK, corruption_named, json_digest, skeleton_of, write_skeleton
from l2d.data.cache.temporary import forget, sweep_beside, temporary_name
from l2d.data.errors import AlreadyThere, CorruptPart, DataError

if TYPE_CHECKING:
    import polars as pl

#: Bytes of a table, from which on one is encoded at a time: that takes five times the table. Others sync meanwhile.
ALONE = 8 << 20
_ENCODING = threading.Lock()

DIGEST_FIELD = "sha256_of_the_above"

# One plain, uncompressed page per column and row group: such a page can be read as a view of the mapped file.
ROW_GROUP_ROWS = 65_536  # as many as the largest chunk that is chosen for a cache, so that a part is one group
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


def commit(path: Path, write: Callable[[Path], object], *, replace: bool = False, durable: bool = True) -> bool:
    """Make ``path`` appear whole or not at all.

    Args:
        path: final name; its folder is created.
        write: called with a temporary path in the same folder; writes the content there.
        replace: let the new file take the place of an old one (atomically) instead of leaving the old one be.
        durable: sync it; not needed for what can be had again, and is checked when it is read.

    Returns:
        True if this call committed the file, False if it was there already and ``replace`` is False.

    Raises:
        DataError: the disk is full, not writable, or has no hard links. Nothing is left under the final name.
    """
    sweep_beside(path)
    temporary = temporary_name(path)
    try:
        _make_folder(path.parent)
        write(temporary)
        if durable:
            _fsync(temporary)
        if replace:
            os.replace(temporary, path)
        else:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        if durable:
            _fsync(path.parent)
        return True
    except OSError as error:
        hints = {
            errno.ENOSPC: "free some space and run the same command again; everything finished is kept",
            errno.EPERM: "use a local POSIX file system (hard links are needed) for --out",
            errno.EOPNOTSUPP: "use a local POSIX file system (hard links are needed) for --out",
        }
        hint = hints.get(error.errno or 0, "check the folder's permissions and run the same command again")
        raise DataError(f"cannot write: {error.strerror or error}", where=path, hint=hint) from error
    finally:
        with suppress(OSError):  # it may be gone, or never have been; if it stays, the next build sweeps it
            temporary.unlink(missing_ok=True)
        forget(temporary)


def remove(path: Path) -> None:
    """Remove a file or folder, durably and at once: a folder is renamed away first, so that it is whole or gone.

    Raises:
        DataError: it cannot be removed.
    """
    try:
        if path.is_dir():
            doomed = temporary_name(path)
            os.rename(path, doomed)
            _fsync(path.parent)
            shutil.rmtree(doomed, ignore_errors=True)  # what is left of it is swept by the next build
            forget(doomed)
        elif path.exists():
            path.unlink(missing_ok=True)
            _fsync(path.parent)
    except FileNotFoundError:  # another builder was faster
        return
    except OSError as error:
        raise DataError(f"cannot remove: {error.strerror or error}", where=path, hint="check permissions") from error


def _make_folder(folder: Path) -> None:
    """Make a folder and sync the names of all that were made."""
    made = []
    while not folder.exists():
        made.append(folder)
        folder = folder.parent
    for new in reversed(made):
        new.mkdir(exist_ok=True)
        _fsync(new.parent)


def commit_json(path: Path, value: dict, *, replace: bool = False, durable: bool = True) -> bool:
    """:func:`commit` a JSON object, with its own digest as the last field."""
    value = plain(value)
    value[DIGEST_FIELD] = json_digest(value)
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write = lambda temporary: temporary.write_text(text, encoding="utf-8")  # noqa: E731
    return commit(path, write, replace=replace, durable=durable)


def plain(value: dict) -> dict:
    """A value as JSON stores it: tuples become lists, keys strings.

    Raises:
        ValueError: a number is not finite.
    """
    return json.loads(json.dumps(value, allow_nan=False))


def fill(path: Path, size: int, blocks: Iterable[tuple[int, bytes]]) -> None:
    """Write bytes at their places in a file of some size, of which the rest are holes that take no space.

    For copies of what lies elsewhere whole. A file that is there is not truncated: others may be reading from it.

    Raises:
        DataError: the disk is full, or not writable.
    """
    try:
        with open(path, "r+b" if path.exists() else "wb") as file:
            file.truncate(size)
            for start, content in blocks:
                file.seek(start)
                file.write(content)
    except OSError as error:
        hint = "free some space, or give another --parts-folder or a lower --parts-limit; then the same command again"
        raise DataError(f"cannot write: {error.strerror or error}", where=path, hint=hint) from error


def commit_bytes(path: Path, content: bytes, *, replace: bool = False) -> bool:
    """:func:`commit` a file with this content."""
    return commit(path, lambda temporary: temporary.write_bytes(content), replace=replace)


def commit_link(path: Path, source: Path) -> bool:
    """:func:`commit` a file that is the one at ``source``: a second name of it, or a copy on another file system."""

    def write(temporary: Path) -> None:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)

    return commit(path, write)


def commit_table(path: Path, table: pa.Table, facts: dict[str, str] | None = None, *, replace: bool = False) -> bool:
    """:func:`commit` a table as Parquet with page checksums in the layout of :data:`PARQUET_LAYOUT`.

    Args:
        facts: what the part is (agent, chunk, fingerprint …), kept in the file's metadata.
    """
    named = {f"l2d.{name}": value for name, value in (facts or {}).items()}
    table = table.replace_schema_metadata({**named, "l2d.skeleton": SKELETON_BLANK})

    def write(temporary: Path) -> None:
        with _ENCODING if table.nbytes >= ALONE else nullcontext():
            pq.write_table(table, temporary, **PARQUET_LAYOUT)
        write_skeleton(temporary)

    return commit(path, write, replace=replace)


def commit_batches(
    path: Path, kind: pa.Schema, batches: Iterable[pa.RecordBatch], facts: dict[str, str], *, replace: bool = False
) -> bool:
    """:func:`commit` a table larger than memory: as CSV if ``path`` says so, else as :func:`commit_table` does.

    Args:
        kind: the columns of every batch.
        batches: become a row group each. What they raise comes through, and nothing is left.
    """
    kind = kind.with_metadata(
        {f"l2d.{name}": value for name, value in facts.items()} | {"l2d.skeleton": SKELETON_BLANK}
    )
    layout = {name: value for name, value in PARQUET_LAYOUT.items() if name != "row_group_size"}
    is_csv = path.suffix.lower() == ".csv"

    def write(temporary: Path) -> None:
        from pyarrow.csv import CSVWriter

        with CSVWriter(temporary, kind) if is_csv else pq.ParquetWriter(temporary, kind, **layout) as writer:
            for batch in batches:
                writer.write_batch(batch)
        if not is_csv:
            write_skeleton(temporary)

    return commit(path, write, replace=replace)


@contextmanager
def csv_gz(path: Path) -> Iterator[Callable[[pl.DataFrame], None]]:
    """Write a gzipped CSV file frame by frame, for use within :func:`commit_folder`; gives the function that appends.

    The same frames and the same zlib give the same bytes: no time, no name is written.
    """
    import gzip

    _make_folder(path.parent)
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", compresslevel=4, fileobj=raw, mtime=0) as file:
        begun = False

        def append(frame: pl.DataFrame) -> None:
            nonlocal begun
            text = io.BytesIO()
            frame.write_csv(text, include_header=not begun)
            file.write(text.getbuffer())
            begun = True

        yield append


def table_bytes(table: pa.Table) -> int:
    """Size of a table as :func:`commit_table` would write it, facts aside."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **PARQUET_LAYOUT)
    return sink.tell()


def commit_folder(path: Path, fill: Callable[[Path], None], *, replace: bool = False) -> None:
    """Make a folder appear with everything in it, or not at all.

    Raises:
        AlreadyThere: the folder is there already, or has appeared meanwhile, and ``replace`` is False.
        DataError: it cannot be written.
    """
    there = AlreadyThere("this folder is there already", where=path, hint="choose another --out, or type --overwrite")
    if path.exists() and not replace:
        raise there
    sweep_beside(path)
    temporary = temporary_name(path)
    try:
        _make_folder(path.parent)
        temporary.mkdir()
        fill(temporary)
        for file in temporary.rglob("*"):
            _fsync(file)
        if replace:
            remove(path)
        os.rename(temporary, path)
        _fsync(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) and path.exists():
            raise there from error
        raise DataError(
            f"cannot write: {error.strerror or error}", where=path, hint="check space and permissions"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        forget(temporary)


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a committed Parquet file, verifying its skeleton and the checksum of every page read.

    Args:
        columns: to read; all if None.

    Raises:
        CorruptPart: the file is damaged or truncated; the message names it.
        FileNotFoundError: there is no such file.
    """
    return read_known(path, columns)[0]


def read_known(path: Path, columns: list[str] | None = None) -> tuple[pa.Table, str]:
    """:func:`read_table`, and the skeleton that was verified, of the file that was read whatever takes its name."""
    with corruption_named(path), pa.OSFile(str(path)) as opened:
        skeleton = skeleton_of(opened, path)
        with pq.ParquetFile(opened, page_checksum_verification=True) as file:
            return file.read(columns=columns), skeleton


def columns_of(path: Path) -> pa.Schema:
    """The columns of a part, without what it says of itself.

    Raises:
        CorruptPart: it cannot be read, or is gone.
    """
    try:
        return pq.read_schema(path).remove_metadata()
    except (OSError, pa.ArrowException) as error:
        raise CorruptPart(str(error).splitlines()[0], where=path, hint="l2d verify CACHE names the file") from error


def column_names(path: Path) -> list[str]:
    """Names of the columns of a part."""
    with corruption_named(path):
        return pq.read_schema(path).names


def facts_of(table: pa.Table | pa.Schema) -> dict[str, str]:
    """What :func:`commit_table` was told the part is. Damaged names and values come out with replacement characters."""
    metadata = (table if isinstance(table, pa.Schema) else table.schema).metadata or {}
    texts = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in metadata.items()}
    return {name[4:]: value for name, value in texts.items() if name.startswith("l2d.") and name != "l2d.skeleton"}


def read_json(path: Path) -> dict:
    """Read a committed JSON object and check its digest.

    Raises:
        CorruptPart: it is not JSON, or not what was written.
        FileNotFoundError: there is no such file.
    """
    with corruption_named(path):
        content = path.read_bytes()
    return parse_json(content, path)


def parse_json(content: bytes, where: Path | str) -> dict:
    """The JSON object that a committed file holds, once its digest is checked.

    Raises:
        CorruptPart: it is not JSON, or not what was written.
    """
    hint = "restore this file from a copy, or build (or train) again in another folder"
    try:
        value = json.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CorruptPart(f"is not JSON: {error}", where=where, hint=hint) from error
    if not isinstance(value, dict):
        raise CorruptPart("is not a JSON object", where=where, hint=hint)
    written = value.pop(DIGEST_FIELD, None)
    try:
        found = json_digest(value)
    except ValueError as error:  # a number that is not finite
        raise CorruptPart(f"is not JSON: {error}", where=where, hint=hint) from error
    if written != found:
        raise CorruptPart("is not what was written: its digest differs", where=where, hint=hint)
    return value


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
