"""From a table's columns to token lists; vocabularies are fitted on the training split alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from l2d.data.errors import DataError
from l2d.data.samples.expressions import columns_of, evaluate, evaluate_rows
from l2d.data.samples.tokens import Tokens, fit_vocabulary, token_rows


@dataclass(frozen=True, kw_only=True)
class TokenField:
    """How one field's lists are made.

    Attributes:
        vocabulary: see :class:`l2d.data.samples.tokens.Tokens`.
        max_length: codes of a list that a network looks at.
        column: SQL expression that gives a list, or a text to be cut; None where a dataset has made the lists itself,
            which are then expected in a column of the field's name.
        separator: what a text is cut at.
    """

    vocabulary: tuple[str, ...]
    max_length: int
    column: str | None = None
    separator: str = " "


class TokenEncoder:
    """Turns table rows into token lists.

    Args:
        fields: by name, in the order in which a network looks at them.
        columns: column of the source -> its polars type where vocabularies were fitted.
        reading: as :class:`l2d.data.samples.features.FeatureEncoder` has it.
    """

    def __init__(
        self,
        fields: Mapping[str, TokenField],
        columns: Mapping[str, str] | None = None,
        reading: Mapping[str, Any] | None = None,
    ):
        self.fields = dict(fields)
        self.columns, self.reading = dict(columns or {}), dict(reading or {})

    @classmethod
    def fit(
        cls, table: pl.DataFrame, fields: Mapping[str, Any], *, reading: Mapping[str, Any] | None = None
    ) -> TokenEncoder:
        """Fit vocabularies.

        Args:
            table: training rows.
            fields: name -> what has ``column``, ``separator``, ``min_count`` and ``max_length``.

        Raises:
            DataError: an expression fails or gives neither lists nor text, or no code is frequent enough.
        """
        fitted = {}
        for name, field in fields.items():
            lists = _lists(evaluate_rows(table, field.column), name, field.separator)
            vocabulary = fit_vocabulary(lists, field.min_count)
            if len(vocabulary) == 2:
                raise DataError(
                    f"token lists {name!r}: no code occurs {field.min_count} times in the training split",
                    hint="lower min_count, or leave the lists out",
                )
            fitted[name] = TokenField(
                vocabulary=vocabulary, max_length=field.max_length, column=field.column, separator=field.separator
            )
        needed = {column for field in fields.values() for column in columns_of(field.column)}
        return cls(fitted, {name: str(kind) for name, kind in table.schema.items() if name in needed}, reading)

    def encode(self, table: pl.DataFrame) -> dict[str, Tokens]:
        """The lists of each row, by field.

        Raises:
            DataError: a column is not there or of another type.
        """
        found = {}
        for name, field in self.fields.items():
            lists = evaluate(table, field.column or f'"{name}"')
            found[name] = Tokens.encode(
                _lists(lists, name, field.separator if field.column else None), field.vocabulary
            )
        return found

    def transform(self, table: pl.DataFrame, first_row: int = 0) -> np.ndarray:
        """What a network looks at, float32 (rows, width): see :func:`l2d.data.samples.tokens.token_rows`.

        Args:
            first_row: not needed here; as :meth:`l2d.data.samples.features.FeatureEncoder.transform` has it.
        """
        return token_rows(list(self.encode(table).values()), [field.max_length for field in self.fields.values()])

    @property
    def needed(self) -> list[str]:
        """Columns that have to be there."""
        columns = [columns_of(field.column) if field.column else [name] for name, field in self.fields.items()]
        return list(dict.fromkeys(name for names in columns for name in names))

    def to_json(self) -> dict[str, Any]:
        """The fitted encoder as plain values, as ``inputs["tokens"]`` of ``cache.json``."""
        fields = {name: {**asdict(field), "vocabulary": list(field.vocabulary)} for name, field in self.fields.items()}
        found = {"kind": "tokens", "fields": fields, "columns": self.columns}
        return found | ({"reading": self.reading} if self.reading else {})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TokenEncoder:
        """Inverse of :meth:`to_json`; also of :func:`l2d.data.samples.tokens.token_inputs`."""
        fields = {
            name: TokenField(**{**facts, "vocabulary": tuple(facts["vocabulary"])})
            for name, facts in value["fields"].items()
        }
        return cls(fields, value.get("columns"), value.get("reading"))


def _lists(column: pl.Series, name: str, separator: str | None) -> pl.Series:
    """Lists of text; text is cut at the separator, where there is one."""
    kind = column.dtype
    if isinstance(kind, pl.List | pl.Array) and not kind.inner.is_nested():
        return column.cast(pl.List(pl.String))
    if kind == pl.Null:
        return column.cast(pl.List(pl.String))
    if separator is not None and (kind == pl.String or kind.is_integer()):
        return column.cast(pl.String).str.split(separator)
    raise DataError(
        f"token lists {name!r} are of type {kind}",
        hint="give lists of codes" + (", or text" if separator is not None else ""),
    )
