"""Evaluations as tables: the paper's form (task metrics, share per agent, mean and deviation), and regrets."""

from __future__ import annotations

from typing import Any

import numpy as np

from l2d.rejector.evaluation.causal import causal_table
from l2d.rejector.evaluation.comparisons import BOUNDS
from l2d.rejector.evaluation.evaluation import Evaluation, mean_std
from l2d.rejector.evaluation.findings import findings
from l2d.rejector.evaluation.robust import robust_table
from l2d.rejector.evaluation.router_metrics import router_tables
from l2d.rejector.evaluation.settings import (
    BASELINE_TITLES,
    MOST_SHOWN,
    baseline_title,
    difference_text,
    leading_agents,
    method_title,
    rejector_title,
    setting_text,
    settings_of,
    shown_differences,
    signed,
    varying_settings,
    verdict,
)

__all__ = [
    "comparison_table",
    "findings",
    "flat_rows",
    "headline",
    "method_title",
    "paper_table",
    "regret_table",
    "settings_of",
    "share_table",
    "tables",
]

SETTINGS_ACROSS = 6  # that have a column each in a table of shares
FEW_SETTINGS = 3  # up to here every baseline gets a row
METRIC_TITLES = {
    "answered": ("answered %", 100.0, 1),
    "map": ("mAP %", 100.0, 1),
    "map_50": ("mAP50 %", 100.0, 1),
    "accuracy": ("Acc %", 100.0, 1),
    "balanced_accuracy": ("bal. Acc %", 100.0, 1),
    "brier": ("Brier", 1.0, 4),
    "auroc": ("AUROC", 1.0, 3),
    "average_precision": ("AP", 1.0, 3),
    "smooth_l1": ("sL1", 1.0, 3),
    "mean_absolute_error": ("MAE", 1.0, 3),
    "score": ("score", 1.0, 4),
    "f1": ("F1 %", 100.0, 1),
    "exact_match": ("EM %", 100.0, 1),
}


def paper_table(evaluations: list[Evaluation], *, whole: bool = False) -> list[dict | None]:
    """Rows in the form of the paper's Table 1, then (after a None) each agent alone and the other baselines.

    Beside each rejector stands the best constant agent at its own ``beta`` and ``lambda``. Of many agents only those
    that matter get a row, see :func:`l2d.rejector.evaluation.settings.leading_agents`, and shares have
    :func:`share_table`, unless the ``whole`` table is asked for.

    Baselines are shown at the first setting's ``beta`` and ``lambda``; random allocation and the oracle at every one,
    but not in a long sweep, which has them in :func:`comparison_table`.
    """
    groups = settings_of(evaluations)
    shared = [members for members in groups if not members[0].run.rejector.has_classifier] or groups
    first, own = shared[0][0].result, [members for members in groups if members[0].run.rejector.has_classifier]
    present = {name for members in groups for member in members for name in member.result["metrics"]}
    metrics = [name for name in METRIC_TITLES if name in present]
    varying, agents = varying_settings(groups), list(first["allocation"])
    leading = agents if whole else leading_agents(groups)
    with_shares = len(leading) == len(agents)
    constants = {members[0].result["best_constant"] for members in groups}
    rows: list[dict | None] = []
    for members in groups:
        summary = members[0].result["over_seeds"]
        row = {"rejector": rejector_title(members)}
        row |= {name: setting_text(members[0], name) for name in varying}
        for name in metrics:
            title, scale, digits = METRIC_TITLES[name]
            has = name in summary["metrics"]
            row[title] = _mean_std(summary["metrics"][name], scale, digits, len(members)) if has else ""
            row |= _map_interval(members[0].result, first) if name == "map" and len(members) == 1 else {}
        row["deferral loss"] = _mean_std(summary["deferral_loss"], 1.0, 4, len(members))
        row["best constant"] = _number(float(np.mean([member.result["best_constant_loss"] for member in members])))
        if len(constants) > 1:
            row["which"] = members[0].result["best_constant"]
        shares = summary["allocation"].items() if with_shares else ()
        seeds = len(members) if len(groups) <= FEW_SETTINGS else 1  # deviations of shares would make a sweep too wide
        row |= {f"{agent} %": _mean_std(share, 100.0, 1, seeds) for agent, share in shares}
        rows.append(row)

    rows.append(None)
    blank = dict.fromkeys([name for row in rows[:-1] for name in row], "")
    at_first = {name: setting_text(shared[0][0], name) for name in varying}
    rows[:-1] = [blank | row for row in rows[:-1]]
    for name, alone in first["agents"].items():
        if alone["role"] == "agent" and name not in leading:
            continue
        title = f"{name} alone" if alone["role"] == "agent" else f"{name} (reference)"
        title += f", else {alone['stand_in']}" if "stand_in" in alone else ""
        row = {**blank, "rejector": title + (" (best constant agent)" if name == first["best_constant"] else "")}
        row |= _map_interval(alone, first) if any("mAP 95 %" in one for one in rows if one) else {}
        row |= at_first | _metric_cells(alone, metrics) | {"deferral loss": _number(alone["mean_cost"])}
        if alone["role"] == "agent" and with_shares:
            row |= {f"{agent} %": "100" if agent == name else "0" for agent in agents}
        rows.append(row)
    for members in own:
        rows.append(blank | _own_classifier_row(members, metrics, varying))
    for baseline in ("averaging", "confidence"):
        if f"{baseline}_loss" not in first or first.get(baseline, {}).get("same_as"):
            continue
        row = {
            **blank,
            "rejector": BASELINE_TITLES[baseline],
            **at_first,
            "deferral loss": _number(first[f"{baseline}_loss"]),
        }
        if baseline == "averaging":
            row |= _metric_cells(first["averaging"]["metrics"], metrics)
        elif with_shares:
            kept, expert = first["confidence"]["coverage"], first["confidence"]["expert"]
            row |= _share_cells({**dict.fromkeys(agents, 0.0), agents[0]: kept, expert: 1 - kept})
        rows.append(row)
    if len(groups) > FEW_SETTINGS:
        return rows
    for members in groups:
        summary = members[0].result["over_seeds"]
        row = {**blank, "rejector": f"random, shares of {members[0].result['method']}"}
        row |= {name: setting_text(members[0], name) for name in varying}
        row |= {"deferral loss": f"{summary['random_same_shares_loss']['mean']:.4f}"}
        shares = {agent: share["mean"] for agent, share in summary["allocation"].items()}
        rows.append(row | (_share_cells(shares) if with_shares else {}))
    bounds: dict[tuple, dict] = {}
    for members in groups:
        result, shown = members[0].result, {name: setting_text(members[0], name) for name in varying}
        row = {**blank, "rejector": "oracle (lower bound)"} | shown
        row |= _metric_cells(result["oracle"]["metrics"], metrics)
        row |= {"deferral loss": f"{result['oracle_loss']:.4f}"}
        row |= _share_cells(result["oracle"]["allocation"]) if with_shares else {}
        bounds.setdefault((members[0].run.point.beta_text, str(members[0].run.point.weights)), row)
    return [*rows, *bounds.values()]


def share_table(evaluations: list[Evaluation]) -> list[dict]:
    """Shares of the agents that matter, a row an agent, where there are too many for :func:`paper_table`; else empty.

    A column a setting, or, of more than :data:`SETTINGS_ACROSS`, the lowest and the highest share of all; the last row
    is the sum of the other agents.
    """
    groups = settings_of(evaluations)
    leading, shares = leading_agents(groups), [members[0].result["over_seeds"]["allocation"] for members in groups]
    if len(leading) == len(shares[0]):
        return []
    varying, rows = varying_settings(groups), []
    others = f"{len(shares[0]) - len(leading)} others"
    for name in [*leading, others]:
        summed = {name} if name in leading else shares[0].keys() - set(leading)
        found = [100 * sum(share[agent]["mean"] for agent in summed) for share in shares]
        row = {"agent": name}
        if len(groups) > SETTINGS_ACROSS:
            row |= {"lowest %": f"{min(found):.1f}", "highest %": f"{max(found):.1f}"}
        else:
            for members, value in zip(groups, found, strict=True):
                setting = ", ".join(f"{title} {setting_text(members[0], title)}" for title in varying)
                several = len({group[0].result["method"] for group in groups}) > 1
                method = members[0].result["method"] if several or not setting else ""
                row[", ".join(filter(None, (method, setting))) + " %"] = f"{value:.1f}"
        rows.append(row)
    return rows


def tables(evaluations: list[Evaluation]) -> list[tuple[str, list[dict | None]]]:
    """What a terminal shows of the evaluations of one cache: titles and rows."""
    shares, agents = share_table(evaluations), len(evaluations[0].result["allocation"])
    title = f"Share of the samples: the {MOST_SHOWN} of {agents} agents that matter; --format csv has all"
    differences = "Difference in deferral loss (below 0: the rejector is better)"
    found = [(headline(evaluations), paper_table(evaluations)), (title, shares)]
    found += router_tables(evaluations)
    if all("causal" in evaluation.result for evaluation in evaluations):
        found.append(("What deferring saves (above 0: it pays)", causal_table(evaluations)))
    if all("robust" in evaluation.result for evaluation in evaluations):
        moved = evaluations[0].result["robust"]
        title = f"Attacks that move each feature by at most {moved['radius']:g} standard deviations"
        found.append((f"{title} ({moved['samples']} samples)", robust_table(evaluations)))
    return [*(table for table in found if table[1]), (differences, comparison_table(evaluations))]


def _own_classifier_row(members: list[Evaluation], metrics: list[str], varying: list[str]) -> dict:
    """The classifier that a method has trained, when it answers everything: means over seeds."""
    name = next(iter(members[0].result["allocation"]))
    alone = [member.result["agents"][name] for member in members]
    row = {"rejector": f"{name} of {members[0].result['method']} alone"}
    row |= {setting: setting_text(members[0], setting) for setting in varying}
    for metric in metrics:
        if metric in alone[0]:
            title, scale, digits = METRIC_TITLES[metric]
            row[title] = _mean_std(mean_std([values[metric] for values in alone]), scale, digits, len(members))
    return row | {"deferral loss": _number(float(np.mean([values["mean_cost"] for values in alone])))}


def regret_table(evaluations: list[Evaluation]) -> list[dict]:
    """Difference in deferral loss against every baseline, with its 95 % interval; below 0 the rejector is better."""
    groups = settings_of(evaluations)
    varying = varying_settings(groups)
    rows = []
    for members in groups:
        result = members[0].result
        for baseline, difference in shown_differences(result).items():
            value, low, high = (signed(difference[name], 4) for name in ("value", "low", "high"))
            rows.append(
                {
                    "rejector": method_title(result["method"]),
                    **{name: setting_text(members[0], name) for name in varying},
                    "against": baseline_title(baseline, result),
                    "difference": value,
                    "95 % interval": f"[{low}, {high}]",
                    "p (Holm)": "" if baseline in BOUNDS else _p_text(difference["p_holm"]),
                    "": "" if baseline in BOUNDS else verdict(result, difference),
                }
            )
    return rows


def comparison_table(evaluations: list[Evaluation]) -> list[dict]:
    """What a terminal shows of :func:`regret_table`: all of it for a few settings, of a sweep a row a setting.

    In a sweep a cell is the difference with its interval, and ``~`` where no difference is shown or ``!`` where the
    rejector is worse, see :func:`l2d.rejector.evaluation.settings.verdict`.
    """
    groups = settings_of(evaluations)
    if len(groups) <= FEW_SETTINGS:
        rows, above = regret_table(evaluations), {}
        for row in rows:  # a setting is named once
            same = {name: row[name] for name in list(row)[: list(row).index("against")]}
            if same == above:
                row |= dict.fromkeys(same, "")
            above = same
        return rows
    columns = ("best_constant", "random_same_shares", "confidence", "oracle")
    present = [name for name in columns if any(name in members[0].result["regret"] for members in groups)]
    rows = []
    for members in groups:
        result, cells = members[0].result, {}
        for baseline in present:
            difference = result["over_seeds"]["regret"].get(baseline)
            text = ""
            if difference is not None:
                said = "better" if baseline in BOUNDS else verdict(result, difference)
                mark = {"better": "", "worse": " !"}.get(said, " ~")
                text = difference_text(difference, 3) + mark
            cells[BASELINE_TITLES[baseline]] = text
        setting = {name: setting_text(members[0], name) for name in varying_settings(groups)}
        rows.append({"rejector": method_title(result["method"]), **setting, **cells})
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
        for baseline, interval in result["regret"].items():
            simple |= {f"regret_{baseline}{end}": interval[key] for end, key in _ENDS.items() if key in interval}
        rows.append(simple)
    return rows


_ENDS = {"": "value", "_low": "low", "_high": "high", "_p": "p"}


def headline(evaluations: list[Evaluation]) -> str:
    """One line above a table: what was evaluated on what."""
    result = evaluations[0].result
    seeds = len({evaluation.run.point.seed for evaluation in evaluations})
    parts = [f"{evaluations[0].cache.record.name}: {result['split']} split, {result['num_samples']:,} samples"]
    parts.append(f"{seeds} seeds, mean ± std" if seeds > 1 else "1 seed")
    varying = varying_settings(settings_of(evaluations))
    for name in ("lambda", "beta", "nu"):
        if name not in varying:
            title = "cost" if name == "lambda" and evaluations[0].run.point.cost else name
            texts = filter(None, (setting_text(evaluation, name) for evaluation in evaluations))
            parts += [f"{title} {text}" for text in list(texts)[:1]]  # none of methods without nu
    unit = evaluations[0].cache.record.unit_reg
    if unit and "smooth_l1" in result["metrics"]:
        parts.append(f"sL1 and MAE of {unit}")
    if result["num_groups"] is not None:
        parts.append(f"intervals over {result['num_groups']:,} groups")
    return ", ".join(parts)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _share_cells(shares: dict[str, float]) -> dict[str, str]:
    return {f"{agent} %": f"{100 * share:.1f}" for agent, share in shares.items()}


def _map_interval(result: dict[str, Any], first: dict[str, Any]) -> dict[str, str]:
    """The interval of the mAP over images, where the first rejector has one."""
    if "map_interval" not in first:
        return {}
    found = result.get("map_interval")
    return {"mAP 95 %": f"[{100 * found[0]:.1f}, {100 * found[1]:.1f}]" if found else ""}


def _metric_cells(values: dict[str, float], metrics: list[str]) -> dict[str, str]:
    cells = {}
    for name in metrics:
        title, scale, digits = METRIC_TITLES[name]
        cells[title] = f"{values[name] * scale:.{digits}f}" if name in values else ""
    return cells


def _mean_std(value: dict[str, float], scale: float, digits: int, seeds: int) -> str:
    mean = f"{value['mean'] * scale:.{digits}f}"
    return mean if seeds == 1 else f"{mean} ± {value['std'] * scale:.{digits}f}"
