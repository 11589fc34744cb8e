"""A saved policy that may ask several agents, at work on one input at a time: whom to ask, and after each answer whom
to ask next, or that the decision is made.

A decision has all that is needed to go on with it, so a router may be exchanged or closed while some are open.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from l2d.data.errors import UsageError
from l2d.rejector.decisions.online import PolicyAtWork, Step, load_policy
from l2d.rejector.decisions.rule import Tree
from l2d.rejector.decisions.saved import POLICY_FILE, check_run, is_policy
from l2d.rejector.runs.files import one_run, read_facts
from l2d.rejector.served import Served, highest
from l2d.rejector.serving.decision import Decision
from l2d.rejector.serving.log import DecisionLog
from l2d.rejector.serving.router import Router, Row


@dataclass(frozen=True)
class PolicyDecision(Decision):
    """Where the decision about one input stands.

    ``agent`` is the agent to ask now, and None where the decision is made; ``ranked`` are the agents that can still be
    asked, that one first, then by predicted cost.

    Attributes:
        step: what the policy says.
        missed: agents that come before in the policy's order and are not available.
    """

    step: Step = field(kw_only=True, repr=False)
    missed: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether the decision is made: no agent is to be asked any more."""
        return self.step.done

    @property
    def asked(self) -> tuple[str, ...]:
        """The agents that have answered, in order."""
        return self.step.asked

    @property
    def answer(self) -> Any:
        """The answer, once the decision is made; None before, and where no answer is given."""
        return self.step.answer

    @property
    def answered_by(self) -> str | None:
        """The agent whose answer that is, or how several were combined; None without an answer."""
        return self.step.answered_by

    @property
    def expected_cost(self) -> float:
        """Of the answer, or of asking and all that follows, in units of loss."""
        return self.step.expected_cost

    @cached_property
    def moved(self) -> list[tuple[str, float]]:
        """Nothing: a policy weighs answers, which no feature stands for."""
        return []

    @cached_property
    def reason(self) -> str:
        """Why this agent, or this answer, in a sentence."""
        cost = f"expected to cost {self.expected_cost:.3g}"
        verb = "is" if len(self.missed) == 1 else "are"
        missed = f"; {' and '.join(self.missed)} {verb} not available" if self.missed else ""
        if self.agent is not None:
            after = f"after {', '.join(self.asked)}" if self.asked else "first"
            return f"{self.agent} is asked {after}: with all that may follow {cost}{missed}"
        if self.answered_by is None:
            return f"no answer is given: it goes to people{missed}"
        return f"the answer is that of {self.answered_by}, {cost}{missed}"

    def to_json(self, *, reason: bool = False) -> dict[str, Any]:
        """As the server answers it."""
        finite = bool(np.isfinite(self.expected_cost))
        return super().to_json(reason=reason) | {
            "done": self.done,
            "asked": list(self.asked),
            "answer": _plain(self.answer),
            "answered_by": self.answered_by,
            "expected_cost": self.expected_cost if finite else None,
        }


class PolicyRouter(Router):
    """Decides by a saved policy; see :func:`l2d.rejector.serving.opening.load_router`. Safe to use from threads.

    Attributes:
        work: the policy.
    """

    def __init__(self, work: PolicyAtWork, run_path: Path, *, log: DecisionLog | None = None):
        self.work = work
        served = _served(work, run_path)
        self._scores_of = served.scores_of
        super().__init__(served, log=log)

    def next(
        self, decision: Decision, answer: Any, *, sure: float | None = None, paid: float | None = None
    ) -> PolicyDecision:
        """Go on with what the asked agent said.

        Args:
            decision: of this router, not made yet.
            answer: a class (its name, or its index), class probabilities (classes,), a number; a dictionary of ``cla``
                and ``reg`` where an answer is both; anything where answers are boxes. None: the agent has no answer.
            sure: how sure it says it is, from 0 to 1; probabilities say it themselves.
            paid: what the answer was paid.

        Raises:
            UsageError: the decision is made already, or is not one of a policy.
            DataError: the answer cannot be used.
        """
        if not isinstance(decision, PolicyDecision):
            raise UsageError("this decision is not one of a policy", hint="give what route or next of this router gave")
        started = time.perf_counter()
        step = self.work.next(decision.step, answer, sure=sure, paid=paid)
        found = self._of_step(step, decision.features, started, decision.id)
        if self.log is not None:
            assert decision.id is not None
            replied = None if decision.agent is None else self.agents.index(decision.agent)
            record = self._position(found) | {
                "replied": replied, "silent": answer is None, "sure": sure, "paid": paid,
                "seconds": found.seconds,
            }  # fmt: skip
            if self.log.keep_inputs:
                record["answer"] = json.dumps(_plain(answer), ensure_ascii=False)
            self.log.step(decision.id, record)
        if self.spans is not None:
            self.spans.made(found)
        return found

    # --- deciding

    def _one(
        self, row: Row, features: np.ndarray, available: Collection[str] | None, cap: float | None, name: str | None,
        started: float,
    ) -> Decision:  # fmt: skip
        found = self._decided(features, available, cap, started)
        return self._finished(found if self.log is not None else replace(found, id=uuid.uuid4().hex), row, name)

    def _decided(
        self, features: np.ndarray, available: Collection[str] | None, cap: float | None, started: float
    ) -> PolicyDecision:
        if cap is not None:
            raise UsageError("a policy has caps of its own", hint="make it with them: l2d policy RUN --cap NAME=LIMIT")
        there = self._everybody if available is None else self._named(available)
        without = [] if available is None else [n for n, one in zip(self.agents, there, strict=True) if not one]
        return self._of_step(self.work.start(features, without=without), features, started)

    def _of_step(self, step: Step, features: np.ndarray, started: float, identity: str | None = None) -> PolicyDecision:
        scores = self._scores_of(step.known.predicted)[0]
        there = step.known.available[0]
        order = [agent for agent in np.argsort(-scores, kind="stable").tolist() if there[agent]]
        names = self.agents
        left = [names[agent] for agent in order if names[agent] not in (*step.asked, step.ask)]
        return PolicyDecision(
            agent=step.ask,
            ranked=() if step.ask is None else (step.ask, *left),
            costs=dict(zip(names, (-scores).tolist(), strict=True)),
            price=None if step.ask is None else self.prices[step.ask],
            propensity=1.0,
            explored=False,
            scores=scores,
            features=features,
            agents=names,
            candidates=there,
            greedy=step.ask,
            seconds=time.perf_counter() - started,
            _why=lambda decision: [],
            id=identity,
            step=step,
            missed=self._missed(step),
        )

    def _missed(self, step: Step) -> tuple[str, ...]:
        """Agents that the policy would have asked first and cannot; none once one of them has answered."""
        rule = self.work.rule
        if not isinstance(rule, Tree) or rule.first is None:
            return ()
        before = takewhile(lambda agent: not step.known.available[0, agent], rule.order or (rule.first,))
        return tuple(self.agents[agent] for agent in before)

    # --- the log

    def _record(self, decision: Decision, row: Row, name: str | None) -> dict[str, Any]:
        assert isinstance(decision, PolicyDecision)
        return super()._record(decision, row, name) | self._position(decision)

    def _position(self, decision: PolicyDecision) -> dict[str, Any]:
        expected = decision.expected_cost
        return {
            "run": self.run.digest,
            "step": len(decision.asked),
            "asked": [self.agents.index(name) for name in decision.asked],
            "agent": None if decision.agent is None else self.agents.index(decision.agent),
            "answered_by": decision.answered_by,
            "expected": expected if np.isfinite(expected) else None,
        }

    def _facts(self) -> dict[str, Any]:
        return super()._facts() | {"policy": self.work.kind}


@dataclass(frozen=True, kw_only=True)
class _ServedPolicy(Served):
    """What the log and the encoder know of a policy. ``charges``: mean charge of each agent, in units of loss."""

    charges: np.ndarray

    def scores_of(self, predicted: np.ndarray) -> np.ndarray:
        """Negated predicted total costs, float32 (n, agents)."""
        return (-(predicted + self.charges)).astype(np.float32)


def _served(work: PolicyAtWork, run_path: Path) -> _ServedPolicy:
    saved, facts = work.saved, read_facts(run_path)
    setting, charges = saved.setting, np.array(saved.facts["mean_charges"], np.float64)
    point = {**facts["point"], "query_costs": setting["query_costs"], "weights": setting["lambda"]}
    point |= {"cost": setting["cost"], "paid": setting["paid"]}

    def scores(features: np.ndarray) -> np.ndarray:
        return (-(work.predictions(features)[0] + charges)).astype(np.float32)

    return _ServedPolicy(
        run_id=saved.name,
        agents=work.agents,
        looks_at=work.looks_at,
        seen=facts.get("seen"),
        failures=facts["training"]["failures"],
        mean=np.zeros(work.width, np.float32),
        scores=scores,
        classes=None,
        choose=highest,
        follows_scores=False,
        one=lambda row: (scores(row[None])[0], None),
        facts={**facts, "point": point},
        digest=hashlib.sha256((saved.path / POLICY_FILE).read_bytes()).hexdigest(),
        costs=True,
        charges=charges,
    )


def names_policy(given: Any) -> bool:
    """Whether a policy that may ask several agents is given: opened, or its folder."""
    if isinstance(given, PolicyAtWork):
        return True
    return isinstance(given, str | Path) and is_policy(Path(given))


def open_policy(run: Any, policy: Any) -> tuple[PolicyAtWork, Path]:
    """A policy and its run.

    Args:
        run: the run, or its folder; a policy itself is enough.
        policy: opened, or its folder; None where ``run`` is the policy.

    Raises:
        UsageError: there is no run, or the policy is not of it.
    """
    given = run if policy is None else policy
    where = None if policy is None else one_run(Path(getattr(run, "path", run)))
    if not isinstance(given, PolicyAtWork):
        given = load_policy(given, run=where)
    elif where is not None:
        check_run(given.saved, where)
    return given, where or given.run_path


def _plain(answer: Any) -> Any:
    """An answer as JSON has it."""
    if isinstance(answer, np.ndarray | np.generic):
        return answer.tolist()
    if isinstance(answer, dict):
        return {name: _plain(value) for name, value in answer.items()}
    if isinstance(answer, list | tuple):
        return [_plain(value) for value in answer]
    return answer if answer is None or isinstance(answer, bool | int | float | str) else str(answer)
