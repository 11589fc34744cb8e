"""What the page shows of one example: its costs and answers in words, and pictures with boxes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from l2d.data.cache.reader import CacheRecord
from l2d.rejector.report.cast import Cast
from l2d.rejector.report.examples import LEAST_SCORE, Example, agents_to_show

LONGEST_TEXT = 160  # letters of an answer that are shown
#: Size of a letter of a box's name, in hundredths of the picture's width: names are as large in every picture.
LETTER_WIDE, LETTER_HIGH = 2.8, 4.6
SAME = 0.35  # overlap from which two boxes of one class are one to the eye: the surer one has the name
NO_TRUE_TEXT = "has no answer"


def tiles_of(example: Example, record: CacheRecord, cast: Cast) -> dict[str, Any]:
    """An example as the template takes it."""
    names = list(example.costs)
    chosen = names[example.chosen]
    if example.kind == "gain":
        why = f"every other agent costs at least {example.by:.3g} more"
    else:
        why = f"{example.cheapest} costs {example.by:.3g} less"
    shown = agents_to_show(example)
    costs = {name: cost if math.isfinite(cost) else None for name, cost in example.costs.items()}  # None: unavailable
    rows: list[dict[str, Any]]
    rows = [{"agent": name, "slot": cast.slot(name), "cost": costs[name], "chosen": name == chosen,
             "cheapest": example.costs[name] == min(example.costs.values()),
             "answer": _answer(example.answers.get(name, {}), record, "pred")} for name in shown]  # fmt: skip
    truth = _answer(example.answers["target"], record, "target")
    tiles: list[dict[str, Any]] = []
    if example.size[0]:
        boxes = _boxes(example.answers["target"], "target", record, example.size)
        tiles.append({"title": "truth", "slot": None, "chosen": False, "boxes": boxes})
        for row in rows:
            boxes = _boxes(example.answers.get(row["agent"], {}), "pred", record, example.size)
            tiles.append({"title": row["agent"], "boxes": boxes, **row})
    facts = {name: _short(value) if isinstance(value, str) else value for name, value in example.facts.items()}
    example = replace(example, facts=facts)
    return {"example": example, "why": why, "rows": rows, "truth": truth, "tiles": tiles}


def _answer(values: dict[str, Any], record: CacheRecord, prefix: str) -> str:
    """An answer, or the truth, in words."""
    if values.get("failure"):
        return "no answer"
    parts = []
    label, chances, number = (values.get(f"{prefix}_{name}") for name in ("cla", "prob", "reg"))
    if label is not None:
        name = record.classes[label] if label < len(record.classes) else str(label)
        parts.append(f"{name} ({100 * chances[label]:.0f} %)" if chances else name)
    if number is not None:
        parts.append(f"{number:.3g}")
    said = values.get(f"{prefix}_text")
    if said is not None:  # of the truth a list
        parts.append(" / ".join(map(_quoted, [said] if isinstance(said, str) else said)) or NO_TRUE_TEXT)
    if values.get(f"{prefix}_boxes") is not None:
        parts.append(f"{len(_boxes(values, prefix, record))} boxes")
    return ", ".join(parts)


def _quoted(text: str) -> str:
    return f"“{_short(text)}”"


def _short(text: str) -> str:
    """A text, the middle of a long one left out."""
    left = LONGEST_TEXT // 2
    return text if len(text) <= LONGEST_TEXT else f"{text[:left]} … {text[-left:]}"


def _boxes(
    values: dict[str, Any], prefix: str, record: CacheRecord, size: tuple[float, float] | None = None
) -> list[dict[str, Any]]:
    """Boxes worth drawing, the surest last, so on top.

    Args:
        size: width and height of the picture: each box gets ``label``, where its name is written; None: no room is left
            beside surer ones.
    """
    found = [box for box in values.get(f"{prefix}_boxes") or [] if box["score"] >= LEAST_SCORE]
    found.sort(key=lambda box: box["score"])
    for box in found:
        name = record.classes[box["label"]] if box["label"] < len(record.classes) else str(box["label"])
        box["text"] = name if prefix == "target" else f"{name} {100 * box['score']:.0f}"
    if size is not None:
        write_names(found, size)
    return found


def write_names(boxes: list[dict[str, Any]], size: tuple[float, float]) -> None:
    """Give each box ``written``, where its name begins (x, base line y), or None; the surest, at the end, choose first.

    A name stands above its box, within it at its top, beneath it or within it at its bottom: at the first of these
    places where it lies on no other name. It stays within the picture.
    """
    unit = size[0] / 100
    high = LETTER_HIGH * unit
    taken: list[dict[str, float]] = []
    for number in range(len(boxes) - 1, -1, -1):
        box = boxes[number]
        box["written"] = None
        if any(_overlap(box, surer) >= SAME and box["text"].split()[0] == surer["text"].split()[0]
               for surer in boxes[number + 1 :]):  # fmt: skip
            continue
        wide = LETTER_WIDE * unit * len(box["text"])
        left = max(min(box["x1"] + unit, size[0] - wide), unit)
        tops = (box["y1"] - high - unit / 2, box["y1"] + unit / 2, box["y2"] + unit / 2, box["y2"] - high - unit / 2)
        for top in tops:
            place = {"x1": left, "y1": top, "x2": left + wide, "y2": top + high}
            inside = top >= 0 and place["y2"] <= size[1]
            if inside and all(_overlap(place, other) == 0 for other in taken):
                taken.append(place)
                box["written"] = (left, top + 0.8 * high)
                break


def _overlap(one: dict[str, float], other: dict[str, float]) -> float:
    """Intersection over union."""
    width = min(one["x2"], other["x2"]) - max(one["x1"], other["x1"])
    height = min(one["y2"], other["y2"]) - max(one["y1"], other["y1"])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box["x2"] - box["x1"]) * (box["y2"] - box["y1"]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)
