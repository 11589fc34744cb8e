"""A rule applied to samples whose answers are all known: which agents are asked in turn, what is answered, its cost."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from l2d.rejector.decisions.capacity import Queue
from l2d.rejector.decisions.combine import RULES, combine
from l2d.rejector.decisions.rule import ABSTAIN, STOP, Decision, Rule
from l2d.rejector.decisions.states import Asked
from l2d.rejector.decisions.world import World


@dataclass(frozen=True, kw_only=True)
class Walked:
    """What became of n samples.

    Attributes:
        path: agents in the order in which they were asked, int (n, depth), -1 after the last.
        answer: code of the answer, see :class:`l2d.rejector.decisions.rule.Decision`, (n,).
        expected: what that was expected to cost, or the cost of abstaining, (n,).
        task: cost of the answer, without asking; that of abstaining where none was given, (n,); nan where abstaining
            has no stated cost.
        charges: what asking took, in units of loss, (n,).
        price: what asking took of a budget, (n,).
        wrong: whether the class is wrong, bool (n,), False where none was given; None without classes.
        batch: in which each was decided, from 0, (n,).
        waited: batches that it waited for an agent, (n,).
        turned: whether an agent that it wanted was full, bool (n,).
    """

    path: np.ndarray
    answer: np.ndarray
    expected: np.ndarray
    task: np.ndarray
    charges: np.ndarray
    price: np.ndarray
    wrong: np.ndarray | None
    batch: np.ndarray
    waited: np.ndarray
    turned: np.ndarray

    def __len__(self) -> int:
        return len(self.answer)

    @property
    def answered(self) -> np.ndarray:
        return self.answer != ABSTAIN

    @property
    def loss(self) -> np.ndarray:
        """Cost of the answers with what asking took, (n,)."""
        return self.task + self.charges

    @property
    def asked(self) -> np.ndarray:
        """How many agents were asked, (n,)."""
        return (self.path >= 0).sum(axis=1)


def walk(rule: Rule, world: World, *, held_out: bool = False) -> Walked:
    """Apply a rule to samples; where agents have capacities batch by batch, in the order of the samples.

    Args:
        held_out: decide each sample by weights that have not seen it (``world.known.fold``); else by those of all.
    """
    n = len(world)
    walked = _empty(n, max(1, rule.depth), classes=world.truth is not None)
    known = world.known if held_out else replace(world.known, fold=None)
    if not rule.capacities:
        waiting: dict[Asked, np.ndarray] = {(): np.arange(n)}
        while waiting:
            asked = min(waiting, key=lambda some: (len(some), some))
            rows = waiting.pop(asked)
            _follow(rule, world, walked, waiting, asked, rows, rule.decide(asked, known.take(rows)))
        return walked
    queue, size = Queue(rule, n), rule.batch or max(n, 1)
    start = 0
    while start < n or queue.parked:
        new = np.arange(start, min(start + size, n))
        most = queue.room(len(new) or size)
        room, full = most.copy(), np.zeros((n, len(rule.agents)), bool)
        waiting = {asked: np.array(rows) for asked, rows in queue.next_batch().items()}
        waiting[()] = np.concatenate([waiting.get((), np.zeros(0, np.int64)), new])
        walked.batch[np.concatenate(list(waiting.values()))] = start // size
        while waiting:
            settled = queue.settle(waiting, known, room, full, most)
            waiting = {}
            for asked, (rows, decision) in settled.items():
                _follow(rule, world, walked, waiting, asked, rows, decision)
        start += size
    walked.waited[:], walked.turned[:] = queue.waited, queue.turned
    walked.charges[:] += (rule.wait or 0.0) * queue.waited
    return walked


def _empty(n: int, depth: int, *, classes: bool) -> Walked:
    return Walked(
        path=np.full((n, depth), -1), answer=np.full(n, ABSTAIN), expected=np.full(n, np.nan), task=np.full(n, np.nan),
        charges=np.zeros(n), price=np.zeros(n), wrong=np.zeros(n, bool) if classes else None,
        batch=np.zeros(n, np.int64), waited=np.zeros(n, np.int64), turned=np.zeros(n, bool),
    )  # fmt: skip


def _follow(
    rule: Rule, world: World, walked: Walked, waiting: dict[Asked, np.ndarray], asked: Asked, rows: np.ndarray,
    decision: Decision,
) -> None:  # fmt: skip
    """Ask, which leads samples to their next state, or answer."""
    for agent in np.unique(decision.ask[decision.ask != STOP]).tolist():
        some = rows[decision.ask == agent]
        walked.path[some, len(asked)] = agent
        walked.charges[some] += world.charges[some, agent]
        walked.price[some] += world.price[some, agent]
        following = tuple(sorted((*asked, agent)))
        others = waiting.get(following)
        waiting[following] = some if others is None else np.concatenate([others, some])
    stop = decision.ask == STOP
    done = rows[stop]
    walked.answer[done], walked.expected[done] = decision.answer[stop], decision.expected[stop]
    for code in np.unique(walked.answer[done]).tolist():
        some = done[walked.answer[done] == code]
        walked.task[some], missed = outcome(world, asked, code, some, rule.abstain)
        if walked.wrong is not None and missed is not None:
            walked.wrong[some] = missed


def outcome(
    world: World, asked: Asked, code: int, rows: np.ndarray, abstain: float | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Task cost of an answer to some samples, and whether its class is wrong (None without classes)."""
    classes = world.known.answers.classes
    if code == ABSTAIN:
        nothing = None if world.truth is None else np.zeros(len(rows), bool)
        return np.full(len(rows), np.nan if abstain is None else abstain), nothing
    if code < world.num_agents:
        missed = None if world.truth is None or classes is None else classes[rows, code] != world.truth[rows]
        return world.costs[rows, code], missed
    assert world.cost_of is not None
    found = combine(world.known.take(rows), asked, RULES[code - world.num_agents], world.num_classes)
    missed = None if world.truth is None or "pred_cla" not in found else found["pred_cla"] != world.truth[rows]
    return world.cost_of(found, rows), missed
