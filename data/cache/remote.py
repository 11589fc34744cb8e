"""Caches pushed to a folder or an object store as they are, and fetched to be used.

What is copied are a cache's own files under their own names, so any reader of Parquet can also read them there. Names
come from the cache's records (:mod:`l2d.data.cache.pieces`), never from a listing. ``cache.json`` comes last, both
ways: a copy without it is not a cache yet, and the same command goes on. It sends nothing twice that has arrived, and
puts right what is damaged.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from l2d.data.cache import schema, store
from l2d.data.cache.description import NAME, description_bytes
from l2d.data.cache.integrity import sha256_of
from l2d.data.cache.pieces import MOST_RECORD, SIGNATURE, Piece, Pieces, read_pieces
from l2d.data.cache.places import PUSH_AGAIN, Folder, Place, open_place
from l2d.data.cache.reader import CostCache
from l2d.data.cache.temporary import TEMPORARY_SUFFIX, sweep_orphans
from l2d.data.errors import CorruptPart, DataError, L2DError, UsageError

Progress = Callable[[int], None]
AT_ONCE = 4  # files on their way at the same time
RECORD = "cache.json"


def push(cache: CostCache, url: str, progress: Progress | None = None, *, read_back: bool = False) -> int:
    """Copy a complete cache to ``url``, checking every byte of it against its seals on the way.

    What is there already with the right content is left alone; what is damaged or missing there is sent again. Beside
    the cache's own files goes a description for people and hubs, :mod:`l2d.data.cache.description`; it is not counted.

    Args:
        url: such as ``s3://bucket/caches/support2``, of any file system whose fsspec driver is installed, or a folder.
        progress: told of files done.
        read_back: read every file that is there already, even where the store knows its checksum.

    Returns:
        Number of files copied.

    Raises:
        IncompleteCache, CorruptPart: the cache is not whole.
        DataError: a cache of other samples is at ``url``, or it cannot be read or written.
        UsageError: no driver is installed for such addresses, or ``url`` is the cache itself.
    """
    cache.require_local()
    place = open_place(url)
    if isinstance(place, Folder):
        _refuse_itself(cache.path, place.root)
    cache.verify()
    mine = read_pieces(Folder(cache.path).read, str(cache.path))
    _refuse_another(mine, place, url)

    def send(piece: Piece) -> int:
        file = cache.path / piece.name
        sha256 = piece.sha256 if piece.size is not None else sha256_of(file)
        if place.holds(piece.name, file, sha256, read_back=read_back):
            return 0
        place.put(piece.name, file)
        return 1

    *records, last = mine.records  # agents' records may be newer than cache.json, never the other way round
    copied = 0
    told = description_bytes(cache)
    if place.read(NAME, MOST_RECORD) != told:
        place.put_bytes(NAME, told)
    for wave in (mine.parts, records, [last]):
        for sent in _each(send, wave):
            copied += sent
            if progress:
                progress(1)
    return copied


def fetch(url: str, out: Path, progress: Progress | None = None) -> CostCache:
    """Copy the cache at ``url`` to a local folder and read everything back.

    The same call goes on after an interruption, takes over what has changed at ``url`` since, and repairs local files.

    Args:
        url: where :func:`push` has put it.
        out: a folder; new, empty, or begun by an earlier call.
        progress: told of files done.

    Raises:
        DataError: there is no cache at ``url``, or another one in ``out``.
        CorruptPart: what has arrived is not what was sealed; the message names the file.
        UsageError: no driver is installed for such addresses, or ``out`` is ``url``.
    """
    place = open_place(url)
    if isinstance(place, Folder):
        _refuse_itself(out, place.root)
    if place.size(RECORD) is None:
        raise DataError("there is no cost cache", where=url, hint="l2d push CACHE URL puts one there")
    theirs = read_pieces(place.read, url.rstrip("/"))
    _refuse_other_folder(theirs, out)
    if out.is_dir():
        sweep_orphans(out)

    def get(piece: Piece) -> None:
        if not _is_there(out / piece.name, piece):
            _copy_here(place, piece, out, url)

    for _ in _each(get, theirs.parts):
        if progress:
            progress(1)
    for piece in theirs.records:
        if not _is_there(out / piece.name, piece):
            store.commit_bytes(out / piece.name, piece.content or b"", replace=True)
        if progress:
            progress(1)
    cache = CostCache(out)
    cache.verify()
    return cache


def _each(work: Callable, pieces: Iterable[Piece]) -> Iterable:
    """The results of some files, several at once, in order. After an error nothing more is begun."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = [pool.submit(work, piece) for piece in pieces]
        try:
            for one in waiting:
                yield one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _copy_here(place: Place, piece: Piece, out: Path, url: str) -> None:
    """Fetch one file; it gets its name only if it is what the records say."""
    where = f"{url.rstrip('/')}/{piece.name}"
    size = place.size(piece.name)
    if size is None:
        raise CorruptPart("is missing", where=where, hint=PUSH_AGAIN)
    most = piece.size if piece.size is not None else size
    if size != most:
        raise CorruptPart(f"has {size:,} bytes, not the {most:,} of its seal", where=where, hint=PUSH_AGAIN)
    _require_space(most, out)

    def write(temporary: Path) -> None:
        found = place.fetch(piece.name, temporary, most)
        if not found.startswith(piece.sha256):
            raise CorruptPart("is not what was sealed: its SHA-256 differs", where=where, hint=PUSH_AGAIN)

    store.commit(out / piece.name, write, replace=True)


def _require_space(size: int, out: Path) -> None:
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if size > free:
        raise DataError(f"the next file has {size:,} bytes, {free:,} are free", where=out, hint="free some space")


def _is_there(file: Path, piece: Piece) -> bool:
    if not file.is_file() or piece.size not in (None, file.stat().st_size):
        return False
    return sha256_of(file).startswith(piece.sha256)


def _refuse_itself(cache: Path, other: Path) -> None:
    mine, theirs = cache.resolve(), other.resolve()
    if mine == theirs or mine in theirs.parents or theirs in mine.parents:
        raise UsageError(
            "a cache cannot be copied onto itself or into itself", where=other, hint="give another address"
        )


def _refuse_another(mine: Pieces, place: Place, url: str) -> None:
    """Refuse to write over a cache of other samples. One whose ``cache.json`` is damaged is known by its samples."""
    content = place.read(RECORD, MOST_RECORD)
    if content is None:
        return
    try:
        theirs = store.parse_json(content, f"{url}/{RECORD}")
    except L2DError as error:
        seal = schema.seal_file(schema.samples_part(Path(), 0)).as_posix()
        if place.read(seal, MOST_RECORD) != next(piece.content for piece in mine.records if piece.name == seal):
            raise DataError(
                f"what is there cannot be read, so it may be another cache: {error.what}",
                where=f"{url}/{RECORD}",
                hint="push to another address, or delete that one",
            ) from error
        return
    if theirs.get("fingerprint") != mine.record.fingerprint:
        raise DataError("another cache is there", where=url, hint="push to another address, or delete that one")


def _refuse_other_folder(theirs: Pieces, out: Path) -> None:
    """Refuse to write into a folder that holds something else."""
    if out.is_file():
        raise UsageError("this is a file", where=out, hint="give a folder as --out")
    here = Folder(out)
    content = here.read(RECORD, MOST_RECORD)
    if content is None:
        names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
        begun = _TOP | {PurePosixPath(piece.name).parts[0] for piece in theirs.parts}
        strange = [name for name in names if name not in begun and not name.endswith(TEMPORARY_SUFFIX)]
        if strange:
            raise DataError(
                f"this folder holds something else: {strange[0]}", where=out, hint="give a new or an empty folder"
            )
        return
    try:
        fingerprint = store.parse_json(content, out / RECORD).get("fingerprint")
    except L2DError:  # a damaged record is known by its samples
        seal = schema.seal_file(schema.samples_part(Path(), 0)).as_posix()
        there = next(piece.content for piece in theirs.records if piece.name == seal)
        fingerprint = theirs.record.fingerprint if here.read(seal, MOST_RECORD) == there else None
    if fingerprint != theirs.record.fingerprint:
        raise DataError("this folder holds another cache", where=out, hint="give another --out")


_TOP = {RECORD, NAME, "samples", "samples.seal.json", "agents", SIGNATURE}
