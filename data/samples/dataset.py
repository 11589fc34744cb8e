"""What stage one works on: samples in a fixed order with targets, rejector inputs and the source's columns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from l2d.data.cache import schema
from l2d.data.cache.columns import text_of_series, texts_column
from l2d.data.cache.integrity import sha256_of
from l2d.data.errors import CorruptPart, DataError
from l2d.data.samples.boxes import Boxes
from l2d.data.samples.column_file import ColumnFile, Table
from l2d.data.samples.digests import Lazy, column_digest
from l2d.data.samples.encoded_columns import EncodedColumns
from l2d.data.samples.split_names import Splits
from l2d.data.samples.texts import Texts, any_twice
from l2d.data.samples.tokens import FIELD_NAME, Tokens

ROWS_AT_ONCE = 1 << 18  # of ids and splits that are a column of text at a time


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Consecutive samples handed to an agent.

    The targets are there for simulated experts, whose competence is defined by the truth; a real
    agent has no business reading them. ``answers`` holds the cached answers of the agents named in
    :attr:`Agent.needs`, as Parquet columns.
    """

    rows: range  # their positions in the dataset
    dataset: Dataset
    target_cla: np.ndarray | None  # int32 (batch,)
    target_reg: np.ndarray | None  # float32 (batch,)
    target_boxes: Boxes | None
    target_text: pl.Series | None  # lists of texts (batch,)
    images: list[Path] | None  # image files; width and height in pixels are columns
    answers: dict[str, Any]
    tokens: dict[str, Tokens] | None = None  # token lists by field
    pixels: np.ndarray | None = None  # uint8 RGB (batch, 3, height, width), where images are no files of their own

    @cached_property
    def ids(self) -> list[str]:
        """Ids of the samples."""
        return list(self.dataset.ids[self.rows.start : self.rows.stop])

    @cached_property
    def features(self) -> np.ndarray | None:
        """Features, float32 (batch, width)."""
        found = self.dataset.features
        return None if found is None else found[self.rows.start : self.rows.stop]

    @cached_property
    def columns(self) -> pl.DataFrame:
        """The source's columns, and ``cluster``."""
        return self.dataset.columns[self.rows.start : self.rows.stop]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """All samples of a dataset.

    Raises:
        DataError: ids repeat, or a target is missing or not finite.
    """

    name: str
    ids: Sequence[str]
    split: np.ndarray | Splits  # (n,) of "train", "validation", "test"; held as Splits
    #: Inputs of the rejector that are known before any agent is asked, float32 (n, width); see `matrix`.
    features: np.ndarray | EncodedColumns | None
    columns: Table
    frozen: bytes | None = None  # arrays that the fitted encoder of the features consists of, as safetensors
    target_cla: np.ndarray | None = None  # int32 (n,): index into classes
    target_reg: np.ndarray | None = None  # float32 (n,)
    target_boxes: Boxes | None = None  # n images
    target_text: pl.Series | None = None  # lists of texts (n,), the true answers of each question
    images: tuple[Path, ...] | None = None  # an image file a sample; `columns` has their width and height
    pixels: np.ndarray | None = None  # uint8 RGB (n, 3, side, side), where the images are no files of their own
    tokens: dict[str, Tokens] | None = None  # by field; data.tokens.token_inputs says what `inputs` holds of them
    image_size: int | None = None  # side in pixels of the small images that are cached for a convolutional rejector
    fit: Dataset | None = None  # samples for agents that still have to be fitted; the training split if None
    classes: tuple[str, ...]
    keep: tuple[str, ...]  # columns that go into the cache for SQL
    inputs: dict[str, Any]
    config: dict[str, Any]  # what made it, part of the fingerprint
    unit_reg: str = ""  # what target_reg is measured in, for people

    def __post_init__(self):
        object.__setattr__(self, "split", Splits.of(self.split))
        if not self.ids:
            raise DataError("the dataset has no samples", where=self.name, hint="check the path and `where`")
        first: dict[str, int] = {}
        for position, sample_id in enumerate(self.ids if _repeat(self.ids) else ()):
            if sample_id in first:
                raise DataError(
                    f"sample id {sample_id!r} stands at rows {first[sample_id]} and {position}",
                    where=self.name,
                    hint="every sample needs an id of its own: name another column as `id`",
                )
            first[sample_id] = position
        if self.target_reg is not None and not np.isfinite(self.target_reg).all():
            sample = self.ids[int(np.flatnonzero(~np.isfinite(self.target_reg))[0])]
            raise DataError(
                f"sample {sample!r} has no finite target_reg", where=self.name, hint="filter it with `where`"
            )
        for name, lists in (self.tokens or {}).items():
            if not FIELD_NAME.fullmatch(name):
                raise DataError(
                    f"token lists called {name!r}", where=self.name, hint="letters, digits and _, no digit first"
                )
            if len(lists) != len(self.ids):
                raise DataError(
                    f"{len(lists)} token lists {name!r} for {len(self.ids)} samples",
                    where=self.name,
                    hint="every sample has a list of every field; it may be empty",
                )
        if all(one is None for one in (self.target_cla, self.target_reg, self.target_boxes, self.target_text)):
            hint = "give one or more of target_cla, target_reg and target_text"
            raise DataError("there is no target", where=self.name, hint=hint)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def width(self) -> int:
        """How many features a sample has."""
        return 0 if self.features is None else self.features.shape[1]

    @property
    def matrix(self) -> np.ndarray | None:
        """All features in memory, float32 (n, width)."""
        return None if self.features is None else np.asarray(self.features)

    @property
    def train(self) -> np.ndarray:
        """Boolean mask of the training split, (n,)."""
        return self.split == "train"

    def id_column(self, rows: slice) -> pa.Array:
        """Ids as a column of text."""
        ids = self.ids
        return text_of_series(ids.series[rows]) if isinstance(ids, Texts) else texts_column(list(ids[rows]))

    def split_column(self, rows: slice) -> pa.Array:
        """Splits as a column of text."""
        return text_of_series(pl.Series(schema.SPLITS).gather(Splits.of(self.split).codes[rows].astype(np.uint32)))

    def _digest_of(self, column: Callable[[slice], pa.Array]) -> str:
        """Of a column of text, some rows at a time."""
        return schema.ids_digest(column(slice(k, k + ROWS_AT_ONCE)) for k in range(0, len(self), ROWS_AT_ONCE))

    def with_kept_columns(self) -> Dataset:
        """The same without the source's columns but those that go into the cache, so that no table need be held."""
        lean = isinstance(self.columns, ColumnFile)
        return self if lean else replace(self, columns=self.columns.select(list(self.keep)))

    def batch(self, rows: range, answers: dict[str, Any] | None = None) -> Batch:
        """The samples at ``rows``, ready for an agent."""
        part = slice(rows.start, rows.stop)
        return Batch(
            rows=rows,
            dataset=self,
            target_cla=None if self.target_cla is None else self.target_cla[part],
            target_reg=None if self.target_reg is None else self.target_reg[part],
            target_boxes=None if self.target_boxes is None else self.target_boxes[part],
            target_text=None if self.target_text is None else self.target_text[part],
            images=None if self.images is None else list(self.images[part]),
            answers=answers or {},
            pixels=None if self.pixels is None else self.pixels[part],
            tokens=None if self.tokens is None else {name: lists[part] for name, lists in self.tokens.items()},
        )

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Which samples, in which order: with another one, nothing of a cache can be kept."""
        return {"samples": len(self.ids), "ids_and_order": self._digest_of(self.id_column)}

    @cached_property
    def content(self) -> Lazy:
        """Digest of everything else an agent may have looked at; each agent says which of these it reads."""
        found: dict[str, Callable[[], Any]] = {
            "split": lambda: self._digest_of(self.split_column)[:16],
            "target_cla": lambda: _content(self.target_cla),
            "target_reg": lambda: _content(self.target_reg),
            "features": lambda: _content(self.features),
            "classes": lambda: list(self.classes),
        }
        for name in self.columns.columns:
            found[f"column {name}"] = lambda name=name: column_digest(self.columns[name])
        if self.target_boxes is not None:
            found["target_boxes"] = lambda: schema.digest([_content(v) for v in vars(self.target_boxes).values()])
        if self.target_text is not None:
            found["target_text"] = lambda: column_digest(self.target_text)
        if self.tokens is not None:
            found["tokens"] = lambda: schema.digest({name: lists.digest for name, lists in self.tokens.items()})
        if self.pixels is not None:
            found["pixels"] = lambda: _content(self.pixels)
        if self.images is not None:
            found["images"] = lambda: schema.digest(_digests(self.images))
        if self.fit is not None:
            found["fit"] = lambda: schema.digest(dict(self.fit.content))
        return Lazy(found)

    def column_digests(self) -> dict[str, str]:
        """``column NAME`` -> digest, of all columns: for agents that may look at any of them."""
        return {name: self.content[name] for name in self.content if name.startswith("column ")}

    def fingerprint(self) -> dict[str, Any]:
        """Fields that tell this dataset from another: which samples, how they are described, what they hold."""
        kept = {name: self.content[name] for name in self.content if not name.startswith("column ")}
        kept |= {f"column {name}": self.content[f"column {name}"] for name in self.keep}
        return {**{f"dataset.{key}": value for key, value in self.config.items()}, **self.identity, **kept}


def _repeat(ids: Sequence[str]) -> bool:
    return any_twice(ids.series) if isinstance(ids, Texts) else len(set(ids)) < len(ids)


def _digests(files: tuple[Path, ...]) -> list[str]:
    """SHA-256 of each file, read by several threads: for a big folder of images it takes seconds."""

    def digest_of(file: Path) -> str:
        try:
            return sha256_of(file)
        except (FileNotFoundError, CorruptPart) as error:
            raise DataError("cannot be read", where=file, hint="restore it, or leave it out of its set") from error

    with ThreadPoolExecutor() as pool:
        return list(pool.map(digest_of, files))


def _content(values: np.ndarray | EncodedColumns | None) -> str | None:
    if values is None:
        return None
    if not isinstance(values, np.ndarray):
        return values.digest[:16]
    return hashlib.sha256(np.ascontiguousarray(values).reshape(-1).view(np.uint8)).hexdigest()[:16]
