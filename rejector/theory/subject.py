"""A run with everything that its diagnosis is taken from: expected costs, refits, and the model taken apart."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from l2d.data.cache.reader import CostCache
from l2d.data.errors import UsageError
from l2d.data.threads import one_thread
from l2d.rejector.losses import LOSSES, check_nu
from l2d.rejector.methods import METHODS
from l2d.rejector.rows.table import CostTable, load_tables
from l2d.rejector.runs.run import Run, open_cache
from l2d.rejector.settings import INPUT_OF
from l2d.rejector.theory.bayes import BayesRisk, ExpectedCosts, bayes_risk, expected_costs
from l2d.rejector.theory.encoder_split import EncoderSplit, encoder_split
from l2d.rejector.theory.refits import LongerFit, fitted_longer, missing_of, on_halves, with_weight_decay
from l2d.rejector.training.network import TrainedNetwork

FEWEST_ROWS = 10  # of each split


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A run with everything that its findings are taken from. Rows are those of the split where someone is available.

    Attributes:
        costs: total costs that the run is judged on, float64 (n, A), ``+inf`` where an agent is unavailable.
        trained: those it was trained on: its method's task weights, recentred if it says so.
        scores: of the run, float64 (n, A).
        expected: estimates of ``E[costs | x]``; ``trained_expected`` of ``E[trained | x]``.
        bayes: risks of the Bayes rejector of ``expected``; ``trained_bayes`` of the other, both judged on ``costs``.
        longer: the run fitted longer, or None; ``why_not`` says why.
        members: of the run's class, by name: the run ``as it is``, ``fitted longer``, with other weight decays.
        best: the member of the lowest deferral loss on the validation split, on the costs trained on.
        best_fit: the member of the lowest training loss there.
        halves: the run's settings trained on each half of its rows.
    """

    run: Run
    cache: CostCache
    split: str
    tables: dict[str, CostTable]
    left_out: int
    costs: np.ndarray
    trained: np.ndarray
    features: torch.Tensor
    scores: np.ndarray
    expected: ExpectedCosts
    trained_expected: np.ndarray
    bayes: BayesRisk
    trained_bayes: BayesRisk
    longer: LongerFit | None
    members: dict[str, TrainedNetwork]
    best: str
    best_fit: str
    halves: list[TrainedNetwork]
    model: EncoderSplit
    why_not: dict[str, str] = field(default_factory=dict)

    @property
    def single_task(self) -> bool:
        """Whether the run was trained on other costs than it is judged on, recentring aside."""
        return METHODS[self.run.point.method].task is not None

    def scores_of(self, rejector: TrainedNetwork) -> np.ndarray:
        """Scores on the rows, float64 (n, A)."""
        return rejector.scores(self.features.numpy()).astype(np.float64)

    def losses_of(self, rejector: TrainedNetwork) -> np.ndarray:
        """Deferral loss of each row under a rejector, (n,)."""
        return chosen_costs(self.scores_of(rejector), self.costs)


def chosen_costs(scores: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Cost of the available agent of the highest score, ties to the lowest index: (n, A), (n, A) -> (n,)."""
    chosen = np.where(np.isfinite(costs), scores, -np.inf).argmax(axis=1)
    return costs[np.arange(len(costs)), chosen]


def costs_judged_on(run: Run, raw: torch.Tensor, tasks: list[str]) -> np.ndarray:
    """Total costs (n, A) float64; ``+inf`` where an agent has no answer."""
    costs = run.point.total_costs(raw, tasks).double().numpy()
    return np.where(np.isnan(costs), np.inf, costs)


def costs_trained_on(run: Run, raw: torch.Tensor, tasks: list[str]) -> np.ndarray:
    """The costs in the run's training loss, likewise."""
    point = run.point
    costs = costs_judged_on(
        replace(
            run, rejector=replace(run.rejector, point=replace(point, weights=point.weights.trained_on(point.method)))
        ),
        raw,
        tasks,
    )
    if not run.rejector.config.recentre:
        return costs
    cheapest = costs.min(axis=1, keepdims=True)
    return costs - np.where(np.isfinite(cheapest), cheapest, 0.0)


@one_thread()  # fits here are small
def examine(run: Run, split: str = "test", *, device: str = "cpu", seed: int = 0) -> Subject:
    """Read a run's cache, estimate expected costs, and fit what it is compared with.

    Args:
        run: of one network.
        split: to judge on.
        device: that rejectors are trained on.
        seed: of folds, halves and signs.

    Raises:
        UsageError: the run is of another method, or a split has too few rows.
        FingerprintMismatch: the cache is no longer what the run was trained on.
    """
    rejector = run.rejector.as_a(TrainedNetwork)
    cache, config = open_cache(run), run.rejector.config
    tasks = cache.record.tasks
    names = list(dict.fromkeys(["train", "validation", split]))
    column = INPUT_OF[config.network]
    tables = load_tables(cache, tuple(names), column=column, predictions=True, failures=config.failures)
    if config.network == "image":  # what its body makes of images are the features, and the head is the rejector
        from l2d.rejector.training.images import TrainedImage  # brings torchvision

        whole = rejector.as_a(TrainedImage)
        tables = {name: whole.on_features(table) for name, table in tables.items()}
        rejector = whole.on_body()
        run = replace(run, rejector=rejector)
    judged = {name: costs_judged_on(run, tables[name].raw, tasks) for name in names}
    trained = {name: costs_trained_on(run, tables[name].raw, tasks) for name in names}
    usable = {name: np.isfinite(judged[name]).any(axis=1) for name in names}
    rows = torch.from_numpy(usable[split])
    if min(int(usable[name].sum()) for name in names) < FEWEST_ROWS:
        raise UsageError(
            f"too few samples to estimate anything: {', '.join(f'{n} {int(usable[n].sum())}' for n in names)}",
            where=cache.address,
            hint=f"each split needs {FEWEST_ROWS}",
        )

    features = torch.cat([tables[name].features for name in names]).numpy()
    stacked = np.concatenate([np.column_stack([judged[name], trained[name]]) for name in names])
    here = np.concatenate([np.full(len(tables[name]), name == split) for name in names])
    of_train = np.concatenate([np.full(len(tables[name]), name == "train") for name in names])
    known = np.concatenate([usable[name] for name in names])
    agents = judged[split].shape[1]
    same = np.array_equal(stacked[:, :agents], stacked[:, agents:])
    found = expected_costs(
        features[known], stacked[known][:, :agents] if same else stacked[known], fitted=of_train[known], seed=seed
    )
    estimates = found.costs[here[known]]
    costs = judged[split][usable[split]]
    both = estimates[:, :agents], estimates[:, :agents] if same else estimates[:, agents:]

    why_not: dict[str, str] = {}
    longer = None
    members = {"as it is": rejector}
    try:
        longer = fitted_longer(
            rejector, tables["train"].features[usable["train"]],
            torch.from_numpy(trained["train"][usable["train"]]), seed=seed,
        )  # fmt: skip
        members["fitted longer"] = longer.rejector
    except ValueError as error:
        why_not["longer"] = str(error)
    members |= with_weight_decay(rejector, tables["train"], tables["validation"], tasks, device=device)
    held_out = tables["validation"].features[usable["validation"]], trained["validation"][usable["validation"]]
    on_validation = {name: _validation_losses(member, *held_out) for name, member in members.items()}
    halves: list[TrainedNetwork] = []
    if len(tables["train"]) >= 2 * FEWEST_ROWS:
        halves = on_halves(rejector, tables["train"], tables["validation"], tasks, device=device, seed=seed)
    else:
        why_not["data"] = f"{len(tables['train'])} training samples cannot be halved"

    dense = tables
    if column != "features" and "features" in cache.record.inputs:
        dense = load_tables(cache, tuple(names), predictions=True, failures=config.failures)
    if column != "features" and "features" not in cache.record.inputs:
        reason = "the cache holds images alone, no features"
        as_is = judged[split][:, 0]
        model = EncoderSplit(as_is=as_is, reasons=dict.fromkeys(("heads", "best", "separate"), reason))
    else:
        model = encoder_split(cache, dense, split, run.point)
    selected = tables[split].features[rows]
    return Subject(
        run=run,
        cache=cache,
        split=split,
        tables=tables,
        left_out=int((~usable[split]).sum()),
        costs=costs,
        trained=trained[split][usable[split]],
        features=selected,
        scores=rejector.scores(selected.numpy()).astype(np.float64),
        expected=replace(found, costs=both[0], explained=found.explained[:agents]),
        trained_expected=both[1],
        bayes=bayes_risk(both[0], costs),
        trained_bayes=bayes_risk(both[1], costs),
        longer=longer,
        members=members,
        best=min(members, key=lambda name: on_validation[name][0]),
        best_fit=min(members, key=lambda name: on_validation[name][1]),
        halves=halves,
        model=model,
        why_not=why_not,
    )


def _validation_losses(rejector: TrainedNetwork, features: torch.Tensor, costs: np.ndarray) -> tuple[float, float]:
    """Mean deferral loss and mean training loss, of the agents available on each row."""
    scores, known = torch.from_numpy(rejector.scores(features.numpy())).double(), torch.from_numpy(costs)
    deferral = float(chosen_costs(scores.numpy(), costs).mean())
    nu = check_nu(rejector.point.nu, torch.float64) if rejector.config.loss == "surrogate" else None
    fit = LOSSES[rejector.config.loss](scores, known, nu, -1, missing_of(known))[0]
    return deferral, float(fit.mean())
