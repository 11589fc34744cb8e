"""What the tables of a cache must satisfy beyond being the files that were sealed; ``verify`` checks it, row by row.

A cache that ``l2d build`` wrote satisfies all of it. One from elsewhere is only as right as the code that wrote it, and
digests say nothing about that: ids must be unique over all chunks, splits known, classes among the named ones, rows of
features and probabilities as wide as recorded, costs and targets finite. Null stands for a failure or for no answer.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from l2d.data.cache import schema
from l2d.data.cache.records import CacheRecord
from l2d.data.errors import CorruptPart

_HINT = "this cache was not written by l2d build, or by a faulty program: ask where it came from"


class Contents:
    """Checks chunk after chunk, then :meth:`check_ids`. Keeps the ids, and nothing else."""

    def __init__(self, record: CacheRecord):
        self.record = record
        self.ids: list[pa.ChunkedArray] = []

    def check_samples(self, table: pa.Table, where: Path) -> None:
        """Refuse samples whose split, targets or features cannot be.

        Raises:
            CorruptPart: names the part, the column and a value.
        """
        ids = _column(table, "sample_id", where)
        if not (pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)) or ids.null_count:
            raise _wrong("sample_id", "an id is not a text", where)
        self.ids.append(ids.cast(pa.large_string()))
        splits = pc.unique(_column(table, "split", where)).to_pylist()
        if unknown := [split for split in splits if split not in schema.SPLITS]:
            raise _wrong("split", f"{unknown[0]!r} is not one of {', '.join(schema.SPLITS)}", where)
        self._check_class(table, "target_cla", where)
        self._check_finite(table, "target_reg", where)
        if "target_text" in table.column_names:
            if table["target_text"].type != schema.TEXTS or table["target_text"].null_count:
                raise _wrong("target_text", "the true answers are not lists of texts", where)
            if pc.list_flatten(table["target_text"]).null_count:
                raise _wrong("target_text", "a true answer is not a text", where)
        made = self.record.inputs.get("features")
        if made is not None and made.get("agent") is None:  # an agent's own lie in its predictions
            self._check_dense(table, "features", made.get("width"), where)

    def check_ids(self, where: Path) -> None:
        """Refuse an id that is there twice, in whatever chunks.

        Raises:
            CorruptPart: names the folder and an id.
        """
        import polars as pl

        ids = pl.concat([pl.Series(each) for each in self.ids]) if self.ids else pl.Series(dtype=pl.String)
        if ids.n_unique() < len(ids):
            raise _wrong("sample_id", f"{ids.filter(ids.is_duplicated())[0]!r} is there twice", where)

    def check_predictions(self, table: pa.Table, where: Path) -> None:
        """Refuse answers that no agent can give.

        Raises:
            CorruptPart: names the part, the column and a value.
        """
        self._check_class(table, "pred_cla", where)
        self._check_finite(table, "pred_reg", where)
        if "pred_text" in table.column_names and not pa.types.is_string(table["pred_text"].type):
            raise _wrong("pred_text", f"it is of type {table['pred_text'].type}", where)
        if "pred_prob" in table.column_names:
            self._check_dense(table, "pred_prob", len(self.record.classes), where)

    def check_costs(self, table: pa.Table, where: Path) -> None:
        """Refuse costs that are not finite numbers, one for each task.

        Raises:
            CorruptPart: names the part, the column and a value.
        """
        for task in self.record.tasks:
            column = _column(table, schema.COST_COLUMNS[task], where)
            if not pa.types.is_floating(column.type):
                raise _wrong(schema.COST_COLUMNS[task], f"it is of type {column.type}", where)
            self._check_finite(table, schema.COST_COLUMNS[task], where)

    def _check_class(self, table: pa.Table, name: str, where: Path) -> None:
        if name not in table.column_names:
            return
        column, most = table[name], len(self.record.classes) - 1
        if not pa.types.is_integer(column.type):
            raise _wrong(name, f"it is of type {column.type}", where)
        limits = pc.min_max(column)
        for value in (limits["min"].as_py(), limits["max"].as_py()):
            if value is not None and not 0 <= value <= most:
                raise _wrong(name, f"class {value} of {most + 1}", where)

    def _check_finite(self, table: pa.Table, name: str, where: Path) -> None:
        if name in table.column_names and pc.all(pc.is_finite(table[name])).as_py() is False:
            raise _wrong(name, "a number is not finite", where)

    def _check_dense(self, table: pa.Table, name: str, width: object, where: Path) -> None:
        column = _column(table, name, where)
        if not pa.types.is_fixed_size_list(column.type) or column.type.list_size != width:
            raise _wrong(name, f"it is of type {column.type}, where {width} numbers are recorded", where)
        if pc.all(pc.is_finite(pc.list_flatten(column))).as_py() is False:
            raise _wrong(name, "a number is not finite", where)


def _column(table: pa.Table, name: str, where: Path) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise _wrong(name, "there is no such column", where)
    return table[name]


def _wrong(column: str, what: str, where: Path) -> CorruptPart:
    return CorruptPart(f"holds what cannot be: {column}: {what}", where=where, hint=_HINT)
