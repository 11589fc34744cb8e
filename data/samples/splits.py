"""Train, validation and test by a hash of the sample's id: the same on every machine, in any row order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import polars as pl

from l2d.data.cache.schema import SPLITS
from l2d.data.errors import DataError
from l2d.data.samples.cells import first_true
from l2d.data.samples.column_file import Table
from l2d.data.samples.split_names import Splits

AT_ONCE = 65_536  # ids that are hashed at once
FEW = 16  # strata, up to which each is looked for by itself


def hash_split(
    ids: Sequence[str], strata: list[object] | pl.DataFrame, *, fractions: tuple[float, float, float], salt: str
) -> Splits:
    """Assign each sample to a split, every stratum in the same proportions.

    Within a stratum samples are ranked by ``SHA-256(salt:id)`` and cut at the cumulative fractions, from an offset
    below one sample that is the stratum's own. So a stratum's share of a split is exact to one sample, and small strata
    are spread over the splits in the right proportions.

    Args:
        ids: unique sample ids, length n.
        strata: hashable stratum of each sample, length n; or columns whose rows, as tuples, are the strata.
        fractions: shares of train, validation and test; they sum to 1.
        salt: names the split; another salt draws another one.

    Returns:
        The split of each sample, n of them.

    Raises:
        DataError: a split would have no samples.
    """
    members = _members(strata)
    del strata  # texts, which take more memory than what follows
    hashes = _hashes(ids, salt)
    edges = np.cumsum(fractions)[:2]
    splits = Splits(np.empty(len(ids), np.uint8))
    for stratum, positions in members.items():
        positions = positions[_ascending(hashes[positions], ids, positions, salt)]
        seed = hashlib.sha256(f"{salt}:{stratum!r}".encode()).digest()[:8]
        offset = int.from_bytes(seed, "little") / 2**64  # else strata of one or two would never be tested
        for start in range(0, len(positions), AT_ONCE):
            part = positions[start : start + AT_ONCE]
            quantiles = (np.arange(start, start + len(part)) + offset) / len(positions)
            splits.codes[part] = np.searchsorted(edges, quantiles, side="right")
    require_all_splits(splits)
    return splits


def _members(strata: list[object] | pl.DataFrame) -> dict[object, np.ndarray]:
    """Positions of the samples of each stratum, ascending; strata in the order in which they appear."""
    if isinstance(strata, pl.DataFrame):
        if strata.width == 1 and len(strata) and (few := _of_few(strata.to_series())) is not None:
            return few
        groups = strata.with_row_index("").group_by(strata.columns, maintain_order=True).agg("")
        return {key: at.to_numpy() for key, at in zip(groups.drop("").iter_rows(), groups[""], strict=True)}
    numbers: dict[object, int] = {}
    found = np.fromiter((numbers.setdefault(stratum, len(numbers)) for stratum in strata), np.int64, len(strata))
    ends = np.cumsum(np.bincount(found, minlength=len(numbers)))
    parts = np.split(np.argsort(found, kind="stable"), ends[:-1])
    return dict(zip(numbers, parts, strict=True))


def _of_few(column: pl.Series) -> dict[object, np.ndarray] | None:
    """:func:`_members` of a column of few values, such as classes: looked for one by one, which takes less memory."""
    values = column.unique(maintain_order=True)
    if len(values) > FEW:
        return None
    return {(value,): column.eq_missing(value).arg_true().to_numpy() for value in values.to_list()}


def _hashes(ids: Sequence[str], salt: str) -> np.ndarray:
    """The first 64 bits of ``SHA-256(salt:id)`` of each id: uint64 (n,)."""
    found = np.empty(len(ids), np.uint64)
    for start in range(0, len(ids), AT_ONCE):
        part = ids[start : start + AT_ONCE]
        found[start : start + len(part)] = _words(part, salt)[:, 0]
    return found


def _words(ids: Sequence[str], salt: str) -> np.ndarray:
    """``SHA-256(salt:id)`` of each id as four numbers, the first counting most: uint64 (n, 4)."""
    joined = b"".join([hashlib.sha256(f"{salt}:{sample_id}".encode()).digest() for sample_id in ids])
    return np.frombuffer(joined, ">u8").reshape(-1, 4).astype(np.uint64)


def _ascending(hashes: np.ndarray, ids: Sequence[str], at: np.ndarray | None, salt: str) -> np.ndarray:
    """Positions of hashes in their order; where their first 64 bits are equal all 256 count.

    Args:
        hashes: the first 64 bits, (n,).
        ids: what they are hashes of.
        at: positions of those among the ids, (n,); None where they are all.
        salt: of the hashes.
    """
    order = np.argsort(hashes, kind="stable")
    first = hashes[order]
    equal = first[1:] == first[:-1]
    if equal.any():
        among = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
        positions = np.sort(order[among])
        words = _words([ids[k] for k in (positions if at is None else at[positions])], salt)
        order[among] = positions[np.lexsort(words.T[::-1])]
    return order


#: Spellings of the splits, in small letters. ``eval`` is often the only set beside train and test.
SPELLINGS = {
    **dict.fromkeys(("train", "training", "tr", "trn"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "vali", "dev", "development", "eval"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "te"), "test"),
}


def named_splits(named: pl.Series) -> tuple[np.ndarray, str | None]:
    """Splits that a column names, in the spellings that are known.

    Args:
        named: text, (n,).

    Returns:
        Array of n strings out of :data:`SPLITS`, and what to say where a spelling was another one.

    Raises:
        DataError: a row names no split, or one that is not known; or two spellings may mean different splits.
    """
    plain = named.str.strip_chars().str.to_lowercase()
    if named.null_count():
        raise DataError(
            f"row {first_true(named.is_null())} names no split ({named.null_count():,} such rows)",
            hint="filter such rows with `where`, or fill the cell",
        )
    split = plain.replace_strict(SPELLINGS, default=None, return_dtype=pl.String)
    strange = split.is_null()
    if strange.any():
        row = first_true(strange)
        raise DataError(
            f"row {row} is in the split {named[row]!r} ({int(strange.sum()):,} rows are in splits that are not known)",
            hint=f"the splits are {', '.join(SPLITS)}, also written {', '.join(sorted(set(SPELLINGS) - set(SPLITS)))}",
        )
    written = [text for text in named.unique().sort().to_list() if text not in SPLITS]
    validation = plain.filter(split == "validation").unique().sort().to_list()
    if "eval" in validation and len(validation) > 1:
        raise DataError(
            f"rows are in the splits {' and '.join(map(repr, validation))}, and one may be the test split",
            hint="name them train, validation and test",
        )
    said = ", ".join(f"{text!r} is {SPELLINGS[text.strip().lower()]}" for text in written)
    return split.to_numpy().astype("<U10"), f"splits: {said}" if said else None


def split_column(table: Table) -> str | None:
    """The column of a table that says which split a row is in, by its name and values; None without one."""
    for name in table.columns:
        if name.lower() in ("split", "set", "subset", "partition", "fold", "dataset_split"):
            column = table[name]
            if isinstance(column.dtype, pl.Categorical | pl.Enum):
                column = column.cast(pl.String)
            if column.dtype != pl.String:
                continue
            values = set(column.drop_nulls().str.strip_chars().str.to_lowercase().unique().to_list())
            known = {SPELLINGS[value] for value in values & set(SPELLINGS)}
            if (name.lower() == "split" and "train" in known) or known == set(SPLITS) or known == {"train", "test"}:
                return name
    return None


def validation_share(ids: Sequence[str], share: float, salt: str) -> np.ndarray:
    """Positions of the samples to validate on, ascending: those whose ``SHA-256(salt:id)`` is lowest.

    The same on every machine and in any order of the ids; at least one, and not all of them.
    """
    count = min(max(round(share * len(ids)), 1), len(ids) - 1)
    return np.sort(_ascending(_hashes(ids, salt), ids, None, salt)[:count]).astype(np.int64)


def require_all_splits(
    splits: np.ndarray | Splits, hint: str = "give it a larger fraction under [dataset.split], or more data"
) -> None:
    """Raises :class:`DataError` unless train, validation and test each have a sample and nothing else occurs."""
    counts = {name: int((splits == name).sum()) for name in SPLITS}
    if sum(counts.values()) < len(splits):
        strange = sorted(set(splits.tolist()) - set(SPLITS))[0]
        raise DataError(f"unknown split {strange!r}", hint=f"the splits are {', '.join(SPLITS)}")
    for name in SPLITS:
        if not counts[name]:
            raise DataError(
                f"the {name} split has no samples ({len(splits)} samples in all)",
                hint=hint,
            )
