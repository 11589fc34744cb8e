"""Where each agent wins: samples in bins by a column or an SQL expression, which agent gets them, and what that saves.

Bins are there to be looked at: a numeric column with more than a handful of values is cut at its quantiles, a text
column keeps its most frequent values.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from l2d.data.cache.sql import locked_connection
from l2d.data.errors import UsageError, nearest
from l2d.rejector.evaluation.intervals import paired_intervals
from l2d.rejector.report.allocations import Decisions

OTHER = "other"
MOST_BINS = 8  # of a text column, "other" aside
MOST_NUMBERS = 12  # whole numbers that are bins of their own
QUANTILES = 5
NORMAL_FROM = 20_000  # samples of a bin; the ends of both intervals differ by less than their line is wide
FEWEST_SAMPLES = 10  # of a bin; smaller ones are put together, since their intervals say nothing
FEWEST_NUMBERED = 5  # columns that differ in a number at the end alone are parts of something, from this number on


@dataclass(frozen=True, kw_only=True)
class Bins:
    """Samples by what they have in common.

    Attributes:
        title: the column or expression.
        labels: of the bins, in order.
        index: bin of each sample, int64 (n,).
        kind: of values that have a bin each, and so may share one: numbers with their neighbours, texts with any.
    """

    title: str
    labels: list[str]
    index: np.ndarray
    kind: Literal["whole numbers", "texts", ""] = ""


def bins_by(columns: pa.Table, expression: str) -> Bins:
    """Bins by one SQL expression over columns of the samples, such as ``cluster``, ``age`` or ``age > 60``.

    Args:
        columns: of :func:`l2d.rejector.report.allocations.sample_columns`, n rows.
        expression: DuckDB's SQL. A column of that very name wins, so names with spaces need no quotes.

    Raises:
        UsageError: the expression is wrong, or does not give a value a row.
    """
    if expression in columns.column_names:
        return _cut(expression, columns[expression].combine_chunks())
    import duckdb

    connection = locked_connection()
    try:
        position = pa.array(np.arange(len(columns)))
        connection.register("sample_columns", columns.append_column("position of the row", position))
        found = connection.sql(
            f'SELECT ({expression}) AS bin FROM sample_columns ORDER BY "position of the row"'
        ).to_arrow_table()
    except (duckdb.Error, AttributeError) as error:  # the latter: no SELECT
        unknown = re.search(r'column "([^"]+)" not found', str(error), re.IGNORECASE)
        hint = nearest(unknown[1] if unknown else "", columns.column_names, "the columns are")
        said = str(error).splitlines()[0].partition(" Error: ")  # DuckDB's own words, without its name for the error
        problem = f"there is no column {unknown[1]!r}" if unknown else said[2] or said[0]
        raise UsageError(f"--by {expression!r}: {problem}", hint=hint) from error
    finally:
        connection.close()
    if found.num_columns != 1 or len(found) != len(columns):
        raise UsageError(f"--by {expression!r} does not give one value a sample", hint="use no aggregates")
    return _cut(expression, found["bin"].combine_chunks())


def _cut(title: str, column: pa.Array) -> Bins:
    kind = column.type
    if pa.types.is_boolean(kind):
        return _placed(title, column.cast(pa.int8()), {0: "no", 1: "yes"})
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        there = np.isfinite(numbers)
        distinct = np.unique(numbers[there])
        if len(distinct) <= MOST_NUMBERS and (distinct == distinct.round()).all():
            index = np.where(there, np.searchsorted(distinct, np.where(there, numbers, 0)), len(distinct))
            return replace(_bins(title, [f"{value:g}" for value in distinct], index), kind="whole numbers")
        return _quantiles(title, numbers, there)
    try:
        texts = column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UsageError(f"--by {title!r} gives values of type {kind}", hint="numbers, text or yes/no") from error
    counts = {entry["values"]: entry["counts"] for entry in texts.drop_null().value_counts().to_pylist()}
    order = sorted(counts, key=lambda text: (-counts[text], text))
    kept = order if len(order) <= MOST_BINS + 1 else order[:MOST_BINS]
    found = _placed(title, texts, {text: text for text in kept}, other=len(kept) < len(order))
    return replace(found, kind="texts")


def without_few(bins: Bins, fewest: int = FEWEST_SAMPLES) -> Bins:
    """Bins of at least ``fewest`` samples, as far as joining helps: numbers with the next ones, texts as ``other``.

    Missing values stay a bin of their own, and so does a single text with few samples. Bins that would all become one
    stay as they are.
    """
    values = len(bins.labels) - (bins.labels[-1:] == ["missing"])
    counts = np.bincount(bins.index, minlength=len(bins.labels))[:values]
    if not bins.kind or (counts >= fewest).all():
        return bins
    if bins.kind == "texts":
        few = [k for k in range(values) if counts[k] < fewest or bins.labels[k] == OTHER]
        parts = [[k] for k in range(values) if k not in few] + ([few] if few else [])
        names = [bins.labels[part[0]] if len(part) == 1 else OTHER for part in parts]
    else:
        parts = [[]]
        for k in range(values):
            if parts[-1] and counts[parts[-1]].sum() >= fewest:
                parts.append([])
            parts[-1].append(k)
        if len(parts) > 1 and counts[parts[-1]].sum() < fewest:
            parts[-2:] = [parts[-2] + parts[-1]]
        ends = [(bins.labels[part[0]], bins.labels[part[-1]]) for part in parts]
        names = [first if first == last else f"{first} to {last}" for first, last in ends]
    if len(parts) < 2:
        return bins
    place = np.arange(len(bins.labels))
    for number, part in enumerate(parts):
        place[part] = number
    place[values:] = len(parts)
    return replace(bins, labels=[*names, *bins.labels[values:]], index=place[bins.index])


def _placed(title: str, column: pa.Array, labels: dict[Any, str], *, other: bool = False) -> Bins:
    """Bins of the values that ``labels`` names, in that order."""
    found = pc.index_in(column, value_set=pa.array(list(labels), column.type)).fill_null(len(labels)).to_numpy()
    index = np.where(np.asarray(column.is_null()), len(labels) + other, found)
    return _bins(title, [*labels.values(), *([OTHER] if other else [])], index)


def _quantiles(title: str, numbers: np.ndarray, there: np.ndarray) -> Bins:
    """Fifths of the samples; equal values stay together, so there may be fewer."""
    if not there.any():
        return _bins(title, [], np.zeros(len(numbers), np.int64))
    edges = np.unique(np.quantile(numbers[there], np.arange(1, QUANTILES) / QUANTILES))
    edges = edges[edges < numbers[there].max()]
    index = np.where(there, np.searchsorted(edges, np.where(there, numbers, 0), side="left"), len(edges) + 1)
    if not len(edges):
        return _bins(title, [f"{numbers[there][0]:g}"], index)
    text = _texts(edges)
    inner = [f"{low} to {high}" for low, high in pairwise(text)]
    return _bins(title, [f"up to {text[0]}", *inner, f"above {text[-1]}"], index)


def _texts(edges: np.ndarray) -> list[str]:
    """Edges with as few digits as tell them apart."""
    for digits in range(3, 18):
        texts = [f"{edge:.{digits}g}" for edge in edges]
        if len(set(texts)) == len(texts):
            break
    return texts


def _bins(title: str, labels: list[str], index: np.ndarray) -> Bins:
    """Bins; samples of no label are ``missing``."""
    missing = ["missing"] if (index == len(labels)).any() else []
    return Bins(title=title, labels=[*labels, *missing], index=index.astype(np.int64))


def most_telling(columns: pa.Table, decisions: Decisions, most: int = 2) -> list[Bins]:
    """Bins by the columns that tell most about which agent is cheap.

    A column is worth what sending each of its bins to its best agent saves against the best constant agent, in
    hindsight; see :func:`ranked_cost` for samples that the best agent does not answer. Targets do not count, nor single
    classes of a category (``ward = a``). Columns that are one of a numbered row (``svd_0``, ``svd_1`` …), whose values
    mean nothing to a reader, come after all others. Columns most of whose bins are small do not count either.

    Args:
        columns: of :func:`l2d.rejector.report.allocations.sample_columns`, of the same samples.
        most: how many; those that save nothing are left out.
    """
    best = ranked_cost(decisions.costs) / len(columns)
    rows = Counter(_stem(name) for name in columns.column_names)
    worth: list[tuple[bool, float, int, Bins]] = []
    for name in columns.column_names:
        kind = columns[name].type
        nested = pa.types.is_nested(kind) or pa.types.is_binary(kind)
        if name == "sample_id" or name.startswith("target_") or " = " in name or nested:
            continue
        bins = without_few(_cut(name, columns[name].combine_chunks()))
        counts = np.bincount(bins.index, minlength=len(bins.labels))
        if counts[counts < FEWEST_SAMPLES].sum() > len(columns) / 2:
            continue  # nearly every value has a few samples: no interval would say anything
        if len(bins.labels) < 2 or (OTHER in bins.labels and counts[bins.labels.index(OTHER)] > len(columns) / 2):
            continue
        spent = sum(ranked_cost(decisions.costs[bins.index == k]) for k in np.flatnonzero(counts)) / len(columns)
        worth.append((rows[_stem(name)] < FEWEST_NUMBERED, best - spent, -len(worth), bins))
    worth = sorted((item for item in worth if item[1] > 0), key=lambda item: item[:3], reverse=True)
    return [bins for *_, bins in worth[:most]]


def _stem(name: str) -> str:
    """A column's name without the number at its end; the name itself where it has none."""
    return re.sub(r"\d+$", "#", name)


def ranked_cost(costs: np.ndarray) -> float:
    """Total cost if every sample goes to the best of the agents that answer it, by their mean costs where they answer.

    Where the best agent answers everything that is its total cost, the constant agent's.

    Args:
        costs: (n, A), infinite where an agent has no answer; each sample has an agent.
    """
    there = np.isfinite(costs)
    answers = there.sum(axis=0)
    means = np.where(there, costs, 0.0).sum(axis=0) / np.maximum(answers, 1)
    chosen = np.where(there, means, np.inf).argmin(axis=1)
    return float(costs[np.arange(len(costs)), chosen].sum())


def group_rows(decisions: Decisions, bins: Bins) -> list[dict[str, Any]]:
    """What happens in each bin that has samples.

    Returns:
        Rows of ``bin``, ``samples``, ``loss``, ``oracle_loss``, ``shares`` and ``cheapest_shares`` (agent -> share),
        ``against_best`` (the best constant agent) and ``against_oracle``: differences in deferral loss with 95 %
        intervals, seeds averaged.
    """
    losses, oracle = decisions.losses, decisions.oracle
    baselines = {"best": decisions.constant_losses, "oracle": oracle}
    rows = []
    for number, label in enumerate(bins.labels):
        members = np.flatnonzero(bins.index == number)
        if not len(members):
            continue
        groups = None if decisions.groups is None else decisions.groups[members]
        differences = ((losses - baseline)[members] for baseline in baselines.values())
        found = paired_intervals(differences, groups, normal_from=NORMAL_FROM)
        shares = decisions.shares(members), decisions.cheapest_shares(members)
        named = [dict(zip(decisions.agents, values.tolist(), strict=True)) for values in shares]
        rows.append(
            {
                "bin": label,
                "samples": len(members),
                "loss": float(losses[members].mean()),
                "oracle_loss": float(oracle[members].mean()),
                "shares": named[0],
                "cheapest_shares": named[1],
                **{
                    f"against_{baseline}": {"value": interval.value, "low": interval.low, "high": interval.high}
                    for baseline, interval in zip(baselines, found, strict=True)
                },
            }
        )
    return rows
