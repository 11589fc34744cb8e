"""What agents are worth: what is lost without one, its share of the gain, the price at which it no longer pays.

All of it is bookkeeping on a table whose answers are known: the router sends each input to the agent of lowest expected
cost among some, and what that really cost is compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from l2d.data.results import Shown
from l2d.rejector.decisions.world import World
from l2d.rejector.evaluation.intervals import paired_intervals

FEW = 12  # agents up to which Shapley values are taken over all sets of them


def losses_of(world: World, some: Sequence[int]) -> np.ndarray:
    """What routing among some agents costs each sample, asking included, float64 (n,).

    Where none of them is available, and for no agents at all, an agent drawn at random answers.
    """
    real = np.where(np.isfinite(world.costs), world.costs + world.charges, np.inf)
    there = np.isfinite(real)
    random = np.where(there, real, 0.0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    if not len(some):
        return random
    who = list(some)
    told = np.where(there[:, who], world.known.predicted[:, who] + world.charges.mean(axis=0)[who], np.inf)
    chosen = real[:, who][np.arange(len(world)), told.argmin(axis=1)]
    return np.where(np.isfinite(told).any(axis=1), chosen, random)


def without_each(world: World) -> np.ndarray:
    """What each sample costs more where an agent is left out, (n, agents)."""
    everyone = range(world.num_agents)
    whole = losses_of(world, everyone)
    return np.stack([losses_of(world, [j for j in everyone if j != agent]) - whole for agent in everyone], axis=1)


def shapley(world: World) -> np.ndarray:
    """Each agent's share of what routing gains on an agent drawn at random, by sample, (n, agents).

    The mean over all orders in which agents could have joined of what each saves when it joins (Shapley, 1953); rows
    add up to the sample's gain. For up to :data:`FEW` agents.

    Raises:
        ValueError: there are more.
    """
    count = world.num_agents
    if count > FEW:
        raise ValueError(f"{count} agents have {2**count:,} sets")
    found = np.zeros((len(world), count))
    for size in range(count + 1):
        joins = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count) if size < count else 0
        left = math.factorial(size - 1) * math.factorial(count - size) / math.factorial(count) if size else 0
        for some in combinations(range(count), size):
            loss = losses_of(world, some)
            outside = [agent for agent in range(count) if agent not in some]
            found[:, outside] += joins * loss[:, None]
            found[:, list(some)] -= left * loss[:, None]
    return found


@dataclass(frozen=True)
class PriceCurve:
    """What having an agent gains at every price of asking it, exactly: piecewise linear in the price.

    At a price between ``prices[k]`` and ``prices[k + 1]`` the router sends the same ``asked[k]`` inputs to the agent,
    and having it gains ``(saved[k] - asked[k] * price) / n`` for an input.

    Attributes:
        prices: rising, units of loss, at which an input leaves the agent, from 0.
        asked: inputs that stay above each price.
        saved: what they save before the price is paid.
        n: inputs.
    """

    prices: np.ndarray
    asked: np.ndarray
    saved: np.ndarray
    n: int

    @classmethod
    def of(cls, world: World, agent: int, rows: np.ndarray | None = None) -> PriceCurve:
        """Of an agent beside all others, at their charges.

        Args:
            rows: samples, repeated as often as they count; None: each once.
        """
        others = [j for j in range(world.num_agents) if j != agent]
        told = world.known.predicted + world.charges.mean(axis=0)
        told = np.where(np.isfinite(world.costs), told, np.inf)
        lead = told[:, others].min(axis=1) - np.where(
            np.isfinite(world.costs[:, agent]), world.known.predicted[:, agent], np.inf
        )
        saved = losses_of(world, others) - np.where(np.isfinite(world.costs[:, agent]), world.costs[:, agent], 0.0)
        if rows is not None:
            lead, saved = lead[rows], saved[rows]
        there = lead > 0
        order = np.argsort(lead[there], kind="stable")
        lead_sorted, saved_sorted = lead[there][order], saved[there][order]
        after = np.concatenate([np.cumsum(saved_sorted[::-1])[::-1], [0.0]])
        return cls(np.concatenate([[0.0], lead_sorted]), np.arange(len(order), -1, -1), after, len(lead))

    def gain(self, price: float) -> float:
        """What having the agent gains for an input at this price."""
        place = int(np.searchsorted(self.prices[1:], price, side="right"))
        return float(self.saved[place] - self.asked[place] * price) / self.n

    @property
    def break_even(self) -> float:
        """The highest price at which having the agent still gains; 0 where it does at none.

        It hangs on the few inputs that leave the agent last, like a maximum, of which a bootstrap gives no interval.
        """
        for k in range(len(self.prices) - 1, -1, -1):
            asked, saved = int(self.asked[k]), float(self.saved[k])
            if not asked:
                continue
            top = float(self.prices[k + 1])
            if top - self.prices[k] > 1e-12 and saved - asked * self.prices[k] > 0:  # the gain falls within the piece
                return min(top, saved / asked)
        return 0.0


@dataclass(frozen=True)
class Worth(Shown):
    """What each agent is worth on a split; ``result`` is the JSON object users see."""

    result: dict[str, Any]

    @property
    def agents(self) -> list[dict[str, Any]]:
        return self.result["agents"]

    def rows(self) -> list[dict[str, Any]]:
        unit, worth = self.result["unit"], self.result["worth_of_money"]
        gets = "asked %" if self.result.get("policy") else "gets %"
        found = []
        for row in self.agents:
            told = {
                "agent": row["agent"], "loss alone": row["alone"], gets: round(100 * row["share"], 1),
                "lost without it": _text(row["without"]),
                "share of the gain": None if row["shapley"] is None else _text(row["shapley"]),
                "charge now": row["charge"], "break-even charge": _break_even(row),
            }  # fmt: skip
            if worth:
                money = {name: row["without"][name] / worth for name in ("value", "low", "high")}
                told[f"lost without it, {unit}"] = _text(money)
                told[f"break-even {unit}"] = _break_even(row, worth)
            found.append(told | {"verdict": row["verdict"]})
        return found

    def to_json(self) -> dict[str, Any]:
        return self.result

    def table(self) -> str:
        from l2d.data.terminal.layout import table_text

        name, samples = self.result.get("policy") or self.result["run_id"], f"{self.result['num_samples']:,}"
        title = f"{name}: {samples} {self.result['split']} samples, in units of loss"
        return table_text(self.rows(), title=title)


def _text(interval: dict[str, float]) -> str:
    return f"{interval['value']:+.4f} [{interval['low']:+.4f}, {interval['high']:+.4f}]"


def _break_even(row: dict[str, Any], unit: float = 1.0) -> float | str:
    """With its interval where there is one: of a policy, whose askings stay as they are while the charge rises."""
    if row.get("break_even_low") is None:
        return row["break_even"] / unit
    value, low, high = (row[name] / unit for name in ("break_even", "break_even_low", "break_even_high"))
    return f"{value:.4g} [{low:.4g}, {high:.4g}]"


def worth_of(world: World, facts: dict[str, Any]) -> Worth:
    """What each agent of a table is worth.

    Args:
        world: samples that the predictions have not seen.
        facts: of the run: ``run_id``, ``split``, ``unit``, ``worth_of_money``.
    """
    count, alone = world.num_agents, np.where(np.isfinite(world.costs), world.costs + world.charges, np.nan)
    lost = paired_intervals(list(without_each(world).T), world.group)
    shares = paired_intervals(list(shapley(world).T), world.group) if count <= FEW else []
    told = np.where(np.isfinite(world.costs), world.known.predicted + world.charges.mean(axis=0), np.inf)
    chosen = np.bincount(told.argmin(axis=1), minlength=count) / len(world)
    rows = []
    for agent, name in enumerate(world.agents):
        charge, gap = float(world.charges[:, agent].mean()), lost[agent]
        verdict = "worth it" if gap.low > 0 else "better without" if gap.high < 0 else "not shown"
        mine = alone[:, agent]
        rows.append(
            {
                "agent": name,
                "alone": float(np.nanmean(mine)) if np.isfinite(mine).any() else None,
                "share": float(chosen[agent]),
                "without": gap.to_json(),
                "charge": charge,
                "shapley": shares[agent].to_json(test=False) if shares else None,
                "break_even": PriceCurve.of(world, agent).break_even,
                "verdict": verdict,
            }
        )
    loss = losses_of(world, range(count))
    base = losses_of(world, ())
    return Worth({
        **facts, "num_samples": len(world), "loss": float(loss.mean()), "random_agent_loss": float(base.mean()),
        "agents": rows,
    })  # fmt: skip
