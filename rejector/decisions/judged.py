"""A policy's decisions on samples whose answers are known, as a table and as figures with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from l2d.data.results import Shown
from l2d.rejector.decisions.making import Made, constant_rule, facts_of, hindsight
from l2d.rejector.decisions.reading import VALIDATION
from l2d.rejector.decisions.rule import ABSTAIN, Rule
from l2d.rejector.decisions.walk import Walked, walk
from l2d.rejector.evaluation.intervals import paired_intervals

#: Column of the table of decisions -> the way to decide whose loss it is.
BASELINES = {"router_loss": "router", "constant_loss": "best constant agent", "hindsight_loss": "hindsight"}


def decision_table(
    rule: Rule, ids: list[str], split: str, walked: Walked, baselines: dict[str, np.ndarray], prices: np.ndarray
) -> pa.Table:
    """A row a sample: who was asked in turn, what was answered, what it cost; and the same sample's baselines.

    ``rank``: place in the queue of inputs without an answer, 1 the one whose answer was expected to cost most.
    """
    names = np.array([*rule.agents, None], object)
    paths = [[names[agent] for agent in path if agent >= 0] for path in walked.path.tolist()]
    loss = walked.loss
    columns: dict[str, Any] = {
        "sample_id": pa.array(ids, pa.string()),
        "split": pa.array([split] * len(ids), pa.string()),
        "asked": pa.array(paths, pa.list_(pa.string())),
        "num_asked": pa.array(walked.asked, pa.int32()),
        "answered_by": pa.array([rule.name_of(code) for code in walked.answer.tolist()], pa.string()),
        "expected_cost": _numbers(walked.expected),
        "task_cost": _numbers(walked.task),
        "charge": _numbers(walked.charges),
        "price": _numbers(walked.price),
        "loss": _numbers(loss),
        "wrong": pa.array([None] * len(ids) if walked.wrong is None else walked.wrong, pa.bool_(),
                          mask=~walked.answered if walked.wrong is not None else None),
        "batch": pa.array(walked.batch, pa.int32()),
        "waited": pa.array(walked.waited, pa.int32()),
        "turned_away": pa.array(walked.turned, pa.bool_()),
        "rank": pa.array(queue_ranks(walked), pa.int32(), mask=walked.answered),
    }  # fmt: skip
    columns |= {name: _numbers(values) for name, values in baselines.items()}
    columns["router_price"] = _numbers(prices)
    return pa.table(columns)


def queue_ranks(walked: Walked) -> np.ndarray:
    """Place in the queue of each input without an answer, from 1; 0 for the others. (n,)"""
    ranks = np.zeros(len(walked), np.int64)
    rows = np.flatnonzero(~walked.answered)
    worst = np.nan_to_num(walked.expected[rows], nan=math.inf, posinf=math.inf)
    ranks[rows[np.argsort(-worst, kind="stable")]] = np.arange(1, len(rows) + 1)
    return ranks


def _numbers(values: np.ndarray) -> pa.Array:
    values = np.asarray(values, np.float64)
    return pa.array(values, pa.float64(), mask=~np.isfinite(values))


def tables_of(made: Made, splits: list[str]) -> dict[str, pa.Table]:
    """Decisions on validation, held out, and on other splits."""
    found = {}
    for split in dict.fromkeys((VALIDATION, *splits)):
        world, held = made.read.worlds[split], split in made.read.fitted_on
        walked = walk(made.policy, world, held_out=held)
        router = walk(made.rules["router"], world, held_out=held)
        baselines = {
            "router_loss": router.loss,
            "constant_loss": walk(constant_rule(made), world).loss,
            "hindsight_loss": _hindsight(made, split),
        }
        found[split] = decision_table(made.policy, list(world.ids), split, walked, baselines, router.price)
    return found


def _hindsight(made: Made, split: str) -> np.ndarray:
    names = [j for j, name in enumerate(made.read.fit.agents) if name not in made.left_out]
    combining = made.wanted.combining if made.read.fit.cost_of is not None else None
    depth = min(made.wanted.depth, len(names))
    return hindsight(made.read.worlds[split], made.policy, names, depth=depth, combining=combining)


@dataclass(frozen=True)
class DecisionReport(Shown):
    """A policy and what it gives; ``result`` is the JSON object users see.

    Attributes:
        tables: split -> decisions, see :func:`decision_table`.
    """

    result: dict[str, Any]
    made: Made
    tables: dict[str, pa.Table]

    def rows(self) -> list[dict[str, Any]]:
        return [shown(row) for row in self.result["ways"]]

    def to_json(self) -> dict[str, Any]:
        return self.result

    def table(self) -> str:
        from l2d.data.terminal.layout import table_text

        title = f"{self.result['run_id']}: {self.result['num_samples']:,} {self.result['split']} samples"
        parts = [table_text(self.rows(), title=title)]
        if self.result["capacities"]:
            parts.append(table_text(self.result["capacities"], title="agents that can be full"))
        if self.result["promise"] is not None:
            parts.append(table_text(self.result["promise"]["kept"], title="promised, and what came of it"))
        return "\n\n".join(parts)

    def notes(self) -> list[str]:
        """What has to be said in words."""
        return self.result["notes"]


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A way to decide as a row for people."""
    gap = row["against_router"]
    return {
        "decided by": row["way"],
        "deferral loss": row["loss"],
        "against router": "" if gap is None else f"{gap['value']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]",
        "wrong %": None if row["error"] is None else round(100 * row["error"], 2),
        "price": row["price"],
        "asked": row["asked"],
        "no answer %": round(100 * row["abstained"], 2),
    }


def report_of(made: Made, split: str) -> DecisionReport:
    """Judge all classes on a split they were not fitted on, at the same budget."""
    world = made.read.worlds[split]
    held = split in made.read.fitted_on
    walks = {kind: walk(rule, world, held_out=held) for kind, rule in made.rules.items()}
    policy = walk(made.policy, world, held_out=held)
    router = walks["router"]
    constant = walk(constant_rule(made), world)
    best = _hindsight(made, split)
    name = f"policy ({made.chosen})"
    named: dict[str, Walked] = {name: policy} | walks | {f"{_name(made, constant_rule(made))} alone": constant}
    with_loss = {way: w for way, w in named.items() if way != "router" and not np.isnan(w.loss).any()}
    differences = [w.loss - router.loss for w in with_loss.values()] + [best - router.loss]
    found = paired_intervals(differences, world.group)
    gaps = dict(zip([*with_loss, "hindsight"], found, strict=True))
    ways = [_way(way, w, gaps.get(way)) for way, w in named.items()]
    bound = {"loss": float(best.mean()), "against_router": gaps["hindsight"].to_json(test=False)}
    ways.append({"way": "hindsight", **bound, "error": None, "price": None, "asked": None, "abstained": 0.0})
    promise = None
    if made.promise is not None:
        promise = made.promise.to_json() | {"kept": kept(made, policy, split)}
    result = {
        "run_id": made.read.run.point.run_id, "split": split, "num_samples": len(world), **facts_of(made), "ways": ways,
        "allocation": answered_by(made.policy, policy), "asks": asks(made.policy, policy),
        "looking": looking(made, policy), "capacities": capacities_of(made.policy, policy), "promise": promise,
        "notes": [],
    }  # fmt: skip
    result["notes"] = [*made.notes, *words(made, result, gaps, policy)]
    tables = tables_of(made, [split])
    return DecisionReport(result, made, tables)


def _name(made: Made, rule: Any) -> str:
    return made.read.fit.agents[rule.members[0]]


def _way(way: str, walked: Walked, gap: Any) -> dict[str, Any]:
    given = walked.answered
    loss = walked.loss
    return {
        "way": way,
        "loss": float(np.nanmean(loss)) if np.isfinite(loss).any() else None,
        "against_router": None if gap is None else gap.to_json(),
        "error": None if walked.wrong is None or not given.any() else float(walked.wrong[given].mean()),
        "price": float(walked.price.mean()) if np.isfinite(walked.price).all() else None,
        "asked": float(walked.asked.mean()),
        "abstained": float((~given).mean()),
    }


def answered_by(rule: Rule, walked: Walked) -> dict[str, float]:
    """Whose answer is given -> share of the inputs; ``no answer`` last."""
    found = {}
    for code in [*range(len(rule.agents) + 3), ABSTAIN]:
        share = float((walked.answer == code).mean())
        if share or code < len(rule.agents):
            found[rule.name_of(code) or "no answer"] = share
    return found


def asks(rule: Rule, walked: Walked) -> dict[str, float]:
    """Agent -> how many times an input is sent to it, on average."""
    return {name: float((walked.path == j).any(axis=1).mean()) for j, name in enumerate(rule.agents)}


def capacities_of(rule: Rule, walked: Walked) -> list[dict[str, Any]]:
    """A row for each agent with a capacity: how many inputs of a batch ask it on average and at most, and the limit."""
    rows, batches = [], np.bincount(walked.batch)
    for each in rule.capacities:
        asked = np.bincount(walked.batch[(walked.path == each.agent).any(axis=1)], minlength=len(batches))
        rows.append(
            {
                "agent": rule.agents[each.agent],
                "capacity of a batch": each.of(rule.batch or len(walked)),
                "asked in a batch, mean": float(asked.mean()),
                "asked in a batch, most": int(asked.max(initial=0)),
                "batches": len(batches),
            }
        )
    return rows


def looking(made: Made, walked: Walked) -> list[dict[str, Any]]:
    """Where the policy looks and goes on: a row for each beginning of a path, the most frequent first."""
    names, rows = made.read.fit.agents, []
    for size in range(1, walked.path.shape[1]):
        begun = walked.path[:, size - 1] >= 0
        for beginning in np.unique(walked.path[begun][:, :size], axis=0):
            here = (walked.path[:, :size] == beginning).all(axis=1)
            went = here & (walked.path[:, size] >= 0)
            stopped = here & ~went
            rows.append(
                {
                    "asked": " > ".join(names[agent] for agent in beginning),
                    "inputs": float(here.mean()),
                    "asks again": float(went.sum() / here.sum()),
                    "loss where it stops": _mean(walked.loss[stopped]),
                    "loss where it goes on": _mean(walked.loss[went]),
                }
            )
    return sorted(rows, key=lambda row: -row["inputs"])


def _mean(values: np.ndarray) -> float | None:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def kept(made: Made, walked: Walked, split: str) -> list[dict[str, Any]]:
    """Each risk on a split, with an exact 95 % interval for shares, and whether it is within its limit."""
    assert made.promise is not None
    rows = []
    given = walked.answered
    from scipy.stats import beta  # here: a quarter of what every command of stage two imports

    scale = max(1.0, float(made.read.fit.costs[np.isfinite(made.read.fit.costs)].max()))
    for risk in made.promise.risks:
        over_all = not risk.quantity.startswith(("error", "cost")) or risk.quantity.endswith("_of_all")
        if risk.quantity == "abstained":
            values = (~given).astype(float)
        elif risk.quantity.startswith("error"):
            assert walked.wrong is not None
            values = walked.wrong.astype(float) * given
        else:
            values = np.nan_to_num(walked.task / scale) * given
        some = values if over_all else values[given]
        n, total = len(some), float(some.sum())
        row = {"risk": str(risk), f"on {split}": total / n if n else None, "answered %": round(100 * given.mean(), 1)}
        if n and risk.quantity != "cost" and risk.quantity != "cost_of_all":
            low = 0.0 if total == 0 else float(beta.ppf(0.025, total, n - total + 1))
            high = 1.0 if total == n else float(beta.ppf(0.975, total + 1, n - total))
            row["95 % interval"] = f"[{low:.4f}, {high:.4f}]"
        rows.append(row | {"within": "yes" if not n or total / n <= risk.limit else "NO"})
    return rows


def words(made: Made, result: dict[str, Any], gaps: dict[str, Any], policy: Walked) -> list[str]:
    """What is to be said: whether the policy beats the router, and how far it is from what could be had."""
    lines, split = [], result["split"]
    name = f"policy ({made.chosen})"
    if name in gaps and made.chosen != "router":
        gap = gaps[name]
        verdict = "beats" if gap.high < 0 else "is worse than" if gap.low > 0 else "is not shown to beat"
        at = f" at a mean price of at most {made.wanted.budget:g} {made.read.unit}" if made.wanted.budget else ""
        told = f"{verdict} the router{at} on {split}: {gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
        if gap.low == gap.high == 0 and (policy.asked == 1).all():
            told = "asks one agent for every input, the router's: to ask more does not pay on validation"
        lines.append(f"{made.chosen} {told}")
    partly = [way["way"] for way in result["ways"] if way["abstained"] and way["way"] not in gaps]
    if partly:
        lines.append(
            f"{', '.join(partly)}: the loss is that of the inputs that got an answer, so it does not compare with the "
            "others (--abstain says what no answer costs)"
        )
    losses = {way["way"]: way["loss"] for way in result["ways"]}
    if made.chosen == "cascade" and "adaptive" in losses and losses.get(name) is not None:
        lines.append(
            f"gap of the cascade to the best adaptive rule found: {losses['cascade'] - losses['adaptive']:+.4f}; "
            f"to hindsight: {losses['cascade'] - losses['hindsight']:+.4f}"
        )
    order = getattr(made.policy, "order", ())
    if order:
        lines.append("order: " + " > ".join(made.read.fit.agents[agent] for agent in order))
    if made.policy.capacities:
        turned, waited = policy.turned, policy.waited
        lines.append(
            f"{100 * turned.mean():.1f} % of {split} found an agent full; {100 * (waited > 0).mean():.1f} % waited, "
            f"{waited[waited > 0].mean() if (waited > 0).any() else 0:.3g} batches on average"
        )
    members = getattr(made.policy, "members", ())
    if members:
        lines.append("members: " + ", ".join(made.read.fit.agents[agent] for agent in members))
    if made.promise is not None:
        threshold = made.promise.threshold
        how = "on average" if made.promise.confidence is None else f"with {made.promise.confidence:.0%} confidence"
        lines.append(
            f"promised {how}: {', '.join(map(str, made.promise.risks))}; answers expected to cost more than "
            f"{threshold:.4g} are withheld ({100 * losses_share(result, name):.0f} % of {split})"
        )
    return lines


def losses_share(result: dict[str, Any], name: str) -> float:
    return next(way["abstained"] for way in result["ways"] if way["way"] == name)
