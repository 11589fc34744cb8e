"""The theory of a run that predicts costs (method ``best``): where its loss comes from, whose costs can be predicted,
and what the features are worth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from l2d.data.cache.reader import CostCache
from l2d.data.cache.schema import SPLITS
from l2d.data.errors import UsageError
from l2d.data.threads import one_thread
from l2d.rejector.best.answering import answering_in_words
from l2d.rejector.best.folds import fold_of
from l2d.rejector.best.model import CostModel, fit_costs
from l2d.rejector.best.trained import FITTED_ON, TrainedBest
from l2d.rejector.best.training import fitted_rows
from l2d.rejector.evaluation.groups import read_groups
from l2d.rejector.evaluation.intervals import paired_interval
from l2d.rejector.rows.stream import open_streams
from l2d.rejector.rows.table import CostTable, load_tables
from l2d.rejector.runs.run import Run, input_of, open_cache
from l2d.rejector.theory.importance import PREDICTIONS, Importances, importances, source_columns
from l2d.rejector.theory.parts.deferral import LOSS
from l2d.rejector.theory.predictable import of_agents, of_differences
from l2d.rejector.theory.quantity import Quantity

FEWEST_SAMPLES = 10
MOST_FITTED = 400_000  # samples times agents times tasks: beyond, halves of the samples take minutes to fit
PREDICTABLE = "how far costs can be predicted: share of their variance explained, on samples not fitted"
WORTH = "what the columns of the input are worth: rise of the deferral loss where one is permuted"
SHOWN = 12  # agents, or columns, that a table has; JSON has all


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A run and a split that it is judged on.

    Attributes:
        predicted, raw: raw costs (n, agents, tasks) as predicted, unseen, and the true ones, NaN without an answer.
        groups: samples of one value are not independent, (n,), or None.
    """

    run: Run
    rejector: TrainedBest
    cache: CostCache
    table: CostTable
    predicted: np.ndarray
    raw: np.ndarray
    groups: np.ndarray | None

    @classmethod
    def of(cls, run: Run, split: str) -> Judged:
        """Read a split of the run's cache, and predict it.

        Raises:
            UsageError: it has too few samples, the cache is not there, or the run does not predict costs.
        """
        rejector = run.rejector.as_a(TrainedBest)
        cache = open_cache(run)
        table = load_tables(cache, (split,), column="features", failures=rejector.config.failures)[split]
        if len(table) < FEWEST_SAMPLES:
            raise UsageError(
                f"too few samples to estimate anything: {split} {len(table)}",
                where=cache.address,
                hint=f"the split needs {FEWEST_SAMPLES}",
            )
        raw = rejector.as_predicted(rejector.point.raw_costs(table.raw, cache.record.tasks).numpy())
        predicted = rejector.predictor(split, table.ids, table.features.numpy())
        groups = read_groups(cache, table)
        return cls(
            run=run, rejector=rejector, cache=cache, table=table, predicted=predicted, raw=raw, groups=groups
        )  # fmt: skip

    @property
    def model(self) -> CostModel:
        return self.rejector.predictor.model

    @property
    def tasks(self) -> list[str]:
        tasks = ["cost"] if self.run.point.cost is not None else self.cache.record.tasks
        return tasks if self.run.point.paid is None else [*tasks, "price"]

    @cached_property
    def costs(self) -> np.ndarray:
        """Total costs (n, agents), infinite without an answer."""
        total = self.rejector.total(self.raw)
        return np.where(np.isnan(total), np.inf, total)

    def chosen_costs(self, predicted: np.ndarray) -> np.ndarray:
        """Cost of the available agent of the lowest predicted raw costs, (n,)."""
        total = np.where(np.isfinite(self.costs), self.rejector.total(predicted), np.inf)
        return self.costs[np.arange(len(total)), total.argmin(axis=1)]

    def mean_of(self, key: str, title: str, values: np.ndarray, says: str = "") -> Quantity:
        found = paired_interval(values, self.groups)
        return Quantity(key=key, title=title, value=found.value, interval=(found.low, found.high), says=says)

    def importances(self, predictions: int = PREDICTIONS, seed: int = 0) -> Importances:
        """See :func:`l2d.rejector.theory.importance.importances`; the guard is off."""
        table, model = self.table, self.model

        def predict(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
            if table.split in FITTED_ON:
                return self.rejector.total(model.predict_unseen(x, [table.ids[row] for row in rows]))
            return self.rejector.total(model.predict(x))

        x = table.features.numpy()
        used = np.zeros(x.shape[1])
        for forest in model.forests:
            used += np.bincount(forest.feature[forest.left >= 0], minlength=x.shape[1])
        columns = source_columns(input_of(self.run), x.shape[1])
        return importances(
            predict, x, self.costs, columns, used=used, groups=self.groups, predictions=predictions, seed=seed
        )  # fmt: skip


@one_thread()
def section(run: Run, split: str, *, device: str, seed: int) -> dict[str, Any]:
    """Findings on a run of method ``best``, as :func:`l2d.rejector.theory.section.theory_section` gives them.

    Beside what others have: ``importances``, one object a column; ``predictable``, one object an agent and task.
    """
    judged = Judged.of(run, split)
    loss, predictable = loss_findings(judged, seed), predictable_findings(judged)
    worth = judged.importances(seed=seed)
    parts = {LOSS: loss, PREDICTABLE: predictable, WORTH: worth_findings(worth)}
    shown = {title: {finding.key: finding.to_json() for finding in found} for title, found in parts.items()}
    return {
        "run_id": run.point.run_id,
        "split": split,
        "num_samples": len(judged.costs),
        "method": run.point.method,
        "network": None,
        "loss": None,
        "nu": None,
        "recentre": False,
        "verdict": verdict_of({finding.key: finding for finding in loss}, predictable, worth),
        "parts": shown,
        "importances": worth.to_json(),
        "bound_curve": [],
        "notes": notes_of(judged, worth),
    }


def loss_findings(judged: Judged, seed: int) -> list[Quantity]:
    """The run's deferral loss as the oracle's plus what each shortcoming adds. The parts add up to the run's loss."""
    costs, rejector = judged.costs, judged.rejector
    oracle, free = costs.min(axis=1), judged.chosen_costs(judged.predicted)
    guard, names = rejector.guard, judged.run.agents
    scores = rejector.scores_of(judged.table.split, judged.table.ids, judged.table.features.numpy())
    chosen = np.where(np.isfinite(costs), scores, -np.inf).argmax(axis=1)
    run_loss = costs[np.arange(len(costs)), chosen]
    halves, why_not = _halves(judged, seed)
    data = np.mean([judged.chosen_costs(half) for half in halves], axis=0) - free if halves else np.zeros(len(free))
    shown = data if data.mean() > 0 else np.zeros(len(free))
    total = np.where(np.isfinite(costs), rejector.total(judged.predicted), np.inf)
    found = [
        judged.mean_of("oracle", "oracle", oracle, "the cheapest agent of each sample, known only afterwards"),
        judged.mean_of(
            "not_in_features",
            "+ not known from the features",
            free - shown - oracle,
            "as far as trees and ridge can tell",
        ),
    ]
    if why_not:
        found.append(Quantity(key="data", title="+ too little data", value=None, says=why_not))
    else:
        says = "half the samples do as well"
        if data.mean() > 0:
            says = "what the second half of the fitted samples brought; as many again bring 0.5 to 0.7 of it"
        found.append(judged.mean_of("data", "+ too little data", shown, says))
    told = f"held-out gain over always {names[guard['fallback']]} {guard['gain']:+.4f} ± {guard['standard_error']:.4f}"
    says = f"off; {told}" if not guard["z"] else f"{'holds' if guard['holds'] else 'does not hold'}: {told}"
    found.append(judged.mean_of("guard", "+ the guard", run_loss - free, says))
    found.append(judged.mean_of("run", "= this rejector", run_loss, "as `l2d evaluate` gives it"))
    promise = total.min(axis=1)
    promised = judged.mean_of("promised", "its predictions promise", promise)
    away = paired_interval(promise - free, judged.groups)
    told = "too low" if away.high < 0 else "too high" if away.low > 0 else "calibrated, as far as can be told"
    says = f"without the guard it pays {free.mean():.4f}: where predictions decide, they are {told}"
    return [*found, replace(promised, says=says)]


def _halves(judged: Judged, seed: int) -> tuple[list[np.ndarray], str]:
    """Raw costs predicted by models of either half of the fitted samples; or why there are none."""
    held_out = judged.rejector.state["held_out.costs"]
    if held_out.size > MOST_FITTED:
        return [], f"{len(held_out):,} samples were fitted: halves of them would take minutes"
    streams = open_streams(judged.cache, SPLITS, column="features", failures=judged.rejector.config.failures)
    ids, x, raw, held = fitted_rows(streams, judged.rejector.config, judged.run.point.seed, None)
    raw = judged.run.point.raw_costs(torch.from_numpy(raw), judged.cache.record.tasks).numpy()
    raw = judged.rejector.as_predicted(raw)
    half, found = fold_of(ids, 2), []
    for number in (0, 1):
        rows = np.flatnonzero(half == number)
        names = [ids[row] for row in rows]
        model = fit_costs(x[rows], raw[rows], names, held=held[rows], seed=seed)
        table = judged.table
        if table.split not in FITTED_ON:
            found.append(model.predict(table.features.numpy()))
            continue
        unseen = model.predict_unseen(table.features.numpy(), table.ids)
        mine = fold_of(table.ids, 2) == number
        found.append(np.where(mine[:, None, None], unseen, model.predict(table.features.numpy())))
    return found, ""


def predictable_findings(judged: Judged) -> list[Quantity]:
    """Explained shares: of the differences between agents, which an allocation depends on, and of each agent's cost."""
    predicted, raw, means, names = judged.predicted, judged.raw, judged.model.mean, judged.run.agents
    found = []
    several = len(judged.tasks) > 1
    for task, share in zip(judged.tasks, of_differences(predicted, raw, means, judged.groups), strict=True):
        title = "differences between agents" + (f", {task}" if several else "")
        found.append(_share(f"differences/{task}", title, share, "all agents cost the same"))
    for agent, shares in enumerate(of_agents(predicted, raw, means, judged.groups)):
        for task, share in zip(judged.tasks, shares, strict=True):
            why = "it answers no sample here" if np.isnan(raw[:, agent]).all() else "its cost is always the same"
            title = names[agent] + (f", {task}" if several else "")
            found.append(_share(f"{names[agent]}/{task}", title, share, why))
    return found


def _share(key: str, title: str, share: Any, why: str) -> Quantity:
    if share is None:
        return Quantity(key=key, title=title, value=None, says=why)
    says = (
        "no better than the mean" if share.low <= 0 <= share.high else "worse than the mean" if share.high < 0 else ""
    )
    return Quantity(key=key, title=title, value=share.value, interval=(share.low, share.high), says=says)


def worth_findings(worth: Importances) -> list[Quantity]:
    """Columns, the most important first."""
    found = []
    for column in worth.columns:
        told = column.explained
        says = f"takes {told.value:.4f} [{told.low:.4f}, {told.high:.4f}] off the explained share of differences"
        if not (column.loss.value or told.value):
            says = "the models do not look at it"
        interval = (column.loss.low, column.loss.high)
        found.append(
            Quantity(key=column.column, title=column.column, value=column.loss.value, interval=interval, says=says)
        )
    return found


def verdict_of(loss: dict[str, Quantity], predictable: list[Quantity], worth: Importances) -> str:
    """In a few sentences: what is left to gain, how far it can be predicted, and from which columns."""
    total = (loss["run"].value or 0.0) - (loss["oracle"].value or 0.0)
    if total <= 0:
        return "The rejector is as good as the oracle: nothing is left to gain."
    causes = [loss[key] for key in ("not_in_features", "data", "guard") if loss[key].value is not None]
    largest = max(causes, key=lambda cause: cause.value or 0.0)
    text = (
        f"The rejector is {total:.4f} above the oracle. The largest part, {largest.value:.4f}, {ADVICE[largest.key]}."
    )
    known = [
        f for f in predictable if f.interval is not None and f.interval[0] > 0 and f.key.startswith("differences/")
    ]
    if not known:
        return f"{text} The differences between agents cannot be predicted from these features, as far as can be told."
    shares = ", ".join(f"{100 * (f.value or 0):.0f} % ({f.key.partition('/')[2]})" for f in known)
    telling = [c.column for c in worth.columns if c.loss.low > 0][:5]
    told = f" Worth most: {', '.join(telling)}." if telling else " No column alone is worth anything for certain."
    return f"{text} Predictions explain {shares} of the differences between agents.{told}"


ADVICE = {
    "not_in_features": "cannot be known from these features: another rejector would not gain it, other features or "
    "better agents may",
    "data": "is lost because samples are few: more of them would help",
    "guard": "is lost to the guard: choosing did not pay on the fitted samples, but it would have here (--guard 0 "
    "switches the guard off)",
}


def notes_of(judged: Judged, worth: Importances) -> list[str]:
    """What the figures rest on."""
    notes = [
        f"Columns are permuted {worth.repeats} times among {worth.samples:,} samples; the guard is off. Intervals are "
        "of new samples, for these models. Two columns that say the same may each be worth little.",
        "The paper's theorems are about its surrogate: for them, take a run of multi-task.",
    ]
    notes += answering_in_words(judged.rejector.about.get("answering"))
    if worth.left_out:
        notes.append(f"{worth.left_out:,} columns that the trees look at least were not permuted, to save time.")
    if np.isinf(judged.costs).any():
        share = float(np.isinf(judged.costs).any(axis=1).mean())
        notes.append(f"On {100 * share:.1f} % of samples an agent is unavailable: figures are over the others there.")
    return notes
