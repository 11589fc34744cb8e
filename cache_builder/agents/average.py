"""The average of other agents' answers: the baseline that asks everybody."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from data.dataset import Batch, Dataset

from ..answers import Answers
from .base import Agent, AgentConfig


class AverageConfig(AgentConfig):
    """``kind = "average"``: mean probabilities and mean values of the agents named in ``of``, who come earlier."""

    kind: Literal["average"]
    of: Annotated[list[str], Field(min_length=2)]


class AverageAgent(Agent):
    config: AverageConfig
    can_answer = ("cla", "reg")

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(self.config.of)

    def load(self, frozen: Any, dataset: Dataset, device: str) -> None:
        self.num_classes = len(dataset.classes)

    def ask(self, batch: Batch) -> Answers:
        parts = [Answers.from_table(batch.answers[name]) for name in self.config.of]
        answers = Answers()
        if all(part.cla is not None or part.prob is not None for part in parts):
            answers.prob = np.mean([part.probabilities(self.num_classes) for part in parts], axis=0)
        if all(part.reg is not None for part in parts):
            answers.reg = np.mean([part.reg for part in parts], axis=0)
        missing = np.any([part.is_failure for part in parts], axis=0)
        if missing.any():
            if answers.prob is not None:
                answers.prob[missing] = 1 / self.num_classes  # not an answer, but it passes for one until it is masked
            answers.failure = np.where(missing, "an agent it averages did not answer", None)
        return answers
