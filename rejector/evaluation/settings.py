"""How evaluations are put in order and named: settings, methods, agents that matter, baselines, verdicts."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

from l2d.rejector.evaluation.comparisons import BOUNDS
from l2d.rejector.evaluation.evaluation import Evaluation, by_setting
from l2d.rejector.methods import METHODS

METHOD_OF_PAPER = "multi-task"
MOST_SHOWN = 5  # agents that a table names
FEWEST_SAMPLES = 30  # (or groups) below it a bootstrap interval says little
LEVEL = 0.05  # of p-values after Holm's adjustment
BASELINE_TITLES = {
    "best_constant": "best constant agent",
    "best_agent": "best agent in hindsight",
    "random_same_shares": "random, same shares",
    "confidence": "confidence threshold",
    "confidence_same_coverage": "confidence, same coverage",
    "averaging": "average of all agents",
    "oracle": "oracle",
}


def settings_of(evaluations: list[Evaluation]) -> list[list[Evaluation]]:
    """Evaluations grouped by setting (everything but the seed), multi-task last, in order of beta and nu."""
    groups = by_setting(evaluations)

    def key(members: list[Evaluation]) -> tuple:
        point = members[0].run.point
        return (
            str(members[0].run.cache_path),
            point.method == METHOD_OF_PAPER,
            point.method,
            str(point.weights),
            point.nu,
        )

    return sorted(groups.values(), key=lambda members: (*key(members), *members[0].run.point.charge_order))


def method_title(method: str) -> str:
    """A method's name with its source."""
    return method if method == METHOD_OF_PAPER else f"{method} ({METHODS[method].source})"


def rejector_title(members: list[Evaluation]) -> str:
    """The method of a setting with its source, and what one has to know of its figures."""
    run = members[0].run
    notes = [method_title(run.point.method)]
    if run.rejector.has_classifier:
        notes.append("own classifier")
    method = METHODS[run.point.method]
    if not method.pays_queries and run.point.charges:
        notes.append("trained without query costs")
    elif run.point.paid and (method.classes_only or run.rejector.has_classifier):
        notes.append("trained without prices")
    return ", ".join(notes)


def varying_settings(groups: list[list[Evaluation]]) -> list[str]:
    """Names of what differs between settings: ``lambda``, ``beta``, ``nu`` or a training option."""
    names = ("agents", "lambda", "beta", "nu", *asdict(groups[0][0].run.rejector.config))
    without_nu = [members for members in groups if not METHODS[members[0].run.point.method].has_nu]
    if without_nu:
        theirs = {setting_text(members[0], "nu") for members in groups if members not in without_nu}
        names = names if len(theirs) > 1 else tuple(name for name in names if name != "nu")
    return [name for name in names if len({setting_text(members[0], name) for members in groups}) > 1]


def setting_text(evaluation: Evaluation, name: str) -> str:
    """Value of one of :func:`varying_settings`."""
    point, config = evaluation.run.point, evaluation.run.rejector.config
    texts = {
        "agents": ",".join(evaluation.run.agents),
        "lambda": point.cost or str(point.weights),
        "beta": point.beta_text,
        "nu": f"{point.nu:g}" if METHODS[point.method].has_nu else "",
    }
    return texts[name] if name in texts else str(getattr(config, name))


def verdict(result: dict, difference: dict) -> str:
    """Whether a rejector is better or worse, and what to say where samples are few.

    ``better`` needs a ``p_holm`` below 5 %. ``worse`` is said sooner, where the interval of this difference alone lies
    above 0: what speaks against a rejector needs no correction for how often it was tried.
    """
    units = result["num_groups"] or result["num_samples"]
    if units < FEWEST_SAMPLES:
        return f"too few {'samples' if result['num_groups'] is None else 'groups'} ({units})"
    if difference["value"] > 0 and (difference["low"] > 0 or difference["p_holm"] < LEVEL):
        return "worse"
    return "better" if difference["value"] < 0 and difference["p_holm"] < LEVEL else "no difference shown"


def p_text(p: float) -> str:
    """A p-value in words: ``p < 0.001`` or ``p = 0.347``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def corrected(p: float) -> str:
    """An adjusted p-value in words."""
    return f"{p_text(p)} after Holm's correction"


def leading_agents(groups: list[list[Evaluation]], most: int = MOST_SHOWN) -> list[str]:
    """The few agents that matter, in the cache's order; all of them where there are no more than ``most``.

    The best constant agents, then those that get the largest share of the samples in any of the settings.
    """
    results = [members[0].result for members in groups]
    names = list(results[0]["allocation"])
    if len(names) <= most:
        return names
    constants = Counter(result["best_constant"] for result in results)
    share = {name: max(r["over_seeds"]["allocation"][name]["mean"] for r in results) for name in names}
    order = sorted(names, key=lambda name: (-constants[name], -share[name], names.index(name)))
    return [name for name in names if name in order[:most]]


def baseline_title(baseline: str, result: dict) -> str:
    """A baseline's name for tables."""
    if baseline in result["agents"]:
        return f"{baseline} (reference)"
    title = BASELINE_TITLES.get(baseline) or method_title(baseline)
    return f"{title} ({result[baseline]})" if baseline in ("best_constant", "best_agent") else title


def shown_differences(result: dict) -> dict[str, dict]:
    """Differences worth a row, references by their names.

    Without the best agent in hindsight where it is the one chosen, and without the computed average of all agents where
    a reference is just that.
    """
    regret, agents = dict(result["over_seeds"]["regret"]), result["over_seeds"]["agents"]
    if result["best_agent"] == result["best_constant"]:
        regret.pop("best_agent", None)
    if result.get("averaging", {}).get("same_as"):
        regret.pop("averaging", None)
    references = {name: value for name, value in agents.items() if result["agents"][name]["role"] == "reference"}
    order = [name for name in BASELINE_TITLES if name in regret and name not in BOUNDS]
    found = {name: regret[name] for name in order} | references
    found |= {name: value for name, value in regret.items() if name not in BASELINE_TITLES}  # other methods
    return found | {name: regret[name] for name in BOUNDS if name in regret}


def signed(value: float, digits: int) -> str:
    """A difference with its sign; what rounds to 0 is +0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def difference_text(difference: dict, digits: int = 4) -> str:
    """A difference and its interval: ``-0.0014 [-0.0033, +0.0006]``."""
    value, low, high = (signed(difference[name], digits) for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
