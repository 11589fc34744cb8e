"""Making a policy: rules of several classes at one budget, and the one that was asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from l2d.data.errors import UsageError
from l2d.rejector.decisions.limits import rule_of, search_of
from l2d.rejector.decisions.promises import (
    Judged,
    Promise,
    conformal_risk_control,
    learn_then_test,
    thresholds_of,
)
from l2d.rejector.decisions.reading import VALIDATION, Read
from l2d.rejector.decisions.rule import Committee, Rule
from l2d.rejector.decisions.search import Search
from l2d.rejector.decisions.walk import Walked, walk
from l2d.rejector.decisions.wanted import AUTO, KINDS, Wanted
from l2d.rejector.decisions.world import World

AT_LEAST = 1.0  # standard errors by which looking has to pay, for auto


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
    notes: list[str] = []
    search = search_of(read, wanted)
    only = search.agents
    left_out = [name for j, name in enumerate(read.fit.agents) if j not in only]
    if left_out:
        notes.append(f"{len(left_out)} of {read.fit.num_agents} agents add least to the router and are not looked at")
    if search.combining is None:
        notes.append("answers of this cache cannot be combined, so one agent's answer is taken as it is")
    if read.fitted_on == (VALIDATION,):
        notes.append("rules are fitted on validation alone")
    validation = read.worlds[VALIDATION]
    wish = [wanted.ask] if wanted.ask != AUTO else []
    rules: dict[str, Rule] = {}
    worth: dict[str, float] = {}
    for kind in dict.fromkeys(("router", *wish, *kinds)):
        if kind == "topk" and search.combining is None:
            continue
        rules[kind], worth[kind] = rule_of(search, kind, wanted, validation)
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
        "capacity": dict(wanted.capacity) if isinstance(wanted.capacity, Mapping) else wanted.capacity,
        "batch": wanted.batch, "every": wanted.every, "wait": wanted.wait,
        "risks": [str(risk) for risk in wanted.risks], "confidence": wanted.confidence if wanted.risks else None,
        "worth": made.worth[made.chosen], "fitted_on": list(made.read.fitted_on), "left_out": made.left_out,
    }  # fmt: skip
