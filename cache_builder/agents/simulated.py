"""Simulated experts: as good as a recipe says, where it says so. Every draw belongs to a sample's id."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from l2d.cache_builder.agents._base import Agent, AgentConfig
from l2d.cache_builder.answers import Answers
from l2d.data.errors import DataError, UsageError
from l2d.data.samples.dataset import Batch, Dataset
from l2d.data.samples.expressions import evaluate_rows

Probability = Annotated[float, Field(ge=0, le=1)]


class SimulatedConfig(AgentConfig):
    """``kind = "simulated"``: reads the truth and spoils it. What is given applies together.

    The class is right with probability ``accuracy``; where the SQL condition ``where`` does not hold, with probability
    ``accuracy_elsewhere`` (chance, if not given); on samples of a class in ``perfect_on`` always, and with that key
    alone on other classes by chance (Mozannar and Sontag 2020, CIFAR-10: right on the first k classes, random on the
    others). Chance is a class drawn uniformly from all; an answer that is to be wrong is one of the wrong classes,
    uniformly.

    The value is the truth plus ``bias`` plus Gaussian noise of deviation ``noise``; where ``where_reg`` (``where``, if
    not given) does not hold, with ``noise_elsewhere``, or if that is not given drawn uniformly over the training
    targets' range.

    There is an answer with probability ``answers``, and only where the SQL condition ``answers_where`` holds.
    """

    kind: Literal["simulated"]
    where: str | None = None
    """SQL: where the expert knows its subject."""
    where_reg: str | None = None
    """The same for the number, in place of `where`."""
    accuracy: Probability | None = None
    """Probability of a right class where `where` holds."""
    accuracy_elsewhere: Probability | None = None
    """Probability of a right class elsewhere; by chance if not given."""
    perfect_on: list[str] | Annotated[int, Field(ge=0)] | None = None
    """Classes that it always gets right; a number means that many of the first."""
    bias: float = 0.0
    """Added to the true number."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of the noise on the number."""
    noise_elsewhere: Annotated[float, Field(ge=0)] | None = None
    """The same where `where_reg` does not hold; if not given, the number is drawn from the range of the training
    targets.
    """
    answers: Probability = 1.0
    """Probability that it answers at all."""
    answers_where: str | None = None
    """SQL: where it answers at all."""
    seed: int = 0
    """Another seed draws other answers."""

    @model_validator(mode="after")
    def _fits_together(self):
        if self.accuracy_elsewhere is not None and self.where is None:
            raise ValueError("`accuracy_elsewhere` needs `where`: elsewhere than where?")
        if self.noise_elsewhere is not None and self.where is None and self.where_reg is None:
            raise ValueError("`noise_elsewhere` needs `where` or `where_reg`: elsewhere than where?")
        return self


class SimulatedAgent(Agent):
    config: SimulatedConfig
    can_answer = ("cla", "reg")
    repeatable = True
    reads = ("split", "target_cla", "target_reg", "classes")

    def check(self, dataset: Dataset, tasks: list[str]) -> None:
        config, where = self.config, f"agent {self.config.name!r}"
        lacking = (
            ("class", dataset.target_cla, ("accuracy", "perfect_on")),
            ("number", dataset.target_reg, ("bias", "noise", "noise_elsewhere", "where_reg")),
        )
        for what, target, keys in lacking:
            for key in keys:
                if target is None and getattr(config, key):
                    raise UsageError(f"`{key}`: the dataset has no {what} to predict", where=where, hint="leave it out")
        self.load(None, dataset, "cpu")
        self.partial = not bool(self.answering.all())
        if not self.answering.any():
            raise UsageError("it answers not one sample", where=where, hint="raise `answers`")

    def load(self, frozen: Any, dataset: Dataset, device: str) -> None:
        """Work out the whole expert at once, in the dataset's order."""
        config = self.config
        try:
            here, of_reg, there = (self._condition(dataset, condition) for condition in self._conditions())
        except DataError as error:
            raise DataError(error.what, where=f"agent {config.name!r}", hint=error.hint) from error
        draws = uniform_draws(config.seed, config.name, dataset.ids, 5)
        self.answering = there & (draws[:, 4] < config.answers)
        self.cla = self.reg = None
        if dataset.target_cla is not None:
            self.cla = self._classes(dataset, here, draws[:, 0], draws[:, 1])
        if dataset.target_reg is not None:
            train = dataset.target_reg[dataset.train].astype(np.float64)
            gaussian = np.sqrt(-2 * np.log1p(-draws[:, 2])) * np.cos(2 * np.pi * draws[:, 3])  # Box and Muller 1958
            truth = dataset.target_reg.astype(np.float64) + config.bias
            self.reg = truth + config.noise * gaussian
            if config.noise_elsewhere is not None:
                self.reg = np.where(of_reg, self.reg, truth + config.noise_elsewhere * gaussian)
            elif not of_reg.all():
                self.reg = np.where(of_reg, self.reg, train.min() + draws[:, 2] * np.ptp(train))

    def _classes(self, dataset: Dataset, here: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Class of each sample, int (n,). ``first`` decides whether it is right, ``second`` which wrong one it is."""
        config, count, truth = self.config, len(dataset.classes), dataset.target_cla
        chance = 1 / count
        elsewhere = chance if config.accuracy_elsewhere is None else config.accuracy_elsewhere
        default = chance if config.perfect_on is not None and config.accuracy is None else 1.0
        right = np.where(here, default if config.accuracy is None else config.accuracy, elsewhere)
        if config.perfect_on is not None:
            right = np.where(np.isin(truth, self._perfect(dataset)), 1.0, right)
        shift = 1 + (second * (count - 1)).astype(np.int64)  # 1 .. count - 1: never the truth
        return np.where(first < right, truth, (truth + shift) % count)

    def _perfect(self, dataset: Dataset) -> list[int]:
        listed, classes, where = self.config.perfect_on, dataset.classes, f"agent {self.config.name!r}"
        if isinstance(listed, int):
            if listed > len(classes):
                raise UsageError(
                    f"perfect_on = {listed}: there are {len(classes)} classes", where=where, hint="lower it"
                )
            return list(range(listed))
        for name in listed:
            if name not in classes:
                raise UsageError(
                    f"perfect_on: {name!r} is not a class", where=where, hint=f"the classes are {', '.join(classes)}"
                )
        return [classes.index(name) for name in listed]

    def _conditions(self) -> tuple[str | None, str | None, str | None]:
        """Where the class is as good as said, where the value is, and where there are answers."""
        config = self.config
        return config.where, config.where if config.where_reg is None else config.where_reg, config.answers_where

    def _condition(self, dataset: Dataset, expression: str | None) -> np.ndarray:
        """Where an SQL condition holds, bool (n,); null is not."""
        if expression is None:
            return np.ones(len(dataset), dtype=bool)
        return evaluate_rows(dataset.columns, expression).cast(pl.Boolean).fill_null(False).to_numpy()

    def ask(self, batch: Batch) -> Answers:
        rows = slice(batch.rows.start, batch.rows.stop)

        def given(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else np.where(self.answering[rows], values[rows], np.nan)

        return Answers(cla=given(self.cla), reg=given(self.reg))

    def fingerprint(self, dataset: Dataset) -> dict[str, Any]:
        """The name is part of the draw, and conditions may read any column: what they give is what counts."""
        config = self.config
        held = [self._condition(dataset, condition).tobytes() for condition in self._conditions()]
        return {
            **super().fingerprint(dataset),
            "name": config.name,
            "held": hashlib.sha256(b"".join(held)).hexdigest()[:16],
        }


def uniform_draws(seed: int, name: str, ids: Sequence[str], count: int) -> np.ndarray:
    """Uniform numbers in [0, 1) that depend on seed, agent and sample alone, not on their order: (n, count)."""
    found = np.empty((len(ids), count))
    for row, sample_id in enumerate(ids):
        digest = hashlib.blake2b(f"{seed}:{name}:{sample_id}".encode(), digest_size=8 * count).digest()
        found[row] = (np.frombuffer(digest, dtype="<u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return found
