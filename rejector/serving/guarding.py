"""A guard at work: whether choosing agents still pays, judged with every outcome that comes back.

What an input costs by the run's choice less what it costs by the best constant agent is estimated from each outcome
with its propensity, doubly robust (Dudik, Langford and Li, ICML 2011): its mean is the true difference whatever the run
predicts. That the mean is at most 0 is tested by betting (:mod:`l2d.rejector.evaluation.betting`): one may look after
every outcome. A new test begins every thousand outcomes, so that a long good time does not hide a bad one; the chance
of a false alarm is shared among them, ``6 / (pi j)**2`` of it to the j-th, so that it is bounded for all time.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from l2d.data.cache import store
from l2d.data.errors import UsageError
from l2d.rejector.evaluation.betting import Betting
from l2d.rejector.runs.files import ALLOCATIONS_FILE
from l2d.rejector.served import Served
from l2d.rejector.serving.decision import Decision
from l2d.rejector.serving.log import DecisionLog
from l2d.rejector.serving.reading import Log, read_log

BLOCK = 1000  # outcomes, after which another test begins
BLOCKS = 8  # that a test lasts; the first one lasts for ever
WAITING = 100_000  # decisions whose outcomes may still come


@dataclass(frozen=True)
class Costs:
    """What the run's samples cost.

    Attributes:
        least, most: of any agent, in units of loss; what lies beyond counts as these.
        means: of each agent over validation, (agents,).
    """

    least: float
    most: float
    means: np.ndarray

    @classmethod
    def of(cls, run: Path, agents: int) -> Costs:
        """Read from the allocations of a run."""
        table = store.read_table(run / ALLOCATIONS_FILE, ["split", *(f"cost_{k}" for k in range(agents))])
        costs = np.stack(
            [table[f"cost_{k}"].fill_null(np.nan).to_numpy().astype(np.float64) for k in range(agents)], axis=1
        )
        own = costs[np.array(table["split"].to_pylist()) == "validation"]
        with np.errstate(invalid="ignore"):
            there = np.isfinite(own)
            means = np.where(there, own, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
        means[~there.any(axis=0)] = np.inf
        return cls(float(np.nanmin(costs)), float(np.nanmax(costs)), means)


@dataclass(frozen=True)
class _Open:
    """A decision whose outcome may come."""

    chosen: int
    greedy: int
    propensity: float
    predicted: tuple[float, float]  # of the greedy agent, and of the constant one


class LiveGuard:
    """Watches one run at work. Safe to use from several threads.

    Args:
        agents: names, in the run's order.
        costs: of its samples.
        query_costs: of each agent, which the cost of an outcome is without, (agents,).
        paid: worth of a unit of money in loss; None where prices do not count.
        explore: share of decisions drawn at random.
        alpha: chance that it ever falls back although choosing costs no more than the constant agent.
        constant: position of that agent; the one of least mean cost if None.
        told: is given what to write down when it falls back.

    Attributes:
        outcomes: that it has judged: of inputs that the run and the constant agent would answer differently.
        fallen: microseconds since 1970 when it fell back; None while the run decides.
    """

    def __init__(
        self,
        agents: list[str],
        costs: Costs,
        *,
        query_costs: np.ndarray,
        paid: float | None,
        explore: float,
        alpha: float,
        constant: int | None = None,
        told: Callable[[dict[str, Any]], None] = lambda record: None,
    ):
        if not 0 < alpha < 1:
            raise UsageError(f"guard {alpha:g}", hint="a chance of a false alarm, such as 0.01")
        if not 0 < explore <= 1:
            raise UsageError(
                "a guard compares with an agent that the run does not choose, so some decisions have to be drawn",
                hint="give explore too, such as 0.02",
            )
        self.agents, self.alpha, self._costs, self._told = agents, alpha, costs, told
        self._query_costs, self._paid = query_costs.tolist(), paid
        self.constant = int(costs.means.argmin()) if constant is None else constant
        self.outcomes, self.peak = 0, 0.0
        self.fallen: int | None = None
        self.say: Callable[[str], None] = lambda text: None
        self._widest = (costs.most - costs.least) * (1 + len(agents) / explore)
        self._tests: list[tuple[int, Betting]] = []
        self._begun, self._sum, self._lock = 0, 0.0, threading.Lock()
        self._waiting: OrderedDict[str, _Open] = OrderedDict()

    @property
    def agent(self) -> str:
        """The constant agent."""
        return self.agents[self.constant]

    @property
    def mean(self) -> float:
        """By how much the run's choice costs more than the constant agent, on average, as estimated."""
        return self._sum / max(1, self.outcomes)

    def decided(self, decision: Decision) -> None:
        """Remember a decision until its outcome comes."""
        if self.fallen is None and decision.id is not None and decision.agent is not None:
            place = self.agents.index
            assert decision.greedy is not None
            self.expect(
                decision.id,
                place(decision.agent),
                place(decision.greedy),
                decision.propensity,
                decision.candidates,
                None if decision.costs is None else list(decision.costs.values()),
            )

    def expect(
        self,
        identity: str,
        chosen: int,
        greedy: int,
        propensity: float,
        there: Sequence[bool] | np.ndarray,
        predicted: Sequence[float] | None,
    ) -> None:
        """Remember a decision until its outcome comes.

        Args:
            identity: of the decision.
            chosen, greedy: positions of the agent that was asked, and of the one of the best score.
            propensity: probability with which ``chosen`` was to be chosen.
            there: who could be asked, (agents,).
            predicted: total costs, (agents,); None: those of validation are taken.
        """
        if greedy == self.constant or not there[self.constant]:
            return  # both would ask the same, or this one could not be asked: nothing to learn
        expected = self._costs.means if predicted is None else predicted
        one = _Open(chosen, greedy, propensity, (self._inside(expected[greedy]), self._inside(expected[self.constant])))
        with self._lock:
            self._waiting[identity] = one
            while len(self._waiting) > WAITING:
                self._waiting.popitem(last=False)

    def see(self, identity: str, cost: float | None, paid: float | None = None) -> None:
        """What a decision's answer cost, without query cost, and was paid; the first that is told counts."""
        with self._lock:
            fell = self.fallen is None and self._seen(identity, cost, paid)
        if fell:
            self._told({"agent": self.constant, "rows": self.outcomes, "sums": [self.mean]})
            self.say(self.words)

    def _seen(self, identity: str, cost: float | None, paid: float | None) -> bool:
        if cost is None or (self._paid and paid is None):  # not known in full
            return False
        one = self._waiting.pop(identity, None)
        if one is None:
            return False
        total = cost + self._query_costs[one.chosen] + (self._paid or 0) * (paid or 0)
        return self._judge(one, self._inside(total))

    def _judge(self, one: _Open, cost: float) -> bool:
        """Bet on the difference that an outcome tells of; whether that is enough to fall back."""
        of_greedy, of_constant = one.predicted
        difference = of_greedy - of_constant
        if one.chosen == one.greedy:
            difference += (cost - of_greedy) / one.propensity
        elif one.chosen == self.constant:
            difference -= (cost - of_constant) / one.propensity
        if self.outcomes % BLOCK == 0:
            self._begun += 1
            self._tests = [(j, test) for j, test in self._tests if j == 1 or self._begun - j < BLOCKS]
            self._tests.append((self._begun, Betting(-self._widest, self._widest, -self._widest, 0.0)))
        self.outcomes += 1
        self._sum += difference
        for number, test in self._tests:
            test.see(difference)
            share = 6 * self.alpha / (math.pi * number) ** 2
            evidence = 2 * test.up * share  # capital of 1 at the start, as a share of what an alarm takes
            self.peak = max(self.peak, evidence)
            if evidence >= 1:
                self.fallen = time.time_ns() // 1000
                return True
        return False

    def _inside(self, cost: float) -> float:
        return min(self._costs.most, max(self._costs.least, float(cost)))

    @property
    def words(self) -> str:
        """Why it has fallen back, in a sentence."""
        return (
            f"after {self.outcomes:,} outcomes choosing agents costs more than {self.agent} alone, so every input goes "
            f"to {self.agent} until another run is served"
        )

    def to_json(self) -> dict[str, Any]:
        """As ``/health`` says it."""
        return {
            "agent": self.agent,
            "fallen": self.fallen is not None,
            "since": None if self.fallen is None else self.fallen / 1e6,
            "outcomes": self.outcomes,
            "difference": self.mean,
            "evidence": min(1.0, self.peak),
            "alpha": self.alpha,
        }

    def recall(self, log: Log, digest: str) -> None:
        """See what a log has of the run already: its outcomes, in the order of the decisions, and whether it has fallen
        back: then it stays so."""
        frame = log.decisions
        found = frame.filter((frame["run"] == digest) & frame["agent"].is_not_null() & (frame["explore"] > 0))
        costs = bool(log.runs[digest]["costs"]) if digest in log.runs else False
        falls = log.falls.filter(log.falls["run"] == digest)
        for row in found.iter_rows(named=True):
            predicted = [-score for score in row["scores"]] if costs else None
            self.expect(row["id"], row["agent"], row["greedy"], row["propensity"], row["candidates"], predicted)
            with self._lock:
                if self.fallen is None:
                    self._seen(row["id"], row["cost"], row["paid"])
        self.fallen = None  # what was written down counts
        if falls.height:
            last = falls.row(-1, named=True)
            self.fallen, self.constant = int(last["time"]), int(last["agent"])


def guard_of(run: Served, path: Path, log: DecisionLog | None, *, explore: float, alpha: float) -> LiveGuard:
    """The guard of a run, which remembers what the log has.

    Args:
        run: at the setting of its files.
        path: its folder.

    Raises:
        UsageError: there is no log, nothing is drawn at random, or the run allocates by another rule than its scores.
    """
    if log is None:
        raise UsageError("a guard judges by the outcomes of logged decisions", hint="give log as well")
    if not run.follows_scores:
        raise UsageError("a guard compares a run at its own setting", hint="leave out policy, beta and weights")
    costs, point = Costs.of(path, len(run.agents)), run.facts["point"]
    constant = None if run.guard is None else int(run.guard["fallback"])
    guard = LiveGuard(
        run.agents,
        costs,
        query_costs=np.array(point["query_costs"], np.float64),
        paid=point.get("paid"),
        explore=explore,
        alpha=alpha,
        constant=constant,
        told=lambda record: log.fell({"run": run.digest, **record}),
    )
    guard.recall(read_log(log.path), run.digest)
    return guard
