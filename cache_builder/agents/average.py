"""The average of other agents' answers: the baseline that asks everybody."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from l2d.cache_builder.agents._base import Agent, AgentConfig
from l2d.cache_builder.answers import Answers, reasons_where
from l2d.data.cache.schema import NO_ANSWER
from l2d.data.samples.dataset import Batch, Dataset


class AverageConfig(AgentConfig):
    """``kind = "average"``: mean probabilities and mean values of the agents named in ``of``, which come earlier.

    Partial agents count where they have an answer; where none of them has, the average has none either.
    """

    kind: Literal["average"]
    of: Annotated[list[str], Field(min_length=2)]
    """Names of earlier agents."""


class AverageAgent(Agent):
    config: AverageConfig
    can_answer = ("cla", "reg")
    repeatable = True

    @property
    def needs(self) -> tuple[str, ...]:
        return (*self.config.of, *(name for name in super().needs if name not in self.config.of))

    def load(self, frozen: Any, dataset: Dataset, device: str) -> None:
        self.num_classes = len(dataset.classes)

    def ask(self, batch: Batch) -> Answers:
        parts = [Answers.from_table(batch.answers[name]) for name in self.config.of]
        silent = np.array([part.is_unavailable for part in parts])  # (agents, n)
        answers = Answers()
        given = {*self.lenders, *self.charged}  # tasks that are not its own
        if "cla" not in given and all(part.cla is not None or part.prob is not None for part in parts):
            answers.prob = _mean([part.probabilities(self.num_classes) for part in parts], silent)
        values = [part.reg for part in parts if part.reg is not None]
        if "reg" not in given and len(values) == len(parts):
            answers.reg = _mean(values, silent)
        failed = np.any([part.is_failure & ~part.is_unavailable for part in parts], axis=0)
        missing = failed | silent.all(axis=0)
        if missing.any():
            if answers.prob is not None:
                answers.prob[missing] = 1 / self.num_classes  # not an answer, but it passes for one until it is masked
            answers.failure = reasons_where(missing, NO_ANSWER)
            answers.failure[failed] = "an agent it averages did not answer"
        return answers


def _mean(values: list[np.ndarray], silent: np.ndarray) -> np.ndarray:
    """Mean over agents of (n, …) each, those left out that are silent (agents, n); 0 where all are."""
    if not silent.any():
        return np.mean(values, axis=0)
    weights = (~silent).astype(np.float64).reshape(*silent.shape, *[1] * (np.ndim(values[0]) - 1))
    return (weights * values).sum(axis=0) / np.maximum(weights.sum(axis=0), 1)
