"""New inputs, without labels, batch by batch: rows of a Parquet or CSV file, or the samples of a cost cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from l2d.data.cache import schema
from l2d.data.cache.columns import gaps, text_of_series
from l2d.data.cache.reader import CostCache
from l2d.data.errors import CorruptPart, DataError, FingerprintMismatch, UsageError
from l2d.data.samples.expressions import columns_of, evaluate
from l2d.data.samples.features import FeatureEncoder
from l2d.data.samples.images import image_files, thumbnail
from l2d.data.samples.stream import FileStream
from l2d.data.samples.token_columns import TokenEncoder
from l2d.rejector.rows.input import RejectorInput, pixels_of
from l2d.rejector.rows.pictures import with_pictures
from l2d.rejector.settings import INPUT_HINT

#: Sample ids (strings), features float32 (batch, width), which agents can be asked, bool (batch, agents), None: all.
Batches = Iterator[tuple[pa.Array, np.ndarray, np.ndarray | None]]


@dataclass(frozen=True, kw_only=True)
class InputRecord:
    """What a rejector looks at and how its cache made that. Kept in ``run.json``: a run routes without its cache.

    Attributes:
        column: ``features``, ``tokens`` or ``image``.
        made: what ``CacheRecord.inputs`` says of it: the fitted encoder, or which agent's features it is, or the size.
        id: SQL expression of a sample's id over the columns of the source, where that is a table.
        shown_by: fingerprint of the agent whose features it is, without what it says of the dataset.
        text: the file of what text features were fitted to, beside the record that names it; None without any.
    """

    column: str
    made: dict[str, Any]
    id: str | None = None
    shown_by: dict[str, Any] | None = None
    text: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """As ``run.json`` has it."""
        return {name: value for name, value in vars(self).items() if name in self.__annotations__ and name != "text"}

    @classmethod
    def of(cls, cache: CostCache, column: str) -> InputRecord:
        """The record of a column of a cache.

        Raises:
            UsageError: the cache has no such input.
        """
        if column not in cache.record.inputs:
            there = [name for name in schema.INPUT_COLUMNS if name in cache.record.inputs]
            raise UsageError(
                f"this cache has no {column} to look at; it has {', '.join(there)}",
                where=cache.address,
                hint=INPUT_HINT,
            )
        made, shown_by = cache.record.inputs[column], None
        if made.get("agent") is not None:
            fingerprint = cache.agent(made["agent"]).fingerprint
            of_dataset = ("dataset.", "column ")  # what the agent may have read
            shown_by = {name: value for name, value in fingerprint.items() if not name.startswith(of_dataset)}
        text = schema.text_file(cache.path, made)
        return cls(
            column=column, made=made, id=cache.record.fingerprint.get("dataset.id"), shown_by=shown_by, text=text
        )

    @cached_property
    def encoder(self) -> FeatureEncoder | TokenEncoder | None:
        """The fitted encoder of a table's columns; None where features come from elsewhere."""
        damaged = (CorruptPart, FileNotFoundError)
        try:
            if self.column == "tokens":
                return TokenEncoder.from_json(self.made)
            if "encoder" not in self.made:
                return None
            return FeatureEncoder.from_json(self.made, None if self.text is None else self.text.read_bytes())
        except damaged as error:
            there = self.text is not None and self.text.is_file()
            raise CorruptPart(
                "is not the vocabulary that was fitted" if there else "is not there",
                where=self.text,
                hint="restore it from a copy, or build and train again",
            ) from error
        except Exception as error:  # fields of another version, or a stranger's, raise all kinds
            raise CorruptPart(
                f"says what cannot be of how {self.column} are made: {type(error).__name__}: {error}",
                where="the record of the run or cache",
                hint="restore it from a copy, or build and train again",
            ) from error

    def differences(self, other: InputRecord) -> dict[str, tuple[object, object]]:
        """Fields in which inputs made as ``other`` says mean something else: name -> (ours, theirs), long ones as
        digests."""
        ours, theirs = ({**r.made, **{f"agent {k}": v for k, v in (r.shown_by or {}).items()}} for r in (self, other))
        of_file = ("columns", "reading", "file")
        names = [name for name in {**ours, **theirs} if name not in of_file and ours.get(name) != theirs.get(name)]
        return {name: (_short(ours.get(name)), _short(theirs.get(name))) for name in names}


def _short(value: object) -> object:
    return schema.digest(value) if isinstance(value, list | dict) else value


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Inputs about to be read.

    Attributes:
        ids: what the sample ids are, for people.
        samples: how many there are, or None where the whole file would have to be read to know.
        batches: sample ids, features, and which agents can be asked, as far as a cache has that on record.
    """

    ids: str
    samples: int | None
    batches: Batches


def open_inputs(
    path: Path | str,
    record: InputRecord,
    width: int,
    *,
    rows_at_once: int,
    id_column: str | None = None,
    unseen: np.ndarray | None = None,
    agents: Sequence[str] = (),
    failures: str = "refuse",
    images: Path | None = None,
) -> Inputs:
    """Open a file or cache, and check that it has what the rejector looks at.

    A file has the columns of the table that the rejector's cache was made of, read by the same rules; or a column
    ``features`` (lists of ``width`` numbers) or ``image`` (files of the cached size) as they stand in a cache. Token
    lists are the table's columns or, where a dataset has made them itself, lists of codes in columns of the fields'
    names; a code that training has not seen is ``<unk>``.

    Args:
        path: a Parquet or CSV file, or the folder of a cost cache, or its address in a store.
        record: what the rejector looks at.
        width: numbers a sample.
        rows_at_once: of a batch, at most.
        id_column: whose values are sample ids; else they are what they were in the cache if the file has these
            columns, else row numbers from 0.
        unseen: features, (width,), of samples of a cache on which the agent that shows them failed; without, such
            samples are refused.
        images: a folder with the image files of a cache, for a rejector on pixels.

    Raises:
        DataError: the file cannot be read, lacks a column or has it of another type, or a value cannot be used. What
            is wrong in a batch is raised when it is read.
        FingerprintMismatch: the inputs of the cache were made otherwise, and so mean something else.
        UsageError: ``id_column`` is not there, or the cache has no such input.
    """
    if isinstance(path, str) or path.is_dir():
        if id_column is not None:
            raise UsageError(f"--id {id_column}: a cache knows its samples' ids", where=path, hint="leave it out")
        cache = CostCache(path)
        if images is not None:
            cache = with_pictures(cache, images, record.made["size"])
        changes = record.differences(InputRecord.of(cache, record.column))
        if changes:
            raise FingerprintMismatch(
                f"the rejector's input, {record.column},",
                changes,
                where=path,
                hint="they mean something else: route the source's table, or features made as in training",
            )
        batches = _cache_batches(cache, record, width, rows_at_once, unseen, _Answering(cache, agents, failures))
        return Inputs(ids="those of the cache", samples=cache.record.num_samples, batches=batches)
    encoder = record.encoder
    stream = FileStream(path, encoder.columns, **encoder.reading) if encoder else FileStream(path, {})
    needed, read = reader_of(stream.schema, record, width, stream.path)
    expression = _id_expression(stream, record, id_column)
    needed = list(dict.fromkeys([*needed, *(columns_of(expression) if expression else [])]))
    batches = _file_batches(stream, needed, expression, read, rows_at_once)
    return Inputs(ids=expression or "row numbers", samples=stream.rows, batches=batches)


# --- files ------------------------------------------------------------------------------------------------------------

Read = Callable[[pl.DataFrame, int], np.ndarray]  # a frame and the number of its first row -> float32 (rows, width)


def reader_of(there: Mapping[str, Any], record: InputRecord, width: int, where: Path | str) -> tuple[list[str], Read]:
    """Which columns are needed, and how they become features.

    Args:
        there: columns -> their types.
        record: what the rejector looks at.
        width: numbers a sample.
        where: the file, for messages; images that a table names lie beside it.

    Raises:
        DataError: a column is not there.
    """
    encoder = record.encoder
    if record.column == "image":
        named = record.made.get("file")
        if named is not None and there.get("image") != pl.Binary and set(columns_of(named)) <= set(there):
            size, folder = record.made["size"], Path(where).parent
            return columns_of(named), lambda frame, first_row: _small_pixels(frame, first_row, named, size, folder)
        if there.get("image") != pl.Binary:
            found = f"is of type {there['image']}" if "image" in there else "is not there"
            raise DataError(
                f"column 'image' {found}; this rejector looks at images",
                where=where,
                hint="give a Parquet file with encoded images (PNG or JPEG) in a binary column `image`, or a cache",
            )
        return ["image"], lambda frame, first_row: _pixels(frame, first_row, width, where)
    if record.column == "tokens":
        for name in encoder.needed:
            if name not in there:
                raise DataError(
                    f"there is no column {name!r}, which the rejector's token lists are made of",
                    where=where,
                    hint=f"the columns are {', '.join(there)}",
                )
        return encoder.needed, encoder.transform
    columns = list(encoder.columns) if encoder else []
    if encoder and not columns:  # a cache of before their types were kept
        columns = list(dict.fromkeys(name for f in encoder.features for name in columns_of(f.expression)))
    ready = isinstance(there.get("features"), pl.List | pl.Array) and there["features"].inner.is_numeric()
    if ready and "features" not in columns:
        return ["features"], lambda frame, first_row: _dense(frame, first_row, width, where, None)
    if encoder is None:
        shown = record.made.get("agent")
        raise DataError(
            "there is no column `features` of lists of numbers",
            where=where,
            hint=f"the rejector looks at {width} features"
            + (f" that agent {shown!r} shows of itself" if shown else ""),
        )
    for name in columns:
        if name not in there:
            feature = next(f for f in encoder.features if name in columns_of(f.expression))
            raise DataError(
                f"there is no column {name!r}, which feature {feature.expression!r} needs",
                where=where,
                hint=f"the columns are {', '.join(there)}",
            )
    return columns, encoder.transform


def _id_expression(stream: FileStream, record: InputRecord, id_column: str | None) -> str | None:
    if id_column is None:
        known = columns_of(record.id) if record.id else []
        return record.id if known and set(known) <= set(stream.schema) else None
    if id_column not in stream.schema:
        raise UsageError(
            f"--id {id_column}: there is no such column",
            where=stream.path,
            hint=f"the columns are {', '.join(stream.schema)}",
        )
    return '"' + id_column.replace('"', '""') + '"'


def _file_batches(
    stream: FileStream, columns: list[str], id_expression: str | None, read: Read, rows_at_once: int
) -> Batches:
    first_row = 0
    for frame in stream.frames(columns or list(stream.schema)[:1], rows_at_once):
        try:
            features = read(frame, first_row)
            if id_expression is None:
                numbers = pl.Series(np.arange(first_row, first_row + frame.height))
                ids = text_of_series(numbers.cast(pl.String))
            else:
                ids = text_of_series(evaluate(frame, id_expression, pl.String))
        except DataError as error:
            raise DataError(error.what, where=error.where or stream.path, hint=error.hint) from error
        if ids.null_count:
            row = first_row + ids.is_null().index(True).as_py()
            raise DataError(f"row {row} has no id ({id_expression})", where=stream.path, hint="or give another --id")
        yield ids, features, None
        first_row += frame.height


def _dense(frame: pl.DataFrame, first_row: int, width: int, where: object, unseen: np.ndarray | None) -> np.ndarray:
    """Features that stand in the file as lists of numbers."""
    column = frame["features"]
    lengths = column.list.len() if isinstance(column.dtype, pl.List) else column.arr.len()
    missing, wrong = column.is_null().to_numpy(), (lengths != width).fill_null(False).to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"row {first_row + row} has {lengths[row]} features, the rejector looks at {width}",
            where=where,
            hint="features have to be those of the cache that it was trained on",
        )
    if missing.any() and unseen is None:
        raise DataError(
            f"row {first_row + int(missing.argmax())} has no features",
            where=where,
            hint="leave it out; in a cache: the agent that shows them failed, ask it again with --retry-failures",
        )
    matrix = np.empty((frame.height, width), np.float32)
    matrix[missing] = 0 if unseen is None else unseen
    if not missing.all():
        matrix[~missing] = column.drop_nulls().cast(pl.Array(pl.Float32, width)).to_numpy()
    finite = np.isfinite(matrix)
    if not finite.all():
        row, feature = np.argwhere(~finite)[0]
        raise DataError(
            f"feature {feature} of row {first_row + row} is {matrix[row, feature]}",
            where=where,
            hint="features are finite numbers, in 32 bits",
        )
    return matrix


def _small_pixels(frame: pl.DataFrame, first_row: int, named: str, size: int, folder: Path) -> np.ndarray:
    """Image files that a table names, made as small as those that the cache keeps, as pixels in [0, 1]."""
    files = image_files(evaluate(frame, named, pl.String), folder, first_row)
    with ThreadPoolExecutor() as pool:
        small = list(pool.map(partial(thumbnail, size=size), files))
    return pixels_of(pa.array(small, pa.binary()))


def _pixels(frame: pl.DataFrame, first_row: int, width: int, where: object) -> np.ndarray:
    """Encoded images of the size that the rejector looks at, as pixels in [0, 1]."""
    files, pixels = frame["image"].to_arrow(), np.empty((frame.height, width), np.float32)
    for row in range(frame.height):  # one by one, so that the message names the row
        try:
            found = pixels_of(files[row : row + 1])
        except DataError as error:
            raise DataError(f"the image of row {first_row + row} {error.what}", where=where, hint=error.hint) from error
        if found.shape[1] != width:
            raise DataError(
                f"the image of row {first_row + row} has {found.shape[1] // 3} pixels, not {width // 3}",
                where=where,
                hint="the rejector looks at small images as data.images.thumbnail makes them for the cache",
            )
        pixels[row] = found[0]
    return pixels


# --- caches -----------------------------------------------------------------------------------------------------------


class _Answering:
    """Which agents have answers in a cache, recorded as :class:`l2d.rejector.rows.input.Missing` does."""

    def __init__(self, cache: CostCache, agents: Sequence[str], failures: str):
        known = {agent.name: agent for agent in cache.all_agents}
        self.cache, self.agents = cache, agents
        self.looked_at = [name for name in agents if name in known and (known[name].partial or failures != "worst")]

    def __call__(self, chunk: int, rows: int) -> np.ndarray | None:
        """Of a chunk, bool (rows, agents); None where everybody has an answer."""
        there = np.ones((rows, len(self.agents)), dtype=bool)
        for name in self.looked_at:
            if self.cache.has(schema.predictions_part(self.cache.path, name, chunk)):
                reasons = self.cache.predictions(name, chunk, ["failure"])["failure"]
                there[:, self.agents.index(name)] = gaps(reasons)
        return None if there.all() else there


def _cache_batches(
    cache: CostCache,
    record: InputRecord,
    width: int,
    rows_at_once: int,
    unseen: np.ndarray | None,
    answering: _Answering,
) -> Batches:
    """All samples of a cache, whatever has been asked of agents. Only the parts that hold the input are needed."""
    first_row, agent = 0, record.made.get("agent")
    looks_at = RejectorInput.of(cache, record.column)
    for chunk in range(cache.record.num_chunks):
        columns = ["sample_id", *looks_at.columns]
        table = cache.samples(chunk, columns) if agent is None else cache.predictions(agent, chunk, columns)
        if agent is not None and record.column not in table.column_names:  # the agent failed on all of the chunk
            table = table.append_column(record.column, pa.nulls(len(table), schema.dense(width)))
        there = answering(chunk, len(table))
        for start in range(0, len(table), rows_at_once):
            part = table.slice(start, rows_at_once)
            frame = pl.from_arrow(part.select(looks_at.columns))
            if record.column == "tokens" or looks_at.pictures is not None:
                features = looks_at.rows({name: part[name] for name in looks_at.columns}, len(part))
            elif record.column == "image":
                features = _pixels(frame, first_row, width, cache.path)
            else:
                features = _dense(frame, first_row, width, cache.path, unseen)
            yield part["sample_id"].combine_chunks(), features, None if there is None else there[start:][: len(part)]
            first_row += len(part)
