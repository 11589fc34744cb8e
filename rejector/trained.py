"""A trained rejector, whatever trained it: what runs, routes, evaluations and policies ask of one. Loads no torch.

Arrays go in and come out as numpy's, so that a rejector that needs no torch is read and applied without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, cast

import numpy as np

from l2d.data.errors import UsageError
from l2d.rejector.grid import GridPoint
from l2d.rejector.methods import METHODS, ONE_MODEL, Trainer
from l2d.rejector.settings import TrainConfig

if TYPE_CHECKING:
    import onnx

    from l2d.data.cache.reader import CostCache
    from l2d.rejector.rows.stream import Stream
    from l2d.rejector.rows.table import CostTable

R = TypeVar("R", bound="Rejector")


@dataclass(frozen=True, kw_only=True)
class Rejector(ABC):
    """What every rejector is and does; each trainer of :mod:`l2d.rejector.methods` has one class of its own.

    Attributes:
        point: the point of the grid that it was trained at.
        config: the settings that it was trained with.
        state: arrays by name, of the library that :attr:`arrays` names: what it has learnt, and ``feature_mean`` and
            ``feature_std`` of the training split, (width,).
        best_epoch: whose parameters these are; 0 without epochs.
        validation_risk: deferral risk on the validation split, on the costs that it was trained on.
        history: (epochs, 2): mean loss in training, deferral risk on validation.
        sizes: of the fields of token lists that it reads, see :func:`l2d.data.samples.tokens.token_sizes`; else none.
        guard: what :meth:`l2d.rejector.best.guard.Guard.facts` says; None where no guard watched over it.
    """

    #: The library that ``state`` is read with and written by.
    arrays: ClassVar[Literal["numpy", "torch"]]
    #: It predicts raw costs, so it can be had :meth:`at` other query costs and task weights without training.
    any_setting: ClassVar[bool] = False
    #: Its ONNX model sends every sample where it does itself, which is tried when one is written.
    exact_onnx: ClassVar[bool] = False

    point: GridPoint
    config: TrainConfig
    state: Mapping[str, Any]
    best_epoch: int
    validation_risk: float
    history: list[tuple[float, float]]
    sizes: tuple[tuple[int, int], ...] = ()
    guard: dict[str, Any] | None = None

    @abstractmethod
    def scores(self, features: np.ndarray) -> np.ndarray:
        """Raw features (n, width) -> scores (n, agents), float32. A row's scores do not depend on the other rows."""

    @abstractmethod
    def check(self) -> None:
        """Apply it once, which fails where its arrays do not belong together."""

    @property
    def width(self) -> int:
        """How many numbers a row of features has."""
        return len(self.state["feature_mean"])

    @property
    def shared(self) -> tuple[str, ...]:
        """Names in ``state`` that all runs of a grid have in common: they lie in a file that is written once."""
        return ()

    @property
    def decides(self) -> bool:
        """Whether inputs have to be looked at: a constant does without."""
        return True

    @property
    def decided(self) -> float:
        """What deciding costs for each input, in units of loss; 0 where prices per sample do not count."""
        return self.config.router_cost * (self.point.paid or 0.0) if self.decides else 0.0

    @property
    def activations(self) -> int:
        """Numbers that scoring a row holds at once, about."""
        return self.width * self.config.hidden

    def scores_of(self, split: str, ids: Sequence[str], features: np.ndarray) -> np.ndarray:
        """:meth:`scores` of samples of the cache it was trained on. Some rejectors tell those they have seen apart."""
        return self.scores(features)

    def scores_on(self, table: CostTable) -> np.ndarray:
        """:meth:`scores_of` the rows of a table, read with predictions where scores need them."""
        return self.scores_of(table.split, table.ids, table.features.numpy())

    def check_routable(self) -> None:  # noqa: B027 - most can
        """Refuse a rejector that cannot score inputs alone.

        Raises:
            UsageError: says what else it looks at.
        """

    @property
    def has_classifier(self) -> bool:
        """Whether it brings its own classes in agent 0's place, as some of :mod:`l2d.rejector.literature` do."""
        return False

    def probabilities(self, features: np.ndarray) -> np.ndarray | None:
        """Class probabilities of its own classifier, float32 (n, classes); None where it has none."""
        return None

    def system_table(self, table: CostTable, tasks: list[str]) -> CostTable:
        """The table with its own classifier in agent 0's place; the table itself where it has none."""
        return table

    def predicted_costs(self, table: CostTable) -> np.ndarray | None:
        """Total costs that it predicts of a table's samples, float64 (n, agents); None where it predicts none."""
        return None

    @property
    def predicts_prices(self) -> bool:
        """Whether :meth:`predicted_prices` gives any."""
        return False

    def predicted_prices(self, split: str, ids: Sequence[str], features: np.ndarray) -> np.ndarray | None:
        """What each agent's answer is predicted to be paid, in money, (n, agents); None where it predicts no prices.

        Args:
            split, ids: of samples of the cache it was trained on.
            features: theirs, (n, width).
        """
        return None

    @property
    def answering(self) -> dict[str, Any] | None:
        """What :meth:`l2d.rejector.best.answering.Answering.facts` says; None where nothing was found."""
        return None

    def at(self, point: GridPoint) -> Rejector:
        """What training at other query costs or task weights would have made, where :attr:`any_setting` says so."""
        raise TypeError(f"a rejector of method {self.point.method!r} has the setting that it was trained at")

    def judged_at(self, point: GridPoint) -> Rejector:
        """The same at other query costs or task weights with no guard; itself where it has one setting."""
        return self

    def unguarded(self) -> Rejector:
        """The rejector with its guard off: under a limit it has to be known what each agent would cost, even where
        leaving the fallback does not pay without one. Itself where no guard holds."""
        return self

    def onnx_graph(self, example: np.ndarray, instead: np.ndarray, indicated: dict[int, int]) -> onnx.ModelProto:
        """An ONNX graph of raw inputs to ``scores`` and ``agent``, with no metadata.

        Args:
            example: inputs of the kind that it looks at, (n, width).
            instead: what stands in for a number that is NaN or infinite, (width,).
            indicated: column that tells whether a number is missing -> the column of that number.

        Raises:
            UsageError: it cannot be written as one graph.
        """
        raise UsageError(
            f"a run of method {self.point.method!r} is more than one network",
            where=self.point.run_id,
            hint=f"this needs a run of {', '.join(ONE_MODEL)}",
        )

    def as_a(self, kind: type[R]) -> R:
        """The rejector, known to be of this class.

        Raises:
            UsageError: it is of another one.
        """
        if not isinstance(self, kind):
            names = [name for name, method in METHODS.items() if rejector_class(method.trainer) is kind]
            raise UsageError(f"this is not for runs of method {self.point.method!r}", hint=f"one of {', '.join(names)}")
        return self

    def facts(self) -> dict[str, Any]:
        """What ``run.json`` says of it beside what it says of all."""
        return {}

    @classmethod
    def from_facts(cls, facts: dict[str, Any], **fields: Any) -> Rejector:
        """The rejector of these fields and of what :meth:`facts` had said."""
        return cls(**fields)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Points to train on a cache, each with the folder of its run, and how: see :func:`l2d.rejector.sweep.sweep`."""

    todo: list[tuple[GridPoint, Path]]
    cache: CostCache
    config: TrainConfig
    device: str = "cpu"
    checkpoint_every: float
    available: int | None = None
    progress: Callable[[int, int, float], None] | None = None
    narrate: Callable[[str], None] | None = None

    @property
    def points(self) -> list[GridPoint]:
        return [point for point, _ in self.todo]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Rejectors that are ready to be saved together.

    Attributes:
        rejectors: one for each of ``folders``.
        rows: the splits to write allocations for.
        seconds: training took, reading aside.
        left_out: samples of all splits that were not learnt from for want of answers.
    """

    rejectors: Sequence[Rejector]
    folders: list[Path]
    rows: Mapping[str, CostTable | Stream]
    seconds: float
    left_out: int


class TrainerModule(Protocol):
    """What the module of a :class:`l2d.rejector.methods.Trainer` has."""

    def check(self, points: list[GridPoint], cache: CostCache, config: TrainConfig) -> None:
        """Refuse points and settings before anything is trained.

        Raises:
            UsageError: says what does not fit.
        """

    def train(self, job: Job) -> Generator[Trained]:
        """Train the points, some at a time. What is yielded is saved before the next is asked for.

        Under torchrun the first process alone yields; the others take part in its training, or do nothing.
        """


def load_trainer(trainer: Trainer) -> TrainerModule:
    """Its module, which loads when first used."""
    return cast(TrainerModule, import_module(trainer.module))


def rejector_class(trainer: Trainer) -> type[Rejector]:
    """What its runs are read back as. Not all of its module is loaded: a run of ``best`` is read without torch."""
    module, _, name = trainer.rejector.partition(":")
    return cast("type[Rejector]", getattr(import_module(module), name))
