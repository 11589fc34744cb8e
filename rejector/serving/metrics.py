"""What the server counts, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from l2d.rejector.serving.decision import Decision
from l2d.rejector.serving.guarding import LiveGuard

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)


class Metrics:
    """Counters of one server; they begin at 0 with it.

    Args:
        agents: of the run.
    """

    def __init__(self, agents: Sequence[str]):
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter("l2d_requests", "Requests answered.", ["path", "status"], registry=registry)
        self.decisions = Counter("l2d_decisions", "Decisions, by the agent chosen.", ["agent"], registry=registry)
        self.explored = Counter("l2d_explored", "Decisions drawn at random.", registry=registry)
        self.steps = Counter("l2d_answers", "Answers of agents that a policy went on with.", registry=registry)
        self.feedback = Counter("l2d_feedback", "Outcomes of decisions.", registry=registry)
        self.reloads = Counter("l2d_reloads", "Times that the run was opened again.", registry=registry)
        self.waiting = Gauge("l2d_waiting", "Requests in the queue.", registry=registry)
        self.seconds = Histogram(
            "l2d_request_seconds", "Seconds from a request to its answer.", buckets=SECONDS, registry=registry
        )
        self.deciding = Histogram(
            "l2d_decision_seconds", "Seconds a decision took.", buckets=SECONDS, registry=registry
        )
        self._guard: dict[str, Gauge] = {}
        self._by_agent: dict[str | None, Counter] = {}
        self._by_status: dict[tuple[str, int], Counter] = {}
        self.know(agents)

    def know(self, agents: Sequence[str]) -> None:
        """Have a counter for each agent, and one for inputs that none can be asked about."""
        for agent in (*agents, None):
            if agent not in self._by_agent:
                self._by_agent[agent] = self.decisions.labels(agent="" if agent is None else agent)

    def _of_guard(self) -> dict[str, Gauge]:
        if not self._guard:
            for name, said in (
                ("fallen", "1 once the guard has fallen back to the constant agent."),
                ("outcomes", "Outcomes that the guard has judged."),
                ("difference", "By how much choosing costs more than the constant agent, as the guard estimates."),
                ("evidence", "The most evidence that choosing costs more; the guard falls back at 1."),
            ):
                self._guard[name] = Gauge(f"l2d_guard_{name}", said, registry=self.registry)
        return self._guard

    def decided(self, decisions: Sequence[Decision]) -> None:
        """Count decisions."""
        for decision in decisions:
            self._by_agent[decision.agent].inc()
            self.deciding.observe(decision.seconds)
            if decision.explored:
                self.explored.inc()

    def stepped(self, decision: Decision) -> None:
        """Count an answer that a policy went on with."""
        self.steps.inc()
        self.deciding.observe(decision.seconds)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        key = (path, status)
        if key not in self._by_status:
            self._by_status[key] = self.requests.labels(path=path, status=str(status))
        self._by_status[key].inc()
        self.seconds.observe(seconds)

    def text(self, waiting: int, guard: LiveGuard | None = None) -> bytes:
        """All of them."""
        self.waiting.set(waiting)
        if guard is not None:
            state = guard.to_json()
            for name, gauge in self._of_guard().items():
                gauge.set(float(state[name]))
        return generate_latest(self.registry)
