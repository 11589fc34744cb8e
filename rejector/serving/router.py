"""A run at work: decisions about one input at a time, in microseconds, from as many threads as there are."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from l2d.data.errors import DataError, UsageError, nearest
from l2d.rejector.runs.files import WEIGHTS_FILE
from l2d.rejector.served import Served
from l2d.rejector.serving.decision import Decision, Reasons
from l2d.rejector.serving.encoding import RowEncoder
from l2d.rejector.serving.guarding import LiveGuard
from l2d.rejector.serving.log import DecisionLog, FeatureSums
from l2d.rejector.serving.outcomes import write_outcome
from l2d.rejector.serving.spans import Spans

Row = Mapping[str, Any] | str | np.ndarray

_as_text = json.JSONEncoder(sort_keys=True, default=str, ensure_ascii=False, separators=(",", ":")).encode


class Router:
    """Decides which agent to ask about each input; see :func:`l2d.rejector.serving.opening.load_router`.

    Attributes:
        run: what it decides with.
        agents: their names, in the run's order.
        columns: that an input has.
        prices: agent -> price in the recipe, None where it has none.
        calibration: what corrects its predicted costs, and until when that holds; None: nothing.
        log: where decisions are written down; None: nowhere.
        shadow: a second run that decides silently.
        guard: judges with every outcome whether choosing agents still pays; None: no guard.
        spans: makes an OpenTelemetry span of each decision; None: none.
    """

    guard: LiveGuard | None = None
    spans: Spans | None = None

    def __init__(
        self,
        run: Served,
        *,
        explore: float = 0.0,
        seed: int | None = None,
        log: DecisionLog | None = None,
        shadow: Router | None = None,
        guard: LiveGuard | None = None,
    ):
        if not 0 <= explore <= 1:
            raise UsageError(f"explore {explore:g}", hint="a share of the decisions, between 0 and 1, such as 0.02")
        self.run, self.agents, self.explore, self.log, self.shadow = run, run.agents, explore, log, shadow
        self.guard = guard
        self.encoder = RowEncoder(run.looks_at, len(run.mean))
        self.columns = self.encoder.columns
        prices = run.facts.get("prices") or [None] * len(self.agents)
        self.prices: dict[str, float | None] = dict(zip(self.agents, prices, strict=True))
        self.calibration = None if run.calibration is None else run.calibration.summary()
        self.query_costs = np.array(run.facts["point"]["query_costs"], np.float64)
        self._everybody = np.ones(len(self.agents), bool)
        run.one(np.zeros(len(run.mean), np.float32))  # what scores single inputs is made now, so that none waits for it
        self._reasons, self._random = Reasons(run), random.Random(seed)
        self._constant = None
        if run.guard is not None and run.guard["holds"] and run.follows_scores:
            self._constant = (
                f"choosing agents does not pay, so every input goes to {self.agents[run.guard['fallback']]}"
            )
        self._sums = None
        if log is not None:
            log.run(run.digest, self._facts)
            if shadow is not None:
                log.run(shadow.run.digest, shadow._facts)
            self._sums = FeatureSums(len(run.mean), run.digest, run.seen, log.inputs)

    def route(
        self,
        row: Row,
        *,
        available: Collection[str] | None = None,
        cap: float | None = None,
        id: str | None = None,
    ) -> Decision:
        """Decide which agent to ask about one input.

        Args:
            row: column -> value, None where it is missing; a text, where that is all the rejector looks at; or the
                features, float32 (width,).
            available: agents that can be asked now; all if None.
            cap: the most that the answer may be priced at, in money where the run predicts prices, else in the
                recipe's; an agent whose price is not known is not asked.
            id: the caller's name of the input, for the log.

        Raises:
            DataError: a column is not there, or a value cannot be used.
            UsageError: ``available`` names an agent that the run has not, or none; there are no prices for ``cap``.
        """
        started = time.perf_counter()
        return self._one(row, self.encoder(row), available, cap, id, started)

    def route_batch(
        self, rows: Sequence[Row], *, available: Collection[str] | None = None, cap: float | None = None
    ) -> list[Decision]:
        """:meth:`route` each of several inputs. If one of them cannot be used, none is decided."""
        return [self.decide(encoded, available=available, cap=cap) for encoded in self.encode(rows)]

    def encode(self, rows: Sequence[Row], first: int = 0) -> list[tuple[Row, np.ndarray]]:
        """Several inputs with their features, for :meth:`decide`; ``first`` is the number of the first, for messages.

        Raises:
            DataError, UsageError: as :meth:`route`; the message says which input.
        """
        found = []
        for number, row in enumerate(rows, first):
            try:
                found.append((row, self.encoder(row)))
            except (DataError, UsageError) as error:
                raise type(error)(error.what, where=f"input {number} of this request", hint=error.hint) from error
        return found

    def decide(
        self,
        encoded: tuple[Row, np.ndarray],
        *,
        available: Collection[str] | None = None,
        cap: float | None = None,
    ) -> Decision:
        """:meth:`route` an input whose features :meth:`encode` has made."""
        return self._one(*encoded, available, cap, None, time.perf_counter())

    def feedback(
        self,
        decision: Decision | str,
        cost: float | Mapping[str, float] | None,
        *,
        paid: float | None = None,
        seconds: float | None = None,
    ) -> None:
        """Write down what the answer of a decision turned out to cost.

        Args:
            decision: or its id.
            cost: the answer's loss, without query cost: by task, or one number that is weighted already; None where
                only ``paid`` or ``seconds`` is known.
            paid: price of the answer, in money.
            seconds: that it took.

        Raises:
            UsageError: there is no log, or no such decision, or no such task, or a value is no cost.
        """
        identity = decision if isinstance(decision, str) else decision.id
        told = write_outcome(self.log, identity, cost, self.run.facts["point"]["weights"], paid=paid, seconds=seconds)
        if self.guard is not None and identity is not None:
            self.guard.see(identity, told, paid)

    def next(
        self, decision: Decision, answer: Any, *, sure: float | None = None, paid: float | None = None
    ) -> Decision:
        """Go on with an agent's answer, where a policy may ask several; see
        :meth:`l2d.rejector.serving.asking.PolicyRouter.next`.

        Raises:
            UsageError: this router decides by a run alone, which asks one agent an input.
        """
        raise UsageError(
            "a run asks one agent, and its answer is the last word",
            hint="open a policy that may ask several: l2d policy RUN --ask cascade --save FOLDER; where the agent "
            "is down, the next one is in `ranked`",
        )

    def close(self) -> None:
        """Write down what is left; the log has to be closed by itself."""
        if self._sums is not None:
            self._sums.flush()

    # --- deciding

    def _one(
        self,
        row: Row,
        features: np.ndarray,
        available: Collection[str] | None,
        cap: float | None,
        name: str | None,
        started: float,
    ) -> Decision:
        decision = self._decided(features, available, cap, started)
        return self._finished(decision, row, name)

    def _finished(self, decision: Decision, row: Row, name: str | None) -> Decision:
        """Written down and told of, where that is asked for."""
        if self.log is not None:
            decision = self._logged(decision, row, name)
        if self.spans is not None:
            self.spans.made(decision, row)
        return decision

    def _decided(
        self, features: np.ndarray, available: Collection[str] | None, cap: float | None, started: float
    ) -> Decision:
        scores, paid = self.run.one(features)
        there = self._everybody if available is None else self._named(available)
        if cap is not None:
            there = there & self._within(cap, paid)
        order = self._order(scores, there)
        fallen = self.guard is not None and self.guard.fallen is not None
        if fallen and self.guard is not None and self.guard.constant in order:
            order.remove(self.guard.constant)
            order.insert(0, self.guard.constant)
        greedy = order[0] if order else None
        chosen, propensity, explored = greedy, 1.0, False
        if self.explore and len(order) > 1:
            if self._random.random() < self.explore:
                chosen = order[self._random.randrange(len(order))]
                explored = chosen != greedy
            propensity = self.explore / len(order) + (1 - self.explore) * (chosen == greedy)
        if chosen != greedy and chosen is not None:
            order.remove(chosen)
            order.insert(0, chosen)
        names = self.agents
        return Decision(
            agent=None if chosen is None else names[chosen],
            ranked=tuple(names[agent] for agent in order),
            costs=dict(zip(names, (-scores).tolist(), strict=True)) if self.run.costs else None,
            price=self._price(chosen, paid),
            propensity=propensity,
            explored=explored,
            scores=scores,
            features=features,
            agents=names,
            candidates=there,
            greedy=None if greedy is None else names[greedy],
            seconds=time.perf_counter() - started,
            _why=self._reasons,
            _constant=self.guard.words if fallen and self.guard is not None else self._constant,
        )

    def _order(self, scores: np.ndarray, there: np.ndarray) -> list[int]:
        """Agents that can be asked, best first; equals in their order, as the highest score is found elsewhere."""
        if self.run.follows_scores:
            order = np.argsort(-scores, kind="stable").tolist()
            return order if there is self._everybody else [agent for agent in order if there[agent]]
        left, order = there.copy(), []
        while left.any():
            order.append(int(self.run.choose(scores[None], left[None])[0]))
            left[order[-1]] = False
        return order

    def _named(self, available: Collection[str]) -> np.ndarray:
        for name in available:
            if name not in self.agents:
                raise UsageError(f"available: the run has no agent {name!r}", hint=nearest(name, self.agents))
        there = np.array([name in available for name in self.agents])
        if not there.any():
            raise UsageError("available names no agent", hint=f"the run has {', '.join(self.agents)}")
        return there

    def _within(self, cap: float, paid: np.ndarray | None) -> np.ndarray:
        if not isinstance(cap, int | float) or isinstance(cap, bool) or not cap >= 0:
            raise UsageError(f"cap {cap!r}", hint="a price, 0 or more")
        if paid is not None:
            return paid <= cap
        if all(price is None for price in self.prices.values()):
            raise UsageError(
                "a cap needs prices, and no agent of the run has one", hint="give the recipe's agents a `price`"
            )
        return np.array([price is not None and price <= cap for price in self.prices.values()])

    def _price(self, chosen: int | None, paid: np.ndarray | None) -> float | None:
        if chosen is None:
            return None
        return float(paid[chosen]) if paid is not None else self.prices[self.agents[chosen]]

    # --- the log

    def _logged(self, decision: Decision, row: Row, name: str | None) -> Decision:
        assert self.log is not None
        assert self._sums is not None
        self._sums.add(decision.features)
        object.__setattr__(decision, "id", self.log.decided(self._record(decision, row, name)))  # not handed out yet
        if self.guard is not None:
            self.guard.decided(decision)
        return decision

    def _record(self, decision: Decision, row: Row, name: str | None) -> dict[str, Any]:
        assert self.log is not None
        plain = row.tolist() if isinstance(row, np.ndarray) else row
        text = _as_text(plain)
        record: dict[str, Any] = {
            "run": self.run.digest,
            "input": name,
            "input_digest": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
            "features_digest": hashlib.sha256(decision.features.tobytes()).hexdigest(),
            "candidates": decision.candidates.tolist(),
            "scores": decision.scores.tolist(),
            "agent": None if decision.agent is None else self.agents.index(decision.agent),
            "greedy": None if decision.greedy is None else self.agents.index(decision.greedy),
            "propensity": decision.propensity,
            "explore": self.explore,
            "price": decision.price,
            "seconds": decision.seconds,
        }
        if self.shadow is not None:
            available = [name for name, there in zip(self.agents, decision.candidates, strict=True) if there]
            record |= {"shadow_run": self.shadow.run.digest, "shadow": self._silent(row, available)}
        if self.log.keep_inputs:
            record["row"] = text
        return record

    def _silent(self, row: Row, available: list[str]) -> int | None:
        """What the shadow would have chosen of agents that both know and that could be asked."""
        assert self.shadow is not None
        both = [name for name in available if name in self.shadow.agents]
        if not both:
            return None
        chosen = self.shadow._decided(self.shadow.encoder(row), both, None, 0.0).agent
        return None if chosen is None else self.agents.index(chosen)

    def _facts(self) -> dict[str, Any]:
        point = self.run.facts["point"]
        return {
            "run_id": self.run.run_id,
            "agents": self.agents,
            "prices": list(self.prices.values()),
            "query_costs": point["query_costs"],
            "weights": point["weights"],
            "paid": point.get("paid"),
            "cost": point.get("cost"),
            "costs": self.run.costs,
            "guard": self.run.guard,
            "calibration": self.run.calibration and self.run.calibration.facts(self.agents),
            "weights_digest": self.run.facts["digests"][WEIGHTS_FILE],
        }
