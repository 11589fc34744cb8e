"""Token lists: for each sample a list of codes, such as the diagnoses of a stay or the words of a text.

A dataset may have several fields of them. Codes are indices into the field's vocabulary, which is fitted on the
training rows; index 0 is padding and in no list, index 1 stands for every code that training has not seen (often
enough). Lists keep the source's order, so a list that has to be shortened keeps its first codes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from l2d.data.cache import schema

if TYPE_CHECKING:  # a rejector reads lists that are encoded already
    import polars as pl

    Lists = pl.Series | Iterable[Sequence[str | None] | None]

PAD, UNKNOWN = "<pad>", "<unk>"
SPECIAL = (PAD, UNKNOWN)
FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # part of a column's name in SQL


@dataclass(frozen=True)
class Tokens:
    """Lists of n samples, m codes in all; sample ``i`` has ``values[offsets[i]:offsets[i + 1]]``.

    Attributes:
        values: int32 (m,), indices into the vocabulary from 1 on.
        offsets: int64 (n + 1,), from 0 to m.
        vocabulary: ``<pad>``, ``<unk>`` and the codes.

    Raises:
        ValueError: the three do not fit together.
    """

    values: np.ndarray
    offsets: np.ndarray
    vocabulary: tuple[str, ...]

    def __post_init__(self):
        if self.vocabulary[:2] != SPECIAL:
            raise ValueError(f"a vocabulary begins with {SPECIAL}, not with {self.vocabulary[:2]}")
        if self.values.dtype != np.int32 or self.offsets.dtype != np.int64:
            raise ValueError(f"values of {self.values.dtype} and offsets of {self.offsets.dtype}, not int32 and int64")
        in_order = len(self.offsets) > 0 and self.offsets[0] == 0 and (np.diff(self.offsets) >= 0).all()
        if not in_order or self.offsets[-1] != len(self.values):
            raise ValueError(f"offsets do not lead from 0 to {len(self.values)}")
        if len(self.values) and not (self.values.min() >= 1 and self.values.max() < len(self.vocabulary)):
            raise ValueError(f"a code is outside 1 … {len(self.vocabulary) - 1}")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> np.ndarray:
        """Codes of each sample, int64 (n,)."""
        return np.diff(self.offsets)

    @classmethod
    def encode(cls, lists: Lists, vocabulary: tuple[str, ...]) -> Tokens:
        """Lists of codes as indices; a code that is not in the vocabulary becomes ``<unk>``.

        Args:
            lists: one a sample; a missing list has no codes, and missing or empty codes are left out.
            vocabulary: as :func:`fit_vocabulary` gives it.
        """
        import polars as pl

        counts, codes = _flat(lists)
        known = pl.DataFrame({"code": list(vocabulary[2:]), "index": np.arange(2, len(vocabulary), dtype=np.int32)})
        known = known.cast({"code": pl.String})  # of an empty list polars knows no type
        found = codes.to_frame("code").join(known, on="code", how="left", maintain_order="left")["index"]
        values = found.fill_null(1).to_numpy().astype(np.int32)
        return cls(values, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]), vocabulary)

    def take(self, rows: np.ndarray | slice) -> Tokens:
        """Some samples, by position and in that order, by a mask, or by a slice."""
        positions = np.arange(len(self))[rows]
        counts = self.counts[positions]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        at = np.arange(offsets[-1]) + np.repeat(self.offsets[positions] - offsets[:-1], counts)
        return Tokens(self.values[at], offsets, self.vocabulary)

    __getitem__ = take

    @classmethod
    def concatenate(cls, parts: Sequence[Tokens]) -> Tokens:
        """Samples of several sets one after another.

        Raises:
            ValueError: there is no part, or their vocabularies differ.
        """
        if len({part.vocabulary for part in parts}) != 1:
            raise ValueError(f"{len(parts)} parts of different vocabularies, or none")
        starts = np.cumsum([0] + [len(part.values) for part in parts])
        offsets = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
        return cls(
            np.concatenate([part.values for part in parts]),
            np.concatenate([np.zeros(1, np.int64), *offsets]),
            parts[0].vocabulary,
        )

    def padded(self, max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """The first ``max_length`` codes of each list, then zeros.

        Returns:
            Indices int64 (n, max_length), and where there is a code, bool (n, max_length).
        """
        places = np.arange(max_length)
        mask = places < self.counts[:, None]
        indices = np.zeros(mask.shape, np.int64)
        indices[mask] = self.values[(self.offsets[:-1, None] + places)[mask]]
        return indices, mask

    def to_lists(self) -> list[list[str]]:
        """The codes themselves, a list a sample."""
        names = np.array(self.vocabulary, dtype=object)[self.values]
        return [part.tolist() for part in np.split(names, self.offsets[1:-1])]

    def to_arrow(self) -> pa.Array:
        """As a column of :data:`l2d.data.cache.schema.TOKENS`."""
        return pa.ListArray.from_arrays(
            pa.array(self.offsets, pa.int32()), pa.array(self.values, pa.int32()), type=schema.TOKENS
        )

    @classmethod
    def from_arrow(cls, column: pa.Array | pa.ChunkedArray, vocabulary: tuple[str, ...]) -> Tokens:
        """Inverse of :meth:`to_arrow`."""
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        counts = np.asarray(array.value_lengths().fill_null(0), dtype=np.int64)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return cls(array.flatten().to_numpy(zero_copy_only=False).astype(np.int32), offsets, vocabulary)

    @cached_property
    def digest(self) -> str:
        """Tells these lists from any others."""
        return schema.digest([schema.ids_digest(list(self.vocabulary)), _bytes(self.values), _bytes(self.offsets)])


def fit_vocabulary(lists: Lists, min_count: int = 1) -> tuple[str, ...]:
    """``<pad>``, ``<unk>`` and every code that occurs at least ``min_count`` times, the most frequent first.

    Args:
        lists: those of the training rows alone.
        min_count: what is rarer is ``<unk>``.
    """
    import polars as pl

    codes = _flat(lists)[1].rename("code")
    counted = codes.filter(~codes.is_in(SPECIAL)).value_counts(name="count").filter(pl.col("count") >= min_count)
    return SPECIAL + tuple(counted.sort(["count", "code"], descending=[True, False])["code"].to_list())


def token_inputs(tokens: Mapping[str, Tokens], max_length: Mapping[str, int]) -> dict[str, Any]:
    """What ``inputs["tokens"]`` of a cache's record says: how token lists become what a network looks at.

    Args:
        tokens: of each field.
        max_length: of each field: how many codes of a list a network looks at, the first ones.
    """
    fields = {
        name: {"vocabulary": list(lists.vocabulary), "max_length": int(max_length[name])}
        for name, lists in tokens.items()
    }
    return {"kind": "tokens", "fields": fields}


def token_sizes(made: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """Of each field, how many codes its vocabulary has and how many of a list are looked at.

    Args:
        made: as :func:`token_inputs` gives it; of other kinds of inputs there are none.
    """
    return tuple((len(field["vocabulary"]), field["max_length"]) for field in made.get("fields", {}).values())


def token_rows(fields: Sequence[Tokens], max_lengths: Sequence[int]) -> np.ndarray:
    """What a network looks at: the fields' padded lists side by side, (n, sum of ``max_lengths``).

    They are float32, as other inputs are, which holds indices below 2^24 exactly.
    """
    return np.concatenate(
        [lists.padded(length)[0].astype(np.float32) for lists, length in zip(fields, max_lengths, strict=True)], axis=1
    )


def _flat(lists: Lists) -> tuple[np.ndarray, pl.Series]:
    """How many codes each list has, int64 (n,), and all of them in order."""
    import polars as pl

    if not isinstance(lists, pl.Series):
        lists = pl.Series([None if codes is None else list(codes) for codes in lists], dtype=pl.List(pl.String))
    lists = lists.cast(pl.List(pl.String)).fill_null([])
    owner = np.repeat(np.arange(len(lists)), lists.list.len().to_numpy())
    codes = lists.filter(lists.list.len() > 0).explode()
    there = (codes.is_not_null() & (codes != "")).fill_null(False)
    counts = np.bincount(owner[there.to_numpy()], minlength=len(lists)).astype(np.int64)
    return counts, codes.filter(there)


def _bytes(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
