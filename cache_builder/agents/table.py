"""Answers in a file of their own: human annotators, another program's predictions, past runs of an API."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from l2d.cache_builder.agents._answer_file import ROW, AnswerFile
from l2d.cache_builder.agents._base import Agent, AgentConfig
from l2d.cache_builder.answers import Answers
from l2d.data.errors import DataError, UsageError, close_to, nearest
from l2d.data.samples.dataset import Batch, Dataset


class TableAnswersConfig(AgentConfig):
    """``kind = "table"``: columns of ``file`` (Parquet, CSV, JSONL), matched by sample id.

    A long file has a row for each answer and says in the column ``annotator`` whose it is; a wide one has a row for
    each sample. Where a cell or a row is missing the agent has no answer, so that it is unavailable for that sample. A
    label has to be one of the classes, or be mapped to one by ``labels``. ``each`` makes one agent of each annotator:
    the column that names them (long), or their names (wide; ``{}`` in ``cla``, ``prob``, ``reg`` stands for the name).
    """

    kind: Literal["table"]
    file: Path
    each: str | list[str] | None = None  # expanded by the recipe: no agent ever has it
    id: str | None = None  # column with sample ids; the dataset's id column, `sample_id` or `id` if not given
    annotator: str | None = None  # of a long file: the column that says whose answer a row is
    who: str | None = None  # its value for this agent; the agent's name if not given
    cla: str | None = None  # column with class names
    prob: str | Annotated[list[str], Field(min_length=1)] | None = None  # of the second of two classes, or one a class
    reg: str | None = None
    seconds: str | None = None  # column: how long the answer took
    paid: str | None = None  # column: what the answer cost, in any one unit
    labels: dict[str, str] = {}  # a label as written -> a class
    others: Literal["refuse", "drop"] = "refuse"  # answers about samples that the dataset has not

    @model_validator(mode="after")
    def _answers_something(self):
        if self.cla is None and self.prob is None and self.reg is None:
            raise ValueError("give cla, prob or reg: the columns with the answers")
        if self.who is not None and self.annotator is None:
            raise ValueError("`who` needs `annotator`, the column that it is a value of")
        return self


class TableAnswersAgent(Agent):
    config: TableAnswersConfig
    can_answer = ("cla", "reg")

    def check(self, dataset: Dataset, tasks: list[str]) -> None:
        """The whole file is read and checked, so that what is wrong with it is said at once."""
        config, where = self.config, f"agent {self.config.name!r}"
        given = {"cla": config.cla or config.prob, "reg": config.reg}
        lacking = [task for task in tasks if not given.get(task)]
        if lacking:
            raise UsageError(
                f"the costs need {', '.join(lacking)}",
                where=where,
                hint=f"name the column with its answers: {lacking[0]} = …",
            )
        for label, name in config.labels.items():
            if name not in dataset.classes:
                raise UsageError(
                    f"labels: {label!r} is to be {name!r}, which is no class",
                    where=where,
                    hint=f"the classes are {', '.join(dataset.classes)}",
                )
        try:
            self.answers = self._aligned(dataset)
        except DataError as error:
            raise DataError(f"{where}: {error.what}", where=error.where, hint=error.hint) from error
        gaps = self.answers.with_gaps(len(dataset), tasks, len(dataset.classes))
        silent = gaps.is_unavailable
        if silent.all():
            raise DataError(
                f"{where} answers not one of the samples", where=config.file, hint=self._hint_on_ids(dataset)
            )
        self.partial = bool(silent.any())
        gaps.checked(config.name, dataset.ids, tasks, len(dataset.classes))

    def _aligned(self, dataset: Dataset) -> Answers:
        """The file's answers in the dataset's order, NaN where there are none."""
        config, self.file = self.config, AnswerFile(self.config.file)
        rows = self._own_rows(self.file)
        at = self._positions(rows, dataset)
        rows, at = rows.filter(pl.Series(at >= 0)), at[at >= 0]

        def spread(values: np.ndarray) -> np.ndarray:
            whole = np.full((len(dataset), *values.shape[1:]), np.nan)
            whole[at] = values
            return whole

        def numbers(column: str, key: str) -> np.ndarray:
            return spread(self.file.numbers(self.file.need(column, key), rows))

        answers = Answers()
        if config.cla is not None:
            answers.cla = spread(self._classes(rows, dataset.classes))
        if config.prob is not None:
            names = [config.prob] if isinstance(config.prob, str) else config.prob
            columns = [numbers(name, "prob") for name in names]
            if len(columns) == 1:
                columns.insert(0, 1 - columns[0])
            if len(columns) != len(dataset.classes):
                raise DataError(
                    f"prob names {len(names)} columns for {len(dataset.classes)} classes", hint="one a class, in order"
                )
            answers.prob = np.stack(columns, axis=1)
            self._check_prob(answers.prob, names, rows, at)
        if config.reg is not None:
            answers.reg = numbers(config.reg, "reg")
        for key in ("seconds", "paid"):
            if getattr(config, key) is not None:
                setattr(answers, key, numbers(getattr(config, key), key))
        return answers

    def _own_rows(self, file: AnswerFile) -> pl.DataFrame:
        """The rows that are this agent's."""
        if self.config.annotator is None:
            return file.table
        column, who = file.need(self.config.annotator, "annotator"), self.config.who or self.config.name
        names = file.values(column)
        if who not in names:
            raise DataError(f"{column} is never {who!r}", where=file.path, hint=nearest(who, names, "it has", most=20))
        return file.table.filter(pl.col(column) == who)

    def _positions(self, rows: pl.DataFrame, dataset: Dataset) -> np.ndarray:
        """Position in the dataset of the sample of each row, -1 where it has none and may be left out."""
        file, column = self.file, self._id_column(dataset)
        ids = rows[column]
        if ids.null_count():
            row = rows[ROW][int(ids.is_null().arg_max())]
            raise DataError(f"{column} is empty", where=file.where(row), hint="say which sample it is about")
        twice = ids.is_duplicated()
        if twice.any():
            sample = ids[int(twice.arg_max())]
            first, second = rows[ROW].filter(ids == sample)[:2].to_list()
            whose = "two rows" if self.config.annotator is not None else "a second row of the file"
            hint = "leave one of them" if self.config.annotator else "leave one, or name the column `annotator`"
            raise DataError(
                f"sample {sample!r} is answered by {whose}, the first in {file.where(first).rpartition(', ')[2]}",
                where=file.where(second),
                hint=hint,
            )
        known = {name: position for position, name in enumerate(dataset.ids)}
        at = np.array([known.get(name, -1) for name in ids.to_list()], dtype=np.int64)
        strange = at < 0
        if strange.any() and self.config.others == "refuse":
            position = int(strange.argmax())
            raise DataError(
                f"sample {ids[position]!r} is not in the dataset ({int(strange.sum())} of {len(at)} rows)",
                where=file.where(rows[ROW][position]),
                hint=f'{self._hint_on_ids(dataset)}; others = "drop" (--drop-others) leaves such answers out',
            )
        return at

    def _id_column(self, dataset: Dataset) -> str:
        if self.config.id is not None:
            return self.file.need(self.config.id, "id")
        tried = [str(dataset.config.get("id")).strip('"'), "sample_id", "id"]
        for name in tried:
            if name in self.file.columns:
                return name
        raise DataError(
            "which column has the sample ids?",
            where=self.file.path,
            hint=f"say id = one of {', '.join(self.file.columns)}",
        )

    def _hint_on_ids(self, dataset: Dataset) -> str:
        return f"the dataset's ids are like {dataset.ids[0]!r}"

    def _classes(self, rows: pl.DataFrame, classes: tuple[str, ...]) -> np.ndarray:
        """Class index of each row's label, NaN where there is none.

        Raises:
            DataError: labels that are no class, the first with its row, all of them with how often.
        """
        column = self.file.need(self.config.cla, "cla")
        labels = rows[column].to_list()
        index = {label: class_of(label, classes, self.config.labels) for label in set(labels) - {None}}
        unknown = Counter(label for label in labels if label is not None and index[label] is None)
        if unknown:
            position = next(k for k, label in enumerate(labels) if label in unknown)
            mapped = close_to(labels[position], classes) or classes[0]
            known = nearest(labels[position], classes, "the classes are", most=20)
            listed = ", ".join(f"{label!r} ({count})" for label, count in unknown.most_common(8))
            also = f"; not classes: {listed}" if len(unknown) > 1 else ""
            raise DataError(
                f"{column} is {labels[position]!r}, which is no class{also}",
                where=self.file.where(rows[ROW][position]),
                hint=f"{known}; correct the file, or map it: labels = {{ "
                f'"{labels[position]}" = "{mapped}" }}, with `l2d import` '
                f"--label {labels[position]}={mapped}",
            )
        return np.array([np.nan if label is None else index[label] for label in labels], dtype=np.float64)

    def _check_prob(self, prob: np.ndarray, names: list[str], rows: pl.DataFrame, at: np.ndarray) -> None:
        found = prob[at]
        with np.errstate(invalid="ignore"):
            outside = ((found < 0) | (found > 1)).any(axis=1)
            sums = np.abs(found.sum(axis=1) - 1) >= 1e-3
        some = np.isnan(found).any(axis=1) & ~np.isnan(found).all(axis=1)
        for wrong, what in (
            (outside, "is outside [0, 1]"),
            (some, "has gaps: give all classes or none"),
            (sums, "does not sum to 1"),
        ):
            if wrong.any():
                position = int(wrong.argmax())
                shown = ", ".join(str(rows[name][position]) for name in names)
                raise DataError(
                    f"{', '.join(names)} = {shown} {what}",
                    where=self.file.where(rows[ROW][position]),
                    hint="correct it, or leave the cells empty",
                )

    def ask(self, batch: Batch) -> Answers:
        return self.answers.rows(slice(batch.rows.start, batch.rows.stop))

    def fingerprint(self, dataset: Dataset) -> dict[str, Any]:
        """The answers alone: the file may move, be written in another form, or gain annotators."""
        given = [(name, values) for name, values in vars(self.answers).items() if values is not None]
        content = hashlib.sha256(b"".join(name.encode() + np.ascontiguousarray(v).tobytes() for name, v in given))
        return {"kind": self.config.kind, "answers": content.hexdigest()[:16]}


def class_of(label: str, classes: tuple[str, ...], labels: dict[str, str]) -> int | None:
    """Index of the class that a label means: as ``labels`` says, by name, or as the same number (``1`` and ``1.0``)."""
    name = labels.get(label, label)
    if name in classes:
        return classes.index(name)
    try:
        number = float(name)
        return next((k for k, known in enumerate(classes) if float(known) == number), None)
    except ValueError:
        return None
