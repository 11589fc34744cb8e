"""Reading a whole cache back: every byte against the seals, then what its rows hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from l2d.data.cache import schema
from l2d.data.cache.integrity import REBUILD_HINT, sha256_of
from l2d.data.errors import CorruptPart

if TYPE_CHECKING:
    from l2d.data.cache.reader import CostCache

AT_ONCE = 16  # parts of a cache in a store that are verified at the same time


def verify(cache: CostCache) -> int:
    """Read every part back, compare it with its seal byte by byte, and check what its rows hold.

    Returns the number of parts. What rows must satisfy is in :mod:`l2d.data.cache.contents`.

    Raises:
        IncompleteCache: parts or seals are missing.
        CorruptPart: names the first file that is not what was written.
    """
    from l2d.data.cache.contents import Contents  # pyarrow's functions, which take a while to import

    parts, contents, path = verify_files(cache), Contents(cache.record), cache.path
    names = [agent.name for agent in cache.all_agents]
    for chunk, (samples, predictions, costs) in enumerate(cache.chunks(names)):
        contents.check_samples(samples, schema.samples_part(path, chunk))
        for name, predicted, cost in zip(names, predictions, costs, strict=True):
            assert predicted is not None  # all are read
            contents.check_predictions(predicted, schema.predictions_part(path, name, chunk))
            contents.check_costs(cost, schema.costs_part(path, name, chunk, cache.record.cost_digest))
    contents.check_ids(schema.samples_part(path, 0).parent)
    for agent in cache.all_agents:
        frozen = agent.fingerprint.get("frozen")
        file = cache.file(schema.frozen_file(path, agent.name))
        if frozen is not None and (not file.is_file() or sha256_of(file)[:16] != frozen):
            raise CorruptPart("is not what the agent froze", where=file, hint="restore it from a copy")
    return len(parts)


def verify_files(cache: CostCache) -> list[Path]:
    """Compare every part with its seal byte by byte, without decoding any. Returns the parts.

    Of a cache in a store what is there is read again, whatever has been copied before.

    Raises:
        IncompleteCache: parts or seals are missing.
        CorruptPart: names the first part that is not what was written.
    """
    cache.require_complete()
    parts, mirror = cache.parts(), cache.mirror
    if mirror is not None:
        for start in range(0, len(parts), AT_ONCE):
            some = parts[start : start + AT_ONCE]
            for part in some:
                mirror.drop(part)
            mirror.bring([(part, None) for part in some])  # compares each as it arrives
        return parts
    for file in cache.text_files:
        if sha256_of(file) != cache.record.inputs["features"]["frozen"]:
            raise CorruptPart("is not what was fitted", where=file, hint="restore it, or build again: that fits it")
    for part in parts:
        sealed = cache.sealed(part)
        if sealed is None or sha256_of(part) != sealed["sha256"]:
            raise CorruptPart("is not the file that was sealed", where=part, hint=REBUILD_HINT)
    return parts
