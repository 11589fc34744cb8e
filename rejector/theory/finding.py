"""One quantity of a diagnosis: what it is called, its value with an interval, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from l2d.rejector.evaluation.intervals import paired_interval


@dataclass(frozen=True, kw_only=True)
class Finding:
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

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        low, high = self.interval or (None, None)
        return {"title": self.title, "value": self.value, "low": low, "high": high, "says": self.says}


def mean_of(key: str, title: str, values: np.ndarray, says: str = "") -> Finding:
    """The finding that is a mean over samples (n,), with its interval."""
    found = paired_interval(values)
    return Finding(key=key, title=title, value=found.value, interval=(found.low, found.high), says=says)
