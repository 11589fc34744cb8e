"""A rule applied to samples whose answers are all known: which agents are asked in turn, what is answered, its cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from l2d.rejector.decisions.combine import RULES, combine
from l2d.rejector.decisions.rule import ABSTAIN, STOP, Rule
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
    """

    path: np.ndarray
    answer: np.ndarray
    expected: np.ndarray
    task: np.ndarray
    charges: np.ndarray
    price: np.ndarray
    wrong: np.ndarray | None

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
    """Apply a rule to samples.

    Args:
        held_out: decide each sample by weights that have not seen it (``world.known.fold``); else by those of all.
    """
    n, depth = len(world), max(1, rule.depth)
    path = np.full((n, depth), -1)
    answer, expected = np.full(n, ABSTAIN), np.full(n, np.nan)
    task, charges, price = np.full(n, np.nan), np.zeros(n), np.zeros(n)
    wrong = None if world.truth is None else np.zeros(n, bool)
    known = world.known if held_out else _by_all(world)
    waiting: dict[Asked, np.ndarray] = {(): np.arange(n)}
    while waiting:
        asked = min(waiting, key=lambda some: (len(some), some))
        rows = waiting.pop(asked)
        decision = rule.decide(asked, known.take(rows))
        for agent in np.unique(decision.ask[decision.ask != STOP]).tolist():
            some = rows[decision.ask == agent]
            path[some, len(asked)] = agent
            charges[some] += world.charges[some, agent]
            price[some] += world.price[some, agent]
            following = tuple(sorted((*asked, agent)))
            others = waiting.get(following)
            waiting[following] = some if others is None else np.concatenate([others, some])
        done = rows[decision.ask == STOP]
        answer[done] = decision.answer[decision.ask == STOP]
        expected[done] = decision.expected[decision.ask == STOP]
        for code in np.unique(answer[done]).tolist():
            some = done[answer[done] == code]
            task[some], missed = outcome(world, asked, code, some, rule.abstain)
            if wrong is not None and missed is not None:
                wrong[some] = missed
    return Walked(path=path, answer=answer, expected=expected, task=task, charges=charges, price=price, wrong=wrong)


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


def _by_all(world: World):
    from dataclasses import replace

    return replace(world.known, fold=None)
