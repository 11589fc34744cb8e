"""The ``[[agents]]`` of a recipe that an import writes: the file of answers, its ids, and each agent's columns."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from l2d.cache_builder.agents._answer_file import AnswerFile
from l2d.cache_builder.agents._matching import number_rule_fits
from l2d.cache_builder.agents.annotators import HOLE, agent_name
from l2d.cache_builder.importing.samples import Say
from l2d.cache_builder.importing.source import (
    ANNOTATORS,
    IDS,
    Source,
    need,
    relative,
)
from l2d.data.errors import DataError, UsageError, nearest
from l2d.data.toml import toml_list, toml_text


class Answers:
    """A file of answers as an import sees it.

    Attributes:
        file: the file.
        id: its column of sample ids.
        annotator: its column of agents, None in a wide file.
    """

    def __init__(self, source: Source, say: Say):
        self.source = source
        self.file = file = AnswerFile(source.answers, source.missing)
        self.id = file.together(source.together) if source.together else _id_column(source, file, say)
        known = [name for name in ANNOTATORS if name in file.columns and name != self.id]
        if source.annotator is not None:
            need(source.annotator, file.columns, "--annotator", source.answers)
        self.annotator = source.annotator or _repeating(file, self.id, known)
        self._known: dict[tuple[str, ...], set[str]] = {}  # columns -> annotators with an answer in one of them

    def id_rule(self, samples: pl.Series, say: Say) -> str:
        """How ids are compared; told where the texts differ and the numbers do not."""
        if self.source.ids is not None:
            return self.source.ids
        fits = number_rule_fits(samples, self.file.text(self.id).drop_nulls())
        if fits is None:
            return "text"
        say(f"ids are compared as numbers: {fits[0]!r} in {self.file.path} is {fits[1]!r} in {self.source.features}")
        return "number"

    def common_lines(self, folder: Path, rule: str) -> list[str]:
        """Keys that all agents of the file share."""
        source = self.source
        lines = [
            'kind = "table"',
            f"file = {relative(source.answers, folder)}",
            f"id = {toml_list(source.together) if source.together else toml_text(self.id)}",
        ]
        if rule != "text":
            lines.append(f"ids = {toml_text(rule)}")
        if source.labels:
            pairs = ", ".join(f"{toml_text(label)} = {toml_text(name)}" for label, name in source.labels.items())
            lines.append(f"labels = {{ {pairs} }}")
        if source.missing:
            lines.append(f"missing = {toml_list(source.missing)}")
        if source.abstains:
            lines.append(f"abstains = {toml_list(source.abstains)}")
        if source.normalise:
            lines.append("normalise = true")
        if source.repeats != "refuse":
            lines.append(f"repeats = {toml_text(source.repeats)}")
        if source.others != "refuse":
            lines.append(f"others = {toml_text(source.others)}")
        return lines

    def one_lines(self, name: str, columns: dict[str, str | list[str]]) -> list[str]:
        """Keys of one agent, with a column for each key; ``{}`` is its name."""
        lines = [f"name = {toml_text(agent_name(name))}"]
        if self.annotator is not None:
            lines += [f"annotator = {toml_text(self.annotator)}", f"who = {toml_text(name)}"]
        return lines + key_lines(columns, name)

    def silent_about(self, name: str, columns: list[str]) -> bool:
        """Whether an agent has not one answer in these columns, or not the columns."""
        columns = [column.replace(HOLE, name) for column in columns]
        if any(column not in self.file.columns for column in columns):
            return True
        if self.annotator is None:
            return all(self.file.table[column].is_null().all() for column in columns)
        return name not in self._answering(tuple(columns))

    def _answering(self, columns: tuple[str, ...]) -> set[str]:
        """Annotators with an answer in one of these columns."""
        if columns not in self._known:
            filled = self.file.table.filter(pl.any_horizontal(pl.col(list(columns)).is_not_null()))
            self._known[columns] = set(self.file.text(str(self.annotator), filled).unique().to_list())
        return self._known[columns]

    def stand_in(self, name: str, task: str) -> list[str]:
        """The key that says what counts for an agent that does not answer a task.

        Raises:
            DataError: nothing says it.
        """
        if task in self.source.lent:
            return [f"{task}_from = {toml_text(self.source.lent[task])}"]
        if task in self.source.charged:
            return [f"{task}_cost = {self.source.charged[task]!r}"]
        hint = f"--{task}-from AGENT uses that one's answer, --{task}-cost NUMBER charges a cost"
        raise DataError(f"{name} does not answer the task {task!r}", where=self.source.answers, hint=hint)


def key_lines(columns: dict[str, str | list[str]], name: str = HOLE) -> list[str]:
    """``cla = "…"`` and so on, ``{}`` filled with a name."""
    return [
        f"{key} = {toml_text(value.replace(HOLE, name))}"
        if isinstance(value, str)
        else f"{key} = {toml_list([one.replace(HOLE, name) for one in value])}"
        for key, value in columns.items()
    ]


def _id_column(source: Source, file: AnswerFile, say: Say) -> str:
    if source.answers_id is not None:
        return need(source.answers_id, file.columns, "--answers-id", source.answers)
    if source.id in file.columns:
        return source.id
    found = [name for name in IDS if name in file.columns]
    if not found:
        need(source.id, file.columns, "--id", source.answers)
    say(f"{source.answers}: the column {found[0]!r} has the sample ids (--answers-id: another)")
    return found[0]


def _repeating(file: AnswerFile, id_column: str, known: list[str]) -> str | None:
    """The column of annotators among those that may be by their name: one that tells rows of one sample apart."""
    if not known or file.table[id_column].is_duplicated().any():
        return known[0] if known else None
    # an id a row: a long file in which no annotator answers what another does, or a wide one with such a column beside
    names = [name for name in known if file.table[name].null_count() == 0 and file.table.schema[name] == pl.String]
    return names[0] if names else None


def fill(lines: list[str], blocks: list[list[str]]) -> list[str]:
    """A recipe's lines with an ``[[agents]]`` for each block."""
    return lines + [line for block in blocks for line in ["", "[[agents]]", *block]]


def unknown_agent(name: str, option: str, names: list[str], path: Path) -> UsageError:
    """That an option names an agent that the file does not have."""
    return UsageError(
        f"{option} {name}: there is no such agent",
        where=path,
        hint=nearest(name, names, "the agents are", most=20),
    )
