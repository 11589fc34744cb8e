"""Price lists of an import: what agents take for a million tokens, or for so many of whatever the answers count."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from l2d.cache_builder.agents._answer_file import AnswerFile, as_text
from l2d.cache_builder.agents._answer_folders import joined, read_parts
from l2d.cache_builder.agents.annotators import HOLE
from l2d.cache_builder.importing.source import ANNOTATORS, some
from l2d.data.errors import DataError, UsageError, nearest

NAMES = (*ANNOTATORS, "name", "model_id", "slug")  # of a price list's column of agents
#: What a price list calls a price -> what a table of answers calls the count that it is for.
COUNTS = {
    "input": ("input_tokens", "prompt_tokens", "token_usage.input_tokens"),
    "output": ("output_tokens", "completion_tokens", "token_usage.output_tokens"),
}
ALIASES = {
    "input": "input", "input_price": "input", "input_cost": "input", "prompt": "input", "prompt_price": "input",
    "output": "output", "output_price": "output", "output_cost": "output", "completion": "output",
    "completion_price": "output",
}  # fmt: skip


def read_tariffs(path: Path, file: AnswerFile, names: list[str], *, long: bool) -> dict[str, dict[str, float]]:
    """Agent -> column of a count -> price, of the agents that a price list names.

    The list is a table with a row for each agent: a column with its name, and a column of prices for each count. A
    column is called as the count is in the answers (``input_tokens``; of a wide table ``{}_tokens``), or ``input`` and
    ``output`` as price lists call them.

    Raises:
        UsageError: no column of the list has the agents' names.
        DataError: it cannot be read; a price is for no column of the answers, or is no number; an agent stands twice.
    """
    table = joined(path, read_parts(path))
    texts = {name: as_text(table[name]) for name in table.columns if not table.schema[name].is_nested()}
    covers = {name: int(column.is_in(names).sum()) for name, column in texts.items()}
    column = max(covers, key=lambda name: (covers[name], name.lower() in NAMES), default=None)
    if column is None or not covers[column]:
        what = f"--prices {path.name}: no column has the agents' names"
        raise UsageError(what, where=path, hint=f"the agents are {some(names)}; its columns are {some(table.columns)}")
    rows = table.filter(texts[column].is_in(names))
    who = as_text(rows[column]).to_list()
    twice = next((name for name in who if who.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{twice} stands twice in the price list", where=path, hint="leave one row")
    found: dict[str, dict[str, float]] = {name: {} for name in who}
    for name in table.columns:
        if name == column:
            continue
        prices = _numbers(rows[name])
        if prices is None:
            continue  # a description, a context length in words
        counted = _count(name, file, who[0], long=long)
        if counted is None:
            if name.lower() in ALIASES or "price" in name.lower() or "cost" in name.lower():
                hint = nearest(name, file.columns, "they have", most=20)
                what = f"{name} is the price of what? No column of the answers has such a count"
                raise DataError(what, where=path, hint=f"call it as the column of counts is called; {hint}")
            continue
        for agent, price in zip(who, prices.to_list(), strict=True):
            if price is None or price < 0:
                raise DataError(f"the {name} of {agent} is {price}", where=path, hint="a price is a number >= 0")
            found[agent][counted if long else counted.replace(HOLE, agent)] = float(price)
    if not any(found.values()):
        what = f"no column of {path.name} is called as one of the answers is, so no price is known"
        raise DataError(what, where=path, hint=f"they have {some(file.columns, 20)}")
    return found


def _numbers(column: pl.Series) -> pl.Series | None:
    """A column of prices; None where it holds something else."""
    if column.dtype == pl.String:
        numbers = column.str.strip_chars().cast(pl.Float64, strict=False)
        return None if numbers.null_count() > column.null_count() else numbers
    return column.cast(pl.Float64) if column.dtype.is_numeric() else None


def _count(name: str, file: AnswerFile, agent: str, *, long: bool) -> str | None:
    """The column of answers that a price is for, in a wide table with ``{}`` for the agent's name."""
    choices = (name, *COUNTS.get(ALIASES.get(name.lower(), ""), ()))
    for choice in choices:
        patterns = [choice] if long or HOLE in choice else [f"{HOLE}|{choice}", f"{HOLE}_{choice}", f"{HOLE}.{choice}"]
        for pattern in patterns:
            if pattern.replace(HOLE, agent) in file.columns:
                return pattern
    return None
