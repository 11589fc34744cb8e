"""Why the model costs what it costs: its heads, its representation, or that tasks share one (paper, section 4.3).

With ``E(g)`` the expected cost of the model's own answers (Propositions 4.7, 4.9 and 4.10):

* ``Delta_heads = E(g) - E_min(w)``: what better heads on its frozen representation would save;
* ``Delta_repr = E_min(w) - E^B(G)``: what a better representation for the same kind of model would save;
* ``Delta_MTL = E^B(G) - E_sep``: what separate models, one a task, would save; below 0, sharing helps.

Infima over classes are estimated by the best member found: candidates are fitted on the training split and chosen on
the validation split, and the model as it is stands among them. So a gap is a lower estimate of what could be saved, and
on other samples than validation's it can come out slightly below 0.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from l2d.data.cache import schema
from l2d.data.cache.integrity import REBUILD_HINT
from l2d.data.cache.reader import CostCache
from l2d.data.errors import CorruptPart
from l2d.data.measures import brier, smooth_l1
from l2d.data.networks.two_head import TwoHeadNetwork, fit_two_head
from l2d.rejector.grid import GridPoint
from l2d.rejector.rows.table import CostTable

SEEDS = (1, 2)  # of the networks that are tried
#: What a model that says nothing of its training is compared with: the defaults of the agent kind ``two_head``.
DEFAULTS = {
    "hidden": [64, 32], "dropout": 0.3, "epochs": 60, "batch_size": 256, "lr": 2e-3, "weight_decay": 1e-2,
    "weight_reg": 1.0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EncoderSplit:
    """Cost of each sample's answer by each model, float64 (n,); None where it could not be had.

    Attributes:
        as_is: the model of the cache.
        heads: the best heads found on its frozen representation, itself included.
        best: the best model found of its kind.
        separate: the best models found that share nothing, one a task.
        chosen: which candidate each of these is.
        reasons: quantity (``heads``, ``best``, ``separate``) -> why it is None.
        constant_target: whether all samples have the same target, so that none of this says anything.
    """

    as_is: np.ndarray
    heads: np.ndarray | None = None
    best: np.ndarray | None = None
    separate: np.ndarray | None = None
    chosen: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    constant_target: bool = False


def answer_costs(
    settings: dict, tasks: list[str], targets: dict, prob: np.ndarray | None, value: np.ndarray | None
) -> np.ndarray:
    """Raw costs of one agent's answers under a cache's cost table, float32 (n, 1, tasks).

    Args:
        settings: ``CacheRecord.costs``.
        tasks: out of ``cla`` and ``reg``.
        targets: ``target_cla`` (n,), ``target_reg`` (n,).
        prob: class probabilities (n, classes).
        value: of the regression target, (n,).
    """
    columns = []
    for task in tasks:
        kind = settings[task]["kind"]
        if task == "cla":
            target = targets["target_cla"]
            if kind == "zero_one":
                cost = prob.argmax(axis=1) != target
            elif kind == "absolute":
                cost = np.clip(1.0 - prob[np.arange(len(target)), target], 0, 1)
            else:
                cost = brier(prob.astype(np.float64), target)
        else:
            error = np.abs(value.astype(np.float64) - targets["target_reg"].astype(np.float64))
            if kind == "smooth_l1":
                cost = smooth_l1(error, settings[task].get("beta", 1.0))
            else:
                cost = error if kind == "absolute" else error**2
            clamp = settings[task].get("clamp")
            cost = cost if clamp is None else np.minimum(cost, clamp)
        columns.append(np.asarray(cost, dtype=np.float32))
    return np.stack(columns, axis=1)[:, None, :]


def _distinct(tables: dict[str, CostTable], target: str) -> np.ndarray:
    return np.unique(np.concatenate([np.asarray(table.targets[target]) for table in tables.values()]))


def encoder_split(cache: CostCache, tables: dict[str, CostTable], split: str, point: GridPoint) -> EncoderSplit:
    """Refit the model's heads, and models like it, and let all answer a split.

    Args:
        tables: ``train``, ``validation`` and ``split``, with features (not images) and targets.
        split: to report on.
        point: gives ``lambda``, or the cost expression.
    """
    model, tasks = cache.agents[0], cache.record.tasks
    free = replace(point, query_costs=(0.0,), paid=None)

    def own(name: str) -> torch.Tensor:
        """What the model's answers cost, as tasks, (n,)."""
        return free.total_costs(tables[name].raw[:, :1, : len(tasks)].float(), tasks)[:, 0]

    as_is = own(split).double().numpy()
    everything = ("heads", "best", "separate")
    if not set(tasks) <= {"cla", "reg"} or not {f"target_{task}" for task in tasks} <= set(tables["train"].targets):
        reason = "the answers are boxes: their heads cannot be fitted on one row of features a sample"
        return EncoderSplit(as_is=as_is, reasons=dict.fromkeys(everything, reason))
    if all(len(_distinct(tables, f"target_{task}")) == 1 for task in tasks):
        reason = "the target is the same for all samples"
        return EncoderSplit(as_is=as_is, reasons=dict.fromkeys(everything, reason), constant_target=True)
    if not tables["train"].features.shape[1]:
        reason = "the cache holds no features"
        return EncoderSplit(as_is=as_is, reasons=dict.fromkeys(everything, reason))

    shown = cache.record.inputs["features"].get("agent") == model.name
    network = None if shown else frozen_network(cache)
    reasons: dict[str, str] = {}
    judge = _Judge(cache, tables, split, free)
    candidates = {"as it is": {name: own(name) for name in judge.names}}
    refitted = None
    if shown or network is not None:
        represented = {
            name: table.features.numpy() if network is None else _represent(network, table.features)
            for name, table in tables.items()
        }
        refitted = judge.costs_of(_refitted_heads(represented, judge))
        candidates["heads refitted"] = refitted
    else:
        reasons["heads"] = (
            f"the cache holds neither weights nor features of {model.name!r} (kind {model.kind}), so what its "
            "representation is stays unknown; the gap to the best model found is heads and representation together"
        )
    chosen: dict[str, str] = {}
    heads = None
    if refitted is not None:
        chosen["heads"] = judge.best_of(candidates)
        heads = candidates[chosen["heads"]][split]
    best = separate = None
    if shown:
        reason = (
            f"the cache holds what {model.name!r} shows of itself, not the input that another model would start from"
        )
        reasons |= {"best": reason, "separate": reason}
    else:
        known = model.fingerprint if model.kind == "two_head" else {}
        settings = {name: known.get(name, default) for name, default in DEFAULTS.items()}
        for seed in SEEDS:
            answers = judge.fit(tasks, settings, seed)
            if answers is not None:
                candidates[f"trained again, seed {seed}"] = judge.costs_of(answers)
        chosen["best"] = judge.best_of(candidates)
        best = candidates[chosen["best"]][split]
        separate, reason = _separate(judge, tasks, settings, chosen)
        if separate is None:
            reasons["separate"] = reason
    found = {"heads": heads, "best": best, "separate": separate}
    arrays = {name: None if value is None else np.asarray(value, np.float64) for name, value in found.items()}
    return EncoderSplit(as_is=as_is, chosen=chosen, reasons=reasons, **arrays)


def _separate(judge: _Judge, tasks: list[str], settings: dict, chosen: dict) -> tuple[np.ndarray | None, str]:
    """Cost of each sample by models that share nothing; or None, and why."""
    if len(tasks) < 2:
        return None, f"there is one task, {tasks[0]!r}: nothing is shared"
    answers = {}
    for task in tasks:
        tried = {f"seed {seed}": judge.fit([task], settings, seed) for seed in SEEDS}
        tried = {name: found for name, found in tried.items() if found is not None}
        if not tried:
            return None, f"every network for {task!r} diverged"
        chosen[f"separate {task}"] = min(tried, key=lambda key: judge.task_cost(task, tried[key], "validation"))
        answers[task] = tried[chosen[f"separate {task}"]]
    return judge.costs_of(_joined(answers))[judge.split], ""


def frozen_network(cache: CostCache) -> TwoHeadNetwork | None:
    """The model's network, where it is of kind ``two_head`` and its weights are in the cache.

    Raises:
        CorruptPart: the weights are not those that were frozen.
    """
    model = cache.agents[0]
    file, digest = cache.file(schema.frozen_file(cache.path, model.name)), model.fingerprint.get("frozen")
    if model.kind != "two_head" or digest is None or not file.is_file():
        return None
    from safetensors.torch import load

    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest()[:16] != digest:
        raise CorruptPart("is not what the agent froze", where=file, hint=REBUILD_HINT)
    state = load(content)
    order = sorted(int(name.split(".")[1]) for name in state if name.startswith("encoder.") and name.endswith(".bias"))
    sizes = [len(state[f"encoder.{position}.bias"]) for position in order]
    classes = len(state["class_head.bias"]) if "class_head.bias" in state else 0
    network = TwoHeadNetwork(len(state["mean"]), sizes, classes, "value_head.bias" in state, dropout=0.0)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def _represent(network: TwoHeadNetwork, features: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return network.represent(features).numpy()


#: Answers by split: class probabilities (n, classes) or None, values (n,) or None.
_Answers = dict[str, tuple[np.ndarray | None, np.ndarray | None]]


class _Judge:
    """What answers cost, and which is best on validation."""

    def __init__(self, cache: CostCache, tables: dict[str, CostTable], split: str, point: GridPoint):
        self.record, self.tables, self.point, self.split = cache.record, tables, point, split
        self.names = list(dict.fromkeys(["validation", split]))

    def costs_of(self, answers: _Answers) -> dict[str, np.ndarray]:
        """Total cost of answers, by split."""
        found = {}
        for name in self.names:
            raw = answer_costs(self.record.costs, self.record.tasks, self.tables[name].targets, *answers[name])
            found[name] = self.point.total_costs(torch.from_numpy(raw), self.record.tasks)[:, 0].numpy()
        return found

    def task_cost(self, task: str, answers: _Answers, name: str) -> float:
        """Mean raw cost of one task's answers on a split."""
        return float(answer_costs(self.record.costs, [task], self.tables[name].targets, *answers[name]).mean())

    def best_of(self, candidates: dict[str, dict[str, np.ndarray]]) -> str:
        """The candidate of the lowest mean cost on validation, over the rows where the model has an answer."""
        known = np.isfinite(np.asarray(candidates["as it is"]["validation"]))
        return min(candidates, key=lambda name: float(np.asarray(candidates[name]["validation"])[known].mean()))

    def fit(self, tasks: list[str], settings: dict, seed: int) -> _Answers | None:
        """What a network of its own for these tasks answers; None where training diverged."""
        parts = [self.tables["train"], self.tables["validation"]]
        features = np.concatenate([part.features.numpy() for part in parts])
        targets = {
            task: np.concatenate([part.targets[f"target_{task}"] for part in parts]) if task in tasks else None
            for task in ("cla", "reg")
        }
        first, rows = len(parts[0]), np.arange(len(features))
        classes = len(self.record.classes) if "cla" in tasks else 0
        network = fit_two_head(
            lambda: TwoHeadNetwork(
                features.shape[1], settings["hidden"], classes, "reg" in tasks, settings["dropout"]
            ),
            features, targets["cla"], targets["reg"], rows[:first], rows[first:],
            **{name: settings[name] for name in ("epochs", "batch_size", "lr", "weight_decay", "weight_reg")},
            seed=seed,
        )  # fmt: skip
        if network is None:
            return None
        with torch.inference_mode():
            found = {name: network(self.tables[name].features) for name in self.names}
        return {
            name: (
                None if scores is None else scores.double().softmax(1).numpy(),
                None if value is None else value.numpy(),
            )
            for name, (scores, value) in found.items()
        }


def _joined(answers: dict[str, _Answers]) -> _Answers:
    return {
        name: (
            answers["cla"][name][0] if "cla" in answers else None,
            answers["reg"][name][1] if "reg" in answers else None,
        )
        for name in next(iter(answers.values()))
    }


def _refitted_heads(represented: dict[str, np.ndarray], judge: _Judge) -> _Answers:
    """The best linear head of each task on a frozen representation: fitted on train, chosen on validation."""
    from sklearn.linear_model import HuberRegressor, LogisticRegression, Ridge
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(represented["train"])
    inputs = {name: scaler.transform(represented[name]) for name in ("train", *judge.names)}
    targets, classes = judge.tables["train"].targets, len(judge.record.classes)
    best: dict[str, _Answers] = {}
    for task in judge.record.tasks:
        if task == "cla":
            makers = [LogisticRegression(C=c, max_iter=1000) for c in (0.001, 0.01, 0.1, 1.0)]
        else:
            makers = [Ridge(a) for a in (1.0, 100.0)] + [HuberRegressor(alpha=a, max_iter=500) for a in (1e-4, 1.0)]
        target = targets[f"target_{task}"]
        tried = []
        for maker in makers:
            if task == "cla" and len(np.unique(target)) < 2:
                prob = np.eye(classes)[target[0]]
                tried.append({name: (np.tile(prob, (len(inputs[name]), 1)), None) for name in judge.names})
                break
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # one that has not converged loses on validation
                head = maker.fit(inputs["train"], target)
            tried.append({name: _head_answers(head, inputs[name], classes) for name in judge.names})
        best[task] = min(tried, key=lambda answers, task=task: judge.task_cost(task, answers, "validation"))
    return _joined(best)


def _head_answers(head, inputs: np.ndarray, classes: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    if not hasattr(head, "classes_"):
        return None, head.predict(inputs)
    prob = np.zeros((len(inputs), classes))
    prob[:, head.classes_] = head.predict_proba(inputs)  # classes that training never saw stay at 0
    return prob, None
