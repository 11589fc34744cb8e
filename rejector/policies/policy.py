"""A trained run put under constraints: budgets, coverage, capacities; on the scores that the run has cached.

- ``prices``: dual prices are fitted on the validation split, and each input goes to the agent of lowest predicted cost
  plus price, whatever the others do. Usable online; on other inputs constraints hold as far as these are alike.
- ``batch``: the split (or each batch of it) is known whole, is solved by dual prices and repaired: constraints hold.
- ``exact``: the same by HiGHS's branch and bound, for reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from l2d.data.cache import store
from l2d.data.cache.integrity import sha256_of
from l2d.data.errors import UsageError, nearest
from l2d.data.results import Shown
from l2d.rejector.policies.assignment import Assignment, assign, assign_in_batches
from l2d.rejector.policies.constraints import Constraint, use_of
from l2d.rejector.policies.cost_prediction import KINDS, CostPredictor, choose_predictor
from l2d.rejector.policies.money import MoneyBudget, Prices, price_of_money, prices_of_split
from l2d.rejector.policies.price_rule import Policy
from l2d.rejector.policies.scored import ScoredSplit, read_scored, score_meaning
from l2d.rejector.runs.files import WEIGHTS_FILE
from l2d.rejector.runs.run import Run

MODES = ("prices", "batch", "exact")
NUDGES = (0.0, 1e-12, 1e-9, 1e-7, 1e-5, 1e-4, 1e-3)


@dataclass(frozen=True)
class PolicyReport(Shown):
    """What a policy was asked for and what it gave; ``result`` is the JSON object users see.

    ``policy`` is None unless the mode is ``prices``.
    """

    result: dict[str, Any]
    split: ScoredSplit
    predicted: np.ndarray
    allocation: np.ndarray
    policy: Policy | None

    def rows(self) -> list[dict[str, Any]]:
        """Who gives which deferral loss at which shares."""
        return report_tables(self.result)[1]

    def to_json(self) -> dict[str, Any]:
        return self.result

    def table(self) -> str:
        from l2d.data.terminal.layout import table_text

        limits, outcomes = report_tables(self.result)
        title = f"{self.result['run_id']}: {self.result['num_samples']:,} {self.result['split']} samples"
        return f"{table_text(limits, title=title)}\n\n{table_text(outcomes)}"

    def notes(self) -> list[str]:
        """What has to be said in words."""
        return narrate(self.result)


def run_policy(
    run: Run,
    constraints: list[Constraint],
    *,
    split: str = "test",
    mode: str = "prices",
    batch_size: int | None = None,
    calibration: str = "auto",
    money: MoneyBudget | None = None,
) -> PolicyReport:
    """Put a run under constraints, and evaluate it.

    Args:
        money: a budget in what answers are paid, of a run that predicts prices. Its predicted costs are taken as they
            are, and its price is found on validation in every mode, since what is paid is known only afterwards.
        split: to allocate; predicted costs are fitted on ``validation``, and prices in mode ``prices``.
        mode: out of :data:`MODES`.
        batch_size: samples that are allocated together and that capacities are of; None: the split.
        calibration: of predicted costs, out of :data:`KINDS`, or ``auto``: what predicts best on validation.

    Raises:
        UsageError: constraints cannot be met; names which. A wrong option. Or the run's scores say nothing of costs.
        DataError: the run lacks the split.
    """
    for name, value, known in (("mode", mode, MODES), ("calibration", calibration, ("auto", *KINDS))):
        if value not in known:
            raise UsageError(f"--{name} {value}", hint=nearest(value, known))
    validation = read_scored(run, "validation")
    target = validation if split == "validation" else read_scored(run, split)
    loss, nu = score_meaning(run)
    predictor, errors = choose_predictor(validation.scores, validation.costs, loss, nu)
    if money is not None and calibration not in ("auto", "implied"):
        raise UsageError(f"--calibration {calibration} with a budget in money", hint="leave it out")
    if calibration != "auto" or money is not None:
        kind = "implied" if money is not None else calibration
        predictor = CostPredictor.fit(kind, validation.scores, validation.costs, loss, nu)
    predicted = {s.name: predictor.predict(s.scores, s.available) for s in (validation, target)}
    sizes = {s.name: min(batch_size or len(s), len(s)) for s in (validation, target)}
    paid, worth = {}, 0.0
    if money is not None:
        paid = {s.name: prices_of_split(run, s) for s in (validation, target)}
        others = [_as_share(constraint, sizes["validation"]) for constraint in constraints]

        def allocate(costs: np.ndarray) -> np.ndarray:
            return assign(costs, others, where="the validation split").allocation

        worth = price_of_money(
            predicted["validation"], paid["validation"], money, allocate, where="the validation split"
        )
        predicted = {name: costs + worth * paid[name].predicted for name, costs in predicted.items()}

    policy, on_validation = None, None
    if mode == "prices":
        share = [_as_share(constraint, sizes[split]) for constraint in constraints]
        on_validation = assign(predicted["validation"], share, where="the validation split")
        policy = _policy(run, predictor, predicted["validation"], on_validation, share, worth=worth)
        allocations = {name: policy.of_costs(costs) for name, costs in predicted.items()}
        solved, prices = on_validation, on_validation.prices
    else:
        parts = {
            name: assign_in_batches(costs, constraints, sizes[name], exactly=mode == "exact", where=f"the {name} split")
            for name, costs in predicted.items()
        }
        allocations = {name: part.allocation for name, part in parts.items()}
        solved, prices = parts[split], parts[split].prices
    optimality = _optimality(solved, "validation" if mode == "prices" else split)
    if money is not None:
        optimality = _without_money(optimality, solved, paid, worth, money)
    if money is None:
        best = _best_possible(target.costs, target.name, constraints, sizes[split])
    else:
        best = _best_possible_for_money(target, paid[split], constraints, sizes[split], money)
    result = {
        "run_id": run.point.run_id,
        "split": split,
        "num_samples": len(target),
        "mode": mode,
        "batch_size": sizes[split],
        "constraints": [
            *([] if money is None else [_money_row(money, worth, paid, allocations, split)]),
            *(
                {
                    "name": constraint.name,
                    "asked": constraint.asked,
                    "limit": constraint.mean(sizes[split]),
                    "validation": constraint.used(allocations["validation"]) / len(validation),
                    split: constraint.used(allocations[split]) / len(target),
                    "standard_error": float(np.std(np.array(constraint.use)[allocations[split]]) / len(target) ** 0.5),
                    "held": _held(constraint, allocations[split], sizes[split]),
                    "dual_price": None if prices is None else float(prices[k]),
                }
                for k, constraint in enumerate(constraints)
            ),
        ],
        "predicted_costs": {"kind": predictor.kind, "held_out_error": errors},
        "optimality": optimality,
        "policy": _outcome(run, target, allocations[split], constraints, paid.get(split)),
        "policy_on_validation": _outcome(
            run, validation, allocations["validation"], constraints, paid.get("validation")
        ),
        "rejector": _outcome(run, target, target.chosen, constraints, paid.get(split)),
        "random_same_shares_loss": random_same_shares(allocations[split], target.costs),
        "best_possible": None if best is None else _outcome(run, target, best, constraints, paid.get(split)),
    }
    return PolicyReport(result, target, predicted[split], allocations[split], policy)


def written_policy(
    run: Run,
    constraints: list[Constraint],
    *,
    out: Path | None = None,
    save: Path | None = None,
    overwrite: bool = False,
    mode: str = "prices",
    **options: Any,
) -> PolicyReport:
    """:func:`run_policy`, with its allocations and prices in files.

    Args:
        out: a Parquet file for the allocations.
        save: a JSON file for the prices.
        overwrite: replace these files if they exist.

    Raises:
        UsageError: a file exists, or there are no prices to save; and as :func:`run_policy`.
    """
    for file in (out, save):
        if file is not None and file.exists() and (not overwrite or file.is_dir()):
            raise UsageError("this file exists already", where=file, hint="give another name, or type --overwrite")
    if save is not None and mode != "prices":
        raise UsageError(f"--save goes with --mode prices, not {mode}", hint="only prices serve other inputs")
    done = run_policy(run, constraints, mode=mode, **options)
    if out is not None:
        store.commit_table(out, allocation_table(done), {"run_id": run.point.run_id}, replace=overwrite)
    if save is not None and done.policy is not None:
        done.policy.save(save, overwrite=overwrite)
    return done


def report_tables(result: dict[str, Any]) -> tuple[list[dict], list[dict]]:
    """A report as two tables: constraints; and the deferral loss of each way to allocate, with its shares."""
    split = result["split"]
    limits = []
    for row in result["constraints"]:
        found = {"constraint": row["name"], "asked": row["asked"], "on validation": row["validation"]}
        if split != "validation":
            found[f"on {split}"] = row[split]
        limits.append(found | {"held": "yes" if row["held"] else "NO", "dual price": row["dual_price"]})

    def row(title: str, where: str, outcome: dict) -> dict:
        shares = {f"{name} %": f"{100 * share:.1f}" for name, share in outcome["allocation"].items()}
        return {"allocated by": title, "split": where, "deferral loss": f"{outcome['deferral_loss']:.4f}"} | shares

    rows = [] if split == "validation" else [row("policy", "validation", result["policy_on_validation"])]
    rows += [row("policy", split, result["policy"]), row("rejector, no constraint", split, result["rejector"])]
    random = {"deferral_loss": result["random_same_shares_loss"], "allocation": result["policy"]["allocation"]}
    rows.append(row("random, shares of the policy", split, random))
    if result["best_possible"] is not None:
        rows.append(row("best within the limits, costs known", split, result["best_possible"]))
    return limits, rows


def narrate(result: dict[str, Any]) -> list[str]:
    """What has to be said about a report in words."""
    optimality, costs = result["optimality"], result["predicted_costs"]
    lines = [
        f"predicted costs: {costs['kind']} (explains {_explained(costs):.0%} of the differences between agents "
        "on held-out validation samples)",
        f"optimality gap: at most {optimality['gap']:.2g} of {optimality['value']:.4g} ({optimality['of']})",
    ]
    for row in result["constraints"]:
        if not row["held"] and result["mode"] == "prices":
            lines.append(
                f"{row['name']} {row['asked']} is not met on {result['split']}: {row[result['split']]:.4g} "
                f"± {1.96 * row['standard_error']:.2g} by chance. Prices meet it on the inputs they were fitted on; "
                "--mode batch meets it where inputs are known together"
            )
    return lines


def _explained(costs: dict[str, Any]) -> float:
    errors = costs["held_out_error"]
    return 1 - errors[costs["kind"]] / errors["none"] if errors["none"] else 0.0


def allocation_table(report: PolicyReport) -> pa.Table:
    """A row a sample: ``sample_id, split, agent_index, agent, predicted_cost_J.., deferral_cost``."""
    split, chosen = report.split, report.allocation
    names = pa.array(list(report.result["policy"]["allocation"]))
    predicted = {
        f"predicted_cost_{j}": pa.array(costs.astype(np.float32), mask=~np.isfinite(costs))
        for j, costs in enumerate(report.predicted.T)
    }
    return pa.table(
        {
            "sample_id": pa.array(split.ids, pa.string()),
            "split": pa.array([split.name] * len(split), pa.string()),
            "agent_index": pa.array(chosen, pa.int32()),
            "agent": names.take(pa.array(chosen)),
            **predicted,
            "deferral_cost": pa.array(split.costs[np.arange(len(split)), chosen].astype(np.float32)),
        }
    )


def random_same_shares(allocation: np.ndarray, costs: np.ndarray) -> float:
    """Expected deferral loss if agents are drawn at the shares of an allocation, among those available to a sample.

    Where none of these is available, at equal shares.
    """
    there = np.isfinite(costs)
    weights = np.bincount(allocation, minlength=costs.shape[1]) * there
    weights = np.where(weights.sum(axis=1, keepdims=True) > 0, weights, there).astype(np.float64)
    weights /= weights.sum(axis=1, keepdims=True)
    return float((weights * np.where(there, costs, 0.0)).sum(axis=1).mean())


def _policy(
    run: Run,
    predictor: CostPredictor,
    predicted: np.ndarray,
    solved: Assignment,
    constraints: list[Constraint],
    *,
    worth: float = 0.0,
) -> Policy:
    """The rule at the prices, which are raised by a hair where the inputs they leave undecided break a limit.

    ``worth``: units of loss for a unit of money that a budget adds; it is part of ``predicted``.
    """
    use = use_of(constraints, len(run.agents))
    paid = run.point.paid if run.point.paid is None else run.point.paid + worth
    exact = np.array([constraint.exact for constraint in constraints])
    where = (run.point.run_id, sha256_of(run.path / WEIGHTS_FILE), list(run.point.query_costs))
    made_for = (*where, dict(run.point.weights.by_task), run.agents, predictor)
    for nudge in NUDGES:
        prices = solved.prices * np.where(exact, 1.0, 1.0 + nudge)
        policy = Policy(*made_for, prices @ use, paid)
        allocation = policy.of_costs(predicted)
        if all(c.exact or c.holds(c.used(allocation), len(predicted)) for c in constraints):
            return policy
    return Policy(*made_for, solved.prices @ use, paid)


def _as_share(constraint: Constraint, batch: int) -> Constraint:
    """A count of samples in batches of this size as a share."""
    if constraint.count is None:
        return constraint
    return Constraint(constraint.name, constraint.asked, constraint.use, limit=min(1.0, constraint.count / batch))


def _held(constraint: Constraint, allocation: np.ndarray, batch: int) -> bool:
    batches = (allocation[start : start + batch] for start in range(0, len(allocation), batch))
    return all(constraint.holds(constraint.used(part), len(part)) for part in batches)


def _outcome(
    run: Run, split: ScoredSplit, allocation: np.ndarray, constraints: list[Constraint], prices: Prices | None = None
) -> dict[str, Any]:
    shares = np.bincount(allocation, minlength=len(run.agents)) / len(split)
    used = {constraint.name: constraint.used(allocation) / len(split) for constraint in constraints}
    if prices is not None:
        used = {"budget": float(prices.spent(allocation).mean()), **used}
    return {
        "num_samples": len(split),
        "deferral_loss": split.loss(allocation),
        "allocation": dict(zip(run.agents, shares.tolist(), strict=True)),
        "used": used,
    }


def _best_possible(costs: np.ndarray, split: str, constraints: list[Constraint], batch: int) -> np.ndarray | None:
    """The oracle under the same constraints; None where this split cannot meet them, as prices may not notice."""
    try:
        return assign_in_batches(costs, constraints, batch, where=f"the {split} split").allocation
    except UsageError:
        return None


def _best_possible_for_money(
    split: ScoredSplit, prices: Prices, constraints: list[Constraint], batch: int, money: MoneyBudget
) -> np.ndarray | None:
    """The same with a budget in money, costs and prices known."""
    known = Prices(np.where(np.isfinite(prices.paid), prices.paid, 0.0), prices.paid)
    others = [_as_share(constraint, batch) for constraint in constraints]
    where = f"the {split.name} split"
    try:
        worth = price_of_money(
            split.costs, known, money, lambda costs: assign(costs, others, where=where).allocation, where=where
        )
    except UsageError:
        return None
    return _best_possible(split.costs + worth * known.predicted, split.name, constraints, batch)


def _money_row(
    money: MoneyBudget, worth: float, prices: dict[str, Prices], allocations: dict[str, np.ndarray], split: str
) -> dict[str, Any]:
    """What became of a budget in money; its dual price is in units of loss for a unit of money."""
    spent = {name: each.spent(allocations[name]) for name, each in prices.items()}
    return {
        "name": "budget",
        "asked": money.asked,
        "limit": money.limit,
        "validation": float(spent["validation"].mean()),
        split: float(spent[split].mean()),
        "standard_error": float(spent[split].std() / len(spent[split]) ** 0.5),
        "held": money.holds(float(spent[split].mean())),
        "dual_price": worth,
    }


def _without_money(
    found: dict[str, Any], solved: Assignment, prices: dict[str, Prices], worth: float, money: MoneyBudget
) -> dict[str, Any]:
    """The bound for a budget in predicted prices: by weak duality no allocation within it is cheaper than that."""
    predicted = prices[found["of"].rpartition(" ")[2]].predicted
    spent = float(predicted[np.arange(len(predicted)), solved.allocation].mean())
    value, bound = solved.value - worth * spent, solved.bound - worth * money.limit
    gap = max(0.0, value - bound)
    return found | {"value": value, "bound": bound, "gap": gap, "relative_gap": gap / abs(value) if value else 0.0}


def _optimality(solved: Assignment, split: str) -> dict[str, Any]:
    return {
        "of": f"predicted cost on {split}",
        "value": solved.value,
        "bound": solved.bound,
        "gap": solved.gap,
        "relative_gap": solved.gap / abs(solved.value) if solved.value else 0.0,
    }
