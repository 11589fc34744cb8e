"""Decisions that wait for an agent's answer, which a server keeps between requests."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from l2d.data.errors import UsageError
from l2d.rejector.serving.asking import PolicyDecision, PolicyRouter
from l2d.rejector.serving.decision import Decision
from l2d.rejector.serving.outcomes import UnknownDecision

MOST = 10_000  # that are kept; the oldest are forgotten


class OutOfTurn(UsageError):
    """An answer of another agent than the one that is asked now."""


@dataclass
class _Open:
    """``replied``: the agent whose answer led to ``decision``."""

    router: PolicyRouter
    decision: PolicyDecision
    replied: str | None = None


class OpenDecisions:
    """The latest decisions of policies, with the router that began each: it goes on with it after a reload too.

    Args:
        most: that are kept.
    """

    def __init__(self, most: int = MOST):
        self.most, self._lock = most, threading.Lock()
        self._found: OrderedDict[str, _Open] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def add(self, router: PolicyRouter, decision: Decision) -> None:
        """Keep a new one."""
        assert isinstance(decision, PolicyDecision)
        assert decision.id is not None
        with self._lock:
            self._found[decision.id] = _Open(router, decision)
            while len(self._found) > self.most:
                self._found.popitem(last=False)

    def next(
        self, identity: str, answer: Any, agent: str | None, *, sure: float | None = None, paid: float | None = None
    ) -> PolicyDecision:
        """Go on with one; see :meth:`l2d.rejector.serving.asking.PolicyRouter.next`.

        Args:
            agent: whose answer it is. An answer that is sent once more, because its reply was lost, changes nothing.

        Raises:
            UnknownDecision: it is not kept.
            OutOfTurn: another agent is asked, or none.
        """
        with self._lock:
            here = self._found.get(identity)
            if here is None:
                raise UnknownDecision(
                    f"no decision {identity[:80]!r} is open",
                    where="id",
                    hint=f"give the `id` of one of the last {self.most:,}; one that the server has lost by being "
                    "started again begins anew with /route",
                )
            decision = here.decision
            if agent is not None and agent != decision.agent:
                if agent == here.replied:
                    return decision
                now = f"{decision.agent} is asked now" if decision.agent else "this decision is made"
                raise OutOfTurn(f"an answer of {agent[:80]!r}: {now}", where="agent", hint="see `agent` of the reply")
            if decision.done:
                raise OutOfTurn("this decision is made", where="id", hint="ask about the next input: /route")
            here.decision = here.router.next(decision, answer, sure=sure, paid=paid)
            here.replied = decision.agent
            return here.decision
