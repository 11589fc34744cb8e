"""What agents are worth to a saved policy: the same search without an agent, on samples that it was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations
from math import factorial
from typing import Any

import numpy as np

from l2d.data.errors import UsageError
from l2d.rejector.decisions.limits import rule_of, search_of
from l2d.rejector.decisions.promises import Risk
from l2d.rejector.decisions.reading import VALIDATION, Read, read_worlds
from l2d.rejector.decisions.saved import SavedPolicy, check_run
from l2d.rejector.decisions.walk import Walked, walk
from l2d.rejector.decisions.wanted import Wanted
from l2d.rejector.decisions.worth import Worth, losses_of
from l2d.rejector.evaluation.intervals import paired_interval, paired_intervals
from l2d.rejector.grid import GridPoint
from l2d.rejector.runs.run import Run, load_run

FEW = 6  # agents up to which a policy is searched for every set of them


def worth_of_policy(policy: SavedPolicy, *, split: str = "test", group: str | None = None) -> Worth:
    """What each agent adds to a policy: what the policy loses where it is searched for without the agent.

    A promise is left aside: what counts is the rule before answers are withheld. Agents that cannot keep the policy's
    limits by themselves count as none, in whose place an agent drawn at random answers.

    Args:
        policy: as it was saved.
        split: on which it is told.
        group: a kept column: samples of one value are resampled together.

    Raises:
        UsageError: its run is gone, or the policy gives no answer at no stated cost.
    """
    check_run(policy, policy.run_path)
    run = run_of(policy)
    read = read_worlds(run, (split,), group=group)
    wanted = wanted_of(policy)
    kind = policy.facts["result"]["kind"]
    search = search_of(read, wanted)
    every = tuple(range(read.fit.num_agents)) if search.only is None else tuple(search.only)
    world, held = read.worlds[split], split in read.fitted_on
    base = losses_of(world, ())

    def walked(some: tuple[int, ...]) -> Walked:
        search.only = list(some)
        return walk(rule_of(search, kind, wanted, read.worlds[VALIDATION])[0], world, held_out=held)

    @cache
    def loss_of(some: tuple[int, ...]) -> np.ndarray | None:
        """None where these agents cannot keep the limits."""
        try:
            return walked(some).loss if some else base
        except UsageError:
            return None

    def loss(some: tuple[int, ...]) -> np.ndarray:
        found = loss_of(some)
        return base if found is None else found

    whole = walked(every)
    if np.isnan(whole.loss).any():
        raise UsageError("the policy gives no answer to some inputs, at no stated cost", hint="make it with --abstain")
    others = {agent: tuple(j for j in every if j != agent) for agent in every}
    missed = {agent: loss(others[agent]) - whole.loss for agent in every}
    lost = dict(zip(every, paired_intervals(list(missed.values()), world.group), strict=True))
    shares = {}
    if len(every) <= FEW:
        values = shapley_of(every, loss)
        shares = dict(zip(every, paired_intervals(list(values.T), world.group), strict=True))
    rows = [
        _row(read, agent, whole, missed[agent], lost[agent], shares.get(agent), world.group, split) for agent in every
    ]
    for agent, row in zip(every, rows, strict=True):
        if loss_of(others[agent]) is None:
            row["verdict"] = "needed for the limits"
    return Worth({
        "run_id": run.point.run_id, "policy": policy.name, "cache": read.cache.record.name, "split": split,
        "unit": read.unit, "worth_of_money": (run.point.paid or 0.0), "num_samples": len(world),
        "loss": float(whole.loss.mean()), "random_agent_loss": float(base.mean()), "agents": rows,
    })  # fmt: skip


def _row(
    read: Read, agent: int, whole: Walked, missed: np.ndarray, lost: Any, share: Any, group: Any, split: str
) -> dict[str, Any]:
    world = read.worlds[split]
    mine = np.where(np.isfinite(world.costs[:, agent]), world.costs[:, agent] + world.charges[:, agent], np.nan)
    asked = (whole.path == agent).any(axis=1).astype(float)
    charge = float(world.charges[:, agent].mean())
    row = {
        "agent": world.agents[agent],
        "alone": float(np.nanmean(mine)) if np.isfinite(mine).any() else None,
        "share": float(asked.mean()),
        "without": lost.to_json(),
        "charge": charge,
        "shapley": None if share is None else share.to_json(test=False),
        "break_even": 0.0, "break_even_low": None, "break_even_high": None,
        "verdict": "worth it" if lost.low > 0 else "better without" if lost.high < 0 else "not shown",
    }  # fmt: skip
    if asked.any():
        more = float(missed.mean() / asked.mean())  # of which the gain is used up, by an answer
        around = paired_interval((missed - more * asked) / asked.mean(), group)  # a ratio's, to first order
        row["break_even"] = max(0.0, charge + more)
        row["break_even_low"] = max(0.0, charge + more + around.low)
        row["break_even_high"] = max(0.0, charge + more + around.high)
    return row


def shapley_of(agents: Sequence[int], loss: Any) -> np.ndarray:
    """Each agent's share of what all of them gain on none, by sample, (n, agents); see Shapley (1953).

    Args:
        loss: of a set of agents (a tuple in rising order) -> (n,).
    """
    count = len(agents)
    found = np.zeros((len(loss(())), count))
    for size in range(count):
        weight = factorial(size) * factorial(count - size - 1) / factorial(count)
        for some in combinations(agents, size):
            before = loss(some)
            for place, agent in enumerate(agents):
                if agent not in some:
                    found[:, place] += weight * (before - loss(tuple(sorted((*some, agent)))))
    return found


def run_of(policy: SavedPolicy) -> Run:
    """The policy's run at the setting that it was made at."""
    from l2d.rejector.runs.elsewhere import at_setting

    run, setting = load_run(policy.run_path), policy.setting
    point: GridPoint = run.point
    same = list(point.query_costs) == setting["query_costs"] and dict(point.weights.by_task) == setting["lambda"]
    if same and point.paid == setting["paid"]:
        return run
    beta = dict(zip(run.agents, setting["query_costs"], strict=True))
    return at_setting(run, beta | ({} if setting["paid"] is None else {"paid": setting["paid"]}), setting["lambda"])


def wanted_of(policy: SavedPolicy) -> Wanted:
    """What the policy was asked for."""
    asked = policy.facts["result"]
    return Wanted(
        ask=asked["ask"], depth=asked["depth"], combining=asked["combine"],
        abstain=asked["abstain"], budget=asked["budget"], caps=asked["caps"], capacity=asked.get("capacity"),
        batch=asked.get("batch"), every=asked.get("every"), wait=asked.get("wait"),
        risks=tuple(Risk.parse(risk) for risk in asked["risks"]), confidence=asked["confidence"],
    )  # fmt: skip
