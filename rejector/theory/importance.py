"""What each column of the input is worth to a run that predicts costs: permutation importances.

A column is permuted among the samples, so that it says nothing any more, and the run decides again (Breiman, *Random
Forests*, Machine Learning 2001, section 10; for any model: Fisher, Rudin and Dominici, *All Models are Wrong, but Many
are Useful*, JMLR 2019). What that costs is measured twice: in deferral loss, and in the share of the differences
between agents' costs that predictions explain. Columns that one source column became, as the categories of a text or
the indicator of a missing number, are permuted together. A column that says what another one says too may be worth
little by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from l2d.data.samples.features import FeatureEncoder
from l2d.rejector.best.folds import contrasts
from l2d.rejector.evaluation.intervals import Interval, paired_intervals
from l2d.rejector.rows.unlabelled import InputRecord

PREDICTIONS = 200_000  # samples times columns times repeats: a quarter of a minute where trees are many
MOST_ROWS, FEWEST_ROWS = 2_000, 100
REPEATS = 3
AT_ONCE, NUMBERS_AT_ONCE = 20_000, 1 << 24  # rows of one prediction

Column = tuple[str, slice]


@dataclass(frozen=True, kw_only=True)
class Importance:
    """One column.

    Attributes:
        column: its name in the source.
        width: features that it became.
        loss: what permuting it adds to the deferral loss.
        explained: what it takes off the share of the differences between agents that predictions explain.
    """

    column: str
    width: int
    loss: Interval
    explained: Interval

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "column": self.column,
            "width": self.width,
            "loss": self.loss.to_json(test=False),
            "explained": self.explained.to_json(test=False),
        }


@dataclass(frozen=True, kw_only=True)
class Importances:
    """All columns, the most important first, and on how many samples and permutations they rest.

    ``left_out``: columns that were not tried, as they would have taken too long: those that trees look at least.
    """

    columns: list[Importance]
    samples: int
    repeats: int
    left_out: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        found = {"samples": self.samples, "repeats": self.repeats, "left_out": self.left_out}
        return found | {"columns": [column.to_json() for column in self.columns]}


def source_columns(looks_at: InputRecord, width: int) -> list[Column]:
    """Columns of the source, and where their features lie, in order."""
    if isinstance(looks_at.encoder, FeatureEncoder):
        found, start = [], 0
        for feature in looks_at.encoder.features:
            stop = start + len(feature.columns())
            found.append((feature.name, slice(start, stop)))
            start = stop
        return found
    names = looks_at.made.get("names") or [f"feature {place}" for place in range(width)]
    return [(name, slice(place, place + 1)) for place, name in enumerate(names)]


def importances(
    predict: Callable[[np.ndarray, np.ndarray], np.ndarray],
    x: np.ndarray,
    costs: np.ndarray,
    columns: list[Column],
    *,
    used: np.ndarray,
    groups: np.ndarray | None = None,
    predictions: int = PREDICTIONS,
    seed: int = 0,
) -> Importances:
    """Permute each column among samples that the models have not been fitted on.

    Args:
        predict: total costs (m, agents) of features (m, width), told which sample each row stands for, (m,).
        x: features, float32 (n, width).
        costs: total costs (n, agents), infinite where an agent is unavailable.
        columns: see :func:`source_columns`.
        used: how often the models look at each feature, (width,): where time is short, the least used are left out.
        groups: samples of one value are not independent, (n,).
        predictions: how many samples may be predicted in all, about.
        seed: of the samples and the permutations.

    Returns:
        Intervals are 95 %, paired by sample, with the repeats averaged: of new samples, for these models.
    """
    generator = np.random.default_rng(seed)
    tried = sorted(columns, key=lambda column: -used[column[1]].sum())[: max(1, predictions // FEWEST_ROWS)]
    repeats = REPEATS if predictions >= 3 * FEWEST_ROWS * REPEATS * len(tried) else 1
    most = min(MOST_ROWS, max(FEWEST_ROWS, predictions // (repeats * max(1, len(tried)))))
    rows = np.arange(len(x)) if len(x) <= most else np.sort(generator.choice(len(x), most, replace=False))
    x, costs = x[rows], costs[rows]
    there = np.isfinite(costs)
    wanted = contrasts(costs[:, :, None], there)[0][:, :, 0]
    spread = float((wanted**2).sum(axis=1).mean())

    def judged(predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.where(there, predicted, np.inf).argmin(axis=1)
        error = contrasts(predicted[:, :, None], there)[0][:, :, 0] - wanted
        return costs[np.arange(len(costs)), chosen], (error**2).sum(axis=1)

    before = judged(predict(x, rows))
    rises = [np.zeros((len(x), 2)) for _ in tried]
    for place, predicted in _predicted(predict, x, rows, tried, repeats, generator):
        rises[place] += np.stack([new - old for new, old in zip(judged(predicted), before, strict=True)], axis=1)
    parts = [rise[:, measure] / repeats for rise in rises for measure in (0, 1)]
    units = None if groups is None else np.unique(groups[rows], return_inverse=True)[1]
    intervals = iter(paired_intervals([part / (spread or 1.0) ** (k % 2) for k, part in enumerate(parts)], units))
    found = [
        Importance(column=name, width=at.stop - at.start, loss=next(intervals), explained=next(intervals))
        for name, at in tried
    ]
    found.sort(key=lambda one: (-one.loss.value, -one.explained.value))
    return Importances(columns=found, samples=len(x), repeats=repeats, left_out=len(columns) - len(tried))


def _predicted(
    predict: Callable[[np.ndarray, np.ndarray], np.ndarray],
    x: np.ndarray,
    rows: np.ndarray,
    columns: list[Column],
    repeats: int,
    generator: np.random.Generator,
) -> Iterator[tuple[int, np.ndarray]]:
    """Place of a column, and costs predicted with it permuted; several at once, since trees are faster on many rows."""
    jobs = [place for place in range(len(columns)) for _ in range(repeats)]
    together = max(1, min(AT_ONCE, NUMBERS_AT_ONCE // max(1, x.shape[1])) // max(1, len(x)))
    for start in range(0, len(jobs), together):
        places = jobs[start : start + together]
        stacked = np.tile(x, (len(places), 1))
        for number, place in enumerate(places):
            at = columns[place][1]
            order = generator.permutation(len(x))
            stacked[number * len(x) : (number + 1) * len(x), at] = x[order, at]
        found = predict(stacked, np.tile(rows, len(places)))
        yield from zip(places, np.split(found, len(places)), strict=True)
