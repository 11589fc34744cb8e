"""A calibration of predicted costs: a file that people read and edit, and what it does to a run's scores.

``l2d recalibrate`` writes it (:mod:`l2d.rejector.recalibration`). It acts where it is named and nowhere else. Numpy
alone, so that a router with one loads no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import numpy as np

from l2d.data.errors import DataError, UsageError, nearest

VERSION = 1
MAKE = "make one: l2d recalibrate LOG RUN --out FILE"


@dataclass(frozen=True)
class Correction:
    """Of one agent: ``intercept + slope * predicted`` in place of its predicted total cost.

    Attributes:
        residual: of the outcomes that judged it, what was paid less what the corrected prediction said: their number,
            mean and standard error; None where none did.
    """

    agent: str
    intercept: float = 0.0
    slope: float = 1.0
    residual: tuple[int, float, float] | None = None

    @property
    def corrects(self) -> bool:
        return (self.intercept, self.slope) != (0.0, 1.0)


@dataclass(frozen=True)
class Calibration:
    """Corrections of a run's predicted costs, and whether the log that they come from shows that they improve it.

    Attributes:
        run_id, run: of the run whose predictions it corrects; ``run`` is its digest.
        improves: whether later outcomes than it was fitted on show an improvement.
        advice: in words.
        valid_from, valid_until: between which it may be used, with a time zone.
        corrections: of agents; those that have none are left alone.
    """

    run_id: str
    run: str
    improves: bool
    advice: str
    valid_from: datetime
    valid_until: datetime
    corrections: tuple[Correction, ...]

    def arrays(self, agents: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Intercepts and slopes in the run's order, float64 (agents,).

        Raises:
            UsageError: it corrects an agent that the run has not.
        """
        known = {one.agent: one for one in self.corrections}
        for name in known:
            if name not in agents:
                raise UsageError(f"the calibration has an agent {name!r}", hint=nearest(name, agents, "the run has"))
        found = [known.get(name, Correction(name)) for name in agents]
        return np.array([one.intercept for one in found]), np.array([one.slope for one in found])

    def correct(self, scores: np.ndarray, agents: list[str]) -> np.ndarray:
        """Scores, float32 (…, agents), of the corrected costs. Each number for itself: a row has the bits of a batch.

        Scores are negated costs; those of agents without a correction keep their bits.
        """
        intercept, slope = self.arrays(agents)
        return (slope * scores.astype(np.float64) - intercept).astype(np.float32)

    def digest(self, agents: list[str]) -> str:
        """SHA-256 of the run and what is done to it: decisions of one digest were made in one way."""
        intercept, slope = self.arrays(agents)
        text = json.dumps([self.run, intercept.tolist(), slope.tolist()])
        return hashlib.sha256(text.encode()).hexdigest()

    def facts(self, agents: list[str]) -> dict[str, Any]:
        """For the decision log: what the scores were before is worked out from these."""
        intercept, slope = self.arrays(agents)
        return {"run": self.run, "intercept": intercept.tolist(), "slope": slope.tolist()}

    def summary(self) -> dict[str, Any]:
        """What people want to know of it at work."""
        return {"improves": self.improves, "advice": self.advice, "valid_until": self.valid_until.isoformat()}

    def check(self, now: datetime | None = None, where: Path | None = None) -> None:
        """See that it may be used now.

        Raises:
            UsageError: it may not yet, or not any more.
        """
        now = now or datetime.now(UTC)
        if now < self.valid_from:
            raise UsageError(
                f"this calibration is valid from {_day(self.valid_from)}",
                where=where,
                hint="wait, or change its `valid_from`",
            )
        if now > self.valid_until:
            raise UsageError(
                f"this calibration is out of date: it was valid until {_day(self.valid_until)}",
                where=where,
                hint="make one of newer outcomes: l2d recalibrate LOG RUN --out FILE; or change its `valid_until`",
            )


def uncorrected(scores: np.ndarray, facts: dict[str, Any]) -> np.ndarray:
    """What a run itself predicted, from the scores of a log, float32 (n, agents).

    Args:
        facts: of the run in the log, with those of its calibration if it decided by one.
    """
    calibration = facts.get("calibration")
    if not calibration:
        return scores
    intercept, slope = (np.array(calibration[name]) for name in ("intercept", "slope"))
    return ((scores.astype(np.float64) + intercept) / slope).astype(np.float32)


def own_digest(digest: str, facts: dict[str, Any]) -> str:
    """Of the run itself, of a run in a log that may have decided by a calibration."""
    calibration = facts.get("calibration")
    return calibration["run"] if calibration else digest


def read_calibration(path: Path | str) -> Calibration:
    """Read the file that ``l2d recalibrate`` wrote and a person may have edited.

    Raises:
        UsageError: there is no such file.
        DataError: it is no calibration; the message says which value is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(
            "there is no calibration here", where=path, hint="make one: l2d recalibrate LOG RUN --out FILE"
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"is not TOML: {error}", where=path, hint="mend it, or make it again") from error
    read = _Reader(path, content)
    if read("version", int) != VERSION:
        raise read.wrong("version", f"is {content['version']}, this program reads {VERSION}")
    entries = read("agents", list) if "agents" in content else []
    corrections = tuple(_correction(path, number, entry) for number, entry in enumerate(entries, 1))
    names = [one.agent for one in corrections]
    for name in names:
        if names.count(name) > 1:
            raise read.wrong("agents", f"name {name!r} twice")
    run = _Reader(path, read("run", dict), "run.")
    return Calibration(
        run_id=run("id", str),
        run=run("digest", str),
        improves=read("improves", bool),
        advice=read("advice", str),
        valid_from=read.time("valid_from"),
        valid_until=read.time("valid_until"),
        corrections=corrections,
    )


def _correction(path: Path, number: int, entry: Any) -> Correction:
    read = _Reader(path, entry if isinstance(entry, dict) else {}, f"agents[{number}].")
    intercept, slope = read.number("intercept"), read.number("slope")
    if slope <= 0:
        raise read.wrong("slope", f"is {slope:g}, which would turn the order of predictions round: more than 0")
    residual = None
    if "residual" in entry:
        of = _Reader(path, read("residual", dict), f"agents[{number}].residual.")
        residual = (of("outcomes", int), of.number("mean"), of.number("error"))
    return Correction(read("name", str), intercept, slope, residual)


class _Reader:
    """Values of a table by their kinds; what is wrong is said by the key."""

    def __init__(self, path: Path, content: dict[str, Any], prefix: str = ""):
        self._path, self._content, self._prefix = path, content, prefix

    def __call__(self, key: str, kind: Callable[..., Any]) -> Any:
        if key not in self._content:
            raise self.wrong(key, "is missing")
        value = self._content[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):  # type: ignore[arg-type]
            raise self.wrong(key, f"is {value!r}")
        return value

    def number(self, key: str) -> float:
        value = self(key, object)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(key, f"is {value!r}, not a finite number")
        return float(value)

    def time(self, key: str) -> datetime:
        value = self(key, object)
        if not isinstance(value, date):
            raise self.wrong(key, f"is {value!r}, not a date")
        moment = value if isinstance(value, datetime) else datetime.combine(value, time())
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)

    def wrong(self, key: str, what: str) -> DataError:
        return DataError(f"{self._prefix}{key} {what}", where=self._path, hint="mend it, or make the file again")


def _day(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
