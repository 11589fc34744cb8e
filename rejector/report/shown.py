"""Which settings a report draws together: those compared at one ``beta``, the one looked at closely, sweeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from l2d.rejector.evaluation.evaluation import Evaluation, setting_of
from l2d.rejector.evaluation.settings import METHOD_OF_PAPER, settings_of
from l2d.rejector.evaluation.summary import METRIC_TITLES
from l2d.rejector.report.cast import Cast, cast_of

Group = list[Evaluation]  # the seeds of one setting
FEWEST_BETAS = 3  # a sweep is drawn as a curve from this number on
METRIC_NAMES = {
    "map": "mAP (%)", "map_50": "mAP50 (%)", "accuracy": "accuracy (%)", "balanced_accuracy": "balanced accuracy (%)",
    "brier": "Brier score", "auroc": "AUROC", "average_precision": "average precision", "smooth_l1": "smooth L1",
    "mean_absolute_error": "mean absolute error",
    "score": "mean score", "f1": "F1 of texts (%)", "exact_match": "exact matches (%)",
    "answered": "answered (%)", "task_loss": "loss without query costs",
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """The settings of one cache, sorted for drawing.

    Attributes:
        groups: all settings.
        compared: settings at one ``beta``: where most methods (or ``nu`` …) were trained.
        focus: the one of these that the page looks at closely.
        cast: which agents have a name and a colour.
        swept: for each series with :data:`FEWEST_BETAS` values of ``beta`` or more, its settings in order of ``beta``;
            the series of ``focus`` first.
    """

    groups: list[Group]
    compared: list[Group]
    focus: Group
    swept: list[list[Group]]
    cast: Cast


def lay_out(evaluations: list[Evaluation]) -> Layout:
    """Sort the evaluations of one cache.

    The focus is a multi-task rejector if there is one, of several the one that spreads its samples most evenly over the
    agents. That asks nothing about how well it does, so looking at it closely is no picking of winners.
    """
    groups = settings_of(evaluations)
    at_beta: dict[Any, list[Group]] = {}
    series: dict[tuple, list[Group]] = {}
    for members in groups:
        at_beta.setdefault(members[0].run.point.beta, []).append(members)
        series.setdefault(_series_key(members), []).append(members)
    compared = max(at_beta.values(), key=lambda some: (len(some), max(map(_spread, some))))
    focus = max(compared, key=lambda members: (members[0].run.point.method == METHOD_OF_PAPER, _spread(members)))
    swept = [some for some in series.values() if len({m[0].run.point.beta for m in some}) >= FEWEST_BETAS]
    swept.sort(
        key=lambda some: (_series_key(some[0]) != _series_key(focus), some[0][0].run.point.method != "multi-task")
    )
    return Layout(groups, compared, focus, swept, cast_of(groups))


def _series_key(members: Group) -> tuple:
    method, weights, _, *rest = setting_of(members[0])
    return method, weights, *rest


def _spread(members: Group) -> float:
    """Entropy of the allocation shares."""
    shares = np.array([share["mean"] for share in members[0].result["over_seeds"]["allocation"].values()])
    return float(-(shares * np.log(np.maximum(shares, 1e-12))).sum())


def labels_of(groups: list[Group], *, with_beta: bool = False) -> list[str]:
    """A short name for each setting: its method, and what else tells it from the others."""
    texts = []
    for members in groups:
        point, config = members[0].run.point, members[0].run.rejector.config
        known = {"λ": str(point.cost or point.weights), "ν": f"{point.nu:g}", **vars(config)}
        texts.append(known | ({"β": point.beta_text} if with_beta else {}))
    varying = [name for name in texts[0] if len({str(text[name]) for text in texts}) > 1]
    methods = [members[0].run.point.method for members in groups]
    same = len(set(methods)) == 1 and varying
    labels = []
    for method, text in zip(methods, texts, strict=True):
        parts = [*([] if same else [method]), *(f"{name} {text[name]}" for name in varying)]
        labels.append(", ".join(parts))
    return labels


def main_metrics(members: Group) -> list[str]:
    """One metric a task: of classes and values the one that is closest to the cost."""
    metrics, costs = members[0].result["metrics"], members[0].cache.record.costs
    if "map" in metrics:
        return ["map"]
    found = []
    by_class = ["brier", "accuracy"] if costs.get("cla", {}).get("kind") == "brier" else ["accuracy", "brier"]
    by_text = ["exact_match", "f1"] if costs.get("text", {}).get("kind") == "exact_match" else ["f1", "exact_match"]
    for wanted in (by_class, ["smooth_l1", "mean_absolute_error", "score"], by_text):
        found += [name for name in wanted if name in metrics][:1]
    return found


def scaled(name: str, value: float) -> float:
    """A metric in the unit it is shown in: percent or as it is."""
    return value * (METRIC_TITLES[name][1] if name in METRIC_TITLES else 1.0)


def units_of(members: Group) -> str:
    """What the samples are called."""
    return "images" if "map" in members[0].cache.record.tasks else "samples"
