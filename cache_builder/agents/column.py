"""An agent whose answers stand in the dataset's table: a physician's estimate, a published score, a past API run."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from l2d.cache_builder.agents._base import Agent, AgentConfig, texts_digest
from l2d.cache_builder.answers import Answers
from l2d.data.errors import AgentFailure, DataError
from l2d.data.samples.dataset import Batch, Dataset
from l2d.data.samples.expressions import evaluate


class ColumnConfig(AgentConfig):
    """``kind = "column"``: SQL expressions over the table's columns.

    ``prob`` is the probability of the second class where there are two classes, or a list with one expression a class.
    """

    kind: Literal["column"]
    cla: str | None = None
    """SQL: the name of a class."""
    prob: str | Annotated[list[str], Field(min_length=1)] | None = None
    """SQL: probability of the second of two classes; or a list, one expression for each class."""
    reg: str | None = None
    """SQL: the number."""
    text: str | None = None
    """SQL: the text, where answers are texts."""
    partial: bool = False
    """Null means that there is no answer, instead of a wrong one."""

    @model_validator(mode="after")
    def _answers_something(self):
        if all(one is None for one in (self.cla, self.prob, self.reg, self.text)):
            raise ValueError("give cla, prob, reg or text")
        return self


class ColumnAgent(Agent):
    config: ColumnConfig
    can_answer = ("cla", "reg", "text")
    repeatable = True

    def check(self, dataset: Dataset, tasks: list[str]) -> None:
        """Its answers must stand in the table: missing or impossible ones are refused before anything is written."""
        self.load(None, dataset, "cpu")
        answers = self.answers.with_gaps(len(dataset), tasks, len(dataset.classes)) if self.partial else self.answers
        answers.checked(self.config.name, dataset.ids, tasks, len(dataset.classes))

    def load(self, frozen: Any, dataset: Dataset, device: str) -> None:
        """Evaluate over the whole table at once, so that answers do not depend on how it is cut into batches."""
        config, self.answers = self.config, Answers()
        try:
            if config.cla is not None:
                self.answers.cla = self._classes(dataset, config.cla)
            if config.prob is not None:
                expressions = config.prob if isinstance(config.prob, list) else [config.prob]
                columns = [self._numbers(dataset, expression) for expression in expressions]
                if len(columns) == 1:
                    columns.insert(0, 1 - columns[0])
                self.answers.prob = np.stack(columns, axis=1)
            if config.reg is not None:
                self.answers.reg = self._numbers(dataset, config.reg)
            if config.text is not None:
                said = evaluate(dataset.columns, config.text, pl.String)
                self.answers.text = np.fromiter(said, dtype=object, count=len(said))
        except DataError as error:
            raise DataError(error.what, where=f"agent {config.name!r}", hint=error.hint) from error

    def ask(self, batch: Batch) -> Answers:
        return self.answers.rows(slice(batch.rows.start, batch.rows.stop))

    def _classes(self, dataset: Dataset, expression: str) -> np.ndarray:
        index = {name: position for position, name in enumerate(dataset.classes)}
        names = evaluate(dataset.columns, expression, pl.String).to_list()
        for sample_id, name in zip(dataset.ids, names, strict=True):
            if name not in index and not (name is None and self.partial):
                raise AgentFailure(
                    f"agent {self.config.name!r} answered class {name!r}",
                    where=f"sample {sample_id!r}",
                    hint=f"the classes are {', '.join(dataset.classes)}"
                    + ("; if it need not answer every sample: partial = true" if name is None else ""),
                )
        if self.partial and None in names:
            return np.array([index.get(name, np.nan) for name in names], dtype=np.float64)
        return np.array([index[name] for name in names], dtype=np.int32)

    def _numbers(self, dataset: Dataset, expression: str) -> np.ndarray:
        """Missing values come out as NaN, which is no answer of a partial agent; the checks refuse it of another."""
        return evaluate(dataset.columns, expression, pl.Float64).fill_null(float("nan")).to_numpy()

    def fingerprint(self, dataset: Dataset) -> dict[str, Any]:
        """The answers themselves are part of it, so an edited column is noticed even where no feature reads it."""
        self.load(None, dataset, "cpu")
        given = [values for values in (self.answers.cla, self.answers.prob, self.answers.reg) if values is not None]
        content = hashlib.sha256(b"".join(np.ascontiguousarray(values).tobytes() for values in given))
        if self.answers.text is not None:
            content.update(texts_digest(self.answers.text.tolist()).encode())
        return {**super().fingerprint(dataset), "answers": content.hexdigest()[:16]}
