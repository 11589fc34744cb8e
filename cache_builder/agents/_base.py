"""What an agent is: a name, a price, and an answer to every batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from l2d.cache_builder.answers import Answers
from l2d.data.cache.integrity import sha256_of
from l2d.data.cache.schema import ids_digest
from l2d.data.samples.dataset import Batch, Dataset
from l2d.data.sources.table import Strict

MOST_LETTERS = 120


def _printable(name: str) -> str:
    """A name as it is written, in any alphabet: ``meta/llama-2-70b``, ``Ünal``, ``張``."""
    if not name or name != name.strip() or not name.isprintable() or len(name) > MOST_LETTERS:
        raise ValueError(f"a name has 1 to {MOST_LETTERS} letters that can be printed and no blank at either end")
    return name


#: Task that an agent may leave to another -> what of an answer is about it.
PARTS = {"cla": ("cla", "prob"), "reg": ("reg",), "text": ("text",)}


class AgentConfig(Strict):
    """Keys that every ``[[agents]]`` entry has."""

    name: Annotated[str, AfterValidator(_printable)]
    """What the agent is called, in any alphabet: `meta/llama-2-70b`, `張`. At most 120 letters."""
    kind: str
    """What it is: one of the kinds below."""
    description: str = ""
    """For people."""
    price: Annotated[float, Field(ge=0)] | Literal["gflops", "seconds", "paid", "unknown"] = 1.0
    """What an answer costs, relative to the others: a single `beta` is what the dearest agent costs. Or the mean of
    what is recorded of its answers. `unknown` is not 0.
    """
    free: bool | None = None
    """Asking it costs nothing, whatever its `price`. By default so for a model that is not said to be `paid`."""
    paid: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """What every answer is paid, in the recipe's `unit_paid`. Agents that are a file may name a column."""
    reference: bool = False
    """Reported beside the agents, never allocated to."""
    timeout: Annotated[float, Field(gt=0)] | None = None
    """Seconds that a batch may take."""
    cla_from: str | None = None
    """An earlier agent whose class counts, for an agent that does not answer the class itself."""
    reg_from: str | None = None
    """An earlier agent whose number counts, for an agent that does not answer the number itself."""
    cla_cost: Annotated[float, Field(ge=0)] | None = None
    """Or the cost that it is charged for not answering the class, as in `[costs]`."""
    reg_cost: Annotated[float, Field(ge=0)] | None = None
    """Or the cost that it is charged for not answering the number, as in `[costs]`."""
    text_from: str | None = None
    """An earlier agent whose text counts, for an agent that does not answer in words itself."""
    text_cost: Annotated[float, Field(ge=0, le=1)] | None = None
    """Or the cost that it is charged for not answering in words, as in `[costs]`."""
    features: list[str] = []
    """What the model, agent 0, gives the rejector as input, such as `backbone`; each kind lists what it has."""
    _folder: Path = PrivateAttr(Path("."))  # the recipe's, which paths in `options` are relative to

    @model_validator(mode="after")
    def _answers_a_task_once(self):
        for task, keys in PARTS.items():
            given = [key for key in keys if getattr(self, key, None) is not None]
            given += [key for key in (f"{task}_from", f"{task}_cost") if getattr(self, key) is not None]
            if len(given) > 1 and given != ["cla", "prob"]:
                raise ValueError(f"{' and '.join(given)}: say one, what it answers or what counts in its place")
        return self

    @property
    def role(self) -> Literal["agent", "reference"]:
        return "reference" if self.reference else "agent"


#: Keys that came after caches had been built: part of an agent's fingerprint only where they are set.
LATER_KEYS = ("features", "partial", "factory", "cla_from", "reg_from", "text_from", "text")


class Agent(ABC):
    """A frozen agent. Subclasses are leaves: one kind each.

    A ``partial`` agent answers some samples only: where its answer has a gap (None, NaN) it is unavailable, which
    is not a failure.

    Args:
        config: the agent's recipe entry.
    """

    can_answer: ClassVar[tuple[str, ...]]  # what it can answer, out of cla, reg, text and boxes
    can_show: ClassVar[tuple[str, ...]] = ()  # what of itself it can give as `features`
    repeats: ClassVar[bool] = False  # a frozen model: asked again it has to answer the same, in whatever batch
    timed: ClassVar[bool] = False  # its own work is done when it is asked, so that the time it takes is its latency
    sees_columns: ClassVar[bool] = True  # may look at the source's columns; where no agent does they are not held
    reads: ClassVar[tuple[str, ...]] = ()  # of Dataset.content: when one of these changes, so may the answers
    unfingerprinted: ClassVar[set[str]] = {
        "name", "description", "price", "free", "paid", "reference", "timeout", "cla_cost", "reg_cost", "text_cost",
        "expected",
    }  # fmt: skip
    repeatable: ClassVar[bool] = False  # asking again costs nothing: its answers lie in a file, or are drawn

    def __init__(self, config: AgentConfig):
        self.config = config
        self.partial = getattr(config, "partial", False)  # known for sure after `check`
        self.remarks: list[str] = []  # what `check` read in a special way, a line each; the command says them
        keys = {task: (getattr(config, f"{task}_from"), getattr(config, f"{task}_cost")) for task in PARTS}
        self.lenders = {task: name for task, (name, _) in keys.items() if name is not None}  # whose answer counts
        self.charged = {task: cost for task, (_, cost) in keys.items() if cost is not None}

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of agents whose cached answers it needs; ``ask`` finds them in ``batch.answers``."""
        return tuple(dict.fromkeys(self.lenders.values()))

    def check(self, dataset: Dataset, tasks: list[str]) -> None:  # noqa: B027 - most kinds have nothing to check
        """Refuse a recipe entry that cannot answer these tasks on this dataset, before anything is written.

        Raises:
            UsageError: says what does not fit.
        """

    def freeze(self, dataset: Dataset, device: str) -> dict[str, np.ndarray] | None:
        """Fit what has to be fitted, once; the builder stores the arrays and hands them to :meth:`load` ever after.

        Agents that come frozen return None.
        """
        return None

    def load(  # noqa: B027 - some kinds are always ready
        self, frozen: dict[str, np.ndarray] | None, dataset: Dataset, device: str
    ) -> None:
        """Get ready to answer."""

    def gflops(self, dataset: Dataset) -> float | None:
        """10^9 multiply-adds of one answer, or None where that is not known. Asked after :meth:`load`."""
        return None

    @abstractmethod
    def ask(self, batch: Batch) -> Answers:
        """Answer a batch of samples."""

    def fingerprint(self, dataset: Dataset) -> dict[str, Any]:
        """Fields that change when the answers may change; weights are added by the builder."""
        read = {f"dataset.{name}": dataset.content[name] for name in self.reads if name in dataset.content}
        unset = {name for name in LATER_KEYS if not getattr(self.config, name, None)}
        left_out = self.unfingerprinted | unset
        return {**self.config.model_dump(mode="json", exclude=left_out), **read}


def texts_digest(texts: list[str | None]) -> str:
    """SHA-256 of texts in order; a missing one is another than an empty one."""
    return ids_digest(["" if text is None else f"={text}" for text in texts])


def file_digest(path: Path) -> str:
    """SHA-256 of a file the agent depends on, first 16 hex digits."""
    return sha256_of(path)[:16]
