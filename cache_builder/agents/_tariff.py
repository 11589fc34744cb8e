"""What an answer was paid, where a file counts what it took (tokens, minutes) and a price list has the rest.

Published prices are for a million tokens or for a thousand, which is the commonest mistake with them. So what they are
for is stated, and never guessed.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import polars as pl
from pydantic import Field

from l2d.cache_builder.agents._answer_file import AnswerFile
from l2d.data.sources.table import Strict


class Tariff(Strict):
    """``paid = { prices = { input_tokens = 0.15, output_tokens = 0.6 }, per = 1000000 }``: counts times prices."""

    prices: Annotated[dict[str, Annotated[float, Field(ge=0)]], Field(min_length=1)]
    """Column of a count -> what so many of it as ``per`` says cost, in the recipe's ``unit_paid``."""
    per: Annotated[float, Field(gt=0)]
    """How many the prices are for: 1000000 for a million tokens."""

    def paid(self, file: AnswerFile, rows: pl.DataFrame) -> np.ndarray:
        """What each answer was paid, float64 (n,): the sum of count x price / per, NaN where a count is missing.

        Raises:
            DataError: there is no such column, or it holds something else than numbers.
        """
        total = np.zeros(len(rows))
        for column, price in self.prices.items():
            total += file.numbers(file.need(column, "paid.prices"), rows) * price
        return total / self.per


def said(column: str, price: float, per: float, unit: str) -> str:
    """A price in words: ``0.15 USD for 1,000,000 input_tokens``."""
    money = f"{price:g} {unit}".rstrip()
    return f"{money} for {per:,.0f} {column}"
