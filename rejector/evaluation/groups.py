"""Which samples belong together: patients with several visits, frames of one video."""

from __future__ import annotations

import numpy as np

from l2d.data.cache.reader import CostCache
from l2d.data.errors import DataError, UsageError
from l2d.rejector.rows.table import CostTable

#: A kept column of this name groups samples unless another is named.
GROUP_COLUMN = "group"


def read_groups(cache: CostCache, table: CostTable, column: str | None = None) -> np.ndarray | None:
    """Group of each sample of a table, from a kept column of the cache.

    Args:
        cache: that the table was read from.
        table: some of its samples.
        column: one of the cache's ``keep``; None: ``group`` if it is there.

    Returns:
        Codes from 0 on, int64 (n,), or None where there are no groups.

    Raises:
        UsageError: no such column is kept.
        DataError: a sample has no group.
    """
    if column is None and GROUP_COLUMN not in cache.record.keep:
        return None
    column = column or GROUP_COLUMN
    if column not in cache.record.keep:
        kept = ", ".join(cache.record.keep) or "none"
        hint = f"the columns kept are: {kept}. `keep` in the recipe keeps more"
        raise UsageError(f"--group {column}: the cache keeps no such column", where=cache.address, hint=hint)
    group_of: dict[str, object] = {}
    for chunk in range(cache.record.num_chunks):
        part = cache.samples(chunk, ["sample_id", column])
        group_of.update(zip(part["sample_id"].to_pylist(), part[column].to_pylist(), strict=True))
    names = [group_of[sample] for sample in table.ids]
    if None in names:
        sample = table.ids[names.index(None)]
        raise DataError(
            f"a sample has no {column!r}", where=f"sample {sample!r} in {cache.address}", hint="name another --group"
        )
    codes: dict = {}
    return np.array([codes.setdefault(name, len(codes)) for name in names], dtype=np.int64)
