"""What routing needs of a run. One of the default method is opened without torch, whose import takes seconds."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from l2d.data.cache.integrity import sha256_of
from l2d.data.cache.schema import text_file
from l2d.data.errors import CorruptPart, UsageError
from l2d.rejector.best.scorer import PAID_MEAN, Scorer, model_of, weights_of
from l2d.rejector.calibration import MAKE, Calibration, read_calibration
from l2d.rejector.methods import GRID, METHODS
from l2d.rejector.rows.unlabelled import InputRecord
from l2d.rejector.runs.files import RUN_FILE, WEIGHTS_FILE, read_facts
from l2d.rejector.scoring import ExactLayers, layers_of

if TYPE_CHECKING:
    from l2d.rejector.runs.elsewhere import Beta

THREADS = min(8, os.cpu_count() or 1)
ROWS_AT_ONCE = 65_536  # that are scored
ACTIVATIONS_AT_ONCE = 1 << 24  # of the layer of a network that has most, about

#: Features of one input, float32 (width,) -> scores float32 (agents,), and predicted prices in money or None. The
#: scores are the bits that a batch gives the same row.
One = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]

#: Scores float32 (n, agents), and which agents may be chosen, bool (n, agents), at least one -> agent indices (n,).
Choose = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Served:
    """A run that routes inputs.

    Attributes:
        looks_at: what it looks at, and how that is made.
        seen: what its training samples were like, see :mod:`l2d.rejector.rows.foreign`.
        failures: how it was told to treat samples on which an agent failed.
        mean: of training's features, float32 (width,).
        scores: features, float32 (n, width) -> float32 (n, agents).
        classes: the same -> indices of the rejector's own classes, int32 (n,); None without a classifier of its own.
        choose: the allocation of scores.
        follows_scores: whether that is the agent of the highest score at the run's own setting.
        setting: another setting than that of its files, for people; see :class:`l2d.rejector.route.RouteReport`.
        one: scores of one input.
        facts: of ``run.json``.
        digest: SHA-256 of ``run.json``, which has those of the other files: the run, and no other; of both where there
            is a calibration or another setting.
        costs: whether scores are negated predicted total costs.
        guard: what the guard says; None without one.
        deviation: of training's features, (width,).
        calibration: that corrects its predicted costs; None without one.
    """

    run_id: str
    agents: list[str]
    looks_at: InputRecord
    seen: dict | None
    failures: str
    mean: np.ndarray
    scores: Callable[[np.ndarray], np.ndarray]
    classes: Callable[[np.ndarray], np.ndarray] | None
    choose: Choose
    follows_scores: bool = True
    setting: dict[str, Any] | None = None
    one: One
    facts: dict[str, Any]
    digest: str
    costs: bool = False
    guard: dict[str, Any] | None = None
    deviation: np.ndarray | None = None
    calibration: Calibration | None = None


def highest(scores: np.ndarray, available: np.ndarray | None = None) -> np.ndarray:
    """The rule of :func:`l2d.rejector.losses.allocate` in numpy: of equals the first."""
    return (scores if available is None else np.where(available, scores, -np.inf)).argmax(axis=1)


def open_served(
    path: Path,
    *,
    policy: Path | None = None,
    beta: Beta | None = None,
    weights: dict[str, float] | None = None,
    calibration: Path | None = None,
) -> Served:
    """A run ready to route.

    Args:
        path: the run's folder.
        policy: a file that ``l2d policy`` saved: allocates by predicted cost plus price.
        beta, weights: another setting than the run's own.
        calibration: a file that ``l2d recalibrate`` wrote: corrects the predicted costs.

    Raises:
        CorruptPart: the run is damaged.
        UsageError: it cannot route, or not at that setting; the policy or the calibration is another run's, or the
            calibration is out of date.
    """
    if calibration is not None:
        if policy is not None or beta is not None or weights is not None:
            raise UsageError(
                "--calibration with --policy, --beta or --lambda: it corrects the costs at the run's own setting",
                where=calibration,
                hint="give one of these",
            )
        found = read_calibration(calibration)
        found.check(where=calibration)
        return calibrated(open_served(path), found, calibration)
    if policy is None and beta is None and weights is None:
        facts = read_facts(path)
        if facts["point"]["method"] == "best" and "input" in facts:
            return _of_best(path, facts)
        if _is_layers(facts) and "input" in facts:
            return _of_layers(path, facts)
    return _of_any(path, policy, beta, weights)


def calibrated(run: Served, calibration: Calibration, where: Path | None = None) -> Served:
    """A run whose predicted costs are corrected.

    Raises:
        UsageError: the calibration is of another run, or the run's scores are not costs.
    """
    if not run.costs:
        raise UsageError(
            f"the scores of run {run.run_id} are not predicted costs, so there is nothing to correct",
            where=where,
            hint="take a run of method best",
        )
    if run.digest != calibration.run:
        raise UsageError(
            f"this calibration is of run {calibration.run_id} ({calibration.run[:12]}), not of {run.run_id} "
            f"({run.digest[:12]})",
            where=where,
            hint=MAKE,
        )
    agents, scores, one = run.agents, run.scores, run.one

    def corrected(features: np.ndarray) -> np.ndarray:
        return calibration.correct(scores(features), agents)

    def corrected_one(row: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        found, paid = one(row)
        return calibration.correct(found, agents), paid

    guard = run.guard
    if guard is not None and guard["holds"]:  # it sends every input to one agent: the best of the corrected means
        guard = {**guard, "fallback": int(corrected(np.zeros((1, len(run.mean)), np.float32))[0].argmax())}
    return replace(
        run,
        scores=corrected,
        one=corrected_one,
        guard=guard,
        calibration=calibration,
        digest=calibration.digest(agents),
    )


class _Late:
    """Scores of one input by something that is made when the first is scored: routing a file has no use for it."""

    def __init__(self, make: Callable[[], One]):
        self._make = make

    @cached_property
    def _made(self) -> One:
        return self._make()

    def __call__(self, row: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return self._made(row)


def _of_best(path: Path, facts: dict) -> Served:
    from safetensors.numpy import load

    from l2d.rejector.best.one_row import OneRow

    try:
        point, arrays = facts["point"], load((path / WEIGHTS_FILE).read_bytes())
        costs = [1.0] if point["cost"] is not None else list(point["weights"].values())
        costs += [] if point.get("paid") is None else [point["paid"]]
        query_costs = np.array(point["query_costs"], dtype=np.float64)
        cost_weights = weights_of(np.array(costs, dtype=np.float64), len(query_costs), arrays)
        scorer = Scorer(model_of(arrays), cost_weights, query_costs, facts["guard"])
        scorer.check(len(arrays["feature_mean"]))
        return Served(
            run_id=point["run_id"],
            agents=facts["agents"],
            looks_at=InputRecord(**facts["input"], text=text_file(path, facts["input"]["made"])),
            seen=facts.get("seen"),
            failures=facts["training"]["failures"],
            mean=arrays["feature_mean"],
            scores=lambda features: scorer(features, threads=THREADS),
            classes=None,
            choose=highest,
            one=_Late(lambda: OneRow(scorer, arrays.get(PAID_MEAN))),
            facts=facts,
            digest=digest_of(path),
            costs=True,
            guard=facts["guard"],
            deviation=arrays["feature_std"],
        )
    except Exception as error:  # another version's fields or shapes raise all kinds
        raise CorruptPart(f"is no run of this version: {error!r}", where=path, hint="train it again") from error


def _is_layers(facts: dict) -> bool:
    """Whether a run is one network of plain layers, whose scores take no torch."""
    method, training = METHODS.get(facts["point"]["method"]), facts["training"]
    return method is not None and method.trainer is GRID and training.get("network") in ("linear", "mlp")


def _of_layers(path: Path, facts: dict) -> Served:
    """Standardised in the bits of the mean, as :class:`l2d.rejector.training.network.TrainedNetwork` does."""
    from safetensors.numpy import load

    try:
        arrays = load((path / WEIGHTS_FILE).read_bytes())
        mean, std = arrays["feature_mean"], arrays["feature_std"]
        layers = ExactLayers(layers_of({k: v for k, v in arrays.items() if not k.startswith("feature_")}))

        def scores(features: np.ndarray) -> np.ndarray:
            return layers(((features.astype(mean.dtype) - mean) / std).astype(np.float32))

        if scores(np.zeros((1, len(mean)), np.float32)).shape != (1, len(facts["agents"])):
            raise ValueError("the network has other outputs than there are agents")
        return Served(
            run_id=facts["point"]["run_id"],
            agents=facts["agents"],
            looks_at=InputRecord(**facts["input"], text=text_file(path, facts["input"]["made"])),
            seen=facts.get("seen"),
            failures=facts["training"]["failures"],
            mean=mean,
            scores=scores,
            classes=None,
            choose=highest,
            one=lambda row: (scores(row[None])[0], None),
            facts=facts,
            digest=digest_of(path),
            deviation=std,
        )
    except Exception as error:  # another version's fields or shapes raise all kinds
        raise CorruptPart(f"is no run of this version: {error!r}", where=path, hint="train it again") from error


def digest_of(path: Path) -> str:
    """Of a run: SHA-256 of its ``run.json``."""
    return hashlib.sha256((path / RUN_FILE).read_bytes()).hexdigest()


def _of_any(path: Path, policy: Path | None, beta: Beta | None, weights: dict[str, float] | None) -> Served:
    from l2d.rejector.policies.price_rule import read_policy
    from l2d.rejector.runs.elsewhere import at_setting, guard_in_words
    from l2d.rejector.runs.run import input_of, load_run

    opened = load_run(path)
    opened.rejector.check_routable()
    opened = at_setting(opened, beta, weights)
    rule = None if policy is None else read_policy(policy, weights=sha256_of(opened.path / WEIGHTS_FILE))
    if rule is not None and opened.rejector.any_setting:
        opened = replace(opened, rejector=opened.rejector.judged_at(rule.point_of(opened.point)), moved=True)
    rejector = opened.rejector if rule is None else opened.rejector.unguarded()
    setting = None
    rows_at_once = min(ROWS_AT_ONCE, max(1, ACTIVATIONS_AT_ONCE // rejector.activations))
    if opened.moved and rule is None:
        setting = {
            "query_costs": dict(zip(opened.agents, opened.point.query_costs, strict=True)),
            "lambda": dict(opened.point.weights.by_task),
            "guard": guard_in_words(opened),
        }

    facts, digest = read_facts(path), digest_of(path)
    own, costs = facts["point"], opened.point
    here = {"query_costs": list(costs.query_costs), "weights": dict(costs.weights.by_task), "paid": costs.paid}
    if any(own.get(name) != value for name, value in here.items()):  # decisions at another setting are not the run's
        facts = {**facts, "point": {**own, **here}}
        digest = hashlib.sha256(json.dumps([digest, here]).encode()).hexdigest()

    def parts(features: np.ndarray) -> list[np.ndarray]:
        return [features[start : start + rows_at_once] for start in range(0, len(features), rows_at_once)]

    def choose(scores: np.ndarray, available: np.ndarray) -> np.ndarray:
        return highest(scores, available) if rule is None else rule.allocate(scores, available)

    def classes(features: np.ndarray) -> np.ndarray:
        chances = [rejector.probabilities(part) for part in parts(features)]
        return np.concatenate([found for found in chances if found is not None]).argmax(axis=1)

    def scores(features: np.ndarray) -> np.ndarray:
        return np.concatenate([rejector.scores(part) for part in parts(features)])

    return Served(
        run_id=opened.point.run_id,
        agents=opened.agents,
        looks_at=input_of(opened),
        seen=opened.seen,
        failures=opened.rejector.config.failures,
        mean=np.asarray(rejector.state["feature_mean"]),
        scores=scores,
        classes=classes if rejector.has_classifier else None,
        choose=choose,
        follows_scores=rule is None and not opened.moved,
        setting=setting,
        one=lambda row: (scores(row[None])[0], None),
        facts=facts,
        digest=digest,
        costs=METHODS[opened.point.method].scores == "costs",
        guard=rejector.guard,
        deviation=np.asarray(rejector.state["feature_std"]) if "feature_std" in rejector.state else None,
    )
