"""Evaluations as tables: the paper's form (task metrics, share per agent, mean and deviation), and regrets."""

from __future__ import annotations

from dataclasses import asdict

from .costs import METHOD_SOURCES
from .evaluation import Evaluation, by_setting

FEWEST_SAMPLES = 30  # below it a bootstrap interval says little
METRIC_TITLES = {
    "answered": ("answered %", 100.0, 1),
    "map": ("mAP %", 100.0, 1),
    "map_50": ("mAP50 %", 100.0, 1),
    "accuracy": ("Acc %", 100.0, 1),
    "brier": ("Brier", 1.0, 4),
    "auroc": ("AUROC", 1.0, 3),
    "smooth_l1": ("sL1", 1.0, 3),
    "mean_absolute_error": ("MAE", 1.0, 3),
}
RIVAL_TITLES = {"best_agent": "best constant agent", "random_same_shares": "random, same shares", "oracle": "oracle"}


def settings_of(evaluations: list[Evaluation]) -> list[list[Evaluation]]:
    """Evaluations grouped by setting (everything but the seed), multi-task last, in order of beta and nu."""
    groups = by_setting(evaluations)

    def key(members: list[Evaluation]) -> tuple:
        point = members[0].run.point
        return (
            str(members[0].run.cache_path),
            point.method == "multi-task",
            point.method,
            str(point.weights),
            point.nu,
        )

    return sorted(groups.values(), key=lambda members: (*key(members), sum(members[0].run.point.query_costs)))


def paper_table(evaluations: list[Evaluation]) -> list[dict | None]:
    """Rows in the form of the paper's Table 1, then (after a None) each agent alone and the bounds.

    Agents alone are shown at the first setting's ``beta`` and ``lambda``.
    """
    groups = settings_of(evaluations)
    first = groups[0][0].result
    present = {name for members in groups for member in members for name in member.result["metrics"]}
    metrics = [name for name in METRIC_TITLES if name in present]
    varying = _varying(groups)
    rows: list[dict | None] = []
    for members in groups:
        result, summary = members[0].result, members[0].result["over_seeds"]
        row = {"rejector": method_title(result["method"])}
        row |= {name: _setting_text(members[0], name) for name in varying}
        for name in metrics:
            title, scale, digits = METRIC_TITLES[name]
            has = name in summary["metrics"]
            row[title] = _mean_std(summary["metrics"][name], scale, digits, len(members)) if has else ""
        row["deferral loss"] = _mean_std(summary["deferral_loss"], 1.0, 4, len(members))
        for agent, share in summary["allocation"].items():
            row[f"{agent} %"] = _mean_std(share, 100.0, 1, len(members))
        rows.append(row)

    rows.append(None)
    blank = dict.fromkeys(rows[0], "")
    at_first = {name: _setting_text(groups[0][0], name) for name in varying}
    agents = list(first["allocation"])
    for name, alone in first["agents"].items():
        title = f"{name} alone" if alone["role"] == "agent" else f"{name} (reference)"
        row = {**blank, "rejector": title + (" (best constant agent)" if name == first["best_agent"] else "")}
        row |= at_first | _metric_cells(alone, metrics) | {"deferral loss": f"{alone['mean_cost']:.4f}"}
        if alone["role"] == "agent":
            row |= {f"{agent} %": "100" if agent == name else "0" for agent in agents}
        rows.append(row)
    for members in groups:
        summary = members[0].result["over_seeds"]
        row = {**blank, "rejector": f"random, shares of {method_title(members[0].result['method'])}"}
        row |= {name: _setting_text(members[0], name) for name in varying}
        row |= {"deferral loss": f"{summary['random_same_shares_loss']['mean']:.4f}"}
        row |= {f"{agent} %": f"{100 * share['mean']:.1f}" for agent, share in summary["allocation"].items()}
        rows.append(row)
    bounds: dict[tuple, dict] = {}
    for members in groups:
        result, shown = members[0].result, {name: _setting_text(members[0], name) for name in varying}
        row = {**blank, "rejector": "oracle (lower bound)"} | shown
        row |= _metric_cells(result["oracle"]["metrics"], metrics)
        row |= {"deferral loss": f"{result['oracle_loss']:.4f}"}
        row |= {f"{agent} %": f"{100 * share:.1f}" for agent, share in result["oracle"]["allocation"].items()}
        bounds.setdefault((members[0].run.point.beta_text, str(members[0].run.point.weights)), row)
    return [*rows, *bounds.values()]


def regret_table(evaluations: list[Evaluation]) -> list[dict]:
    """Difference in deferral loss against every rival, with its 95 % interval; below 0 the rejector is better."""
    groups = settings_of(evaluations)
    varying = _varying(groups)
    rows = []
    for members in groups:
        result = members[0].result
        for rival, interval in result["over_seeds"]["regret"].items():
            title = RIVAL_TITLES.get(rival) or method_title(rival)
            if rival == "best_agent":
                title += f" ({result['best_agent']})"
            low, high = interval["low"], interval["high"]
            verdict = "better" if high < 0 else "worse" if low > 0 else "no difference shown"
            if result["num_samples"] < FEWEST_SAMPLES:
                verdict = f"too few samples ({result['num_samples']})"
            rows.append(
                {
                    "rejector": method_title(result["method"]),
                    **{name: _setting_text(members[0], name) for name in varying},
                    "against": title,
                    "difference": f"{interval['value']:+.4f}",
                    "95 % interval": f"[{low:+.4f}, {high:+.4f}]",
                    "": "" if rival == "oracle" else verdict,
                }
            )
    return rows


def flat_rows(evaluations: list[Evaluation]) -> list[dict]:
    """One row a run with every figure in a column of its own, for csv and Parquet."""
    rows = []
    for evaluation in evaluations:
        result = evaluation.result
        simple = {name: value for name, value in result.items() if not isinstance(value, dict)}
        simple |= {f"lambda_{task}": weight for task, weight in result["lambda"].items()}
        simple["beta"] = evaluation.run.point.beta_text
        simple |= {f"share_{agent}": share for agent, share in result["allocation"].items()}
        simple |= result["metrics"]
        for rival, interval in result["regret"].items():
            simple |= {f"regret_{rival}{end}": interval[key] for end, key in _ENDS.items()}
        rows.append(simple)
    return rows


_ENDS = {"": "value", "_low": "low", "_high": "high"}


def headline(evaluations: list[Evaluation]) -> str:
    """One line above a table: what was evaluated on what."""
    result = evaluations[0].result
    seeds = len({evaluation.run.point.seed for evaluation in evaluations})
    parts = [f"{evaluations[0].cache.record.name}: {result['split']} split, {result['num_samples']:,} samples"]
    parts.append(f"{seeds} seeds, mean ± std" if seeds > 1 else "1 seed")
    varying = _varying(settings_of(evaluations))
    for name in ("lambda", "beta", "nu"):
        if name not in varying:
            title = "cost" if name == "lambda" and evaluations[0].run.point.cost else name
            parts.append(f"{title} {_setting_text(evaluations[0], name)}")
    unit = evaluations[0].cache.record.unit_reg
    if unit and "smooth_l1" in result["metrics"]:
        parts.append(f"sL1 and MAE of {unit}")
    return ", ".join(parts)


def method_title(method: str) -> str:
    """A method's name with its source."""
    source = METHOD_SOURCES.get(method)
    return method if source is None or method == "multi-task" else f"{method} ({source})"


def _varying(groups: list[list[Evaluation]]) -> list[str]:
    names = ("lambda", "beta", "nu", *asdict(groups[0][0].run.rejector.config))
    return [name for name in names if len({_setting_text(members[0], name) for members in groups}) > 1]


def _setting_text(evaluation: Evaluation, name: str) -> str:
    point, config = evaluation.run.point, evaluation.run.rejector.config
    texts = {"lambda": point.cost or str(point.weights), "beta": point.beta_text, "nu": f"{point.nu:g}"}
    return texts[name] if name in texts else str(getattr(config, name))


def _metric_cells(values: dict[str, float], metrics: list[str]) -> dict[str, str]:
    cells = {}
    for name in metrics:
        title, scale, digits = METRIC_TITLES[name]
        cells[title] = f"{values[name] * scale:.{digits}f}" if name in values else ""
    return cells


def _mean_std(value: dict[str, float], scale: float, digits: int, seeds: int) -> str:
    mean = f"{value['mean'] * scale:.{digits}f}"
    return mean if seeds == 1 else f"{mean} ± {value['std'] * scale:.{digits}f}"
