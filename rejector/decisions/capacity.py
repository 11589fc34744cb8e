"""How many inputs of a batch an agent can answer, and what becomes of the others: they go elsewhere, or they wait.

An agent that more inputs of a batch want than it can answer is asked for those that gain most by it: what deciding
without the agent is expected to cost more. The others decide again as if it were unavailable, or stand in its queue
where that gains more than waiting costs. In the next batch those that wait come first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from l2d.data.errors import UsageError, nearest
from l2d.rejector.decisions.rule import STOP, Capacity, Decision, Rule
from l2d.rejector.decisions.states import Asked
from l2d.rejector.decisions.world import Known

SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}


def parse_capacities(
    asked: str | Mapping[str, float | int | str], agents: list[str], *, every: float | None = None
) -> tuple[Capacity, ...]:
    """Capacities from ``expert_1=0.3,expert_2=100,expert_3=60/minute``.

    Args:
        asked: of each agent a share of the batch (a number with a point), a number of its inputs (a whole one), or a
            rate.
        every: seconds from one batch to the next, by which rates become numbers of inputs.

    Raises:
        UsageError: it is not of that form, an agent is unknown, or a rate has no ``every``.
    """
    if isinstance(asked, str):
        pairs = [part.rpartition("=")[::2] for part in asked.split(",")]
    else:
        pairs = [(name, str(value)) for name, value in asked.items()]
    found: list[Capacity] = []
    for name, value in ((name.strip(), value.strip()) for name, value in pairs):
        if name not in agents:
            raise UsageError(f"--capacity names {name!r}", hint=nearest(name, agents, "the agents are"))
        if name in [agents[each.agent] for each in found]:
            raise UsageError(f"--capacity names {name!r} twice", hint="give each agent one limit")
        found.append(_capacity(agents.index(name), name, value, every))
    return tuple(found)


def _capacity(agent: int, name: str, value: str, every: float | None) -> Capacity:
    hint = "a share such as 0.3, a number of inputs such as 100, or a rate such as 60/minute"
    number, _, unit = value.partition("/")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not (math.isfinite(limit) and limit >= 0):
        raise UsageError(f"--capacity {name}={value}", hint=hint)
    if unit:
        if unit not in SECONDS:
            raise UsageError(f"--capacity {name}={value}", hint=nearest(unit, SECONDS, "rates are per"))
        if every is None:
            raise UsageError(f"--capacity {name}={value}: how much is that of a batch?", hint="give --every SECONDS")
        return Capacity(agent, count=math.floor(limit * every / SECONDS[unit] + 1e-9))
    if re.fullmatch(r"\d+", number):
        return Capacity(agent, count=int(number))
    if limit > 1:
        raise UsageError(f"--capacity {name}={value}", hint=hint)
    return Capacity(agent, share=limit)


class Queue:
    """Inputs that wait for an agent, over batches.

    Attributes:
        rule: whose capacities and cost of waiting hold.
        waited: batches that each input has waited, int (n,).
        turned: whether an agent that it wanted was full, bool (n,).
    """

    def __init__(self, rule: Rule, n: int):
        self.rule = rule
        self.waited, self.turned = np.zeros(n, np.int64), np.zeros(n, bool)
        self.parked: dict[Asked, list[int]] = {}
        self._lines = np.zeros(len(rule.agents), np.int64)  # how many wait for each agent
        self.parked_for = np.full(n, STOP)

    def room(self, inputs: int) -> np.ndarray:
        """How many inputs of a batch each agent can answer, (agents,); infinite without a limit."""
        found = np.full(len(self.rule.agents), np.inf)
        for capacity in self.rule.capacities:
            found[capacity.agent] = capacity.of(inputs)
        return found

    def next_batch(self) -> dict[Asked, list[int]]:
        """Those that wait, by state, who take part in the next batch."""
        back, self.parked = self.parked, {}
        self._lines[:] = 0
        for rows in back.values():
            self.waited[rows] += 1
            self.parked_for[rows] = STOP
        return back

    def settle(
        self, wave: Mapping[Asked, np.ndarray], known: Known, room: np.ndarray, full: np.ndarray, most: np.ndarray
    ) -> dict[Asked, tuple[np.ndarray, Decision]]:
        """What inputs of several states do now, every agent within its room, which is taken.

        Args:
            wave: state -> rows.
            known: of all inputs.
            room: answers that each agent has left in this batch, (agents,); lowered by what is asked.
            full: agents that an input cannot have in this batch, bool (n, agents); more are marked.
            most: answers of each agent in a whole batch, (agents,).

        Returns:
            State -> rows that do not wait, and what they do.
        """
        waiting = {asked: rows for asked, rows in wave.items() if len(rows)}
        while True:
            decided = {asked: (rows, self._decide(asked, rows, known, full)) for asked, rows in waiting.items()}
            over = [j for j in np.flatnonzero(np.isfinite(room)).tolist() if self._wanting(decided, j) > room[j]]
            if not over:
                break
            for agent in over:
                self._turn_away(agent, decided, known, room, full, most)
            waiting = {
                asked: rows[self.parked_for[rows] == STOP] for asked, rows in waiting.items()
            }  # those that wait now do no more in this batch
            waiting = {asked: rows for asked, rows in waiting.items() if len(rows)}
        for agent in range(len(room)):
            room[agent] -= self._wanting(decided, agent)
        return decided

    def _decide(self, asked: Asked, rows: np.ndarray, known: Known, full: np.ndarray) -> Decision:
        some = known.take(rows)
        return self.rule.decide(asked, replace(some, available=some.available & ~full[rows]))

    @staticmethod
    def _wanting(decided: Mapping[Asked, tuple[np.ndarray, Decision]], agent: int) -> int:
        return sum(int((decision.ask == agent).sum()) for _, decision in decided.values())

    def _turn_away(
        self, agent: int, decided: Mapping[Asked, tuple[np.ndarray, Decision]], known: Known, room: np.ndarray,
        full: np.ndarray, most: np.ndarray,
    ) -> None:  # fmt: skip
        """Leave the agent to those that gain most by it, those that have waited longest first."""
        states, rows, gains = [], [], []
        for asked, (every, decision) in decided.items():
            here = np.flatnonzero(decision.ask == agent)
            if not len(here):
                continue
            full[every[here], agent] = True
            instead = self._decide(asked, every[here], known, full).expected
            full[every[here], agent] = False  # it was not, or it would not be wanted
            with np.errstate(invalid="ignore"):
                gain = np.nan_to_num(instead - decision.expected[here], nan=np.inf, posinf=np.inf)
            states += [asked] * len(here)
            rows.append(every[here])
            gains.append(gain)
        row, gain = np.concatenate(rows), np.concatenate(gains)
        order = np.lexsort((row, -gain, -self.waited[row]))
        for place in order[int(room[agent]) :].tolist():
            one = int(row[place])
            self.turned[one] = True
            full[one, agent] = True
            if self.rule.wait is None or not most[agent]:
                continue
            batches = math.ceil((self._lines[agent] + 1) / most[agent])
            if gain[place] > self.rule.wait * batches:
                self.parked.setdefault(states[place], []).append(one)
                self.parked_for[one] = agent
                self._lines[agent] += 1
