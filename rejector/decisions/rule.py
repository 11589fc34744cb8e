"""Rules of whom to ask next and when to answer: what a saved policy consists of. Numpy alone.

Every rule answers one question, :meth:`Rule.decide`: of inputs that the same agents have answered, ask which agent
next, or give which answer. Tables are walked with it, and a program asks it one input at a time.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from l2d.rejector.decisions.combine import RULES
from l2d.rejector.decisions.fitting import applied
from l2d.rejector.decisions.states import Asked, Looks
from l2d.rejector.decisions.world import Known

ABSTAIN = -1
STOP = -1


class Decision(NamedTuple):
    """What to do with n inputs.

    ``ask``: position of the agent to ask, int (n,), :data:`STOP` where the answer is given now. ``answer``: whose
    answer that is: an agent's position, the number of agents plus the position of a rule in
    :data:`l2d.rejector.decisions.combine.RULES` for a combined one, or :data:`ABSTAIN`. ``expected``: what the answer
    is expected to cost, or where an agent is asked all that follows.
    """

    ask: np.ndarray
    answer: np.ndarray
    expected: np.ndarray


@dataclass(frozen=True)
class Cap:
    """A limit on what one input may take in all: ``uses`` of each agent, at most; ``paid``: as its answers say."""

    name: str
    limit: float
    uses: tuple[float, ...]
    paid: bool = False

    def room(self, asked: Asked, known: Known) -> np.ndarray:
        """Which agents one can still ask, bool (n, agents)."""
        most = np.array(self.uses)
        spent = np.zeros(len(known))
        for agent in asked:
            said = known.answers.paid[:, agent] if self.paid and known.answers.paid is not None else most[agent]
            spent += np.where(np.isfinite(said), said, most[agent])
        return spent[:, None] + most <= self.limit * (1 + 1e-12)


@dataclass(frozen=True)
class Capacity:
    """How many inputs of a batch an agent answers at most: a share of them, or a count."""

    agent: int
    share: float | None = None
    count: int | None = None

    def of(self, inputs: int) -> int:
        """In a batch of this many inputs."""
        return self.count if self.count is not None else int((self.share or 0.0) * inputs + 1e-9)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What all rules have.

    Attributes:
        agents: their names.
        looks: how answers become columns.
        combining: how several answers become one, out of RULES.
        abstain: cost of giving no answer, in units of loss; None where an answer is always given.
        above: an answer that is expected to cost more is not given; None: no such limit. Promises are made by it.
        caps: limits for every input.
        capacities: of agents, in each batch.
        batch: inputs of one batch; None: all that are decided together.
        wait: what waiting for the next batch costs, in units of loss; None: inputs do not wait.
        charges: what asking each agent is expected to take, in units of loss, (agents,); empty: nothing.
    """

    kind: ClassVar[str]
    agents: list[str]
    looks: Looks
    combining: str
    abstain: float | None = None
    above: float | None = None
    caps: tuple[Cap, ...] = ()
    capacities: tuple[Capacity, ...] = ()
    batch: int | None = None
    wait: float | None = None
    charges: tuple[float, ...] = ()

    @property
    def depth(self) -> int:
        """How many agents an input can be sent to at most."""
        raise NotImplementedError

    def decide(self, asked: Asked, known: Known) -> Decision:
        """What to do with inputs that these agents have answered."""
        decision = self._decide(asked, known)
        if self.above is None:
            return decision
        withheld = (decision.ask == STOP) & ~(decision.expected <= self.above)
        return decision._replace(answer=np.where(withheld, ABSTAIN, decision.answer))

    def _decide(self, asked: Asked, known: Known) -> Decision:
        raise NotImplementedError

    def can_ask(self, asked: Asked, known: Known) -> np.ndarray:
        """Agents that are available, not asked yet and within every cap, bool (n, agents)."""
        free = known.available.copy()
        free[:, list(asked)] = False
        for cap in self.caps:
            free &= cap.room(asked, known)
        return free

    def promising(self, above: float | None) -> Rule:
        """The same rule that withholds answers expected to cost more."""
        return replace(self, above=above)

    def _alone(self, known: Known) -> np.ndarray:
        """What each agent's answer is expected to cost with asking it, (n, agents)."""
        return known.predicted + np.array(self.charges) if self.charges else known.predicted

    def _plain(self, asked: Asked, known: Known) -> tuple[np.ndarray, np.ndarray]:
        """The answer of agents that were asked because others were full, and what it is expected to cost."""
        code = ABSTAIN if not asked else asked[0] if len(asked) == 1 else self.combined_code()
        least = known.predicted[:, list(asked)].min(axis=1) if asked else np.full(len(known), np.inf)
        return np.full(len(known), code), least

    def combined_code(self) -> int:
        return len(self.agents) + RULES.index(self.combining)

    def name_of(self, answer: int) -> str | None:
        """The agent, or the rule that combines; None for no answer."""
        if answer == ABSTAIN:
            return None
        return self.agents[answer] if answer < len(self.agents) else RULES[answer - len(self.agents)]


@dataclass(frozen=True)
class State:
    """What is decided once certain agents have answered.

    Attributes:
        answers: codes of what can be answered, see :class:`Decision`.
        stop: weights of what each of these is expected to cost, (folds + 1, width, answers).
        then: agents that can be asked next.
        go: weights of what asking each, and all that follows, is expected to cost, (folds + 1, width, then).
    """

    answers: tuple[int, ...]
    stop: np.ndarray
    then: tuple[int, ...]
    go: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Tree(Rule):
    """Ask, look at the answer, ask again: a state for every set of agents that can have answered.

    ``first``: the agent that every input goes to first; None where the best first agent depends on the input.
    ``order``: of a cascade; empty where the next agent depends on the answers.
    """

    kind: ClassVar[str] = "tree"
    states: dict[Asked, State] = field(default_factory=dict)
    first: int | None = None
    order: tuple[int, ...] = ()

    @property
    def depth(self) -> int:
        return max((len(asked) for asked in self.states), default=0)

    def _decide(self, asked: Asked, known: Known) -> Decision:
        n, free = len(known), self.can_ask(asked, known)
        if asked not in self.states:  # an agent answered that stood in for one that is full or not there
            return Decision(np.full(n, STOP), *self._plain(asked, known))
        state = self.states[asked]
        columns = None
        answer, expected = np.full(n, ABSTAIN), np.full(n, np.inf)
        if self.abstain is not None:
            expected[:] = self.abstain
        if state.answers:
            columns = self.looks.columns(asked, known)
            costs = applied(columns, state.stop, known.fold)
            best = costs.argmin(axis=1)
            least = costs[np.arange(n), best]
            better = least < expected
            answer = np.where(better, np.array(state.answers)[best], answer)
            expected = np.where(better, least, expected)
        ask = np.full(n, STOP)
        if not asked and self.first is not None:
            others, least = self._instead(free, known)
            ask[:] = np.where(free[:, self.first], self.first, others)
            if state.then:
                going = applied(self.looks.columns((), known), state.go, known.fold)[:, 0]
                least = np.where(free[:, self.first], going, least)
            expected = np.where(ask == STOP, expected, least)
        elif state.then:
            columns = self.looks.columns(asked, known) if columns is None else columns
            costs = np.where(free[:, list(state.then)], applied(columns, state.go, known.fold), np.inf)
            best = costs.argmin(axis=1)
            least = costs[np.arange(n), best]
            go = least < expected
            ask = np.where(go, np.array(state.then)[best], STOP)
            expected = np.where(go, least, expected)
        lost = (ask == STOP) & (answer == ABSTAIN) & (expected == np.inf)  # nobody has answered and none of these can
        if not asked and lost.any():
            others, least = self._instead(free, known)
            ask, expected = np.where(lost, others, ask), np.where(lost, least, expected)
        return Decision(ask, answer, expected)

    def _instead(self, free: np.ndarray, known: Known) -> tuple[np.ndarray, np.ndarray]:
        """The agent of lowest predicted cost among those that can be asked and that a state knows, else the next best.

        Where agents may be full, any agent; STOP without any. And what that costs, infinite without any.
        """
        known_states = np.full(len(self.agents), bool(self.capacities))
        known_states[[asked[0] for asked in self.states if len(asked) == 1]] = True
        alone = self._alone(known)
        costs = np.where(free & known_states, alone, np.inf)
        if not self.capacities and np.isinf(costs).all(axis=1).any():
            costs = np.where(np.isinf(costs).all(axis=1, keepdims=True), self._next_best(free, alone), costs)
        least = costs.min(axis=1)
        return np.where(np.isfinite(least), costs.argmin(axis=1), STOP), least

    def _next_best(self, free: np.ndarray, alone: np.ndarray) -> np.ndarray:
        """Costs of the agents that can begin where no state knows one: in a cascade the next in its order, else all
        that are asked at some point; infinite for others. What such an agent answers stands: no state is about more."""
        if not self.order:
            members = sorted({agent for asked in self.states for agent in asked})
            return np.where(free & np.isin(np.arange(len(self.agents)), members), alone, np.inf)
        there = free[:, list(self.order)]
        begins = np.array(self.order)[there.argmax(axis=1)]
        chosen = there.any(axis=1, keepdims=True) & (np.arange(len(self.agents)) == begins[:, None])
        return np.where(chosen, alone, np.inf)


@dataclass(frozen=True, kw_only=True)
class Ranked(Rule):
    """Ask the k agents of lowest expected cost, their answers combined: top-k and top-k(x) (arXiv 2504.12988).

    The paper's surrogate does not depend on k, so scores that rank agents serve every k; ``one`` is the router.

    Attributes:
        most: agents for each input.
        sizes: weights of what asking the k best is expected to cost, (folds + 1, width, most), from which k is chosen
            for each input: top-k(x); None: always ``most``.
    """

    kind: ClassVar[str] = "ranked"
    most: int = 1
    sizes: np.ndarray | None = None

    @property
    def depth(self) -> int:
        return self.most

    def size(self, known: Known) -> np.ndarray:
        """How many agents each input is sent to, (n,)."""
        if self.sizes is None:
            return np.full(len(known), self.most)
        return 1 + applied(self.looks.columns((), known), self.sizes, known.fold).argmin(axis=1)

    def _decide(self, asked: Asked, known: Known) -> Decision:
        n, free = len(known), self.can_ask(asked, known)
        costs = np.where(free, self._alone(known), np.inf)
        more = (len(asked) < self.size(known)) & np.isfinite(costs).any(axis=1)
        best = costs.argmin(axis=1)
        if not asked:
            expected, answer = costs[np.arange(n), best], np.full(n, ABSTAIN)
            if self.abstain is not None:
                more &= expected < self.abstain
                expected = np.minimum(expected, self.abstain)
        else:
            expected = known.predicted[:, list(asked)].min(axis=1)
            answer = np.full(n, asked[0] if len(asked) == 1 else self.combined_code())
        return Decision(np.where(more, best, STOP), answer, expected)


@dataclass(frozen=True, kw_only=True)
class Committee(Rule):
    """The same agents for every input, their answers combined. One agent is a committee too."""

    kind: ClassVar[str] = "committee"
    members: tuple[int, ...] = ()

    @property
    def depth(self) -> int:
        return len(self.members)

    def _decide(self, asked: Asked, known: Known) -> Decision:
        can = self.can_ask(asked, known)
        free = can[:, list(self.members)]
        ask = np.where(free.any(axis=1), np.array(self.members)[free.argmax(axis=1)], STOP)
        if self.capacities and not asked:
            alone = self._alone(known)
            others = np.where(can, alone, np.inf)  # one stands in where all members are full
            ask = np.where((ask == STOP) & np.isfinite(others).any(axis=1), others.argmin(axis=1), ask)
            mine = np.where(free, alone[:, list(self.members)], np.inf).min(axis=1)
            expected = np.where(free.any(axis=1), mine, others.min(axis=1))
            return Decision(ask, np.full(len(known), ABSTAIN), expected)
        code = ABSTAIN if not asked else asked[0] if len(asked) == 1 else self.combined_code()
        expected = known.predicted[:, list(asked or self.members)].min(axis=1)
        return Decision(ask, np.full(len(known), code), expected)


# --- as plain values --------------------------------------------------------------------------------------------------


def packed(values: np.ndarray) -> dict[str, Any]:
    """An array as JSON: its shape, and its float64 in base64."""
    content = np.ascontiguousarray(values, "<f8")
    return {"shape": list(content.shape), "float64": base64.b64encode(content.tobytes()).decode()}


def unpacked(value: dict[str, Any]) -> np.ndarray:
    """The array of :func:`packed`.

    Raises:
        ValueError: it is not one.
    """
    found = np.frombuffer(base64.b64decode(value["float64"], validate=True), "<f8").reshape(value["shape"]).copy()
    if not np.isfinite(found).all():
        raise ValueError("weights that are not finite")
    return found


def rule_to_json(rule: Rule) -> dict[str, Any]:
    """A rule as plain values; only weights of all samples are kept."""
    found: dict[str, Any] = {
        "kind": rule.kind, "agents": rule.agents, "looks": rule.looks.to_json(), "combining": rule.combining,
        "abstain": rule.abstain, "above": rule.above,
        "caps": [dict(vars(cap)) for cap in rule.caps],
        "capacities": [dict(vars(capacity)) for capacity in rule.capacities],
        "batch": rule.batch, "wait": rule.wait, "charges": list(rule.charges),
    }  # fmt: skip
    if isinstance(rule, Tree):
        found |= {"first": rule.first, "order": list(rule.order)}
        found["states"] = [
            {"asked": list(asked), "answers": list(state.answers), "stop": packed(state.stop[-1:]),
             "then": list(state.then), "go": packed(state.go[-1:])}
            for asked, state in rule.states.items()
        ]  # fmt: skip
    elif isinstance(rule, Ranked):
        sizes = None if rule.sizes is None else packed(rule.sizes[-1:])
        found |= {"most": rule.most, "sizes": sizes}
    elif isinstance(rule, Committee):
        found["members"] = list(rule.members)
    return found


def rule_from_json(value: dict[str, Any]) -> Rule:
    """The rule of :func:`rule_to_json`.

    Raises:
        ValueError, KeyError, TypeError: it is not one.
    """
    looks = dict(value["looks"])
    common = {
        "agents": list(value["agents"]), "combining": value["combining"], "abstain": value["abstain"],
        "looks": Looks(**{**looks, "paid_mean": tuple(looks["paid_mean"])}), "above": value["above"],
        "caps": tuple(Cap(**{**cap, "uses": tuple(cap["uses"])}) for cap in value["caps"]),
        "capacities": tuple(Capacity(**each) for each in value.get("capacities", ())),
        "batch": value.get("batch"), "wait": value.get("wait"), "charges": tuple(value.get("charges", ())),
    }  # fmt: skip
    if common["combining"] not in RULES:
        raise ValueError(f"answers are combined by {common['combining']!r}")
    if value["kind"] == Tree.kind:
        states = {
            tuple(s["asked"]): State(tuple(s["answers"]), unpacked(s["stop"]), tuple(s["then"]), unpacked(s["go"]))
            for s in value["states"]
        }
        return Tree(**common, states=states, first=value["first"], order=tuple(value["order"]))
    if value["kind"] == Ranked.kind:
        sizes = None if value["sizes"] is None else unpacked(value["sizes"])
        return Ranked(**common, most=value["most"], sizes=sizes)
    if value["kind"] == Committee.kind:
        return Committee(**common, members=tuple(value["members"]))
    raise ValueError(f"a rule of kind {value['kind']!r}")
