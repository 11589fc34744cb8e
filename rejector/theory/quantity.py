"""One quantity of a diagnosis: what it is called, its value with an interval, and what it says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from l2d.rejector.evaluation.intervals import paired_interval


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One quantity.

    Attributes:
        key: short name, for programs.
        title: for people.
        value: None where it cannot be had; ``says`` then tells why.
        interval: 95 % interval of a mean over samples (bootstrap), or None.
        says: what it means here, in a sentence.
    """

    key: str
    title: str
    value: float | None
    interval: tuple[float, float] | None = None
    says: str = ""

    @property
    def ends(self) -> tuple[float, float]:
        """The interval of a mean over samples, see :func:`mean_of`; from -inf to inf where there is none."""
        return self.interval or (-math.inf, math.inf)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        low, high = self.interval or (None, None)
        return {"title": self.title, "value": self.value, "low": low, "high": high, "says": self.says}


def mean_of(key: str, title: str, values: np.ndarray, says: str = "") -> Quantity:
    """The finding that is a mean over samples (n,), with its interval."""
    found = paired_interval(values)
    return Quantity(key=key, title=title, value=found.value, interval=(found.low, found.high), says=says)
