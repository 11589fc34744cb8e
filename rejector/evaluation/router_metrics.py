"""The figures that benchmarks of routers publish, by their names and definitions.

- RouterBench (Hu et al. 2024, section 3): AIQ, the mean quality of the non-decreasing convex hull over a range of
  costs; its *zero router* is the hull of the single models. See :mod:`l2d.rejector.evaluation.curves`.
- RouteLLM (Ong et al., ICLR 2025, section 3): of a weak and a strong model, the performance gap recovered
  ``PGR = (q - q_weak) / (q_strong - q_weak)``; APGR is its mean over all shares of calls to the strong model, and
  CPT(x) the smallest share that recovers x.
- RouterArena (Lu et al. 2025, section 4): the Arena score, of accuracy ``A`` and US dollars for 1,000 queries ``c``:
  ``(1 + b) A C / (b A + C)`` with ``C = (log2 200 - log2 c) / (log2 200 - log2 0.0044)`` and ``b = 0.1``.
- LLMRouterBench (Li et al. 2026): Gain@R and Gain@B, the accuracy relative to a model drawn at random and to the best
  single one, less 1; Gap@O, by how much it is below the oracle's, relative to that; PerfGain, Gain@B of the best of a
  router's settings; CostSave, what the cheapest setting that is no worse than the best single model saves of its cost.

Quality is a mean over the evaluated samples: the accuracy, or the mean score.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from l2d.rejector.evaluation.baselines import Baselines
from l2d.rejector.evaluation.cost_quality import mean_price, prices_of
from l2d.rejector.evaluation.curves import convex_hull, expected_in_order, mean_quality
from l2d.rejector.evaluation.evaluation import Evaluation, by_setting
from l2d.rejector.evaluation.measured import Measured

#: Qualities that these figures are of: shares from 0 to 1, more is better.
QUALITIES = ("accuracy", "score")
ARENA_BETA, ARENA_MOST, ARENA_LEAST = 0.1, 200.0, 0.0044  # dollars for 1,000 queries
RECOVERED = (0.2, 0.5, 0.8)


def arena_score(quality: float, dollars_per_1000: float) -> float | None:
    """RouterArena's score; None where nothing is paid, of which the logarithm is not defined."""
    if dollars_per_1000 <= 0:
        return None
    span = np.log2(ARENA_MOST) - np.log2(ARENA_LEAST)
    cheapness = (np.log2(ARENA_MOST) - np.log2(dollars_per_1000)) / span
    below = ARENA_BETA * quality + cheapness
    return float((1 + ARENA_BETA) * quality * cheapness / below) if below else 0.0


def recovered_gap(margin: np.ndarray, weak: np.ndarray, strong: np.ndarray) -> np.ndarray:
    """PGR at each share of calls to the strong model, ``0/n, 1/n …, 1``: (n + 1,).

    The samples of the largest margin are called first; tied ones in no order, so that risks are expectations.

    Args:
        margin: the strong model's score less the weak one's, (n,).
        weak, strong: quality of each sample, (n,), the strong model's mean being higher.
    """
    change = expected_in_order(margin, strong - weak)
    return np.concatenate([[0.0], np.cumsum(change)]) / (strong - weak).sum()


def average_recovered(recovered: np.ndarray) -> float:
    """APGR: the mean of PGR over all shares of calls, by the trapezoidal rule."""
    return float(np.trapezoid(recovered) / (len(recovered) - 1))


def calls_for(recovered: np.ndarray, wanted: float) -> float:
    """CPT: the smallest share of calls to the strong model at which so much of the gap is recovered."""
    return float(np.argmax(recovered >= wanted - 1e-12) / (len(recovered) - 1))


def qualities(measured: Measured, baselines: Baselines, metric: str) -> np.ndarray:
    """Quality of each sample under each constant policy, (n, agents): where an agent has no answer, its stand-in's."""
    found = []
    for agent, name in enumerate(measured.names):
        chosen = np.full(len(measured.table), agent)
        if name in baselines.gaps:
            chosen = np.where(baselines.gaps[name], baselines.fallback, agent)
        found.append(measured.sample_metrics(chosen, measured.names)[metric])
    return np.stack(found, axis=1)


def metrics_of_run(
    measured: Measured, baselines: Baselines, allocation: np.ndarray, margin: np.ndarray, *, router: float = 0.0
) -> dict[str, Any]:
    """The figures of one run, by name; nothing where quality is neither an accuracy nor a score.

    Args:
        allocation: of the run, (n,).
        margin: agent 0's score less the best of the others', (n,).
        router: what deciding took for each sample, in money.
    """
    metric = next((name for name in QUALITIES if name in measured.sample_metrics(allocation, measured.names)), None)
    if metric is None:
        return {}
    by_agent = qualities(measured, baselines, metric)
    available = np.isfinite(baselines.costs.numpy())
    quality = float(measured.sample_metrics(allocation, measured.names)[metric].mean())
    random = float((np.where(available, by_agent, 0.0).sum(axis=1) / available.sum(axis=1)).mean())
    single, oracle = by_agent.mean(axis=0), float(np.where(available, by_agent, -np.inf).max(axis=1).mean())
    best = int(single.argmax())
    found: dict[str, Any] = {"quality": metric, "best_single": measured.names[best]}
    for name, reference in (("gain_at_random", random), ("gain_at_best", float(single[best]))):
        found[name] = quality / reference - 1 if reference > 0 else None
    found["gap_at_oracle"] = 1 - quality / oracle if oracle > 0 else None
    if measured.prices is not None and measured.cache.record.unit_paid == "USD":
        found["dollars_per_1000"] = 1000 * (mean_price(allocation, measured.prices) + router)
        found["arena_score"] = arena_score(quality, found["dollars_per_1000"])
    if len(measured.names) == 2 and single[0] != single[1] and available.all():
        strong = int(single.argmax())
        toward = margin if strong == 0 else -margin
        recovered = recovered_gap(toward, by_agent[:, 1 - strong], by_agent[:, strong])
        found |= {"strong": measured.names[strong], "apgr": average_recovered(recovered)}
        found |= {f"cpt_{100 * wanted:.0f}": calls_for(recovered, wanted) for wanted in RECOVERED}
    return found


def metrics_of_sweep(evaluations: list[Evaluation]) -> dict[str, dict[str, Any]]:
    """AIQ, PerfGain and CostSave of each method, over its settings; of evaluations of one cache and split.

    All hulls are averaged over the same costs: from the dearest of their cheapest points to the dearest single agent.
    Nothing where quality or prices are not known.

    Returns:
        Method -> ``aiq``, ``zero_router_aiq``, the ``costs`` that both are over, their ``unit``, ``perf_gain`` and
        ``cost_save`` (None where no setting is as good as the best single agent).
    """
    first = evaluations[0]
    metric = first.result.get("router_metrics", {}).get("quality")
    if metric is None or (first.measured.prices is None and any(a.price is None for a in first.cache.agents)):
        return {}
    prices, unit = prices_of(first)
    names = first.measured.names
    constants = [np.full(len(prices), agent) for agent in range(len(names))]
    costs_alone = np.array([mean_price(chosen, prices) for chosen in constants])
    quality_alone = qualities(first.measured, first.baselines, metric).mean(axis=0)
    zero = convex_hull(costs_alone, quality_alone)
    best = max(range(len(names)), key=lambda agent: (quality_alone[agent], -costs_alone[agent]))
    points: dict[str, list[tuple[float, float]]] = {}
    for members in by_setting(evaluations).values():
        cost = float(np.mean([mean_price(member.allocation, prices) + member.router_paid for member in members]))
        quality = float(np.mean([member.result["metrics"][metric] for member in members]))
        points.setdefault(members[0].run.point.method, []).append((cost, quality))
    hulls = {method: convex_hull(*np.array(found).T) for method, found in points.items()}
    low, high = max(hull[0, 0] for hull in [zero, *hulls.values()]), float(costs_alone.max())
    result: dict[str, dict[str, Any]] = {}
    for method, found in points.items():
        as_good = [cost for cost, quality in found if quality >= quality_alone[best] - 1e-12]
        saved = 1 - min(as_good) / costs_alone[best] if as_good and costs_alone[best] > 0 else None
        gain = max(quality for _, quality in found) / quality_alone[best] - 1 if quality_alone[best] > 0 else None
        row: dict[str, Any] = {"unit": unit, "perf_gain": gain, "cost_save": saved}
        if high > low:
            row |= {"aiq": mean_quality(hulls[method], low, high), "zero_router_aiq": mean_quality(zero, low, high)}
            row["costs"] = [low, high]
        result[method] = row
    return result


def router_tables(evaluations: list[Evaluation]) -> list[tuple[str, list[dict]]]:
    """What people see of these figures: a row a setting, and a row a method; none where no answer has a price."""
    first = evaluations[0]
    if first.measured.prices is None or "quality" not in first.result.get("router_metrics", {}):
        return []
    runs, sweep = [], []
    for members in by_setting(evaluations).values():
        found = [member.result["router_metrics"] for member in members]
        row = {"method": members[0].run.point.method, "beta": members[0].run.point.beta_text}
        titles = {
            "arena_score": "Arena score", "gain_at_random": "Gain@R", "gain_at_best": "Gain@B",
            "gap_at_oracle": "Gap@O", "apgr": "APGR", "cpt_20": "CPT(20 %)", "cpt_50": "CPT(50 %)",
            "cpt_80": "CPT(80 %)", "dollars_per_1000": "USD for 1,000",
        }  # fmt: skip
        for name, title in titles.items():
            values = [each[name] for each in found if each.get(name) is not None]
            if values:
                row[title] = f"{np.mean(values):.4f}"
        runs.append(row)
    for method, found in first.result["router_metrics"].get("sweep", {}).items():
        row = {"method": method}
        for name, title in (("aiq", "AIQ"), ("zero_router_aiq", "AIQ of single agents"), ("perf_gain", "PerfGain"),
                            ("cost_save", "CostSave")):  # fmt: skip
            row[title] = "" if found.get(name) is None else f"{found[name]:.4f}"
        sweep.append(row)
    blank = dict.fromkeys([name for row in runs for name in row], "")
    quality = first.result["router_metrics"]["quality"]
    tables = [(f"As benchmarks of routers publish it, quality is the {quality}", [blank | row for row in runs])]
    return tables + ([("Over the settings of a method", sweep)] if sweep else [])
