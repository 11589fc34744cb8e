"""Audit of a cache's features: columns that tell the truth by themselves, such as a second column with the diagnosis.

Such a column makes a model that is trained here look perfect, and every agent needless. It is looked for on at most
:data:`l2d.data.cache.audit_features.ROWS` samples; agents are not read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from l2d.data.cache import schema
from l2d.data.cache.audit_features import FEWEST, ROWS, binned, feature_names, feature_sources
from l2d.data.cache.columns import dense_matrix, numbers, split_positions
from l2d.data.cache.reader import CostCache
from l2d.data.cache.schema import SPLITS

TOLD = 0.99  # share of the classes that guessing gets wrong, from which one feature knows the truth
IN_ORDER = 0.999  # rank correlation with the true number, from which it does
FEWEST_VALUES = 20  # of a number, from which its order says something
GLANCE = 8192  # samples of those, evenly spread, on which a feature is tried first
HOPELESS = 0.9  # share there, below which it does not tell TOLD of all: of FEWEST_MISSED 12 deviations less
FEWEST_MISSED = 200  # classes that guessing gets wrong, from which the glance says something


def told_truths(cache: CostCache) -> dict[str, str]:
    """Features that by themselves tell the truth about samples held out of training -> what they tell, in words.

    A class: each of a feature's values (or bins of values) stands for its most frequent class on training samples. A
    number: its order is that of the feature, up or down.

    Raises:
        CorruptPart: a part is damaged.
    """
    names = feature_names(cache)
    targets = [name for name in ("target_cla", "target_reg") if name in _columns(cache)]
    if not names or not targets or not cache.record.num_samples:
        return {}
    features, split, truth = _sample(cache, targets)
    train = split == SPLITS.index("train")
    test = ~train
    step = max(1, len(features) // GLANCE)
    glance = np.ascontiguousarray(features[::step])
    found = {}
    for name, columns in feature_sources(cache, names):
        said = []
        if "target_cla" in truth:
            classes = truth["target_cla"]
            hopeless = step > 1 and _is_hopeless(glance[:, columns], *(rows[::step] for rows in (classes, train, test)))
            if not hopeless and (share := _class_told(features[:, columns], classes, train, test)):
                said.append(f"the true class of {share:.1%} of held-out samples")
        if "target_reg" in truth and len(columns) == 1:
            ranks = _order_told(features[test, columns[0]], truth["target_reg"][test])
            if ranks >= IN_ORDER:
                said.append(f"the order of the true numbers (rank correlation {ranks:.4f})")
        if said:
            found[name] = " and ".join(said)
    return found


def _columns(cache: CostCache) -> list[str]:
    return cache.columns_of(schema.samples_part(cache.path, 0)).names if cache.record.num_chunks else []


def _sample(cache: CostCache, targets: Sequence[str]) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Features (n, width), positions in :data:`SPLITS` and true values of some samples, NaN where there is none."""
    share = min(1.0, ROWS / cache.record.num_samples)
    generator = np.random.default_rng(0)
    features, split = [], []
    truth: dict[str, list[np.ndarray]] = {name: [] for name in targets}
    for chunk in range(cache.record.num_chunks):
        rows = np.flatnonzero(generator.random(len(cache.record.chunk_rows(chunk))) < share)
        features.append(_features(cache, chunk, rows))
        part = cache.samples(chunk, ["split", *targets])
        split.append(split_positions(part["split"])[rows])
        for name in targets:
            column = part[name].combine_chunks()
            found = numbers(column.cast(pa.float64()) if column.null_count else column, np.nan)
            truth[name].append(found[rows].astype(np.float64))
    return np.concatenate(features), np.concatenate(split), {name: np.concatenate(truth[name]) for name in targets}


def _features(cache: CostCache, chunk: int, rows: np.ndarray) -> np.ndarray:
    """Features of some rows of a chunk; the part is mapped where it can be, so that no others are copied."""
    part, _ = cache.map_part(schema.samples_part(cache.path, chunk), chunk, "samples", ("features",))
    column = part.read()["features"]
    return (column if isinstance(column, np.ndarray) else dense_matrix(column))[rows]


def _is_hopeless(values: np.ndarray, classes: np.ndarray, train: np.ndarray, test: np.ndarray) -> bool:
    """Whether a feature tells so little of a few samples that all of them need not be looked at."""
    told = _told(values, classes, train, test)
    return told is not None and told[1] >= FEWEST_MISSED and told[0] < HOPELESS * told[1]


def _class_told(values: np.ndarray, classes: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """Share of held-out samples whose class the feature tells; 0 where that is no more than it may."""
    told = _told(values, classes, train, test)
    return told[2] if told is not None and told[0] >= TOLD * told[1] else 0.0


def _told(
    values: np.ndarray, classes: np.ndarray, train: np.ndarray, test: np.ndarray
) -> tuple[int, int, float] | None:
    """What a feature tells of held-out classes; None where too few are known, or it has a value for each sample.

    Returns:
        How many classes more it tells than guessing does; how many guessing gets wrong; share of all that it tells.
    """
    known = np.isfinite(classes)
    train, test = train & known, test & known
    if min(train.sum(), test.sum()) < FEWEST:
        return None
    bins, true = binned(values, train), np.where(known, classes, 0).astype(np.int64)
    count = true.max() + 1
    votes = np.bincount(bins[train] * count + true[train], minlength=(bins.max() + 1) * count).reshape(-1, count)
    usual = int(votes.sum(axis=0).argmax())
    told = np.where(votes.any(axis=1), votes.argmax(axis=1), usual)[bins[test]] == true[test]
    guessed = true[test] == usual
    missed = int((~guessed).sum())
    if missed < FEWEST or np.count_nonzero(votes.any(axis=1)) > train.sum() / 4:
        return None
    return int(told.sum()) - int(guessed.sum()), missed, float(told.mean())


def _order_told(values: np.ndarray, numbers: np.ndarray) -> float:
    """Spearman's rank correlation, whatever its sign. (scipy.stats has it, and takes a second to import.)"""
    known = np.isfinite(numbers) & np.isfinite(values)
    if len(np.unique(numbers[known])) < FEWEST_VALUES or len(np.unique(values[known])) < FEWEST_VALUES:
        return 0.0
    ranks = np.column_stack([_ranks(values[known]), _ranks(numbers[known])])
    return abs(float(np.corrcoef(ranks, rowvar=False)[0, 1]))


def _ranks(values: np.ndarray) -> np.ndarray:
    """From 1, equals having the mean of theirs: float64 (n,)."""
    _, position, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[position]
