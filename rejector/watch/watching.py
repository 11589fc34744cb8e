"""`l2d watch`: what has moved in a log since its run was trained, and what to do about it. Nothing is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import norm

from l2d.data.errors import UsageError
from l2d.data.results import Shown
from l2d.data.samples.features import FeatureEncoder
from l2d.rejector.calibration import read_calibration
from l2d.rejector.evaluation.betting import Betting
from l2d.rejector.replay.policies import Decisions
from l2d.rejector.rows.foreign import Foreign
from l2d.rejector.runs.files import one_run
from l2d.rejector.served import Served, calibrated, open_served
from l2d.rejector.serving.reading import Log, read_log
from l2d.rejector.watch.baseline import Baseline, baselines

SHIFT = 0.1  # standard deviations, below which a feature's mean has not moved to speak of
MOST = 1e6  # of capital that is shown
FEWEST = 30  # test samples of an agent that it can be compared with


@dataclass(frozen=True)
class Moved:
    """Something that was looked at.

    Attributes:
        what: input, share, agent, price.
        name: of the feature or agent.
        then, now: what it was in training or test, and what it is in the log.
        evidence: how far from chance: standard errors, of an agent the test's capital, a million at most.
        moved: whether it has.
        do: what to do, where it has; else what it rests on.
    """

    what: str
    name: str
    then: float
    now: float
    evidence: float
    moved: bool
    do: str


@dataclass(frozen=True)
class Watch(Shown):
    """What was looked at in a log; ``found`` has what has moved first."""

    run_id: str
    decisions: int
    outcomes: int
    alpha: float
    found: list[Moved]

    @property
    def moved(self) -> list[Moved]:
        return [one for one in self.found if one.moved]

    @property
    def title(self) -> str:  # type: ignore[override]
        return (
            f"{self.run_id}: {self.decisions:,} decisions, {self.outcomes:,} outcomes, {len(self.moved)} things moved"
        )

    def rows(self) -> list[dict[str, Any]]:
        """A row for each agent and share, and for each input that has moved."""
        return [vars(one).copy() for one in self.found if one.moved or one.what != "input"]

    def notes(self) -> list[str]:
        """Sentences for people."""
        if not self.moved:
            return [f"nothing has moved, at a chance of {self.alpha:g} that something is said to have which has not"]
        return [f"{one.what} {one.name}: {one.then:.4g} then, {one.now:.4g} now; {one.do}" for one in self.moved]


def watch(log: Path | str, run: Any, *, alpha: float = 0.01, calibration: Path | str | None = None) -> Watch:
    """Compare a log with the run that decided.

    Inputs and shares are compared with training's and validation's. Each agent's costs, less what was predicted, are
    compared with those on test samples by a sequential test: however often one looks, the chance that any agent is said
    to have changed which has not is at most ``alpha``.

    Args:
        log: its folder.
        run: a run, or its folder.
        alpha: chance of a false alarm, a third each for inputs, shares and agents.
        calibration: a file of ``l2d recalibrate`` by which it was decided. Costs are then compared with the outcomes
            that judged it, for the agents that it corrects.

    Raises:
        UsageError: the run has decided nothing in this log.
    """
    if not 0 < alpha < 1:
        raise UsageError(f"alpha {alpha:g}", hint="a chance of a false alarm, such as 0.01")
    folder = one_run(Path(getattr(run, "path", run)))
    served, book = open_served(folder), read_log(log)
    if calibration is not None:
        served = calibrated(served, read_calibration(calibration), Path(calibration))
    _, facts, frame = book.one_run(served.digest)
    decisions, each = Decisions(facts, frame), alpha / 3
    found = _inputs(book, served, each) + _shares(decisions, served, each) + _prices(decisions)
    then = baselines(folder, served.agents, costs=served.costs, calibration=served.calibration)
    found += _agents(decisions, then, each)
    found.sort(key=lambda one: not one.moved)
    outcomes = int((~np.isnan(decisions.cost)).sum())
    return Watch(served.run_id, len(decisions), outcomes, alpha, found)


def _inputs(book: Log, run: Served, alpha: float) -> list[Moved]:
    sums = book.inputs.filter(pl.col("run") == run.digest)
    deviation = run.deviation
    if sums.is_empty() or deviation is None or run.seen is None:
        return []
    n, trained = int(sums["rows"].sum()), run.seen["rows"]
    mean = np.sum(sums["sums"].to_list(), axis=0) / n
    then = np.asarray(run.mean, np.float64)
    spread = np.asarray(deviation, np.float64)
    error = spread * math.sqrt(1 / n + 1 / trained)
    gap = mean - then
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(gap == 0, 0.0, gap / error)
    encoder = run.looks_at.encoder if isinstance(run.looks_at.encoder, FeatureEncoder) else None
    names = encoder.names if encoder else [f"feature {k}" for k in range(len(mean))]
    limit = float(norm.isf(alpha / 2 / max(1, len(mean))))
    do = "look at what sends these inputs; if it stays so, ask the agents about some new ones and train again"
    return [
        Moved("input", names[k], float(then[k]), float(mean[k]), float(z[k]), bool(moved), do if moved else "")
        for k, moved in enumerate((np.abs(z) > limit) & (np.abs(gap) > SHIFT * spread))
    ]


def _shares(decisions: Decisions, run: Served, alpha: float) -> list[Moved]:
    everybody = decisions.there.all(axis=1)
    counts = np.bincount(decisions.greedy[everybody], minlength=len(run.agents)).tolist()
    if run.seen is None or not run.follows_scores or not sum(counts):
        return []
    foreign = Foreign({"validation": run.seen["validation"]}, None, [], run.agents)
    foreign.see(np.zeros((sum(counts), 0), np.float32))
    named = {finding["name"] for finding in foreign.findings(counts)}
    found = []
    for agent, here, there in zip(run.agents, counts, run.seen["validation"], strict=True):
        n, known = sum(counts), max(1, sum(run.seen["validation"]))
        pooled = (here + there + 1) / (n + known + 2)
        z = (here / n - there / known) / math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / known))
        moved = agent in named and abs(z) > norm.isf(alpha / 2 / len(run.agents))
        do = "inputs are of another mix: see what moved among them" if moved else ""
        found.append(Moved("share", agent, there / known, here / n, float(z), moved, do))
    return found


def _prices(decisions: Decisions) -> list[Moved]:
    """What answers were paid, against the price that was expected of them; for people, with no test."""
    found = []
    frame = decisions.frame.drop_nulls(["paid", "price"])
    for index, name in enumerate(decisions.agents):
        own = frame.filter(pl.col("agent") == index)
        if own.is_empty():
            continue
        expected, paid = own["price"].to_numpy(), own["paid"].to_numpy()
        gap = paid - expected
        error = float(gap.std(ddof=1) / math.sqrt(len(gap))) if len(gap) > 1 else float("inf")
        z = float(gap.mean() / error) if error else 0.0
        found.append(
            Moved("price", name, float(expected.mean()), float(paid.mean()), z, False, f"{len(gap):,} answers")
        )
    return found


def _agents(decisions: Decisions, then: list[Baseline], alpha: float) -> list[Moved]:
    cost = decisions.cost
    predicted = decisions.predicted
    rows = np.arange(len(cost))
    expected = np.zeros(len(cost)) if predicted is None else predicted[rows, decisions.agent]
    own = (decisions.agent == decisions.greedy) & ~np.isnan(cost)
    found = []
    for index, (name, before) in enumerate(zip(decisions.agents, then, strict=True)):
        values = (cost - expected)[own & (decisions.agent == index)]
        now = float(values.mean()) if len(values) else float("nan")
        if before.samples < FEWEST:
            do = f"{before.samples} {before.of} are too few to compare with"
            found.append(Moved("agent", name, before.mean, now, 0.0, False, do))
            continue
        test = Betting(before.least, before.most, *before.interval)
        alarm = None
        for number, value in enumerate(values.tolist(), 1):
            test.see(value)
            if alarm is None and test.wealth >= len(then) / alpha:
                alarm = (number, test.larger)
        do = f"{len(values):,} outcomes"
        if alarm is not None:
            more = "more" if alarm[1] else "less"
            do = (
                f"it costs {more} than predicted since at most {alarm[0]:,} of {len(values):,} outcomes: see whether "
                "another agent answers under this name; recalibrate, or ask it again and train again"
            )
        found.append(Moved("agent", name, before.mean, now, min(test.peak, MOST), alarm is not None, do))
    return found
