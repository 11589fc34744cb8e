"""Choosing a run of a sweep for a target: on validation, once; test only says what the choice gave."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from l2d.data.errors import DataError, UsageError, nearest
from l2d.data.results import Shown
from l2d.rejector.evaluation.cost_quality import mean_price
from l2d.rejector.evaluation.evaluate import evaluate_runs
from l2d.rejector.evaluation.evaluation import Evaluation, by_setting

RESOURCES = ("budget", "gflops", "coverage")
HIGHER_IS_BETTER = {
    "coverage", "accuracy", "balanced_accuracy", "auroc", "average_precision", "ap", "map", "map_50", "answered",
    "score", "f1", "exact_match",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """``quantity <= limit`` or ``quantity >= limit``."""

    quantity: str
    at_most: bool
    limit: float

    @classmethod
    def parse(cls, text: str) -> Target:
        """Such as ``coverage>=0.5``.

        Raises:
            UsageError: it is not of that form.
        """
        parts = re.fullmatch(r"\s*(\S.*?)\s*(<=|>=)\s*(\S+)\s*", text)
        try:
            limit = float(parts[3]) if parts else math.nan
        except ValueError:
            limit = math.nan
        if not math.isfinite(limit):
            raise UsageError(f"--target {text!r}", hint="QUANTITY<=NUMBER or QUANTITY>=NUMBER, such as 'coverage>=0.5'")
        return cls(parts[1], parts[2] == "<=", limit)

    def miss(self, value: float) -> float:
        """By how much a value misses it; 0 or less where it is met."""
        return value - self.limit if self.at_most else self.limit - value

    def __str__(self) -> str:
        return f"{self.quantity}{'<=' if self.at_most else '>='}{self.limit:g}"


@dataclass(frozen=True)
class Candidate:
    """A setting of the sweep: its runs on validation, and its quantities as means over them."""

    members: list[Evaluation]
    quantities: dict[str, float]
    meets: bool


@dataclass(frozen=True)
class Choice(Shown):
    """The run chosen, among which candidates, and what it gave on test.

    Attributes:
        run: folder of the chosen run: of the chosen setting's runs that meet the targets on validation (of all, if none
            does) the one of lowest deferral loss there.
        setting: of the chosen candidate on test, means over its seeds.
        alone: of the chosen run on test.
    """

    targets: list[Target]
    prefer: str
    candidates: list[Candidate]
    chosen: int
    run: Path
    setting: dict[str, float]
    alone: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The object that users see."""
        on_validation = self.candidates[self.chosen].quantities
        return {
            "run": str(self.run),
            "setting": setting_name(self.candidates[self.chosen].members[0]),
            "seeds": len(self.candidates[self.chosen].members),
            "prefer": self.prefer,
            "targets": [
                {
                    "target": str(target),
                    "validation": on_validation[target.quantity],
                    "test": self.setting[target.quantity],
                    "test_of_run": self.alone[target.quantity],
                    "met_on_test": target.miss(self.alone[target.quantity]) <= 0,
                }
                for target in self.targets
            ],
            "validation": on_validation,
            "test": self.setting,
            "test_of_run": self.alone,
            "candidates": [
                {"setting": setting_name(c.members[0]), "meets": c.meets, "validation": c.quantities}
                for c in self.candidates
            ],
        }

    def rows(self) -> list[dict[str, Any]]:
        """What the choice gives, a row a quantity."""
        return self.tables()[1]

    def table(self) -> str:
        from l2d.data.terminal.layout import table_text

        candidates, outcome = self.tables()
        above = table_text(candidates, title="Settings on validation, means over seeds")
        return f"{above}\n\n{table_text(outcome, title=f'Chosen: {self.run}')}"

    def tables(self) -> tuple[list[dict], list[dict]]:
        """Candidates on validation; and the chosen one on validation and test."""
        shown = list(dict.fromkeys([target.quantity for target in self.targets] + [self.prefer]))
        candidates = [
            {"setting": setting_name(candidate.members[0])}
            | {name: candidate.quantities[name] for name in shown}
            | {"meets": "yes" if candidate.meets else "", "": "chosen" if k == self.chosen else ""}
            for k, candidate in enumerate(self.candidates)
        ]
        asked = {target.quantity: target for target in self.targets}
        rows = []
        for name in dict.fromkeys([*shown, *_WORTH_SHOWING]):
            if name in self.alone:
                target = asked.get(name)
                met = "" if target is None else "yes" if target.miss(self.alone[name]) <= 0 else "NO"
                row = {"quantity": name, "target": "" if target is None else str(target)[len(name) :]}
                row |= {"validation": self.candidates[self.chosen].quantities[name], "test": self.setting[name]}
                rows.append(row | {"test, this run": self.alone[name], "met": met})
        return candidates, rows


_WORTH_SHOWING = ("budget", "coverage", "task_cost", "deferral_loss", "accuracy", "smooth_l1", "map")


def choose(
    paths: list[Path], targets: list[Target], *, prefer: str | None = None, images: Path | None = None
) -> Choice:
    """Pick, of the settings that meet all targets on validation, the best one by ``prefer``.

    Args:
        paths: runs, of one cache; seeds of one setting are averaged.
        prefer: a quantity. By default the lowest ``task_cost`` where every target is about resources (``budget``,
            ``gflops``, ``coverage``, ``share_AGENT``), else the lowest ``budget`` (or highest ``coverage`` where no
            agent has a price).
        images: see :func:`evaluate_runs`.

    Raises:
        UsageError: an unknown quantity, runs that cannot be compared, or no setting that meets the targets.
    """
    if not targets:
        raise UsageError("no target is given", hint="such as --target 'coverage>=0.5'")
    evaluations = evaluate_runs(paths, "validation", images=images)
    if len({evaluation.run.cache_path for evaluation in evaluations}) > 1:
        raise UsageError("the runs are of different caches", hint="choose among the runs of one sweep")
    settings = sorted(by_setting(evaluations).values(), key=lambda members: members[0].run.point.charge_order)
    known = [_mean(members) for members in settings]
    if prefer is None:
        about_resources = all(t.quantity in RESOURCES or t.quantity.startswith("share_") for t in targets)
        prefer = "task_cost" if about_resources else "budget" if "budget" in known[0] else "coverage"
    for name in [*(target.quantity for target in targets), prefer]:
        if any(name not in quantities for quantities in known):
            there = [n for n in known[0] if all(n in quantities for quantities in known)]
            raise UsageError(f"the runs have no quantity {name!r}", hint=nearest(name, there))
    _comparable(prefer, settings)
    candidates = [
        Candidate(members, quantities, all(t.miss(quantities[t.quantity]) <= 0 for t in targets))
        for members, quantities in zip(settings, known, strict=True)
    ]
    chosen = _best(candidates, targets, prefer)
    members = candidates[chosen].members
    run = min(members, key=lambda e: (_missed(e, targets), e.result["deferral_loss"])).run
    on_test = evaluate_runs([member.run.path for member in members], "test", images=images)
    alone = next(evaluation for evaluation in on_test if evaluation.run.path == run.path)
    return Choice(targets, prefer, candidates, chosen, run.path, _mean(on_test), quantities_of(alone))


def quantities_of(evaluation: Evaluation) -> dict[str, float]:
    """What a target may be about: of one run on one split.

    ``coverage``: share the model keeps; ``budget``: mean price per input, what answers were paid where that is known
    and otherwise in the recipe's prices; ``gflops`` likewise;
    ``share_AGENT``; ``deferral_loss``; ``task_cost``: that less the query costs ``beta``, so what the answers alone
    cost, which runs of different ``beta`` can be compared by; and every task metric.
    """
    result, agents = evaluation.result, evaluation.cache.agents
    shares = np.array(list(result["allocation"].values()))
    found = {"coverage": float(shares[0])}
    if evaluation.measured.prices is not None:
        found["budget"] = mean_price(evaluation.allocation, evaluation.measured.prices) + evaluation.router_paid
    by_agent = {} if "budget" in found else {"budget": [agent.price for agent in agents]}
    for name, values in (by_agent | {"gflops": [agent.gflops for agent in agents]}).items():
        if all(value is not None for value in values) and any(values):
            found[name] = float(shares @ np.array(values))
    found["deferral_loss"] = result["deferral_loss"]
    found["task_cost"] = float(evaluation.task_losses.mean())
    found |= {f"share_{name}": share for name, share in result["allocation"].items()}
    return found | {name: value for name, value in result["metrics"].items() if isinstance(value, int | float)}


def setting_name(evaluation: Evaluation) -> str:
    """A run's name without its seed."""
    return re.sub(r"_seed=\d+$", "", evaluation.run.point.run_id)


def _mean(members: list[Evaluation]) -> dict[str, float]:
    """Quantities that all runs have, as means."""
    each = [quantities_of(member) for member in members]
    return {name: float(np.mean([q[name] for q in each])) for name in each[0] if all(name in q for q in each)}


def _missed(evaluation: Evaluation, targets: list[Target]) -> bool:
    quantities = quantities_of(evaluation)
    return any(target.miss(quantities[target.quantity]) > 0 for target in targets)


def _best(candidates: list[Candidate], targets: list[Target], prefer: str) -> int:
    """Position of the best candidate that meets the targets, ties to the first."""
    sign = -1 if prefer in HIGHER_IS_BETTER else 1
    meeting = [k for k, candidate in enumerate(candidates) if candidate.meets]
    if meeting:
        return min(meeting, key=lambda k: sign * candidates[k].quantities[prefer])
    worst: Callable[[int], float] = lambda k: max(  # noqa: E731
        t.miss(candidates[k].quantities[t.quantity]) / max(abs(t.limit), 1e-9) for t in targets
    )
    nearest = candidates[min(range(len(candidates)), key=worst)]
    got = ", ".join(f"{target.quantity} {nearest.quantities[target.quantity]:.4g}" for target in targets)
    raise DataError(
        f"no setting meets {' and '.join(map(str, targets))} on validation",
        where=f"{len(candidates)} settings; the nearest, {setting_name(nearest.members[0])}, has {got}",
        hint="sweep over more values of --beta, or ask for less",
    )


def _comparable(prefer: str, settings: list[list[Evaluation]]) -> None:
    """Refuse to compare costs that weigh tasks differently."""
    weights = {(members[0].run.point.weights, members[0].run.point.cost) for members in settings}
    betas = {(members[0].run.point.query_costs, members[0].run.point.paid) for members in settings}
    if (prefer in ("task_cost", "deferral_loss") and len(weights) > 1) or (
        prefer == "deferral_loss" and len(betas) > 1
    ):
        raise UsageError(
            f"{prefer} cannot be compared: the runs differ in lambda, cost or beta",
            hint="give runs of one lambda, or --prefer a quantity that means the same for all, such as accuracy",
        )
