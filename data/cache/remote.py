"""Caches on object stores and other file systems that fsspec knows: pushed as they are, fetched to be used.

A cache is trained on from a local copy: its pages are mapped, not downloaded anew in every epoch. What is copied are
its own files under their own names, so any reader of Parquet can also read them there. ``cache.json`` comes last, both
ways: a copy without it is no cache yet, and the same command goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from l2d.data.cache import store
from l2d.data.cache.reader import CostCache
from l2d.data.cache.schema import cache_file
from l2d.data.errors import DataError, UsageError

Progress = Callable[[int], None]
SEAL = ".seal.json"


def push(cache: CostCache, url: str, progress: Progress | None = None) -> int:
    """Copy a complete cache to ``url``, checking every byte of it against its seals on the way.

    Folders whose seal is there already are left alone: a seal is written after the parts that it describes.

    Args:
        url: such as ``s3://bucket/caches/support2``; of any file system whose fsspec driver is installed.
        progress: told of files done.

    Returns:
        Number of files copied.

    Raises:
        IncompleteCache, CorruptPart: the cache is not whole.
        DataError: a cache of other samples is at ``url``, or it cannot be written.
        UsageError: no driver is installed for such addresses.
    """
    cache.verify()
    system, root = _open(url)
    files = [path for path in sorted(cache.path.rglob("*")) if path.is_file() and not _is_temporary(path)]
    last, copied = cache_file(cache.path), 0
    try:
        there = f"{root}/{last.name}"
        if system.exists(there) and json.loads(system.cat_file(there)).get("fingerprint") != _fingerprint(last):
            raise DataError("another cache is there", where=url, hint="push to another address, or delete that one")
        seals = [path for path in files if path.name.endswith(SEAL)]
        done = {_folder_of(seal) for seal in seals if _is_same(system, seal, cache.path, root)}
        for path in sorted(files, key=lambda path: (path == last, path in seals, path)):
            if path.parent not in done and _folder_of(path) not in done:
                system.pipe_file(f"{root}/{path.relative_to(cache.path).as_posix()}", path.read_bytes())
                copied += 1
            if progress:
                progress(1)
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"cannot write: {error}", where=url, hint="the same command goes on from here") from error
    return copied


def fetch(url: str, out: Path, progress: Progress | None = None) -> CostCache:
    """Copy the cache at ``url`` to a local folder and read everything back. The same call resumes.

    Args:
        url: where :func:`push` has put it.
        out: a folder; new, empty, or begun by an earlier call.
        progress: told of files done.

    Raises:
        DataError: there is no cache at ``url``, or another one in ``out``.
        CorruptPart: what has arrived is not what was sealed; the message names the file.
        UsageError: no driver is installed for such addresses.
    """
    system, root = _open(url)
    try:
        if not system.exists(f"{root}/cache.json"):
            raise DataError("there is no cost cache", where=url, hint="l2d push CACHE URL puts one there")
        record = system.cat_file(f"{root}/cache.json")
        if cache_file(out).is_file() and cache_file(out).read_bytes() != record:
            raise DataError("this folder holds another cache", where=out, hint="give another --out")
        names = [PurePosixPath(name).relative_to(PurePosixPath(root)) for name in system.find(root)]
        for name in sorted(names, key=lambda name: (str(name) == "cache.json", name)):
            if not (out / name).is_file():
                store.commit_bytes(out / name, system.cat_file(f"{root}/{name}"))
            if progress:
                progress(1)
    except FileNotFoundError as error:
        raise DataError(f"has changed meanwhile: {error}", where=url, hint="the same command goes on") from error
    except OSError as error:
        raise DataError(f"cannot be read: {error}", where=url, hint="the same command goes on from here") from error
    cache = CostCache(out)
    cache.verify()
    return cache


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:  # an unknown protocol; a driver that is not installed
        raise UsageError(str(error).splitlines()[0], where=url, hint="pip install s3fs, gcsfs, adlfs …") from error
    return system, root.rstrip("/")


def _fingerprint(file: Path) -> dict:
    return json.loads(file.read_bytes())["fingerprint"]


def _is_same(system: Any, seal: Path, cache: Path, root: str) -> bool:
    name = f"{root}/{seal.relative_to(cache).as_posix()}"
    return system.exists(name) and system.cat_file(name) == seal.read_bytes()


def _folder_of(seal: Path) -> Path:
    return seal.parent / seal.name.removesuffix(SEAL)


def _is_temporary(path: Path) -> bool:
    return path.name.endswith(store.TEMPORARY_SUFFIX)
