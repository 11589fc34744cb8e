"""The cost cache on disk: file names, columns and their types.

::

    CACHE/
      cache.json                          what the cache is: dataset fingerprint, tasks, cost table, chunk size
      text-DIGEST.safetensors             vocabulary, weights and directions of text features; absent without any
      samples/00000.parquet               chunk 0: sample_id, split, targets, kept columns, inputs of the rejector
      agents/NAME/agent.json              one agent: index, price, fingerprint
      agents/NAME/frozen.safetensors      what a fitted agent froze (weights); absent for others
      agents/NAME/predictions/00000.parquet       chunk 0: sample_id and this agent's raw predictions
      agents/NAME/costs-DIGEST/00000.parquet      chunk 0: sample_id and raw costs under the cost table DIGEST
      samples.seal.json, agents/NAME/predictions.seal.json, costs-DIGEST.seal.json
                                          rows, SHA-256 and skeleton digest of each part of a folder, once all are there

A predictions part has the columns its agent answers: ``pred_cla`` (int32 class index), ``pred_prob`` (:func:`dense`,
one number a class), ``pred_reg`` (float32), ``pred_text`` (text), ``pred_boxes`` (:data:`BOXES`); and ``failure``, why
there is no answer, or null, which is :data:`NO_ANSWER` where a partial agent is unavailable; where known ``seconds``
and ``paid`` (float64), how long the answer took and what it cost.

Names are computed, never listed. Chunk ``k`` holds the same samples in the same order for every agent. Costs are raw:
``beta`` and ``lambda`` are applied when the table is read. Costs stand apart from predictions so that another cost
table needs no agent, and an agent that arrives later adds a folder and rewrites nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import polars as pl

SCHEMA_VERSION = 1
LONGEST_FOLDER = 160  # letters of an agent's folder; file systems allow 255 bytes
SPLITS = ("train", "validation", "test")

#: The tasks a cost can belong to, in column order. `map` is the joint detection cost; the others are separate.
TASKS = ("cla", "reg", "map", "text")
COST_COLUMNS = {task: f"cost_{task}" for task in TASKS}

#: One list a sample of what was found (``pred_boxes``) or is there (``target_boxes``, score 1), see data.samples.boxes.
BOXES = pa.list_(
    pa.field(
        "item",
        pa.struct(
            [pa.field(name, pa.float64(), False) for name in ("x1", "y1", "x2", "y2", "score")]
            + [pa.field("label", pa.int32(), False)]
            + [pa.field("ignore", pa.bool_(), False), pa.field("crowd", pa.bool_(), False)]
            + [pa.field(name, pa.float64(), False) for name in ("width", "height")]
        ),
        nullable=False,
    )
)

TARGET_BOXES, PRED_BOXES = "target_boxes", "pred_boxes"

#: Inputs of a rejector, by kind. Dense rows are fixed-width so that a page of them is a matrix. Token lists have a
#: column for each field, `tokens_NAME`: indices into the vocabulary that cache.json has under inputs.
TOKENS = pa.list_(pa.field("item", pa.int32(), nullable=False))
IMAGE = pa.binary()  # an encoded image file (JPEG or PNG)


def dense(width: int) -> pa.DataType:
    """The type of a dense input of ``width`` float32 numbers."""
    return pa.list_(pa.field("item", pa.float32(), nullable=False), width)


#: ``failure`` where a partial agent has nothing to say: it is unavailable there, which is no failure.
NO_ANSWER = "no answer"

#: What a rejector can look at. Each is a column of that name, but for tokens: see :func:`token_column`.
INPUT_COLUMNS = ("features", "tokens", "image")
TOKEN_PREFIX = "tokens_"
#: The true answers of a question: a list of texts, empty where it has none.
TEXTS = pa.list_(pa.field("item", pa.string()))
TARGET_TYPES = {"target_cla": pa.int32(), "target_reg": pa.float32(), "target_boxes": BOXES, "target_text": TEXTS}


def token_column(field: str) -> str:
    """The column with the token lists of a field."""
    return TOKEN_PREFIX + field


def cache_file(cache: Path) -> Path:
    return cache / "cache.json"


def text_file(folder: Path, made: Mapping[str, Any]) -> Path | None:
    """What text features were fitted to, in a cache's folder or a run's; None without any.

    Args:
        made: what ``inputs`` of ``cache.json`` says of the features: ``frozen`` is the file's SHA-256.
    """
    return folder / f"text-{made['frozen'][:16]}.safetensors" if "frozen" in made else None


def samples_part(cache: Path, chunk: int) -> Path:
    return cache / "samples" / f"{chunk:05d}.parquet"


def agent_folder(cache: Path, agent: str) -> Path:
    """An agent's folder. Names may hold slashes and letters of any alphabet, which are escaped as in a URL.

    A long one is cut and gets its digest; a dot in front is escaped, so that ``..`` is a name like any other.
    """
    escaped = quote(agent, safe=" ")
    if escaped.startswith("."):
        escaped = "%2E" + escaped[1:]
    if len(escaped) > LONGEST_FOLDER:
        escaped = f"{escaped[:LONGEST_FOLDER]}~{hashlib.sha256(agent.encode()).hexdigest()[:16]}"
    return cache / "agents" / escaped


def agent_file(cache: Path, agent: str) -> Path:
    return agent_folder(cache, agent) / "agent.json"


def frozen_file(cache: Path, agent: str) -> Path:
    return agent_folder(cache, agent) / "frozen.safetensors"


def predictions_part(cache: Path, agent: str, chunk: int) -> Path:
    return agent_folder(cache, agent) / "predictions" / f"{chunk:05d}.parquet"


def costs_part(cache: Path, agent: str, chunk: int, digest: str) -> Path:
    return agent_folder(cache, agent) / f"costs-{digest}" / f"{chunk:05d}.parquet"


def seal_file(part: Path) -> Path:
    """The seal of the folder that a part lies in."""
    return part.parent.with_name(f"{part.parent.name}.seal.json")


def digest(value: object) -> str:
    """SHA-256 (first 16 hex digits) of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def ids_digest(ids: list[str] | pl.Series | pa.Array | Iterator[pa.Array]) -> str:
    """SHA-256 of sample ids in order, in parts or at once: equal digests mean the same samples in the same order."""
    state = hashlib.sha256()
    for part in ids if isinstance(ids, Iterator) else [ids]:
        state.update(ids_bytes(part))
    return state.hexdigest()


def ids_bytes(ids: list[str] | pl.Series | pa.Array) -> np.ndarray:
    """Texts as bytes, each after its length in 4 bytes, so that ("ab", "c") is not ("a", "bc"); uint8."""
    if isinstance(ids, list):
        array = pa.array(ids, pa.large_string())
    else:
        array = (ids if isinstance(ids, pa.Array) else ids.to_arrow()).cast(pa.large_string())
    if not len(array):
        return np.empty(0, dtype=np.uint8)
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    text = np.frombuffer(data or b"", dtype=np.uint8)[ends[0] : ends[-1]]
    sizes = np.diff(ends)
    lengths = sizes.astype("<u4").view(np.uint8).reshape(-1, 4)
    if (sizes == sizes[0]).all():  # as ids often are, and then 20 times as fast
        return np.concatenate([lengths, text.reshape(len(array), sizes[0])], axis=1).ravel()
    starts = ends[:-1] - ends[0] + 4 * np.arange(len(array))  # of the lengths, among the texts before them
    places = (starts[:, None] + np.arange(4)).ravel()
    found = np.empty(len(text) + 4 * len(array), dtype=np.uint8)
    is_text = np.ones(len(found), dtype=bool)
    is_text[places] = False
    found[places] = lengths.ravel()
    found[is_text] = text
    return found
