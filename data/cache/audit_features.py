"""Audit of a cache's features: columns that count the rows of a file, and columns that give agents' answers away.

Both are read part by part. What an agent's costs depend on is looked at on at most :data:`ROWS` samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from l2d.data.cache import schema
from l2d.data.cache.columns import dense_matrix, split_positions
from l2d.data.cache.reader import CostCache

ROWS = 100_000
BINS = 64  # of a feature's values
GIVEN_AWAY = 0.9  # share of what can be known, from which one feature knows too much
FEWEST = 20  # samples, training and test each, from which something can be said
FEWEST_ROWS = 10  # from which whole numbers in a row mean something


@dataclass(frozen=True)
class GiveAway:
    """A feature that tells by itself what should be unknown.

    ``share`` is that of the variance of an agent's cost on test samples, or where ``agent`` is None, of what choosing
    the right agent gains there over the best single one.
    """

    feature: str
    agent: str | None
    share: float


def row_numbers(cache: CostCache) -> tuple[list[str], list[str]]:
    """Features that count the rows, in order or shuffled; and those that grow from each row to the next.

    An id or a time of a file that was sorted by it grows too, and may well be known.

    Raises:
        CorruptPart: a part is damaged.
    """
    names, rows = feature_names(cache), cache.record.num_samples
    if not names or rows < FEWEST_ROWS:
        return [], []
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    whole, up, down = (np.ones(len(names), dtype=bool) for _ in range(3))
    last: np.ndarray | None = None
    for features in _features(cache):
        steps = np.diff(features if last is None else np.vstack([last, features]), axis=0)
        up &= (steps > 0).all(axis=0)
        down &= (steps < 0).all(axis=0)
        whole &= (steps == np.round(steps)).all(axis=0)
        low, high = np.minimum(low, features.min(axis=0)), np.maximum(high, features.max(axis=0))
        last = features[-1:]
    in_a_row = whole & (high - low == rows - 1)
    suspects = np.flatnonzero(in_a_row & ~up & ~down)
    distinct = in_a_row & (up | down)
    if len(suspects):
        values = np.concatenate([features[:, suspects] for features in _features(cache)])
        distinct[suspects] = [len(np.unique(column)) == rows for column in values.T]
    dense = whole & (up | down) & (high - low < 2 * rows)  # of a file from which rows have been left out
    counting = distinct | dense
    grows = (up | down) & ~counting
    return [names[k] for k in np.flatnonzero(counting)], [names[k] for k in np.flatnonzero(grows)]


def give_aways(cache: CostCache) -> list[GiveAway]:
    """Features that by themselves tell an agent's cost, or which agent costs least, as if it had been asked.

    A feature's values are put into at most :data:`BINS` bins (or its categories); means of the costs in each are taken
    on training samples, and what they tell is measured on test samples. The best agent is that of the lowest sum of raw
    costs.

    Raises:
        CorruptPart: a part is damaged.
    """
    names = feature_names(cache)
    if not names or len(cache.agents) < 2:
        return []
    features, costs, split = _sample(cache)
    train, test = split == 0, split == 2
    if min(train.sum(), test.sum()) < FEWEST:
        return []
    total = costs.sum(axis=2)
    found = []
    for name, columns in feature_sources(cache, names):
        bins = binned(features[:, columns], train)
        for position, agent in enumerate(cache.agents):
            share = _explained(bins, total[:, position], train, test)
            if share >= GIVEN_AWAY:
                found.append(GiveAway(name, agent.name, share))
        share = _gained(bins, total, train, test)
        if share >= GIVEN_AWAY:
            found.append(GiveAway(name, None, share))
    return found


def feature_names(cache: CostCache) -> list[str]:
    """Names of the features that stand in the samples; none where an agent shows them."""
    made = cache.record.inputs.get("features", {})
    if not made or made.get("agent") is not None:
        return []
    return made.get("names") or [f"feature {place}" for place in range(made.get("width", 0))]


def _features(cache: CostCache) -> Iterator[np.ndarray]:
    for chunk in range(cache.record.num_chunks):
        yield dense_matrix(cache.samples(chunk, ["features"])["features"])


def _sample(cache: CostCache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, width), raw costs (n, agents, tasks), and positions in :data:`schema.SPLITS`, of some samples."""
    columns = [schema.COST_COLUMNS[task] for task in cache.record.tasks]
    share = min(1.0, ROWS / cache.record.num_samples)
    generator = np.random.default_rng(0)
    features, costs, split = [], [], []
    for chunk in range(cache.record.num_chunks):
        part = cache.samples(chunk, ["features", "split"])
        rows = np.flatnonzero(generator.random(len(part)) < share)
        features.append(dense_matrix(part["features"])[rows])
        split.append(split_positions(part["split"])[rows])
        tables = [cache.costs(agent.name, chunk, columns) for agent in cache.agents]
        each = [[table[name].to_numpy().astype(np.float64)[rows] for name in columns] for table in tables]
        costs.append(np.array(each).transpose(2, 0, 1))
    return np.concatenate(features), np.concatenate(costs), np.concatenate(split)


def feature_sources(cache: CostCache, names: list[str]) -> Iterator[tuple[str, list[int]]]:
    """What features were made of -> the columns of each: a number's own, all those of a category."""
    encoder, place = (cache.record.inputs["features"].get("encoder") or ()), 0
    for facts in encoder:
        count = len(facts["categories"]) if facts["type"] == "CategoricalFeature" else 1
        if facts["type"] == "CategoricalFeature":
            yield facts["name"], list(range(place, place + count))
        else:
            of_numbers = len(facts.get("medians", [0])) + facts.get("indicator", False)
            count = facts.get("width", of_numbers)
            yield from ((names[place + k], [place + k]) for k in range(count))
        place += count
    yield from ((names[k], [k]) for k in range(place, len(names)))


def binned(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Number of each row's bin, (n,): its category, its value where these are few, or a quantile of training values."""
    if values.shape[1] > 1:
        return np.where(values.any(axis=1), values.argmax(axis=1), values.shape[1])
    column = values[:, 0]
    distinct = np.unique(column[train])
    if len(distinct) > BINS:
        distinct = np.unique(np.quantile(column[train], np.arange(1, BINS) / BINS))
        return np.searchsorted(distinct, column, side="right")
    return np.searchsorted((distinct[1:] + distinct[:-1]) / 2, column, side="right")


def _means(bins: np.ndarray, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean of the values in each bin over the rows; over all bins where a bin has none."""
    count = np.bincount(bins[rows], minlength=bins.max() + 1)
    sums = np.bincount(bins[rows], values[rows], minlength=bins.max() + 1)
    return np.where(count > 0, sums / np.maximum(count, 1), values[rows].mean())


def _explained(bins: np.ndarray, values: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """Share of the variance on test rows that the bins' training means explain; 0 where nothing varies."""
    known = ~np.isnan(values)
    train, test = train & known, test & known
    if min(train.sum(), test.sum()) < FEWEST or (variance := values[test].var()) < 1e-12:
        return 0.0
    error = values[test] - _means(bins, values, train)[bins[test]]
    return 1 - float((error**2).mean() / variance)


def _gained(bins: np.ndarray, total: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """Share of what the cheapest agent of each test row saves over the best single one that the bins' choice saves."""
    known = ~np.isnan(total).any(axis=1)
    train, test = train & known, test & known
    if min(train.sum(), test.sum()) < FEWEST:
        return 0.0
    chosen = np.stack([_means(bins, column, train) for column in total.T], axis=1).argmin(axis=1)[bins[test]]
    rows = total[test]
    single, least = rows[:, total[train].mean(axis=0).argmin()].mean(), rows.min(axis=1).mean()
    if single - least < 1e-9:
        return 0.0
    return float((single - rows[np.arange(len(rows)), chosen].mean()) / (single - least))
