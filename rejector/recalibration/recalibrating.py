"""`l2d recalibrate`: from a decision log to a calibration that a person can review, with the evidence for it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from l2d.data.cache import store
from l2d.data.errors import DataError, UsageError
from l2d.data.results import Shown
from l2d.rejector.calibration import Calibration, Correction
from l2d.rejector.recalibration.document import text_of
from l2d.rejector.recalibration.evidence import Deciding, Judged, deciding, fitted, judged, residual
from l2d.rejector.recalibration.outcomes import Outcomes, outcomes_of
from l2d.rejector.runs.files import one_run
from l2d.rejector.served import open_served
from l2d.rejector.serving.reading import read_log

EARLIER = 2 / 3  # of the outcomes: corrections are fitted on them, the others judge
ERRORS = ("squared error before", "after", "difference")
LEAST, LEAST_JUDGED = 50, 20  # outcomes of an agent, or what those drawn to explore are worth


@dataclass(frozen=True)
class Agent:
    """What the log says of one agent.

    Attributes:
        earlier, later: outcomes.
        correction: None where it is left alone, with ``reason``.
        judged: by later outcomes; None where it is left alone.
    """

    name: str
    earlier: int
    later: int
    correction: Correction | None = None
    judged: Judged | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Recalibration(Shown):
    """A calibration and the evidence for it.

    Attributes:
        calibration: that was written.
        agents: all of the run, in order.
        together: what later outcomes say of all corrected agents.
        deciding: what decisions by it would have cost.
        times: of the first and the last decision of earlier and of later outcomes.
        log, digest: where the log lay, and SHA-256 of the ids of its decisions.
        out: where it was written; None: nowhere.
    """

    calibration: Calibration
    agents: list[Agent]
    together: Judged
    deciding: Deciding
    times: tuple[datetime, datetime, datetime, datetime]
    log: str
    digest: str
    level: float
    out: Path | None = None

    @property
    def improves(self) -> bool:
        return self.calibration.improves

    @property
    def title(self) -> str:  # type: ignore[override]
        earlier, later = (sum(getattr(one, name) for one in self.agents) for name in ("earlier", "later"))
        return (
            f"{self.calibration.run_id}: corrected on {earlier:,} outcomes until {_short(self.times[1])}, "
            f"judged by the {later:,} after them"
        )

    def rows(self) -> list[dict[str, Any]]:
        """A row an agent, and one for all that are corrected."""
        rows = [self._row(one.name, one, one.judged) for one in self.agents]
        return [*rows, self._row("together", None, self.together)] if sum(map(bool, self._corrected)) > 1 else rows

    @property
    def _corrected(self) -> list[Correction | None]:
        return [one.correction for one in self.agents]

    def _row(self, name: str, agent: Agent | None, found: Judged | None) -> dict[str, Any]:
        row: dict[str, Any] = {"agent": name}
        row["outcomes"] = None if agent is None else f"{agent.earlier:,} + {agent.later:,}"
        row |= dict.fromkeys(("predicted", "paid", "corrected", *ERRORS, "shown"))
        if found is None or (agent is not None and agent.correction is None):
            return row | {"shown": None if agent is None else f"left alone: {agent.reason}"}
        low, high = found.difference.interval(self.level)
        return row | {
            "predicted": found.predicted, "paid": found.paid, "corrected": found.corrected,
            **dict(zip(ERRORS, (found.before, found.after), strict=False)),
            ERRORS[2]: f"{found.difference.value:+.4f} [{low:+.4f}, {high:+.4f}]", "shown": found.says(self.level),
        }  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        one = self.calibration
        return {
            "run_id": one.run_id, "run": one.run, "improves": one.improves, "advice": one.advice,
            "valid_from": one.valid_from.isoformat(), "valid_until": one.valid_until.isoformat(),
            "log": {"path": self.log, "digest": self.digest, "times": [moment.isoformat() for moment in self.times]},
            "agents": [
                {"agent": agent.name, "earlier": agent.earlier, "later": agent.later, "reason": agent.reason}
                | ({} if agent.correction is None or agent.judged is None else {
                    "intercept": agent.correction.intercept, "slope": agent.correction.slope,
                    **self.judged_facts(agent.judged),
                })
                for agent in self.agents
            ],
            "together": self.judged_facts(self.together),
            "deciding": self.deciding_facts(),
        }  # fmt: skip

    def judged_facts(self, found: Judged) -> dict[str, Any]:
        """As the file and JSON have them."""
        low, high = found.difference.interval(self.level)
        return {
            "outcomes": found.outcomes, "predicted": found.predicted, "paid": found.paid, "corrected": found.corrected,
            "squared_error": {
                "before": found.before, "after": found.after, "difference": found.difference.value, "low": low,
                "high": high,
            },
            "shown": found.says(self.level),
        }  # fmt: skip

    def deciding_facts(self) -> dict[str, Any]:
        """As the file and JSON have them."""
        found = self.deciding
        facts: dict[str, Any] = {"decisions": found.decisions, "changed": found.changed, "cost": found.says(self.level)}
        if found.difference is not None:
            low, high = found.difference.interval(self.level)
            facts |= {"difference": found.difference.value, "low": low, "high": high}
        return facts if found.unknown is None else facts | {"why": found.unknown}

    def notes(self) -> list[str]:
        """Sentences for people."""
        return [self.decisions_in_words(), f"advice: {self.calibration.advice}"]

    def decisions_in_words(self) -> str:
        found = self.deciding
        share = f"{found.changed / found.decisions:.1%} of {found.decisions:,} later decisions would be others"
        if found.difference is None:
            return f"{share}{'' if found.unknown is None else '; what they would cost is not known: ' + found.unknown}"
        low, high = found.difference.interval(self.level)
        costs = f"{found.difference.value:+.4f} [{low:+.4f}, {high:+.4f}]"
        return f"{share}; a decision costs {costs}: {found.says(self.level)}"


def recalibrate(
    log: Path | str,
    run: Any,
    out: Path | str | None = None,
    *,
    since: str | date | datetime | None = None,
    least: int = LEAST,
    days: float = 90.0,
    level: float = 0.95,
    overwrite: bool = False,
) -> Recalibration:
    """Fit corrections of a run's predicted costs on the earlier outcomes of a log, and judge them by the later ones.

    Nothing is applied: ``route``, ``load_router``, ``serve`` and ``watch`` take the file as ``calibration``.

    Args:
        log: its folder.
        run: a run whose scores are predicted costs, or its folder.
        out: a TOML file.
        since: decisions before are left out, such as those before an agent changed: a date or a time, UTC unless said.
        least: earlier outcomes of an agent that is corrected.
        days: for which the file is valid.
        level: of the intervals.
        overwrite: replace ``out``.

    Raises:
        UsageError: the run has decided nothing in this log, predicts no costs, or an argument is wrong.
        DataError: no agent has outcomes enough.
    """
    if not 0 < level < 1 or least < 2 or not 0 < days < 1e5:
        raise UsageError(
            f"level {level:g}, least {least}, days {days:g}",
            hint="a level between 0 and 1, 2 outcomes or more, more than 0 days",
        )
    if out is not None and Path(out).exists() and not overwrite:
        raise UsageError("this is there already", where=out, hint="give another --out, or type --overwrite")
    folder = one_run(Path(getattr(run, "path", run)))
    served = open_served(folder)
    if not served.costs:
        raise UsageError(
            f"the scores of run {served.run_id} are not predicted costs, so there is nothing to correct",
            where=folder,
            hint="take a run of method best",
        )
    outcomes = outcomes_of(read_log(log), served.digest)
    if since is not None:
        outcomes = outcomes.take(outcomes.time >= _moment(since).timestamp() * 1e6)
    earlier, later = _in_two(outcomes, log)
    agents = [agent_of(name, place, earlier, later, least) for place, name in enumerate(served.agents)]
    corrections = tuple(one.correction for one in agents if one.correction is not None)
    if not corrections:
        said = ", ".join(f"{one.name} {one.earlier:,} + {one.later:,}" for one in agents)
        raise DataError(
            f"no agent has {least} earlier outcomes and {LEAST_JUDGED} later ones: {said}",
            where=log,
            hint="send more outcomes, or accept fewer: --least",
        )
    now = datetime.now(UTC).replace(microsecond=0)
    plain = Calibration(served.run_id, served.digest, False, "", now, now + timedelta(days=days), corrections)
    corrected = -plain.correct(later.scores, served.agents).astype(np.float64)
    agents = [_judged(one, place, later, corrected) for place, one in enumerate(agents)]
    rows = later.known & np.array([one.correction is not None for one in agents])[later.agent]
    together = judged(later.take(rows), corrected[rows])
    decided = deciding(later, corrected)
    improves, advice = advice_of(together, decided, level)
    calibration = Calibration(
        plain.run_id, plain.run, improves, advice, plain.valid_from, plain.valid_until,
        tuple(one.correction for one in agents if one.correction is not None),
    )  # fmt: skip
    times = (_time(earlier.time[0]), _time(earlier.time[-1]), _time(later.time[0]), _time(later.time[-1]))
    digest = hashlib.sha256("\n".join(outcomes.ids.tolist()).encode()).hexdigest()
    found = Recalibration(
        calibration, agents, together, decided, times, str(log), digest, level, None if out is None else Path(out)
    )
    if out is not None and not store.commit_bytes(Path(out), text_of(found).encode(), replace=overwrite):
        raise UsageError("this has appeared meanwhile", where=out, hint="give another --out, or type --overwrite")
    return found


def _in_two(outcomes: Outcomes, log: Path | str) -> tuple[Outcomes, Outcomes]:
    """Decisions until the moment at which two thirds of the outcomes are known, and those after it."""
    count = np.cumsum(outcomes.known)
    if not len(count) or not count[-1]:
        raise DataError("no outcome is known", where=log, hint="send some: POST /feedback, or router.feedback")
    end = int(np.searchsorted(count, EARLIER * count[-1])) + 1
    rows = np.arange(len(outcomes))
    earlier, later = outcomes.take(rows < end), outcomes.take(rows >= end)
    if not later.known.any():
        raise DataError("one outcome is not enough", where=log, hint="send more: POST /feedback, or router.feedback")
    return earlier, later


def agent_of(name: str, place: int, earlier: Outcomes, later: Outcomes, least: int) -> Agent:
    """The correction of one agent, or why it is left alone."""
    before, after = earlier.of(place), later.of(place)
    reason = None
    if len(before) and before.size < least <= len(before):
        reason = f"weighed, its {len(before)} earlier outcomes are worth {before.size:.0f}; {least} are the least"
    elif len(before) < least:
        reason = f"{least} earlier outcomes are the least"
    elif len(after) < LEAST_JUDGED:
        reason = f"{LEAST_JUDGED} later outcomes are the least"
    if reason is not None:
        return Agent(name, len(before), len(after), reason=reason)
    return Agent(name, len(before), len(after), fitted(name, before, place))


def _judged(agent: Agent, place: int, later: Outcomes, corrected: np.ndarray) -> Agent:
    if agent.correction is None:
        return agent
    own = later.known & (later.agent == place)
    kept = residual(later.take(own), corrected[own], place)
    correction = Correction(agent.name, agent.correction.intercept, agent.correction.slope, kept)
    return Agent(agent.name, agent.earlier, agent.later, correction, judged(later.take(own), corrected[own]))


def advice_of(together: Judged, decided: Deciding, level: float) -> tuple[bool, str]:
    """Whether later outcomes show an improvement: predictions nearer to what was paid, and no dearer decisions."""
    errors, cost = together.says(level), decided.says(level)
    no = "do not use it: "
    if errors != "better":
        what = "farther from" if errors == "worse" else "not shown to be nearer to"
        return False, f"{no}on later outcomes the corrected costs are {what} what was paid"
    yes = "predicted costs are nearer to what was paid"
    if cost == "not known":
        return False, f"{no}{yes}, but the log cannot say what the changed decisions would cost"
    if decided.difference is not None and decided.difference.value > 0:
        return False, f"{no}{yes}, but decisions by them cost {'more' if cost == 'dearer' else 'no less'}"
    then = {
        "cheaper": "decisions by them cost less", "the same": "no decision changes",
        "not shown": "that decisions by them cost less is likely but not shown",
    }  # fmt: skip
    return True, f"use it: {yes}, and {then[cost]}"


def _moment(since: str | date | datetime) -> datetime:
    try:
        found = datetime.fromisoformat(since) if isinstance(since, str) else since
    except ValueError as error:
        raise UsageError(f"--since {since}: {error}", hint="a date or time: 2026-11-28, 2026-11-28T09:30:00") from error
    moment = found if isinstance(found, datetime) else datetime.combine(found, time())
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _time(microseconds: int) -> datetime:
    return datetime.fromtimestamp(int(microseconds) / 1e6, UTC)


def _short(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M")
