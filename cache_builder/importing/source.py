"""What the user says of tables to import, and the words in which an import answers."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

from l2d.cache_builder.agents._matching import IdRule, Repeats
from l2d.cache_builder.agents.annotators import HOLE
from l2d.data.errors import UsageError, nearest
from l2d.data.toml import toml_text

#: Names that a column is known by when the command names none.
ANNOTATORS = (
    "annotator", "rater", "agent", "reader", "expert", "worker", "performer", "model", "model_name", "llm",
    "annotator_id", "agent_id", "worker_id", "readerID", "llm_name",
)  # fmt: skip
IDS = (
    "sample_id", "id", "task", "task_id", "item", "item_id", "question_id", "prompt_id", "caseID", "case_id", "q_id",
    "global_index",
)  # fmt: skip


@dataclass
class Source:
    """What the user says of the files; None is found out.

    Attributes:
        features: a table with a row a sample: ids, targets, features. It may be the file of answers itself.
        answers: of the agents: a row an answer (long), or a column an agent (wide).
        id: column of ``features`` with the sample ids; empty: what the layout says, or a column of a known name.
        together: columns that make the id together, whose name is then ``a/b``; both files have them.
        answers_id: column of ``answers`` with them; ``id`` if it is there.
        ids: how ids are compared, see :func:`l2d.cache_builder.agents._matching.match_ids`.
        target, target_reg, target_text: columns of ``features`` with the truth.
        annotator: column of a long file of answers that says whose they are.
        cla, prob, reg, answer: columns of ``answers``; of a wide file with ``{}`` for the agent's name. ``prob`` may be
            a column for each class, in order. ``answer`` has texts.
        abstains: texts that say that a question has no answer.
        paid: column of ``answers`` with what an answer cost, in ``unit_paid``; None: a column of a known name.
        unit_paid: what that is in, such as ``USD``; None: what the column's name says.
        prices: a price list, see :func:`l2d.cache_builder.importing.tariffs.read_tariffs`.
        per: how many the prices are for: 1e6 for a million tokens. With ``paid``: of how many answers it is the price.
        agents: of a wide file: the agents, where they cannot be told from features.
        model: the agent that is asked first and for nothing, agent 0. If there is none, a network is trained, or of
            scores no agent is the model: the file's first is agent 0, and has its price like the others.
        columns: the rejector's features, SQL or columns; every usable column of ``features`` if empty.
        text: columns of ``features``, or SQL, that the rejector reads word by word.
        embed: a folder or ``package:NAME`` with the sentence encoder that reads them instead.
        labels: a label as written -> a class.
        missing: texts that are missing answers.
        normalise: probabilities are divided by their sum.
        repeats: which of several answers of one annotator about one sample counts.
        others: what to do about answers on other samples, ``refuse`` or ``drop``.
        lent: task -> the agent whose answer about it is used for agents that do not answer it.
        charged: task -> the cost that agents are charged that do not answer it.
        scale: lowest and highest score.
    """

    features: Path
    answers: Path
    id: str = ""
    together: list[str] = field(default_factory=list)
    target: str | None = None
    target_reg: str | None = None
    target_text: str | None = None
    answers_id: str | None = None
    ids: IdRule | None = None
    annotator: str | None = None
    cla: str | None = None
    prob: str | list[str] | None = None
    reg: str | None = None
    answer: str | None = None
    abstains: list[str] = field(default_factory=list)
    paid: str | None = None
    unit_paid: str | None = None
    prices: Path | None = None
    per: float | None = None
    agents: list[str] = field(default_factory=list)
    model: str | None = None
    columns: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    embed: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    normalise: bool = False
    repeats: Repeats = "refuse"
    others: str = "refuse"
    lent: dict[str, str] = field(default_factory=dict)
    charged: dict[str, float] = field(default_factory=dict)
    scale: tuple[float, float] = (0.0, 1.0)

    @property
    def targets(self) -> dict[str, str]:
        """Task -> column with its truth."""
        given = {"cla": self.target, "reg": self.target_reg, "text": self.target_text}
        return {task: column for task, column in given.items() if column is not None}

    @property
    def answered(self) -> dict[str, str | list[str]]:
        """Key of an agent -> column or columns with its answers, as far as the user says them."""
        given = {"cla": self.cla, "prob": self.prob, "reg": self.reg, "text": self.answer}
        return {key: columns for key, columns in given.items() if columns is not None}

    @property
    def is_one_file(self) -> bool:
        """Whether samples and answers lie in one file."""
        return self.features.absolute() == self.answers.absolute()


@overload
def need(column: str, columns: list[str], option: str, path: Path) -> str: ...


@overload
def need(column: None, columns: list[str], option: str, path: Path) -> None: ...


@overload
def need(column: str | None, columns: list[str], option: str, path: Path) -> str | None: ...


def need(column: str | None, columns: list[str], option: str, path: Path) -> str | None:
    """A column's name, if there is one of it; otherwise a :class:`UsageError` that names the option."""
    if column is not None and column not in columns:
        raise UsageError(
            f"{option} {column}: there is no such column", where=path, hint=nearest(column, columns, "it has")
        )
    return column


def holes(pattern: str, columns: list[str]) -> list[str]:
    """What stands in the place of ``{}`` in the columns that are like the pattern."""
    before, _, after = pattern.partition(HOLE)
    shortest = len(before) + len(after)
    fitting = [name for name in columns if name.startswith(before) and name.endswith(after) and len(name) > shortest]
    return [name[len(before) : len(name) - len(after)] for name in fitting]


def some(names: list[str], most: int = 8) -> str:
    """The first names of a list, and how many there are."""
    return ", ".join(names[:most]) + (f", … ({len(names)})" if len(names) > most else "")


def relative(path: Path, folder: Path) -> str:
    """A path as seen from a folder, as a TOML string."""
    return toml_text(Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix())
