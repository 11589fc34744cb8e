"""An agent's answers compared with those that its own library gave, before anything is asked and kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from l2d.cache_builder.agents import config_class, make_agent
from l2d.cache_builder.agents._answer_file import ROW, AnswerFile
from l2d.cache_builder.asking import Asker
from l2d.data.errors import AgentFailure, DataError
from l2d.data.samples.boxes import Boxes
from l2d.data.samples.dataset import Dataset

CLOSE = 1e-3  # of a probability, a score, and of a value relative to it
OVERLAP = 0.98  # of a box with the one expected
IDS = ("sample_id", "id")
HINT = (
    "the file is not the model that gave the expected answers: see docs/agents.md for exports that are known to "
    "differ, or export it again"
)


def compare_expected(asker: Asker, dataset: Dataset, file: Path) -> None:
    """Ask about the samples of a file and compare.

    Args:
        file: for boxes a file as ``kind = "detections"`` reads it; else a table with the column ``id`` or
            ``sample_id`` (or the dataset's own), and ``cla`` (class names), ``prob`` (of the second of two classes),
            ``prob_CLASS`` for each class, ``reg``, ``text``.

    Raises:
        DataError: it cannot be read, or does not fit the dataset.
        AgentFailure: an answer is another one; names the sample and both values.
    """
    if "boxes" in asker.wanted:
        _compare_boxes(asker, dataset, file)
        return
    table = AnswerFile(file)
    own = getattr(dataset, "config", {}).get("id")
    column = next((name for name in (own, *IDS) if name in table.columns), None)
    if column is None:
        raise DataError("has no column with sample ids", where=file, hint=f"call it {' or '.join(IDS)}")
    positions = {name: position for position, name in enumerate(dataset.ids)}
    names = {"cla", "prob", "reg", "text", *(f"prob_{name}" for name in dataset.classes)} & set(table.columns)
    if not names:
        raise DataError(
            "has no expected answers", where=file, hint="columns are cla, prob, prob_CLASS for each class, reg and text"
        )
    rows = table.table
    expected = {name: table.numbers(name, rows) for name in names - {"cla", "text"}}
    for row, sample in enumerate(rows[column].to_list()):
        if sample not in positions:
            raise DataError(f"{column} is {sample!r}, which is not a sample", where=table.where(rows[ROW][row]))
        at = positions[sample]
        answers = asker.ask(range(at, at + 1), {})
        found = {} if answers.reg is None else {"reg": float(answers.reg[0])}
        if "text" in names and answers.text is not None and rows["text"][row] not in (None, answers.text[0]):
            raise _other(asker, sample, "text", repr(answers.text[0]), repr(rows["text"][row]))
        if dataset.classes and (answers.cla is not None or answers.prob is not None):
            probabilities = answers.probabilities(len(dataset.classes))[0]
            found |= {f"prob_{name}": float(p) for name, p in zip(dataset.classes, probabilities, strict=True)}
            if len(dataset.classes) == 2:
                found["prob"] = float(probabilities[1])
            if "cla" in names:
                said, right = dataset.classes[int(answers.classes()[0])], rows["cla"][row]
                if right is not None and said != right:
                    raise _other(asker, sample, "cla", said, right)
        for name, values in expected.items():
            value = found.get(name, np.nan)
            if np.isnan(values[row]):
                continue
            if not abs(value - values[row]) <= CLOSE * (max(1.0, abs(values[row])) if name == "reg" else 1.0):
                raise _other(asker, sample, name, f"{value:.6g}", f"{values[row]:.6g}")


def _other(asker: Asker, sample: str, name: str, said: object, right: object) -> AgentFailure:
    return AgentFailure(
        f"agent {asker.agent.config.name!r} answered {name} = {said}, expected {right}",
        where=f"sample {sample!r}",
        hint=HINT,
    )


def _compare_boxes(asker: Asker, dataset: Dataset, file: Path) -> None:
    config = {"name": asker.agent.config.name, "kind": "detections", "file": file, "partial": True}
    right = make_agent(config_class("detections").model_validate(config))
    right.check(dataset, ["boxes"])
    for at in np.flatnonzero(right.looked_at).tolist():
        found, expected = asker.ask(range(at, at + 1), {}).boxes, right.boxes[at : at + 1]
        for one, other, what in ((expected, found, "not found"), (found, expected, "found, and not expected")):
            row = _unmatched(one, other)
            if row is not None:
                corners = ", ".join(f"{value:.5g}" for value in one.xyxy[row])
                box = f"({corners}), {dataset.classes[one.label[row]]}, score {one.score[row]:.4g}"
                raise AgentFailure(
                    f"agent {asker.agent.config.name!r}: the box {box} is {what} ({len(found.xyxy)} boxes, "
                    f"{len(expected.xyxy)} expected)",
                    where=f"sample {dataset.ids[at]!r}",
                    hint=HINT,
                )


def _unmatched(boxes: Boxes, others: Boxes) -> int | None:
    """The first box without one of the same class, nearly the same place and score among the others."""
    for row, (box, label, score) in enumerate(zip(boxes.xyxy, boxes.label, boxes.score, strict=True)):
        low, high = np.maximum(box[:2], others.xyxy[:, :2]), np.minimum(box[2:], others.xyxy[:, 2:])
        both = np.clip(high - low, 0, None).prod(axis=1)
        either = boxes.size[row].prod() + others.size.prod(axis=1) - both
        near = (both >= OVERLAP * either) & (others.label == label) & (np.abs(others.score - score) <= 10 * CLOSE)
        if not near.any():
            return row
    return None
