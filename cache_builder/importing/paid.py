"""What answers were paid, as an import finds it: a column, a column for so many, or counts and a price list."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from l2d.cache_builder.agents._answer_file import AnswerFile
from l2d.cache_builder.agents._tariff import Tariff, said
from l2d.cache_builder.agents.annotators import HOLE
from l2d.cache_builder.importing.source import Source
from l2d.cache_builder.importing.tariffs import read_tariffs
from l2d.data.errors import UsageError
from l2d.data.toml import toml_text

PIPE = "{}|total_cost"  # RouterBench's column with what a model's answer cost
DOLLARS = {"usd", "dollar", "dollars"}
HOW_MANY = "--per 1000000 where prices are for a million tokens, --per 1000 for a thousand"


@dataclass(frozen=True)
class Paid:
    """What was paid for answers.

    Attributes:
        column: that has it, with ``{}`` for the agent's name in a wide table; None with a price list, or where nothing
            says it.
        per: of how many answers the column has the price, or how many the list's prices are for.
        tariffs: of a price list: agent -> column of a count -> price.
        unit: such as ``USD``; empty where nothing says it.
    """

    column: str | None = None
    per: float = 1.0
    tariffs: dict[str, dict[str, float]] | None = None
    unit: str = ""
    columns: set[str] = field(default_factory=set)

    @property
    def known(self) -> bool:
        """Whether anything says what answers were paid."""
        return self.column is not None or self.tariffs is not None

    def of(self, name: str, file: AnswerFile, rows: pl.DataFrame) -> np.ndarray | None:
        """What each of an agent's answers was paid, float64 (n,); None where nothing says it."""
        tariff = self._tariff(name)
        if tariff is not None and set(tariff.prices) <= set(file.columns):
            return tariff.paid(file, rows)
        column = (self.column or "").replace(HOLE, name)
        return file.numbers(column, rows) if tariff is None and column in file.columns else None

    def key(self, name: str) -> str:
        """``paid = …`` of an agent's entry in a recipe."""
        tariff = self._tariff(name)
        if tariff is None:
            return f"paid = {toml_text((self.column or '').replace(HOLE, name))}"
        prices = ", ".join(f"{toml_text(column)} = {price!r}" for column, price in tariff.prices.items())
        return f"paid = {{ prices = {{ {prices} }}, per = {_whole(tariff.per)} }}"

    def lines(self, shown: str) -> list[str]:
        """What was read, in sentences.

        Args:
            shown: the column, as people are told of it.
        """
        if self.tariffs is not None:
            first, prices = next(iter(self.tariffs.items()))
            listed = ", ".join(said(column, price, self.per, self.unit) for column, price in prices.items())
            unit = "" if self.unit else "; in which unit, --unit-paid says"
            return [f"what an answer was paid is its counts times the prices of the list, as {first}: {listed}{unit}"]
        if self.column is None:
            return []
        if self.per != 1:
            unit = self.unit or "a unit that --unit-paid says"
            return [f"what an answer was paid is {shown} divided by {self.per:,.0f} (--per), in {unit}"]
        unit = f"{self.unit} for one answer (--unit-paid: another)" if self.unit else "in which unit, --unit-paid says"
        return [f"what an answer was paid is in {shown}, read as it stands there: {unit}"]

    def _tariff(self, name: str) -> Tariff | None:
        if self.tariffs is not None:
            prices = self.tariffs.get(name)
            return Tariff(prices=prices, per=self.per) if prices else None
        if self.column is None or self.per == 1:
            return None
        return Tariff(prices={self.column.replace(HOLE, name): 1.0}, per=self.per)


def paid_of(source: Source, column: str | None, file: AnswerFile, names: list[str], *, long: bool) -> Paid:
    """What answers were paid, as the user says or the names of columns do.

    Args:
        column: that has it, by name or pattern.

    Raises:
        UsageError: it is not said what the prices of a list are for.
    """
    unit = source.unit_paid or ""
    if source.prices is not None:
        if source.paid is not None:
            raise UsageError(
                "--prices and --paid", where=file.path, hint="a price list, or a column that has what was paid"
            )
        if source.per is None:
            what = f"--prices {source.prices.name}: for how many are these prices?"
            raise UsageError(what, where=source.prices, hint=HOW_MANY)
        tariffs = read_tariffs(source.prices, file, names, long=long)
        return Paid(None, source.per, tariffs, unit, {c for prices in tariffs.values() for c in prices})
    if source.per is not None and source.paid is None:
        hint = "--paid COLUMN or --prices FILE says what is divided"
        raise UsageError(f"--per {source.per:g} of what?", where=file.path, hint=hint)
    if column is not None and not unit:
        words = set(re.split(r"[^a-z]+", column.replace(HOLE, "").lower()))
        unit = "USD" if words & DOLLARS or column == PIPE else ""
    columns = set() if column is None else {column.replace(HOLE, name) for name in names}
    return Paid(column, source.per or 1.0, None, unit, columns)


def mean_paid(price: float, unit: str) -> str:
    """A mean price so that a factor of a thousand would be noticed."""
    return f"mean price {price:.6g}" + (f" {unit}, {1000 * price:.4g} {unit} a thousand answers" if unit else "")


def _whole(number: float) -> str:
    return repr(int(number)) if number == int(number) else repr(number)
