"""Making a policy: rules of several classes at one budget, and the one that was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from l2d.data.errors import UsageError, nearest
from l2d.rejector.decisions.budget import best_worth, within_capacities
from l2d.rejector.decisions.capacity import parse_capacities
from l2d.rejector.decisions.combine import RULES
from l2d.rejector.decisions.promises import (
    FAMILIES,
    Judged,
    Promise,
    Risk,
    conformal_risk_control,
    learn_then_test,
    thresholds_of,
)
from l2d.rejector.decisions.reading import VALIDATION, Read
from l2d.rejector.decisions.rule import Cap, Committee, Rule
from l2d.rejector.decisions.search import Search
from l2d.rejector.decisions.walk import Walked, walk
from l2d.rejector.decisions.world import World

#: What can be asked for -> what it is, in words.
KINDS = {
    "router": "one agent, chosen by the input",
    "topk": "the k best agents by the input, k chosen too; answers combined",
    "committee": "the same agents for every input; answers combined",
    "cascade": "agents in one order; go on or stop by the answers",
    "adaptive": "the next agent depends on the answers",
}
AUTO = "auto"
MOST_STATES = 400  # sets of agents that are looked at
CAPS = ("price", "seconds", "gflops")
AT_LEAST = 1.0  # standard errors by which looking has to pay, for auto


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a policy is asked for.

    Attributes:
        ask: out of KINDS, or ``auto``: the simplest that is not beaten beyond chance on validation.
        depth: agents for one input at most.
        combining: out of RULES.
        abstain: cost of giving no answer, in units of loss; None: an answer is always given, a promise aside.
        budget: mean price of an input's path, at most.
        caps: quantity out of CAPS -> the most that one input may take.
        capacity: of agents in a batch, as :func:`l2d.rejector.decisions.capacity.parse_capacities` takes it.
        batch: inputs of one batch; None: all that are decided together.
        every: seconds from one batch to the next, for capacities that are rates.
        wait: what waiting for the next batch costs, in units of loss; None: inputs do not wait.
        risks: promises.
        confidence: of promises; None: on average.
        family: out of :data:`l2d.rejector.decisions.promises.FAMILIES`.
    """

    ask: str = AUTO
    depth: int = 2
    combining: str = "weighted"
    abstain: float | None = None
    budget: float | None = None
    caps: dict[str, float] = field(default_factory=dict)
    capacity: str | Mapping[str, float | int | str] | None = None
    batch: int | None = None
    every: float | None = None
    wait: float | None = None
    risks: tuple[Risk, ...] = ()
    confidence: float | None = 0.95
    family: str = FAMILIES[0]

    def check(self) -> None:
        """Refuse values that make no sense."""
        for name, value, known in (
            ("ask", self.ask, (*KINDS, AUTO)), ("combine", self.combining, RULES), ("family", self.family, FAMILIES),
        ):  # fmt: skip
            if value not in known:
                raise UsageError(f"--{name} {value}", hint=nearest(value, known))
        if not 1 <= self.depth <= 5:
            raise UsageError(f"--depth {self.depth}", hint="agents for one input, from 1 to 5")
        for name, number in {"abstain": self.abstain, "budget": self.budget, "wait": self.wait, **self.caps}.items():
            if number is not None and not (math.isfinite(number) and number >= 0):
                raise UsageError(f"--{name} {number}", hint="a number >= 0")
        if self.capacity is None and (self.batch, self.every, self.wait) != (None, None, None):
            raise UsageError("--batch-size, --every and --wait are about agents that are full",
                             hint="give --capacity expert_1=100")  # fmt: skip
        if self.every is not None and not (math.isfinite(self.every) and self.every > 0):
            raise UsageError(f"--every {self.every}", hint="seconds from one batch to the next, above 0")
        if self.capacity is not None and self.risks:
            raise UsageError("--risk with --capacity", hint="give one: full agents make inputs hang together")
        for name in self.caps:
            if name not in CAPS:
                raise UsageError(f"--cap names {name!r}", hint=nearest(name, CAPS, "caps are"))
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise UsageError(f"--confidence {self.confidence}", hint="a number between 0 and 1, such as 0.95")


@dataclass(frozen=True, kw_only=True)
class Made:
    """Rules of every class, and the one that was asked for.

    Attributes:
        rules: class -> rule, at the budget.
        worth: class -> units of loss for a unit of price at which it keeps to the budget.
        held: class -> validation, each sample decided by models that have not seen it.
        chosen: the class of the policy.
        policy: its rule, withholding answers where a promise needs that.
        promise: None where none was asked for.
        left_out: agents that were not looked at, for there are too many.
        notes: in words.
    """

    read: Read
    wanted: Wanted
    rules: dict[str, Rule]
    worth: dict[str, float]
    held: dict[str, Walked]
    chosen: str
    policy: Rule
    promise: Promise | None
    left_out: list[str]
    notes: list[str]


def make(read: Read, wanted: Wanted, *, kinds: Sequence[str] = tuple(KINDS)) -> Made:
    """Fit rules of several classes on a run's samples, and choose.

    Args:
        kinds: the classes to compare; that of ``wanted`` is made in any case.

    Raises:
        UsageError: an option is wrong, a budget or cap cannot be met, or the promise cannot be made; says what could.
    """
    wanted.check()
    notes: list[str] = []
    if wanted.budget is not None or "price" in wanted.caps:
        _check_prices(read)
    caps = _caps(read, wanted)
    search = Search(
        read.fit, depth=min(wanted.depth, read.fit.num_agents), combining=wanted.combining, abstain=wanted.abstain,
        caps=caps, batch=wanted.batch, wait=wanted.wait,
        capacities=() if wanted.capacity is None else parse_capacities(
            wanted.capacity, read.fit.agents, every=wanted.every
        ),
    )  # fmt: skip
    only = fewer_agents(search)
    search.only = only
    left_out = [name for j, name in enumerate(read.fit.agents) if j not in only]
    if left_out:
        notes.append(f"{len(left_out)} of {read.fit.num_agents} agents add least to the router and are not looked at")
    if search.combining is None:
        notes.append("answers of this cache cannot be combined, so one agent's answer is taken as it is")
    if read.fitted_on == (VALIDATION,):
        notes.append("rules are fitted on validation alone")
    validation = read.worlds[VALIDATION]
    depth = search.depth
    makers: dict[str, Callable[[Search], Rule]] = {
        "router": lambda s: s.ranked(1),
        "topk": lambda s: s.ranked(depth, chosen=True),
        "committee": lambda s: s.committee(),
        "cascade": lambda s: s.cascade(),
        "adaptive": lambda s: s.adaptive(),
    }
    wish = [wanted.ask] if wanted.ask != AUTO else []
    rules: dict[str, Rule] = {}
    worth: dict[str, float] = {}
    for kind in dict.fromkeys(("router", *wish, *kinds)):
        if kind == "topk" and search.combining is None:
            continue
        rules[kind], worth[kind] = _at_limits(search, makers[kind], wanted, validation, kind)
    held = {kind: walk(rule, validation, held_out=True) for kind, rule in rules.items()}
    chosen = wanted.ask if wanted.ask != AUTO else simplest(held, notes)
    if chosen not in rules:
        raise UsageError(f"--ask {chosen}: answers of this cache cannot be combined", hint="take cascade or adaptive")
    policy, promise = rules[chosen], None
    if wanted.risks:
        promise = promised(read, policy, wanted)
        if promise.threshold is None:
            raise UsageError(cannot(promise), hint=could(promise))
        policy = policy.promising(promise.threshold)
    return Made(
        read=read, wanted=wanted, rules=rules, worth=worth, held=held, chosen=chosen, policy=policy, promise=promise,
        left_out=left_out, notes=notes,
    )  # fmt: skip


def _at_limits(
    search: Search, maker: Callable[[Search], Rule], wanted: Wanted, validation: World, kind: str
) -> tuple[Rule, float]:
    if not search.capacities:
        return _at_budget(search, maker, wanted, validation, kind)
    return within_capacities(search, lambda: _at_budget(search, maker, wanted, validation, kind), validation)


def _at_budget(
    search: Search, maker: Callable[[Search], Rule], wanted: Wanted, validation: World, kind: str
) -> tuple[Rule, float]:
    if wanted.budget is None:
        return maker(search.at(0.0)), 0.0
    orders: dict[tuple[int, ...], None] = {}

    def remembering(some: Search) -> Rule:
        rule = maker(some)
        orders[getattr(rule, "order", ())] = None
        return rule

    try:
        found = best_worth(search, remembering, wanted.budget, validation, steps=8)
        tried = [found]
        for order in list(orders)[-4:] if kind == "cascade" else ():  # the best order jumps as money's worth changes
            with suppress(ValueError):
                tried.append(
                    best_worth(search, partial(Search.cascade, order=order), wanted.budget, validation, steps=8)
                )
        return min(tried, key=lambda each: float(walk(each[0], validation, held_out=True).loss.mean()))
    except ValueError as error:
        raise UsageError(
            f"budget <= {wanted.budget:g} cannot be met by a {kind}: {error}", hint="allow more, or give --abstain"
        ) from error


def simplest(held: dict[str, Walked], notes: list[str]) -> str:
    """The class of least loss on validation; the router where no other gains on it beyond chance."""
    best = min(held, key=lambda kind: float(held[kind].loss.mean()))
    gain = held["router"].loss - held[best].loss
    error = float(gain.std(ddof=1)) / math.sqrt(len(gain)) if len(gain) > 1 else math.inf
    if best != "router" and gain.mean() <= AT_LEAST * error:
        notes.append(
            f"looking at answers does not pay here: {best} gains {gain.mean():+.4f} ± {1.96 * error:.4f} on the router "
            "(validation, held out), so the policy is the router"
        )
        return "router"
    return best


def promised(read: Read, rule: Rule, wanted: Wanted) -> Promise:
    """Calibrate on validation; thresholds and where they begin come from the other samples rules were fitted on."""
    scale = _bound(read.fit)
    calibration = judged(read.worlds[VALIDATION], rule, scale)
    others = [split for split in read.fitted_on if split != VALIDATION]
    pilot = judged(read.worlds[others[0]], rule, scale) if others else None
    thresholds = thresholds_of((pilot or calibration).expected)
    if wanted.confidence is None:
        return conformal_risk_control(calibration, wanted.risks, thresholds)
    return learn_then_test(
        calibration, wanted.risks, thresholds, confidence=wanted.confidence, family=wanted.family, pilot=pilot
    )


def judged(world: World, rule: Rule, bound: float, *, held_out: bool = True) -> Judged:
    """A rule's answers as promises see them."""
    walked = walk(rule.promising(None), world, held_out=held_out)
    cost = np.clip(np.nan_to_num(walked.task / bound, nan=0.0), 0.0, 1.0)
    return Judged(
        expected=np.where(walked.answered, walked.expected, np.inf), wrong=walked.wrong, cost=cost, group=world.group
    )


def _bound(world: World) -> float:
    """The greatest task cost: what losses are divided by."""
    finite = world.costs[np.isfinite(world.costs)]
    return max(1.0, float(finite.max())) if len(finite) else 1.0


def cannot(promise: Promise) -> str:
    """In words."""
    asked = ", ".join(map(str, promise.risks))
    how = "on average" if promise.confidence is None else f"with {promise.confidence:.0%} confidence"
    where = f" in each of {promise.groups} groups" if promise.groups > 1 else ""
    return f"no setting can promise {asked} {how}{where}, from {promise.samples:,} validation samples"


def could(promise: Promise) -> str:
    """What could be promised instead, in words."""
    parts = [
        f"{row['risk']}<={math.ceil(1000 * row['limit']) / 1000:g}"
        + (f" answering {row['answered']:.0%} of the inputs" if row["answered"] else "")
        for row in promise.instead
    ]
    return f"what could be promised: {'; '.join(parts)}" if parts else "allow more, or calibrate on more samples"


def _check_prices(read: Read) -> None:
    unknown = [name for j, name in enumerate(read.fit.agents) if np.isnan(read.fit.price[:, j]).any()]
    if unknown:
        raise UsageError(
            f"the price of {', '.join(unknown)} is not known", where=read.cache.path, hint="give it in the recipe"
        )


def _caps(read: Read, wanted: Wanted) -> tuple[Cap, ...]:
    found = []
    for name, limit in wanted.caps.items():
        if name == "price":
            there = np.where(read.fit.known.available, read.fit.price, 0.0)
            uses = there.max(axis=0)  # what an answer took at most: all that is known before it is asked for
            found.append(Cap(name, limit, tuple(uses.tolist()), paid=read.money))
            continue
        each = read.seconds if name == "seconds" else read.gflops
        unknown = [agent for agent, value in zip(read.fit.agents, each, strict=True) if value is None]
        if unknown:
            raise UsageError(f"--cap {name}: the {name} of {', '.join(unknown)} are not known", where=read.cache.path,
                             hint="give them in the recipe, or cap the price")  # fmt: skip
        found.append(Cap(name, limit, tuple(float(value) for value in each if value is not None)))
    for cap in found:
        if min(cap.uses) > cap.limit:
            raise UsageError(
                f"--cap {cap.name}={cap.limit:g}: every agent takes more", hint=f"the least is {min(cap.uses):g}"
            )
    return tuple(found)


def fewer_agents(search: Search) -> list[int]:
    """The agents to look at, where all sets of them are too many: those that gain most for a router, one by one."""
    count, depth = search.world.num_agents, search.depth
    most = count
    while most > 2 and sum(math.comb(most, size) for size in range(depth + 1)) > MOST_STATES:
        most -= 1
    if most == count:
        return list(range(count))
    world = search.world
    total = world.known.predicted + search.asking.mean(axis=0)
    real = np.where(np.isfinite(world.costs), world.costs + search.asking, np.inf)
    chosen: list[int] = []
    while len(chosen) < most:
        means = {}
        for agent in set(range(count)) - set(chosen):
            some = [*chosen, agent]
            best = np.where(np.isfinite(real[:, some]), total[:, some], np.inf).argmin(axis=1)
            cost = real[np.arange(len(real)), np.array(some)[best]]
            means[agent] = float(
                np.where(np.isfinite(cost), cost, np.nanmax(cost[np.isfinite(cost)], initial=1.0)).mean()
            )
        chosen.append(min(means, key=means.__getitem__))
    return sorted(chosen)


# --- what it is compared with ----------------------------------------------------------------------------------------


def constant_rule(made: Made) -> Committee:
    """The agent that is cheapest for all samples, chosen on validation."""
    world, rule = made.read.worlds[VALIDATION], made.policy
    total = np.where(np.isfinite(world.costs), world.costs + world.charges, np.nan)
    with np.errstate(all="ignore"):
        means = np.array([np.nanmean(column) if np.isfinite(column).any() else np.inf for column in total.T])
    order = tuple(np.argsort(means, kind="stable").tolist())
    return Committee(agents=rule.agents, looks=rule.looks, combining=rule.combining, members=order[:1])


def hindsight(world: World, rule: Rule, agents: Sequence[int], *, depth: int, combining: str | None) -> np.ndarray:
    """The least that any sequence of questions could have cost each sample, all answers known: (n,)."""
    least = np.where(np.isfinite(world.costs), world.costs + world.charges, np.inf)[:, list(agents)].min(axis=1)
    if combining is not None and world.cost_of is not None and len(agents) > 1:
        search = Search(world, depth=depth, combining=combining)
        order = np.argsort(world.known.fold, kind="stable") if world.known.fold is not None else np.arange(len(world))
        sorted_already = world.known.fold is None or not bool((world.known.fold[1:] < world.known.fold[:-1]).any())
        back = np.arange(len(world)) if sorted_already else order
        for size in range(2, depth + 1):
            for members in combinations(agents, size):
                rows = search._within(members)
                if len(rows):
                    cost = search.committee_cost(members, rows)
                    cost = cost + search.world.charges[np.ix_(rows, np.array(members))].sum(axis=1)
                    least[back[rows]] = np.minimum(least[back[rows]], cost)
    if rule.abstain is not None:
        least = np.minimum(least, rule.abstain)
    return least


def facts_of(made: Made) -> dict[str, Any]:
    """What was asked for, as plain values."""
    wanted = made.wanted
    return {
        "ask": wanted.ask, "kind": made.chosen, "depth": wanted.depth, "combine": wanted.combining,
        "abstain": wanted.abstain, "budget": wanted.budget, "unit": made.read.unit, "caps": dict(wanted.caps),
        "batch": wanted.batch, "every": wanted.every, "wait": wanted.wait,
        "risks": [str(risk) for risk in wanted.risks], "confidence": wanted.confidence if wanted.risks else None,
        "worth": made.worth[made.chosen], "fitted_on": list(made.read.fitted_on), "left_out": made.left_out,
    }  # fmt: skip
