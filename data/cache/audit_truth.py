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
from l2d.data.cache.columns import dense_matrix
from l2d.data.cache.reader import CostCache
from l2d.data.cache.schema import SPLITS

TOLD = 0.99  # share of the classes that guessing gets wrong, from which one feature knows the truth
IN_ORDER = 0.999  # rank correlation with the true number, from which it does
FEWEST_VALUES = 20  # of a number, from which its order says something


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
    found = {}
    for name, columns in feature_sources(cache, names):
        said = []
        if "target_cla" in truth and (share := _class_told(features[:, columns], truth["target_cla"], train, test)):
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
        part = cache.samples(chunk, ["features", "split", *targets])
        rows = np.flatnonzero(generator.random(len(part)) < share)
        features.append(dense_matrix(part["features"])[rows])
        split.append(np.array([SPLITS.index(name) for name in part["split"].to_pylist()])[rows])
        for name in targets:
            truth[name].append(part[name].cast(pa.float64()).to_numpy()[rows])
    return np.concatenate(features), np.concatenate(split), {name: np.concatenate(truth[name]) for name in targets}


def _class_told(values: np.ndarray, classes: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """Share of held-out samples whose class the feature tells; 0 where that is no more than it may."""
    known = np.isfinite(classes)
    train, test = train & known, test & known
    if min(train.sum(), test.sum()) < FEWEST:
        return 0.0
    bins, true = binned(values, train), np.where(known, classes, 0).astype(np.int64)
    votes = np.zeros((bins.max() + 1, true.max() + 1))
    np.add.at(votes, (bins[train], true[train]), 1)
    usual = int(votes.sum(axis=0).argmax())
    told = np.where(votes.any(axis=1), votes.argmax(axis=1), usual)[bins[test]] == true[test]
    guessed = true[test] == usual
    missed = int((~guessed).sum())
    if missed < FEWEST or len(np.unique(bins[train])) > len(bins[train]) / 4:
        return 0.0
    return float(told.mean()) if (told.sum() - guessed.sum()) / missed >= TOLD else 0.0


def _order_told(values: np.ndarray, numbers: np.ndarray) -> float:
    """Rank correlation, whatever its sign."""
    from scipy.stats import spearmanr

    known = np.isfinite(numbers) & np.isfinite(values)
    if len(np.unique(numbers[known])) < FEWEST_VALUES or len(np.unique(values[known])) < FEWEST_VALUES:
        return 0.0
    return abs(float(spearmanr(values[known], numbers[known]).statistic))
