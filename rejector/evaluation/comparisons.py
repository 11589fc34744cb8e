"""Differences between runs and what they are measured against: intervals, p-values, Holm over the sweep.

Two sources of error, kept apart: intervals resample samples (or groups) with the seeds of a setting averaged, so they
speak of new samples for these trained rejectors; ``std_over_seeds`` is how much another seed changes the figure.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import numpy as np

from l2d.rejector.evaluation.intervals import paired_intervals
from l2d.rejector.evaluation.multiple_testing import holm

if TYPE_CHECKING:
    from l2d.rejector.evaluation.evaluate import Evaluation

#: Rivals that no rejector can beat: there is nothing to test.
BOUNDS = ("oracle",)
_AGENT, _METHOD = "agent ", "method "


def compare(evaluations: list[Evaluation]) -> None:
    """Add ``regret`` to the result of each run, and ``over_seeds`` of its setting.

    Args:
        evaluations: on the same samples.
    """
    groups = evaluations[0].measured.groups
    runs = iter(paired_intervals((e.losses - rival for e in evaluations for rival in e.rivals.values()), groups))
    for evaluation in evaluations:
        regret = {rival: next(runs).to_json(test=rival not in BOUNDS) for rival in evaluation.rivals}
        evaluation.result["regret"] = regret

    settings = by_setting(evaluations)
    pairs = [(key, name, losses) for key in settings for name, losses in _opponents(key, settings).items()]
    differences = (mean_losses(settings[key]) - losses() for key, _, losses in pairs)
    found = paired_intervals(differences, groups)
    intervals = {(key, name): interval for (key, name, _), interval in zip(pairs, found, strict=True)}
    tests = {_test(key, name): interval.p for (key, name), interval in intervals.items() if name not in BOUNDS}
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))

    def described(key: tuple, name: str) -> dict[str, float]:
        values = intervals[key, name].to_json(test=name not in BOUNDS)
        return values if name in BOUNDS else {**values, "p_holm": adjusted[_test(key, name)]}

    own = paired_intervals((mean_losses(members) for members in settings.values()), groups)
    for (key, members), interval in zip(settings.items(), own, strict=True):
        summary = _over_seeds(members)
        summary["deferral_loss_interval"] = {"low": interval.low, "high": interval.high}
        summary["regret"] = {}
        for rival in members[0].rivals:
            spread = mean_std([float(e.losses.mean() - e.rivals[rival].mean()) for e in members])["std"]
            summary["regret"][rival] = described(key, _identity(members[0], rival)) | {"std_over_seeds": spread}
        names = [name for _, name in filter(lambda pair: pair[0] == key, intervals)]
        summary["regret"] |= {n.removeprefix(_METHOD): described(key, n) for n in names if n.startswith(_METHOD)}
        summary["agents"] = {n.removeprefix(_AGENT): described(key, n) for n in names if n.startswith(_AGENT)}
        for evaluation in evaluations:
            if setting_of(evaluation) == key:
                evaluation.result["over_seeds"] = summary


def mean_losses(members: list[Evaluation]) -> np.ndarray:
    """Deferral loss of each sample, the mean over seeds: float64 (n,)."""
    return np.mean([member.losses for member in members], axis=0)


def _opponents(key: tuple, settings: dict[tuple, list[Evaluation]]) -> dict[str, Callable[[], np.ndarray]]:
    """Everything a setting is compared with, once each: name -> its losses, the mean over seeds."""
    members = settings[key]
    found: dict[str, Callable[[], np.ndarray]] = {}
    for name, losses in members[0].opponents.alone.items():
        if np.isfinite(losses).all():
            found[_AGENT + name] = lambda name=name: _alone(members, name)
    for rival in members[0].rivals:
        found.setdefault(
            _identity(members[0], rival), lambda rival=rival: np.mean([e.rivals[rival] for e in members], axis=0)
        )
    method, *rest = key
    for (other, *other_rest), others in settings.items():
        if other != method and other_rest == rest:
            found[_METHOD + other] = lambda others=others: mean_losses(others)
    return found


def _alone(members: list[Evaluation], name: str) -> np.ndarray:
    """Losses of an agent alone, the mean over seeds: they differ where each run has a classifier of its own."""
    if members[0].run.rejector.has_classifier:
        return np.mean([member.opponents.alone[name] for member in members], axis=0)
    return members[0].opponents.alone[name]


def _identity(evaluation: Evaluation, rival: str) -> str:
    """Name of a rival among the opponents: a constant agent is that agent alone, however it was chosen."""
    return _AGENT + evaluation.result[rival] if rival in ("best_agent", "best_constant") else rival


def _test(key: tuple, name: str) -> Hashable:
    """What is tested: two methods against each other are one test."""
    if name.startswith(_METHOD):
        return frozenset((key[0], name.removeprefix(_METHOD))), key[1:]
    return key, name


def _over_seeds(members: list[Evaluation]) -> dict[str, Any]:
    """Means and deviations of the figures of single runs."""
    results = [member.result for member in members]
    first = results[0]
    names = [name for name in first["metrics"] if all(name in result["metrics"] for result in results)]
    return {
        "seeds": len(members),
        "deferral_loss": mean_std([result["deferral_loss"] for result in results]),
        "allocation": {
            agent: mean_std([result["allocation"][agent] for result in results]) for agent in first["allocation"]
        },
        "metrics": {name: mean_std([result["metrics"][name] for result in results]) for name in names},
        "random_same_shares_loss": mean_std([result["random_same_shares_loss"] for result in results]),
    }


def setting_of(evaluation: Evaluation) -> tuple:
    """What repetitions share: method, then everything else but the seed (lambda, beta, nu, cost, training, cache)."""
    run = evaluation.run
    return (*run.point.setting, run.rejector.config, run.cache_path, tuple(run.agents))


def by_setting(evaluations: list[Evaluation]) -> dict[tuple, list[Evaluation]]:
    """Evaluations by setting; a seed that was trained twice counts once."""
    settings: dict[tuple, dict[int, Evaluation]] = {}
    for evaluation in evaluations:
        settings.setdefault(setting_of(evaluation), {}).setdefault(evaluation.run.point.seed, evaluation)
    return {key: list(members.values()) for key, members in settings.items()}


def mean_std(values: list[float]) -> dict[str, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}
