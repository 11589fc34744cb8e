"""What an agent says about a batch, and the checks every answer passes before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from l2d.data.cache.columns import dense_array, dense_matrix, number_column, numbers, text_values, texts_column
from l2d.data.cache.schema import NO_ANSWER
from l2d.data.errors import AgentFailure
from l2d.data.samples.boxes import LARGEST, Boxes

#: What may be noted of each answer beside it, for SQL and as an agent's price.
NOTES = ("seconds", "paid")


def reasons_where(missing: np.ndarray, reason: str) -> np.ndarray:
    """:attr:`Answers.failure` with one reason where answers are missing, bool (n,)."""
    found = np.full(len(missing), None, dtype=object)
    found[missing] = reason
    return found


@dataclass(kw_only=True)
class Answers:
    """Predictions for n samples; what the agent does not answer is None.

    ``cla`` may be left out where ``prob`` is given: the class is then the most probable one, ties to the lowest index.
    ``features`` is what the agent saw rather than said: its pooled features, which become the rejector's input.
    """

    cla: np.ndarray | None = None  # class index, int (n,)
    prob: np.ndarray | None = None  # class probabilities, float (n, classes)
    reg: np.ndarray | None = None  # value in the target's unit, float (n,)
    text: np.ndarray | None = None  # an answered text, str or None where there is none, (n,)
    boxes: Boxes | None = None  # detections on n images
    features: np.ndarray | None = None  # float (n, width)
    seconds: np.ndarray | None = None  # how long each answer took, float (n,), NaN where that is not known
    paid: np.ndarray | None = None  # what each answer cost, in any one unit, float (n,), NaN where that is not known
    failure: np.ndarray | None = None  # why there is no answer, str or None, (n,); the arrays hold zeros there

    def classes(self) -> np.ndarray:
        """Class index of each answer, int32 (n,)."""
        chosen = self.prob.argmax(axis=1) if self.cla is None else self.cla
        return np.asarray(chosen, dtype=np.int32)

    def probabilities(self, num_classes: int) -> np.ndarray:
        """Class probabilities float64 (n, classes); one-hot where the agent gave only a class."""
        if self.prob is not None:
            return np.asarray(self.prob, dtype=np.float64)
        return np.eye(num_classes)[self.classes()]

    @classmethod
    def failed(cls, reason: str, wanted: list[str], num_classes: int) -> Answers:
        """A recorded failure on one sample: no answer, and why."""
        return cls(
            cla=np.zeros(1, np.int32) if "cla" in wanted else None,
            prob=np.full((1, num_classes), 1 / num_classes, np.float32) if "cla" in wanted else None,
            reg=np.zeros(1, np.float32) if "reg" in wanted else None,
            text=np.array([None], dtype=object) if "text" in wanted else None,
            boxes=Boxes.empty(1) if "boxes" in wanted else None,
            failure=np.array([reason], dtype=object),
        )

    @property
    def is_failure(self) -> np.ndarray:
        """Boolean (n,): where there is no answer."""
        if self.failure is None:
            return np.zeros(len(self), dtype=bool)
        return np.array([reason is not None for reason in self.failure], dtype=bool)

    @property
    def is_unavailable(self) -> np.ndarray:
        """Boolean (n,): where a partial agent has nothing to say, which is no failure of its."""
        if self.failure is None:
            return np.zeros(len(self), dtype=bool)
        return np.array([reason == NO_ANSWER for reason in self.failure], dtype=bool)

    def with_gaps(self, count: int, wanted: list[str], num_classes: int) -> Answers:
        """These answers of a partial agent, a sample with None or NaN for something wanted marked as unavailable.

        Args:
            count: of samples that were asked about. Answers of another length are returned as they are, to be refused.
            wanted: as for :meth:`checked`.
        """
        blanks = {"cla": 0.0, "prob": np.full(num_classes, 1 / max(1, num_classes)), "reg": 0.0}
        missing = np.zeros(count, dtype=bool)
        found = {}
        for name, task in (("cla", "cla"), ("prob", "cla"), ("reg", "reg")):
            values = getattr(self, name)
            if values is None or task not in wanted:
                continue
            if name == "prob" and isinstance(values, list | tuple):
                values = [[None] * num_classes if row is None else row for row in values]
            try:
                found[name] = np.array(values, dtype=np.float64)  # None becomes NaN
            except (TypeError, ValueError):
                return self
            if len(np.shape(found[name])) != np.ndim(blanks[name]) + 1 or len(found[name]) != count:
                return self
            missing |= np.isnan(found[name]).reshape(count, -1).all(axis=1)
        if self.text is not None and "text" in wanted:
            if len(self.text) != count:
                return self
            missing |= np.array([said is None or said != said for said in self.text])  # NaN, as pandas has it
        if self.failure is not None:
            if len(self.failure) != count:
                return self
            missing |= self.is_unavailable
        if not missing.any():
            return self
        for name, values in found.items():
            if name == "prob" and values.shape[1] != num_classes:
                return self
            values[missing] = blanks[name]
        reasons = np.full(count, None, dtype=object) if self.failure is None else self.failure.copy()
        reasons[missing & ~self.is_failure] = NO_ANSWER
        rest = {name: values for name, values in vars(self).items() if values is not None}
        if self.features is not None and np.shape(self.features)[:1] == (count,):
            shown = np.array(self.features, dtype=np.float64)
            shown[missing & np.isnan(shown).reshape(count, -1).all(axis=1)] = 0
            rest["features"] = shown
        return Answers(**{**rest, **found, "failure": reasons})

    def __len__(self) -> int:
        given = (self.cla, self.prob, self.reg, self.text, self.boxes, self.failure)
        return next(len(values) for values in given if values is not None)

    def rows(self, part: slice) -> Answers:
        """The answers of some samples."""
        return Answers(**{name: values[part] for name, values in vars(self).items() if values is not None})

    def checked(self, agent: str, ids: Sequence[str], wanted: list[str], num_classes: int) -> Answers:
        """These answers as arrays of the stored types.

        Args:
            agent: name, for messages.
            ids: of the samples that were asked about.
            wanted: what has to be answered, out of ``cla``, ``reg``, ``text``, ``boxes`` and ``features``.

        Raises:
            AgentFailure: something wanted is missing, the shape is wrong, a value is not finite, a class is unknown,
                probabilities or scores are outside [0, 1] or the former do not sum to 1, or a box's corners are the
                wrong way round. Names agent and first sample.
        """
        for name, what in (("cla", "class"), ("reg", "value"), ("text", "text"), ("boxes", "detections"),
                           ("features", "features")):  # fmt: skip
            if name in wanted and getattr(self, name) is None and not (name == "cla" and self.prob is not None):
                keys = "`cla` or `prob`" if name == "cla" else f"`{name}`"
                several = name in ("cla", "reg", "text") and len({"cla", "reg", "text"}.intersection(wanted)) > 1
                other = f"; or say `{name}_from` or `{name}_cost` in the recipe" if several else ""
                where, hint = f"the batch from sample {ids[0]!r}", f"it must answer {keys}{other}"
                raise AgentFailure(f"agent {agent!r} gave no {what}", where=where, hint=hint)
        check = _Checker(agent, ids)
        prob = cla = reg = features = None
        if self.prob is not None:
            prob = check.finite("prob", self.prob, (len(ids), num_classes))
            check.all("prob", ((prob >= 0) & (prob <= 1)).all(axis=1), prob, "is outside [0, 1]")
            check.all("prob", np.abs(prob.sum(axis=1) - 1) < 1e-3, prob, "does not sum to 1")
        if self.cla is not None:
            cla = check.finite("cla", self.cla, (len(ids),))
            check.all("cla", np.isin(cla, np.arange(num_classes)), cla, f"is not a class index below {num_classes}")
        elif prob is not None:
            cla = prob.argmax(axis=1)
        if self.reg is not None:
            with np.errstate(over="ignore"):  # what overflows is refused in the next line
                reg = check.finite("reg", self.reg, (len(ids),)).astype(np.float32)
            check.all("reg", np.isfinite(reg), self.reg, "does not fit a 32-bit float")
        if self.text is not None:
            check.texts(self.text, self.is_failure)
        if self.boxes is not None:
            check.boxes(self.boxes, num_classes)
        if "features" in wanted:
            width = self.features.shape[1] if np.ndim(self.features) == 2 else -1
            features = check.finite("features", self.features, (len(ids), width)).astype(np.float32)
        notes = {}
        for name in NOTES:
            if getattr(self, name) is not None:
                noted = notes[name] = np.array(getattr(self, name), dtype=np.float64)
                where = np.isnan(noted) | (np.isfinite(noted) & (noted >= 0))
                check.all(name, where, noted, "is not a number from 0 on")
        return Answers(
            **notes,
            cla=None if cla is None else cla.astype(np.int32),
            prob=None if prob is None else prob.astype(np.float32),
            reg=reg,
            text=None if self.text is None else _objects(self.text),
            boxes=self.boxes,
            features=features,
            failure=self.failure,
        )

    def to_columns(self) -> dict[str, pa.Array]:
        """As columns of a predictions part; a recorded failure is null in all of them but ``failure``."""
        missing = self.is_failure
        mask = missing if missing.any() else None  # without one, pages hold values alone and can be mapped
        columns = {}
        if self.cla is not None:
            columns["pred_cla"] = number_column(self.cla.astype(np.int32, copy=False), mask)
        if self.prob is not None:
            columns["pred_prob"] = dense_array(self.prob, mask)
        if self.reg is not None:
            columns["pred_reg"] = number_column(self.reg.astype(np.float32, copy=False), mask)
        if self.text is not None:
            said = [None if gone else text for text, gone in zip(self.text.tolist(), missing, strict=True)]
            columns["pred_text"] = texts_column(said)
        if self.boxes is not None:
            columns["pred_boxes"] = self.boxes.to_arrow(mask)
        if self.features is not None:
            columns["features"] = dense_array(self.features, mask)
        for name in NOTES:
            if (noted := getattr(self, name)) is not None:
                noted = np.asarray(noted, dtype=np.float64)
                columns[name] = number_column(noted, missing | np.isnan(noted))
        columns["failure"] = texts_column([None] * len(self) if self.failure is None else self.failure.tolist())
        return columns

    @classmethod
    def from_table(cls, table: pa.Table) -> Answers:
        """Inverse of :meth:`to_columns`."""
        found: dict[str, Any] = {}
        for name, column, read in _COLUMNS:
            if column in table.column_names:
                found[name] = read(table[column])
        if table["failure"].null_count < len(table):
            found["failure"] = np.array(table["failure"].to_pylist(), dtype=object)
        return cls(**found)

    @classmethod
    def concatenate(cls, parts: list[Answers]) -> Answers:
        """Answers of consecutive batches as one. Where some parts give no probabilities, none are kept."""
        joined: dict[str, Any] = {}
        answered = [part for part in parts if not part.is_failure.all()] or parts
        if all(part.boxes is not None for part in parts):
            joined["boxes"] = Boxes.concatenate([part.boxes for part in parts])
        for name in ("cla", "prob", "reg", "text", "features", *NOTES):
            given = [getattr(part, name) for part in answered]
            if all(values is not None for values in given):
                blank = np.zeros_like(given[0][:1])  # stands where a failed part has nothing of this kind
                columns = [getattr(part, name) for part in parts]
                filled = [
                    np.repeat(blank, len(p), axis=0) if c is None else c for p, c in zip(parts, columns, strict=True)
                ]
                joined[name] = np.concatenate(filled)
        if any(part.failure is not None for part in parts):
            nothing = [np.full(len(part), None, dtype=object) for part in parts]
            reasons = [n if p.failure is None else p.failure for p, n in zip(parts, nothing, strict=True)]
            joined["failure"] = np.concatenate(reasons)
        return cls(**joined)


def _objects(values: Any) -> np.ndarray:
    """Texts, (n,) of objects, whatever sequence they come in."""
    return np.fromiter(values, dtype=object, count=len(values))


_COLUMNS = (
    ("cla", "pred_cla", numbers),
    ("prob", "pred_prob", dense_matrix),
    ("reg", "pred_reg", numbers),
    ("text", "pred_text", text_values),
    ("boxes", "pred_boxes", Boxes.from_arrow),
    ("features", "features", dense_matrix),
    *((name, name, lambda column: column.to_numpy()) for name in NOTES),
)


def failures_in(table: pa.Table) -> int:
    """How many failures a predictions part records; samples on which a partial agent is unavailable are none."""
    return sum(reason is not None and reason != NO_ANSWER for reason in table["failure"].to_pylist())


class _Checker:
    """Names agent and sample in what is wrong with an answer."""

    def __init__(self, agent: str, ids: Sequence[str]):
        self.agent, self.ids = agent, ids

    def finite(self, name: str, values: object, shape: tuple[int, ...]) -> np.ndarray:
        try:
            array = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise AgentFailure(
                f"agent {self.agent!r} answered `{name}` with no numbers: {error}",
                where=f"the batch from sample {self.ids[0]!r}",
                hint="it must return arrays of numbers; partial = true lets it return None where it has no answer",
            ) from error
        if array.shape != shape:
            raise AgentFailure(
                f"agent {self.agent!r} answered `{name}` of shape {array.shape}, expected {shape}",
                where=f"the batch from sample {self.ids[0]!r} to {self.ids[-1]!r}",
                hint="it must answer every sample of the batch once, in order",
            )
        self.all(name, np.isfinite(array).reshape(len(array), -1).all(axis=1), array, "is not finite")
        return array

    def boxes(self, boxes: Boxes, num_classes: int) -> None:
        """Every detection's corners, label and score; the sample named is the image it is on."""
        if len(boxes) != len(self.ids):
            raise AgentFailure(
                f"agent {self.agent!r} answered `boxes` on {len(boxes)} images, expected {len(self.ids)}",
                where=f"the batch from sample {self.ids[0]!r} to {self.ids[-1]!r}",
                hint="it must answer every sample of the batch once, in order; an image may have no boxes",
            )
        x1, y1, x2, y2 = boxes.xyxy.T
        known = (boxes.label >= 0) & (boxes.label < num_classes)
        rules = (
            ("boxes", np.isfinite(boxes.xyxy).all(axis=1), boxes.xyxy, "is not finite"),
            ("boxes", (np.abs(boxes.xyxy) <= LARGEST).all(axis=1), boxes.xyxy, "is out of range"),
            ("boxes", (x2 >= x1) & (y2 >= y1), boxes.xyxy, "is not a box: corners are x1, y1, x2, y2"),
            ("scores", (boxes.score >= 0) & (boxes.score <= 1), boxes.score, "is outside [0, 1]"),
            ("labels", known, boxes.label, f"is not a class index below {num_classes}"),
        )
        for name, good, values, what in rules:
            if not good.all():
                at = int(good.argmin())
                self._refuse(int(boxes.image[at]), name, values[at].tolist(), what)

    def texts(self, texts: Any, failed: np.ndarray) -> None:
        """Every answered text is one, where the agent has not failed."""
        if isinstance(texts, str) or np.ndim(_objects(texts)) != 1 or len(texts) != len(self.ids):
            raise AgentFailure(
                f"agent {self.agent!r} answered `text` with {len(texts)} texts, expected {len(self.ids)}",
                where=f"the batch from sample {self.ids[0]!r} to {self.ids[-1]!r}",
                hint="it must answer every sample of the batch once, in order",
            )
        for row, text in enumerate(texts):
            if not isinstance(text, str) and not failed[row]:
                self._refuse(row, "text", repr(text), "is not a text")

    def all(self, name: str, good: np.ndarray, values: np.ndarray, what: str) -> None:
        if not good.all():
            row = int(good.argmin())
            self._refuse(row, name, np.asarray(values)[row], what)

    def _refuse(self, row: int, name: str, value: object, what: str) -> None:
        raise AgentFailure(
            f"agent {self.agent!r} answered `{name}` = {value}, which {what}",
            where=f"sample {self.ids[row]!r}",
            hint="fix the agent and run the same command again; finished chunks are kept",
        )
