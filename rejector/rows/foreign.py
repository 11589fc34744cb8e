"""Inputs unlike those of training: what a run remembers of its training, and how far a file is from it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from l2d.data.samples.features import CategoricalFeature, FeatureEncoder
from l2d.data.samples.text import TextFeature

DEVIATIONS = 4.0  # beyond chance
SHARE = 0.05  # by which an agent's share has to differ as well
ROWS_AT_ONCE = 2040  # that are compared: eight times what a byte counts, in the processor's cache


class Foreign:
    """Counts, batch by batch, what a run has not met in training.

    Args:
        seen: of ``run.json``: ``rows`` and ``least``, ``most`` of each feature of the training split; ``validation``,
            the number of samples there that each agent got. None for runs of before it was kept.
        encoder: of the features, which knows what columns are categories; None where features come otherwise.
        names: of the features, by place.
        agents: names, in order.
    """

    def __init__(
        self, seen: dict[str, Any] | None, encoder: FeatureEncoder | None, names: list[str], agents: list[str]
    ):
        self._seen, self._agents, self._names, self._rows = seen, agents, names, 0
        self._categories: dict[str, slice] = {}
        self._texts: dict[str, slice] = {}
        place = 0
        for feature in encoder.features if encoder is not None else ():
            width = len(feature.columns())
            if isinstance(feature, CategoricalFeature):
                self._categories[feature.name] = slice(place, place + width)
            elif isinstance(feature, TextFeature):  # of a text that has none of training's words
                self._texts[feature.name] = slice(place + width - feature.components, place + width)
            place += width
        self._unseen = dict.fromkeys(self._categories, 0)
        self._wordless = dict.fromkeys(self._texts, 0)
        self._ranged = np.ones(place, bool)  # what a word says has no range of its own
        for columns in self._texts.values():
            self._ranged[columns] = False
        self._knows_range = seen is not None and seen.get("least") is not None
        if seen is not None and self._knows_range:
            self._least, self._most = (np.array(seen[name]) for name in ("least", "most"))
            width = self._most - self._least
            self._range = _at_least(self._least), -_at_least(-self._most)
            self._wide = _at_least(self._least - width), -_at_least(-self._most - width)
            self._outside, self._far = (np.zeros(len(self._least), np.int64) for _ in range(2))

    def see(self, features: np.ndarray) -> None:
        """Count a batch, (rows, width)."""
        self._rows += len(features)
        for name, columns in self._categories.items():
            self._unseen[name] += int((features[:, columns] == 0).all(axis=1).sum())
        for name, columns in self._texts.items():
            self._wordless[name] += int((features[:, columns] == 0).all(axis=1).sum())
        for start in range(0, len(features) if self._knows_range else 0, ROWS_AT_ONCE):
            rows = features[start : start + ROWS_AT_ONCE]
            outside = _beyond(rows, *self._range)
            if outside.any():
                self._outside += outside
                self._far += _beyond(rows, *self._wide)

    def findings(self, counts: list[int] | None) -> list[dict[str, Any]]:
        """What was found, one object each: ``kind``, ``name``, and numbers.

        Args:
            counts: inputs that each agent gets; None where they are not to be compared, since agents were left out.
        """
        found: list[dict[str, Any]] = [
            {"kind": kind, "name": name, "inputs": count}
            for kind, counted in (("unseen category", self._unseen), ("no known word", self._wordless))
            for name, count in counted.items()
            if count
        ]
        if self._seen is not None and self._knows_range:
            expected = (
                2 * self._rows / (self._seen["rows"] + 1)
            )  # of draws from one distribution, this number is outside
            many = self._outside > expected + DEVIATIONS * math.sqrt(expected)
            many |= self._far > 0
            if self._texts:
                many &= self._ranged
            found += [
                {
                    "kind": "outside the training range", "name": self._names[place],
                    "inputs": int(self._outside[place]),
                    "least": float(self._least[place]), "most": float(self._most[place]),
                }
                for place in np.flatnonzero(many)
            ]  # fmt: skip
        if counts is not None and self._seen is not None and self._rows:
            theirs = self._seen["validation"]
            for agent, here, there in zip(self._agents, counts, theirs, strict=True):
                ours, known = here / self._rows, there / max(1, sum(theirs))
                pooled = (here + there + 1) / (self._rows + sum(theirs) + 2)
                error = math.sqrt(pooled * (1 - pooled) * (1 / self._rows + 1 / max(1, sum(theirs))))
                if abs(ours - known) > max(SHARE, DEVIATIONS * error):
                    found.append({"kind": "another share", "name": agent, "share": ours, "on validation": known})
        return found


def _at_least(bounds: np.ndarray) -> np.ndarray:
    """The least float32 numbers that are not below float64 ones: a float32 number is below either or below both."""
    with np.errstate(over="ignore"):
        found = bounds.astype(np.float32)
    return np.where(found < bounds, np.nextafter(found, np.float32(np.inf)), found)


def _beyond(rows: np.ndarray, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """In how many rows each number is below ``least`` or above ``most``, int64 (width,)."""
    found = rows < least
    found |= rows > most
    pieces = len(rows) // 255  # what a byte counts, of many columns at once
    counted = found[: pieces * 255].view(np.uint8).reshape(pieces, 255, rows.shape[1]).sum(axis=1, dtype=np.uint8)
    return np.asarray(counted.sum(axis=0, dtype=np.int64) + found[pieces * 255 :].sum(axis=0))


def sentences(findings: list[dict[str, Any]]) -> list[str]:
    """One line for people for each kind of finding."""
    lines = []
    unseen, wordless, outside, shares = (
        [finding for finding in findings if finding["kind"] == kind]
        for kind in ("unseen category", "no known word", "outside the training range", "another share")
    )
    if unseen:
        listed = ", ".join(f"{f['name']} ({f['inputs']:,} inputs)" for f in unseen[:5])
        lines.append(f"categories that training has not seen: {listed}{_more(unseen)}")
    if wordless:
        listed = ", ".join(f"{f['name']} ({f['inputs']:,} inputs)" for f in wordless[:5])
        lines.append(f"texts without a word that training has: {listed}{_more(wordless)}")
    if outside:
        listed = ", ".join(
            f"{f['name']} ({f['inputs']:,} inputs, training has {f['least']:.4g} to {f['most']:.4g})"
            for f in outside[:5]
        )
        lines.append(f"outside the range of training: {listed}{_more(outside)}")
    if shares:
        listed = ", ".join(f"{f['name']} {f['share']:.1%} ({f['on validation']:.1%} on validation)" for f in shares[:5])
        lines.append(f"shares far from validation's: {listed}{_more(shares)}")
    return lines


def _more(findings: list[dict[str, Any]]) -> str:
    return f" and {len(findings) - 5} more" if len(findings) > 5 else ""
