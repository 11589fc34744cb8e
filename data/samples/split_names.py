"""The split of each sample, a byte each: with the face of an array of names, which takes 40 bytes a sample."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from l2d.data.cache.schema import SPLITS
from l2d.data.errors import DataError


class Splits:
    """Names out of :data:`l2d.data.cache.schema.SPLITS`, as positions in it.

    Attributes:
        codes: uint8 (n,).
    """

    def __init__(self, codes: np.ndarray):
        self.codes = codes

    @classmethod
    def of(cls, names: np.ndarray | Splits) -> Splits:
        """Of an array of names.

        Raises:
            DataError: one is no split's.
        """
        if isinstance(names, Splits):
            return names
        codes = np.full(len(names), len(SPLITS), np.uint8)
        for code, name in enumerate(SPLITS):
            codes[np.asarray(names) == name] = code
        if (codes == len(SPLITS)).any():
            row = int(codes.argmax())
            what = f"unknown split {str(names[row])!r}, of sample {row + 1}"
            raise DataError(what, where="split", hint=f"use {', '.join(SPLITS)}")
        return cls(codes)

    def __len__(self) -> int:
        return len(self.codes)

    def __eq__(self, other: object) -> np.ndarray:  # type: ignore[override]  # as of an array, bool (n,)
        if isinstance(other, str):
            return self.codes == (SPLITS.index(other) if other in SPLITS else len(SPLITS))
        return np.asarray(self) == np.asarray(other)

    def __ne__(self, other: object) -> np.ndarray:  # type: ignore[override]
        return ~(self == other)

    __hash__ = object.__hash__

    def __getitem__(self, rows: slice | np.ndarray) -> Splits:
        return Splits(self.codes[rows])

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(SPLITS, dtype or "<U10")[self.codes]

    def tolist(self) -> list[str]:
        """The names."""
        return [SPLITS[code] for code in self.codes.tolist()]
