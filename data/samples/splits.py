"""Train, validation and test by a hash of the sample's id: the same on every machine, in any row order."""

from __future__ import annotations

import hashlib

import numpy as np

from l2d.data.cache.schema import SPLITS
from l2d.data.errors import DataError


def hash_split(ids: list[str], strata: list[object], *, fractions: tuple[float, float, float], salt: str) -> np.ndarray:
    """Assign each sample to a split, every stratum in the same proportions.

    Within a stratum samples are ranked by ``SHA-256(salt:id)`` and cut at the cumulative fractions, from an offset
    below one sample that is the stratum's own. So a stratum's share of a split is exact to one sample, and small strata
    are spread over the splits in the right proportions.

    Args:
        ids: unique sample ids, length n.
        strata: hashable stratum of each sample, length n.
        fractions: shares of train, validation and test; they sum to 1.
        salt: names the split; another salt draws another one.

    Returns:
        Array of n strings out of ``train``, ``validation``, ``test``.

    Raises:
        DataError: a split would have no samples.
    """
    hashes = [hashlib.sha256(f"{salt}:{sample_id}".encode()).digest() for sample_id in ids]
    edges = np.cumsum(fractions)[:2]
    splits = np.empty(len(ids), dtype="<U10")
    members: dict[object, list[int]] = {}
    for position, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(position)
    for stratum, positions in members.items():
        positions.sort(key=hashes.__getitem__)
        seed = hashlib.sha256(f"{salt}:{stratum!r}".encode()).digest()[:8]
        offset = int.from_bytes(seed, "little") / 2**64  # else strata of one or two would never be tested
        quantiles = (np.arange(len(positions)) + offset) / len(positions)
        splits[positions] = np.array(SPLITS)[np.searchsorted(edges, quantiles, side="right")]
    require_all_splits(splits)
    return splits


def require_all_splits(splits: np.ndarray) -> None:
    """Raises :class:`DataError` unless train, validation and test each have a sample and nothing else occurs."""
    found = set(np.unique(splits).tolist())
    if found - set(SPLITS):
        raise DataError(f"unknown split {sorted(found - set(SPLITS))[0]!r}", hint=f"the splits are {', '.join(SPLITS)}")
    for name in SPLITS:
        if name not in found:
            raise DataError(
                f"the {name} split has no samples ({len(splits)} samples in all)",
                hint="give it a larger fraction under [dataset.split], or more data",
            )
