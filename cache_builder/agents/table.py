"""Answers in a file of their own: human annotators, another program's predictions, past runs of an API."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from l2d.cache_builder.agents._answer_file import ROW, AnswerFile, as_text
from l2d.cache_builder.agents._base import Agent, AgentConfig, texts_digest
from l2d.cache_builder.agents._matching import IdRule, Repeats, match_ids, one_row_each
from l2d.cache_builder.agents._tariff import Tariff
from l2d.cache_builder.answers import Answers
from l2d.data.errors import AgentFailure, DataError, UsageError, close_to, nearest
from l2d.data.samples import cells
from l2d.data.samples.cells import first_true
from l2d.data.samples.dataset import Batch, Dataset
from l2d.data.samples.texts import Texts, series_of

ROWS_AT_ONCE = 1 << 18  # of which copies are made
RULES = {
    "first": "the first counts",
    "last": "the last counts",
    "mean": "the mean counts",
    "majority": "the majority counts, at a tie the class that was first; of numbers the mean",
}


class TableAnswersConfig(AgentConfig):
    """``kind = "table"``: columns of ``file`` (Parquet, CSV, JSON, JSONL, or a folder), matched by sample id.

    A long file has a row for each answer and says in the column ``annotator`` whose it is; a wide one has a row for
    each sample. Where a cell or a row is missing the agent has no answer, so that it is unavailable for that sample. A
    label has to be one of the classes, or be mapped to one by ``labels``. Two rows about one sample fill each other's
    gaps; which one counts where they differ is said by ``repeats``. ``each`` makes one agent of each annotator:
    the column that names them (long), or their names (wide; ``{}`` in ``cla``, ``prob``, ``reg`` stands for the name).
    """

    kind: Literal["table"]
    file: Path
    """Parquet, CSV, JSON, JSONL, or a folder of these."""
    each: str | list[str] | None = None
    """Make an agent of every annotator: the column that names them, or a list of their names."""
    id: str | Annotated[list[str], Field(min_length=1)] | None = None
    """Column with sample ids, or several that make it together, `a/b`. By default the dataset's id column, `sample_id`
    or `id`."""
    ids: IdRule = "text"
    """How ids are compared. As numbers, `007`, `7` and `7.0` are one sample."""
    annotator: str | None = None
    """Column that says whose answer a row is."""
    who: str | None = None
    """Its value for this agent; the agent's name if not given."""
    cla: str | None = None
    """Column with class names."""
    prob: str | Annotated[list[str], Field(min_length=1)] | None = None
    """Column with the probability of the second of two classes; or a list, one column for each class."""
    reg: str | None = None
    """Column with the number."""
    text: str | None = None
    """Column with the text, where answers are texts."""
    abstains: list[str] = []
    """Texts that say that the question has no answer: `["unanswerable"]`; `""` is the empty cell."""
    seconds: str | None = None
    """Column: how long the answer took."""
    paid: str | Annotated[float, Field(ge=0, allow_inf_nan=False)] | Tariff | None = None
    """Column: what the answer cost, in the recipe's `unit_paid`; a number, for every answer alike; or
    `{ prices = { input_tokens = 0.15, output_tokens = 0.6 }, per = 1000000 }`: columns of counts, and what so many of
    each cost."""
    labels: dict[str, str] = {}
    """A label as written -> a class: `{ yse = "yes" }`."""
    missing: list[str] = []
    """Texts that mean a missing answer, beside the empty cell: `["NA"]`."""
    normalise: bool = False
    """Divide each row of probabilities by its sum, since they are rounded or in per cent."""
    repeats: Repeats = "refuse"
    """Which of several answers about one sample counts."""
    others: Literal["refuse", "drop"] = "refuse"
    """What becomes of answers about samples that the dataset does not have."""

    @model_validator(mode="after")
    def _answers_something(self):
        if all(one is None for one in (self.cla, self.prob, self.reg, self.text)):
            raise ValueError("give cla, prob, reg or text: the columns with the answers")
        if self.abstains and self.text is None:
            raise ValueError("`abstains` needs `text`, the column with the texts")
        if self.who is not None and self.annotator is None:
            raise ValueError("`who` needs `annotator`, the column that it is a value of")
        if self.repeats == "mean" and (self.cla or self.text) is not None:
            what = "classes" if self.cla is not None else "texts"
            raise ValueError(f'{what} have no mean: repeats = "majority", "first" or "last"')
        if self.normalise and not isinstance(self.prob, list):
            raise ValueError("`normalise` is for `prob` with a column for each class")
        return self


class TableAnswersAgent(Agent):
    config: TableAnswersConfig
    can_answer = ("cla", "reg", "text")
    repeatable = True
    sees_columns = False

    def check(self, dataset: Dataset, tasks: list[str]) -> None:
        """The whole file is read and checked, so that what is wrong with it is said at once."""
        config, where = self.config, f"agent {self.config.name!r}"
        given = {"cla": config.cla or config.prob, "reg": config.reg, "text": config.text}
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
                    f"labels: {label!r} is to be {name!r}, which is not a class",
                    where=where,
                    hint=f"the classes are {', '.join(dataset.classes)}",
                )
        try:
            self.answers = self._aligned(dataset)
        except DataError as error:
            raise DataError(f"{where}: {error.what}", where=error.where, hint=error.hint) from error
        del self.file  # a large one would be held as long as the agent
        silent = self._silent(dataset, tasks)
        if silent.all():
            raise DataError(
                f"{where} answers not one of the samples",
                where=config.file,
                hint=f"the dataset's ids are like {dataset.ids[0]!r}",
            )
        self.partial = bool(silent.any())

    def _silent(self, dataset: Dataset, tasks: list[str]) -> np.ndarray:
        """Where there is no answer, bool (n,), once all others are known to pass; some at a time, as copies are made.

        Raises:
            AgentFailure: as :meth:`l2d.cache_builder.answers.Answers.checked` of all at once.
        """
        count, silent = len(dataset.classes), np.zeros(len(dataset), bool)
        every = series_of(dataset.ids)
        try:
            for start in range(0, len(dataset), ROWS_AT_ONCE):
                rows = slice(start, start + ROWS_AT_ONCE)
                ids = Texts(every[rows])
                gaps = self.answers.rows(rows).with_gaps(len(ids), tasks, count)
                silent[rows] = gaps.is_unavailable
                gaps.checked(self.config.name, ids, tasks, count)
        except AgentFailure:  # which of several faults is told does not hang on where they lie
            gaps = self.answers.with_gaps(len(dataset), tasks, count)
            gaps.checked(self.config.name, dataset.ids, tasks, count)
            raise
        return silent

    def _aligned(self, dataset: Dataset) -> Answers:
        """The file's answers in the dataset's order, NaN where there are none."""
        config, self.file = self.config, AnswerFile(self.config.file, self.config.missing)
        column = self._id_column(dataset)
        file, rows = self.file, self._own_rows(self.file)
        at = match_ids(file, rows, column, dataset.ids, config.ids, others=config.others)
        others = int((at < 0).sum())
        if others:
            self.remarks.append(f"{others:,} of {len(at):,} rows are about other samples and are left out")
        if others:
            rows, at = rows.filter(pl.Series(at >= 0)), at[at >= 0]

        def numbers(column: str, key: str) -> np.ndarray:
            marked = file.markers(file.need(column, key), rows)
            if marked:
                self.remarks.append(f"{column}: {marked:,} cells such as 'NA' among numbers are missing")
            return file.numbers(column, rows)

        columns = {"at": at, ROW: rows[ROW]}
        if config.cla is not None:
            columns["cla"] = self._classes(rows, dataset.classes)
        if config.prob is not None:
            columns |= {f"prob_{k}": one for k, one in enumerate(self._prob(rows, dataset.classes))}
        if config.text is not None:
            columns["text"] = self._texts(rows)
        for key in ("reg", "seconds", "paid"):
            if isinstance(getattr(config, key), str):
                columns[key] = numbers(getattr(config, key), key)
        if isinstance(config.paid, Tariff):
            columns["paid"] = config.paid.paid(file, rows)
        rising = bool((at[1:] > at[:-1]).all())  # as in a wide file: then none stands twice
        several = 0 if rising else len(at) - len(np.unique(at))
        if several:
            counts = (
                "which fill each other's gaps" if config.repeats == "refuse" else f"of which {RULES[config.repeats]}"
            )
            self.remarks.append(f"{several:,} rows are about a sample that has one already, {counts}")
        kinds = {"cla": np.float32, "reg": np.float64, "seconds": np.float64, "paid": np.float64}  # classes are few
        if rising and len(at) == len(dataset) and config.prob is None and config.text is None:
            # a row for each sample, in order: nothing is moved, or copied for that
            return Answers(
                **{key: columns[key].astype(kind, copy=False) for key, kind in kinds.items() if key in columns}
            )
        table = pl.DataFrame(columns)
        if several:
            whole = config.annotator is None
            table = one_row_each(table, config.repeats, file.where, lambda k: dataset.ids[k], whole=whole)

        def spread(values: np.ndarray, kind: type = np.float64) -> np.ndarray:
            whole = np.full((len(dataset), *values.shape[1:]), np.nan, kind)
            whole[table["at"].to_numpy()] = values
            return whole

        found = {key: spread(table[key].to_numpy(), kind) for key, kind in kinds.items() if key in table}
        if config.prob is not None:
            found["prob"] = spread(table.select(f"prob_{k}" for k in range(len(dataset.classes))).to_numpy())
        if config.text is not None:
            found["text"] = np.full(len(dataset), None, dtype=object)
            found["text"][table["at"].to_numpy()] = np.fromiter(table["text"], dtype=object, count=len(table))
        return Answers(**found)

    def _own_rows(self, file: AnswerFile) -> pl.DataFrame:
        """The rows that are this agent's."""
        if self.config.annotator is None:
            return file.table
        column, who = file.need(self.config.annotator, "annotator"), self.config.who or self.config.name
        names = file.values(column)
        if who not in names:
            raise DataError(f"{column} is never {who!r}", where=file.path, hint=nearest(who, names, "it has", most=20))
        return file.table.filter(file.text(column) == who)

    def _id_column(self, dataset: Dataset) -> str:
        if isinstance(self.config.id, list):
            return self.file.together(self.config.id)
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

    def _classes(self, rows: pl.DataFrame, classes: tuple[str, ...]) -> np.ndarray:
        """Class index of each row's label, float32 (n,), NaN where there is none.

        Raises:
            DataError: labels that are no class, the first with its row, all of them with how often.
        """
        column = self.file.need(self.config.cla, "cla")
        written = rows[column]
        if not written.dtype.is_integer():
            written = self.file.text(column, rows)
        counted = written.drop_nulls().value_counts()
        values = counted[column]
        names = as_text(values).to_list()  # of each different one: rows are many
        index = {label: class_of(label, classes, self.config.labels) for label in names}
        counts = dict(zip(names, counted["count"].to_list(), strict=True))
        unknown = Counter({label: count for label, count in counts.items() if index[label] is None})
        if unknown:
            labels = self.file.text(column, rows)
            position = first_true(labels.is_in(list(unknown)))
            mapped = close_to(labels[position], classes) or classes[0]
            known = nearest(labels[position], classes, "the classes are", most=20)
            listed = ", ".join(f"{label!r} ({count})" for label, count in unknown.most_common(8))
            also = f"; not classes: {listed}" if len(unknown) > 1 else ""
            raise DataError(
                f"{column} is {labels[position]!r}, which is not a class{also}",
                where=self.file.where(rows[ROW][position]),
                hint=f"{known}; correct the file, or map it: labels = {{ "
                f'"{labels[position]}" = "{mapped}" }}, with `l2d import` --label {labels[position]}={mapped}'
                + ("; or if it means no answer: missing (--missing)" if labels[position] in cells.MARKERS else ""),
            )
        if not names:
            return np.full(len(rows), np.nan)
        known, found = [index[name] for name in names], np.empty(len(rows), np.float32)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = written[start : start + ROWS_AT_ONCE]
            part = part.replace_strict(values, known, default=None, return_dtype=pl.Float32)
            found[start : start + len(part)] = part.fill_null(float("nan")).to_numpy()
        return found

    def _texts(self, rows: pl.DataFrame) -> pl.Series:
        """The text of each row, null where there is none."""
        said = self.file.text(self.file.need(self.config.text, "text"), rows)
        if not self.config.abstains:
            return said
        silent = [text.strip() for text in self.config.abstains]
        said = said.fill_null("") if "" in silent else said
        none = pl.when(pl.first().is_in(silent)).then(pl.lit(""))
        return said.to_frame().select(none.otherwise(pl.first())).to_series()

    def _prob(self, rows: pl.DataFrame, classes: tuple[str, ...]) -> list[np.ndarray]:
        """Probability of each class, (n,) each; NaN where a row has none.

        Raises:
            DataError: not a column for each class; one is outside [0, 1], lacks, or they do not sum to 1.
        """
        config, file = self.config, self.file
        names = [config.prob] if isinstance(config.prob, str) else config.prob
        found = [file.numbers(file.need(name, "prob"), rows) for name in names]
        if len(found) == 1:
            found.insert(0, 1 - found[0])
        if len(found) != len(classes):
            raise DataError(
                f"prob names {len(names)} columns for {len(classes)} classes",
                hint=f"one for each class, in the order {', '.join(classes[:20])}",
            )
        table = np.stack(found, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            if config.normalise:
                negative = table < 0
                table = np.where(negative, table, table / table.sum(axis=1, keepdims=True))
            outside = ((table < 0) | (table > 1)).any(axis=1)
            sums = np.abs(table.sum(axis=1) - 1) >= 1e-3
        some = np.isnan(table).any(axis=1) & ~np.isnan(np.stack(found, axis=1)).all(axis=1)
        advice = "correct it, or leave the cells empty"
        divided = "" if config.normalise else "; rounded or in per cent: normalise = true (--normalise)"
        for wrong, what, hint in (
            (outside, "is outside [0, 1]", advice + divided),
            (some, "has gaps: give all classes or none", advice),
            (sums, "does not sum to 1", advice + divided),
        ):
            if wrong.any():
                position = int(wrong.argmax())
                shown = ", ".join(str(rows[name][position]) for name in names)
                raise DataError(
                    f"{', '.join(names)} = {shown} {what}", where=file.where(rows[ROW][position]), hint=hint
                )
        return list(table.T)

    def ask(self, batch: Batch) -> Answers:
        return self.answers.rows(slice(batch.rows.start, batch.rows.stop))

    def fingerprint(self, dataset: Dataset) -> dict[str, Any]:
        """The answers alone: the file may move, be written in another form, or gain annotators."""
        content = hashlib.sha256()
        for name, values in vars(self.answers).items():
            if values is None or name == "text":
                continue
            content.update(name.encode())
            for start in range(0, len(values), ROWS_AT_ONCE):
                content.update(np.ascontiguousarray(values[start : start + ROWS_AT_ONCE], dtype=np.float64).data)
        if self.answers.text is not None:
            content.update(texts_digest(self.answers.text.tolist()).encode())
        lent = {f"{task}_from": name for task, name in self.lenders.items()}
        return {"kind": self.config.kind, "answers": content.hexdigest()[:16], **lent}


def class_of(label: str, classes: tuple[str, ...], labels: dict[str, str]) -> int | None:
    """Index of the class that a label means: as ``labels`` says, by name, or as the same number or truth value.

    ``1`` and ``1.0`` are one class, and so are ``true`` and ``True``.
    """
    name = labels.get(label, label)
    if name in classes:
        return classes.index(name)
    if name.lower() in ("true", "false"):
        return next((k for k, known in enumerate(classes) if known.lower() == name.lower()), None)
    try:
        number = float(name)
        return next((k for k, known in enumerate(classes) if float(known) == number), None)
    except ValueError:
        return None
