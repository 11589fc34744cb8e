"""The split of each sample, a byte each: with the face of an array of names, which takes 40 bytes a sample."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from l2d.data.cache.schema import SPLITS


class Splits:
    """Names out of :data:`l2d.data.cache.schema.SPLITS`, as positions in it.

    Attributes:
        codes: uint8 (n,).
    """

    def __init__(self, codes: np.ndarray):
        self.codes = codes

    @classmethod
    def of(cls, names: np.ndarray | Splits) -> Splits:
        """Of an array of names, of which each is a split's."""
        if isinstance(names, Splits):
            return names
        return cls(sum((code * (names == name) for code, name in enumerate(SPLITS)), np.zeros(len(names), np.uint8)))

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
