"""An agent whose answers stand in the dataset's table: a physician's estimate, a published score, a past API run."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import model_validator

from data.dataset import Batch, Dataset
from data.errors import AgentFailure
from data.features import evaluate

from ..answers import Answers
from .base import Agent, AgentConfig


class ColumnConfig(AgentConfig):
    """``kind = "column"``: SQL expressions over the table's columns.

    ``prob`` is the probability of the second class where there are two classes, or a list with one expression a class.
    """

    kind: Literal["column"]
    cla: str | None = None  # a class name as listed in `classes`
    prob: str | list[str] | None = None
    reg: str | None = None

    @model_validator(mode="after")
    def _answers_something(self):
        if self.cla is None and self.prob is None and self.reg is None:
            raise ValueError("give cla, prob or reg")
        return self


class ColumnAgent(Agent):
    config: ColumnConfig

    def check(self, dataset: Dataset) -> None:
        """Its answers must stand in the table: missing or impossible ones are refused before anything is written."""
        self.load(None, dataset, "cpu")
        everything = dataset.batch(range(len(dataset)))
        tasks = [task for task in ("cla", "reg") if getattr(dataset, f"target_{task}") is not None]
        self.ask(everything).checked(self.config.name, everything.ids, tasks, len(dataset.classes))

    def load(self, frozen: Any, dataset: Dataset, device: str) -> None:
        self.classes = dataset.classes

    def ask(self, batch: Batch) -> Answers:
        config, answers = self.config, Answers()
        if config.cla is not None:
            names = evaluate(batch.columns, config.cla).cast(pl.String).to_list()
            index = {name: position for position, name in enumerate(self.classes)}
            for sample_id, name in zip(batch.ids, names, strict=True):
                if name not in index:
                    raise AgentFailure(
                        f"agent {config.name!r} answered class {name!r}",
                        where=f"sample {sample_id!r}",
                        hint=f"the classes are {', '.join(self.classes)}",
                    )
            answers.cla = np.array([index[name] for name in names], dtype=np.int32)
        if config.prob is not None:
            expressions = config.prob if isinstance(config.prob, list) else [config.prob]
            answers.prob = np.stack([self._numbers(batch, expression) for expression in expressions], axis=1)
            if answers.prob.shape[1] == 1:
                answers.prob = np.concatenate([1 - answers.prob, answers.prob], axis=1)
        if config.reg is not None:
            answers.reg = self._numbers(batch, config.reg)
        return answers

    def _numbers(self, batch: Batch, expression: str) -> np.ndarray:
        """Missing values come out as NaN, which the checks refuse naming the sample."""
        return evaluate(batch.columns, expression).cast(pl.Float64).fill_null(float("nan")).to_numpy()

    def fingerprint(self, dataset: Dataset) -> dict[str, Any]:
        """The answers themselves are part of it, so an edited column is noticed even where no feature reads it."""
        everything = dataset.batch(range(len(dataset)))
        self.load(None, dataset, "cpu")
        answers = self.ask(everything)
        given = [values for values in (answers.cla, answers.prob, answers.reg) if values is not None]
        content = hashlib.sha256(b"".join(np.ascontiguousarray(values).tobytes() for values in given))
        return {**super().fingerprint(dataset), "answers": content.hexdigest()[:16]}
