"""Digests of what has been built: the seal of a folder, once its parts are there and read back, and agents' answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from l2d.data.cache import schema, store
from l2d.data.cache.integrity import REBUILD_HINT, sha256_of, skeleton_digest
from l2d.data.cache.mapped import read_back
from l2d.data.errors import CorruptPart


def seal_parts(parts: list[Path], ids_digest: Callable[[int], str]) -> None:
    """Seal a folder that is not sealed yet.

    Args:
        parts: all of the folder, in the order of chunks.
        ids_digest: digest of a chunk's sample ids.

    Raises:
        CorruptPart: a part is damaged, or holds other samples than its chunk.
    """
    file = schema.seal_file(parts[0])
    if file.is_file():
        return
    facts = {}
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda part: (read_back(part), sha256_of(part)), parts)
        for (chunk, part), (header, sha256) in zip(enumerate(parts), found, strict=True):
            if header.facts.get("ids") != ids_digest(chunk):
                raise CorruptPart("holds other samples than its chunk", where=part, hint=REBUILD_HINT)
            facts[part.name] = {
                "rows": header.rows,
                "bytes": os.path.getsize(part),
                "sha256": sha256,
                "skeleton": header.skeleton,
            }
    store.commit_json(file, {"parts": facts})


def answers_digest(out: Path, chunks: range, names: tuple[str, ...]) -> str:
    """Digest of everything that agents built earlier in a recipe have answered."""
    parts = [schema.predictions_part(out, name, chunk) for name in names for chunk in chunks]
    return schema.digest([skeleton_digest(part) for part in parts])
