"""Raw costs of an agent's answers, per sample and task (paper, section 3: ``c_j = rho(m_j(x), z)``).

They are stored without ``beta`` and ``lambda``, which are linear and applied when the table is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import Field

from l2d.cache_builder.answers import Answers
from l2d.data.cache.schema import TASKS
from l2d.data.costs.detection import DetectionCost, ObjectBoxCost, ObjectClassCost
from l2d.data.measures import brier, smooth_l1
from l2d.data.samples.dataset import Batch
from l2d.data.sources.table import Strict
from l2d.data.text_answers import agreements


class ClassificationCost(Strict):
    """``[costs.cla]``, in [0, 1].

    * ``zero_one``: 1 if the class is wrong.
    * ``brier``: half the squared distance of the probabilities from the truth; with two classes ``(p - y)^2``.
    * ``absolute``: one minus the probability of the true class; with two classes ``|p - y|``.

    An answer without probabilities counts as sure of its class.
    """

    kind: Literal["zero_one", "brier", "absolute"] = "zero_one"
    """Which cost, see above."""

    def compute(self, answers: Answers, target: np.ndarray, num_classes: int) -> np.ndarray:
        """Cost of each answer.

        Args:
            answers: class index or probabilities of n samples.
            target: true class index, int32 (n,).

        Returns:
            float32 (n,).
        """
        rows = np.arange(len(target))
        if self.kind == "zero_one":
            return (answers.classes() != target).astype(np.float32)
        probabilities = answers.probabilities(num_classes)
        if self.kind == "absolute":
            return np.clip(1.0 - probabilities[rows, target], 0, 1).astype(np.float32)
        return brier(probabilities, target).astype(np.float32)


class RegressionCost(Strict):
    """``[costs.reg]``: with ``e = |prediction - target|``,

    * ``smooth_l1``: ``e^2 / (2 beta)`` below ``beta``, ``e - beta / 2`` above (torch's definition);
    * ``absolute``: ``e``; ``squared``: ``e^2``;

    clamped to at most ``clamp``. With ``clamp = 1 / lambda_reg`` the weighted cost lies in [0, 1] like the 0-1 loss.
    """

    kind: Literal["smooth_l1", "absolute", "squared"] = "smooth_l1"
    """Which cost, see above."""
    beta: Annotated[float, Field(gt=0)] = 1.0
    """Where `smooth_l1` turns from square to straight."""
    clamp: Annotated[float, Field(gt=0)] | None = None
    """Largest cost; no limit if not given."""

    def compute(self, answers: Answers, target: np.ndarray) -> np.ndarray:
        """Cost of each answer: float32 (n,), from predictions and targets in the target's unit."""
        assert answers.reg is not None  # it was wanted, and answers are checked
        error = np.abs(answers.reg.astype(np.float64) - target.astype(np.float64))
        if self.kind == "smooth_l1":
            cost = smooth_l1(error, self.beta)
        else:
            cost = error if self.kind == "absolute" else error**2
        return (cost if self.clamp is None else np.minimum(cost, self.clamp)).astype(np.float32)


class TextCost(Strict):
    """``[costs.text]``, in [0, 1]: how far an answered text is from the nearest of the true ones.

    * ``f1``: one minus the F1 of their words. ``exact_match``: 0 if they are equal, else 1.

    Both as the SQuAD 2.0 evaluation script has them (Rajpurkar et al. 2016 and 2018): in small letters, without ASCII
    punctuation and the words *a*, *an*, *the*. Where a question has no true answer, the empty text costs 0 and any
    other 1.
    """

    kind: Literal["f1", "exact_match"] = "f1"
    """Which cost, see above."""

    def compute(self, answers: Answers, target: pl.Series) -> np.ndarray:
        """Cost of each answer: float32 (n,), from answered texts and lists of true ones, n each."""
        assert answers.text is not None  # it was wanted, and answers are checked
        return (1.0 - agreements(answers.text.tolist(), target.to_list())[self.kind]).astype(np.float32)


class CostConfig(Strict):
    """``[costs]``: one cost for each task the dataset has a target for."""

    cla: ClassificationCost | None = None
    """Cost of the class, see below."""
    reg: RegressionCost | None = None
    """Cost of the number, see below."""
    text: TextCost | None = None
    """Cost of the text, see below."""

    @property
    def tasks(self) -> list[str]:
        """The tasks with a cost, in schema order."""
        return [task for task in TASKS if getattr(self, task, None) is not None]

    def describe(self) -> dict:
        """Plain values; their digest names the cost parts."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def wanted(self) -> list[str]:
        """What an agent has to answer, see :class:`Answers`."""
        return self.tasks

    def compute(
        self, answers: Answers, batch: Batch, num_classes: int, charged: Mapping[str, float] | None = None
    ) -> dict[str, np.ndarray]:
        """Costs of n answers: task -> float32 (n,).

        Args:
            charged: tasks that are not answered -> the cost of that.
        """
        costs = {task: np.full(len(batch.ids), cost, np.float32) for task, cost in (charged or {}).items()}
        if self.cla is not None and batch.target_cla is not None and "cla" not in costs:
            costs["cla"] = self.cla.compute(answers, batch.target_cla, num_classes)
        if self.reg is not None and batch.target_reg is not None and "reg" not in costs:
            costs["reg"] = self.reg.compute(answers, batch.target_reg)
        if self.text is not None and batch.target_text is not None and "text" not in costs:
            costs["text"] = self.text.compute(answers, batch.target_text)
        return {task: costs[task] for task in self.tasks}


class DetectionCosts(Strict):
    """``[costs]`` where the answers are boxes: the joint cost ``map`` (the paper's), its two parts, or any of them."""

    cla: ObjectClassCost | None = None
    """Cost of the classes, see below."""
    reg: ObjectBoxCost | None = None
    """Cost of the boxes, see below."""
    map: DetectionCost | None = None
    """Both in one, see below."""

    @property
    def tasks(self) -> list[str]:
        """The tasks with a cost, in schema order."""
        return [task for task in TASKS if getattr(self, task, None) is not None]

    wanted: ClassVar[list[str]] = ["boxes"]

    def describe(self) -> dict:
        """Plain values; their digest names the cost parts."""
        return self.model_dump(mode="json", exclude_none=True)

    def compute(
        self, answers: Answers, batch: Batch, num_classes: int, charged: Mapping[str, float] | None = None
    ) -> dict[str, np.ndarray]:
        """Costs of the detections on n images: task -> float32 (n,). Nothing is ``charged`` here."""
        return {task: getattr(self, task).compute(answers.boxes, batch.target_boxes) for task in self.tasks}
