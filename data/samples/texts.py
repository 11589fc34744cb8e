"""Texts of many samples as one column, with the face of a list: a list of 500,000 ids takes seven times the memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import polars as pl

AT_ONCE = 65_536  # texts that are a list at a time
FEW = 65_536  # that are a list altogether


class Texts(Sequence[str]):
    """A column of text without gaps. Parts of it are lists.

    Attributes:
        series: the column.
    """

    def __init__(self, series: pl.Series):
        self.series = series

    def __len__(self) -> int:
        return len(self.series)

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> list[str]: ...
    def __getitem__(self, key: int | slice) -> str | list[str]:
        return self.series[key].to_list() if isinstance(key, slice) else self.series[int(key)]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), AT_ONCE):
            yield from self[start : start + AT_ONCE]

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and bool((self.series == text).any())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Texts):
            return self.series.equals(other.series)
        return isinstance(other, list) and list(self) == other

    __hash__ = object.__hash__


def texts_of(series: pl.Series) -> list[str] | Texts:
    """A column of text without gaps as a list, or where it is long as :class:`Texts`."""
    return series.to_list() if len(series) <= FEW else Texts(series)


def any_twice(texts: pl.Series) -> bool:
    """Whether a text, or a gap, stands twice. By numbers of 64 bits that texts are turned to, as a set takes memory."""
    if len(texts) <= FEW:
        return texts.n_unique() < len(texts)
    numbers = np.sort(texts.hash().to_numpy())
    return bool((numbers[1:] == numbers[:-1]).any()) and texts.n_unique() < len(texts)


def series_of(texts: Sequence[str]) -> pl.Series:
    """The texts as a column."""
    return texts.series if isinstance(texts, Texts) else pl.Series(texts, dtype=pl.String)
