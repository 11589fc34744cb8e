"""The files that make up a complete cache, as its own records imply them: nothing is listed, so nothing can be added.

``cache.json`` names the agents, the number of samples and the chunk size; with these the names of all parts and seals
are computed (:mod:`l2d.data.cache.schema`), and the seals give every part's size and SHA-256. A name that a stranger's
store holds beside these is never looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from l2d.data.cache import schema, store
from l2d.data.cache.records import AgentRecord, CacheRecord, checked, checked_seal
from l2d.data.errors import CorruptPart, FingerprintMismatch, IncompleteCache

MOST_RECORD = 256 << 20  # bytes of a JSON file: vocabularies lie in cache.json, and a seal has 250 bytes for each part
SIGNATURE = "signature.sshsig"  # which a cache may have, see data/cache/signature.py
MOST_SIGNATURE = 64 << 10
_HERE = Path()


@dataclass(frozen=True)
class Piece:
    """A file of a cache: its name, and what is known of it before it is there.

    Attributes:
        size: in bytes; None where only the digest is on record: what an agent froze, what text features were fitted to.
        sha256: its digest, or the digest's first letters.
        content: of a JSON file, which has been read already.
        skeleton: of a part, see :func:`l2d.data.cache.integrity.skeleton_digest`.
    """

    name: str
    size: int | None
    sha256: str
    content: bytes | None = None
    skeleton: str | None = None


@dataclass(frozen=True)
class Pieces:
    """All files of a cache in the order in which they are copied: ``cache.json`` last, so that a copy is whole or none.

    Attributes:
        record: ``cache.json``.
        parts: parts, what agents froze, and what text features were fitted to.
        records: seals, ``agent.json`` of each agent, a signature if there is one, ``cache.json``.
    """

    record: CacheRecord
    parts: list[Piece]
    records: list[Piece]


def read_pieces(read: Callable[[str, int], bytes | None], where: str) -> Pieces:
    """The files of the cache whose JSON files ``read`` gives.

    Args:
        read: name and most bytes -> content; None if there is no such file.
        where: named in errors.

    Raises:
        IncompleteCache: a record or seal is missing.
        CorruptPart: one is damaged, or says what cannot be.
        FingerprintMismatch: another schema version.
    """

    def read_record(path: Path) -> tuple[dict, Piece]:
        name = path.as_posix()
        content = read(name, MOST_RECORD)
        if content is None:
            raise IncompleteCache(
                "the cache is not complete: this file is missing", where=f"{where}/{name}", hint="push it there again"
            )
        return store.parse_json(content, f"{where}/{name}"), Piece(
            name, len(content), hashlib.sha256(content).hexdigest(), content
        )

    value, cache_piece = read_record(schema.cache_file(_HERE))
    if value.get("schema_version") != schema.SCHEMA_VERSION:
        raise FingerprintMismatch(
            "the schema",
            {"schema_version": (value.get("schema_version"), schema.SCHEMA_VERSION)},
            where=where,
            hint="build the cache again with this version of l2d and push it",
        )
    record = checked(CacheRecord, value, f"{where}/{cache_piece.name}")
    parts: list[Piece] = []
    seals: list[Piece] = []
    agents: list[Piece] = []

    def add_sealed(first: Path) -> None:
        value, piece = read_record(schema.seal_file(first))
        seals.append(piece)
        sealed = checked_seal(value.get("parts"), record, f"{where}/{piece.name}")
        folder = first.parent.as_posix()
        for name, part in sorted(sealed.items()):
            parts.append(Piece(f"{folder}/{name}", part["bytes"], part["sha256"], skeleton=part["skeleton"]))

    made = record.inputs.get("features", {})
    text = schema.text_file(_HERE, made)
    if text is not None:
        parts.append(Piece(text.as_posix(), None, made["frozen"]))
    add_sealed(schema.samples_part(_HERE, 0))
    for position, name in enumerate(record.agents):
        value, piece = read_record(schema.agent_file(_HERE, name))
        agent = checked(AgentRecord, value, f"{where}/{piece.name}")
        if (agent.name, agent.index) != (name, position):
            raise CorruptPart(f"is the record of agent {agent.index}, {agent.name!r}", where=f"{where}/{piece.name}")
        agents.append(piece)
        add_sealed(schema.predictions_part(_HERE, name, 0))
        add_sealed(schema.costs_part(_HERE, name, 0, record.cost_digest))
        if "frozen" in agent.fingerprint:
            parts.append(Piece(schema.frozen_file(_HERE, name).as_posix(), None, agent.fingerprint["frozen"]))
    signed = read(SIGNATURE, MOST_SIGNATURE)
    signature = [] if signed is None else [Piece(SIGNATURE, len(signed), _sha256(signed), signed)]
    return Pieces(record, parts, [*seals, *agents, *signature, cache_piece])


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
