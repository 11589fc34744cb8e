"""Where the names in a chart go, so that none lies on another: what has no room is left to tooltips and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

Rows = Sequence[dict[str, Any]]
PLOT = (280, 270)  # pixels between the axes, on the narrowest screen
LETTER, LINE = 6.1, 12  # width and height of a letter of a label
LONGEST = 24  # letters of a label
FIRST = ("system", "agent", "bound", "other")  # whose labels are placed first
ABOVE, BELOW = ("center", 0, -12), ("center", 0, 14)
ASIDE = (("left", 9, 0), ("right", -9, 0), ("left", 5, -12), ("right", -5, -12), ("left", 5, 14), ("right", -5, 14))


def shortened(label: str) -> str:
    """A label that is not too long, its end told by three dots."""
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


def place_labels(points: Rows, *, down: bool) -> Iterator[tuple[dict[str, Any], tuple[str, str, int, int]]]:
    """Labels of points of a scatter that lie on no other label and on no point; what has no room is left out.

    Args:
        points: of :func:`scatter`.
        down: see :func:`scatter`.

    Yields:
        A point, and its label's style, alignment and offsets.
    """
    x = _pixels([row["x"] for row in points], [row[end] for row in points for end in ("x_low", "x_high")], PLOT[0])
    y = _pixels([row["y"] for row in points], [row[end] for row in points for end in ("y_low", "y_high")], PLOT[1])
    y = y if down else [PLOT[1] - value for value in y]
    taken = [(across - 5, height - 5, across + 5, height + 5) for across, height in zip(x, y, strict=True)]
    order = sorted(range(len(points)), key=lambda number: FIRST.index(points[number]["kind"]))
    for number in order:
        row = points[number]
        if not row["label"]:
            continue
        wide = LETTER * len(shortened(row["label"]))
        above = {"system": (BELOW, ABOVE, *ASIDE), "bound": (*ASIDE, ABOVE, BELOW)}.get(
            row["kind"], (ABOVE, BELOW, *ASIDE)
        )
        for align, dx, dy in above:
            left = x[number] + dx - {"left": 0.0, "center": wide / 2, "right": wide}[align]
            box = (left, y[number] + dy - LINE / 2, left + wide, y[number] + dy + LINE / 2)
            inside = box[0] >= -6 and box[2] <= PLOT[0] + 6
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                yield row, ("strong-label" if row["kind"] == "system" else "label", align, dx, dy)
                break


def _pixels(places: Sequence[float], ends: Sequence[float], length: int) -> list[float]:
    """Where values lie on an axis of a length, with the margin that charts have."""
    low, high = min(*places, *ends), max(*places, *ends)
    return [18 + (place - low) / ((high - low) or 1.0) * (length - 36) for place in places]


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def apart(rows: Rows, gap: float) -> list[dict[str, Any]]:
    """Rows whose names can be written beside their levels: of those closer than ``gap`` the first."""
    kept: list[dict[str, Any]] = []
    for row in rows:
        if all(abs(row["value"] - other["value"]) >= gap for other in kept):
            kept.append(row)
    return kept
