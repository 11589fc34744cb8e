"""Which texts are addresses of stores, and which are paths."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

_LOCAL = ("file://", "local://")


def is_address(path: object) -> bool:
    """Whether this is an address such as ``s3://bucket/x``, of a store rather than a folder of this machine."""
    return isinstance(path, str) and "://" in path and not path.startswith(_LOCAL)


def local_path(path: Path | str) -> Path:
    """The path that is given, as one or as an address such as ``file:///mnt/x``."""
    if isinstance(path, str) and path.startswith(_LOCAL):
        return Path(unquote(path.partition("://")[2]))
    return Path(path)


def place_of(path: Path | str) -> Path | str:
    """An address as it is, anything else as a path."""
    return str(path).rstrip("/") if is_address(path) else local_path(path)
