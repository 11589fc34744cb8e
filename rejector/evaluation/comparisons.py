"""Differences between runs and what they are measured against: intervals, p-values, Holm over the sweep.

Two sources of error, kept apart: intervals resample samples (or groups) with the seeds of a setting averaged, so they
speak of new samples for these trained rejectors; ``std_over_seeds`` is how much another seed changes the figure.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import numpy as np

from l2d.rejector.evaluation.evaluation import Evaluation, by_setting, mean_losses, mean_std, setting_of
from l2d.rejector.evaluation.intervals import holm, paired_intervals

#: Baselines that no rejector can beat: there is nothing to test.
BOUNDS = ("oracle",)
_AGENT, _METHOD = "agent ", "method "


def compare(evaluations: list[Evaluation]) -> list[dict[str, Any]]:
    """``regret`` of each run, and ``over_seeds`` of its setting: what is to be added to its result.

    Args:
        evaluations: on the same samples.
    """
    groups = evaluations[0].measured.groups
    runs = iter(paired_intervals((e.losses - other for e in evaluations for other in e.against.values()), groups))
    regrets = [{name: next(runs).to_json(test=name not in BOUNDS) for name in e.against} for e in evaluations]

    settings = by_setting(evaluations)
    pairs = [(key, name, losses) for key in settings for name, losses in _compared_with(key, settings).items()]
    differences = (mean_losses(settings[key]) - losses() for key, _, losses in pairs)
    found = paired_intervals(differences, groups)
    intervals = {(key, name): interval for (key, name, _), interval in zip(pairs, found, strict=True)}
    tests = {_test(key, name): interval.p for (key, name), interval in intervals.items() if name not in BOUNDS}
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))

    def described(key: tuple, name: str) -> dict[str, float]:
        values = intervals[key, name].to_json(test=name not in BOUNDS)
        return values if name in BOUNDS else {**values, "p_holm": adjusted[_test(key, name)]}

    names: dict[tuple, list[str]] = {}
    for key, name in intervals:
        names.setdefault(key, []).append(name)
    own = paired_intervals((mean_losses(members) for members in settings.values()), groups)
    summaries = {}
    for (key, members), interval in zip(settings.items(), own, strict=True):
        summary = _over_seeds(members)
        summary["deferral_loss_interval"] = {"low": interval.low, "high": interval.high}
        summary["regret"] = {}
        for baseline in members[0].against:
            spread = mean_std([float(e.losses.mean() - e.against[baseline].mean()) for e in members])["std"]
            told = described(key, _identity(members[0], baseline))
            summary["regret"][baseline] = told | {"std_over_seeds": spread}
        for prefix, part in ((_METHOD, summary["regret"]), (_AGENT, summary.setdefault("agents", {}))):
            part |= {n.removeprefix(prefix): described(key, n) for n in names[key] if n.startswith(prefix)}
        summaries[key] = summary
    return [
        {"regret": regret, "over_seeds": summaries[setting_of(e)]}
        for e, regret in zip(evaluations, regrets, strict=True)
    ]


def _compared_with(key: tuple, settings: dict[tuple, list[Evaluation]]) -> dict[str, Callable[[], np.ndarray]]:
    """Everything a setting is compared with, once each: name -> its losses, the mean over seeds."""
    members = settings[key]
    found: dict[str, Callable[[], np.ndarray]] = {}
    for name in members[0].baselines.alone:
        found[_AGENT + name] = partial(_alone, members, name)
    for baseline in members[0].against:
        found.setdefault(_identity(members[0], baseline), partial(_mean_against, members, baseline))
    method, *rest = key
    for (other, *other_rest), others in settings.items():
        if other != method and other_rest == rest:
            found[_METHOD + other] = partial(mean_losses, others)
    return found


def _mean_against(members: list[Evaluation], baseline: str) -> np.ndarray:
    """Losses of a baseline, the mean over seeds."""
    return np.mean([each.against[baseline] for each in members], axis=0)


def _alone(members: list[Evaluation], name: str) -> np.ndarray:
    """Losses of an agent alone, the mean over seeds: they differ where each run has a classifier of its own."""
    if members[0].run.rejector.has_classifier:
        return np.mean([member.baselines.alone[name] for member in members], axis=0)
    return members[0].baselines.alone[name]


def _identity(evaluation: Evaluation, baseline: str) -> str:
    """Under what name a baseline is tested: a constant agent is that agent alone, however it was chosen."""
    return _AGENT + evaluation.result[baseline] if baseline in ("best_agent", "best_constant") else baseline


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
