"""A run at other query costs or task weights than it was trained at: nothing is trained again.

That is possible where a run predicts each agent's raw cost in each task, as those of method ``best`` do: query costs
and weights are applied to the predictions. What comes out equals a run that was trained at that setting, its guard
included, since the run keeps what guards are judged by.
"""

from __future__ import annotations

from dataclasses import replace

from l2d.data.cache.audit_answers import ALONE
from l2d.data.errors import UsageError
from l2d.rejector.costs import CostWeights, query_costs, worth_of_money
from l2d.rejector.methods import METHODS
from l2d.rejector.runs.run import Run

Beta = float | dict[str, float]


def at_setting(run: Run, beta: Beta | None = None, weights: dict[str, float] | None = None) -> Run:
    """The run at other query costs, at other task weights, or both; itself where neither is given.

    Args:
        beta: what the dearest expert costs, the others scaled by their prices; or agent -> query cost, and ``paid`` ->
            units of loss for a unit of money, of a run that predicts prices.
        weights: ``lambda`` by task; tasks that are not named weigh 0.

    Raises:
        UsageError: the run's scores are not costs by task, or a value is wrong.
    """
    if beta is None and weights is None:
        return run
    rejector, point = run.rejector, run.point
    if not rejector.any_setting:
        raise UsageError(
            f"method {point.method!r} {_what_scores_are(point.method)}, so its runs have one setting",
            where=run.path,
            hint="take a run of method best, or train one at this setting: l2d train CACHE --beta … --out RUN",
        )
    if weights is not None:
        if point.cost is not None:
            raise UsageError(
                f"this run predicts the cost {point.cost!r}, which has no task weights",
                where=run.path,
                hint="leave out --lambda, or take a run that was trained without --cost",
            )
        point = replace(point, weights=CostWeights.parse(weights, [task for task, _ in point.weights.by_task]))
    if beta is not None:
        paid, rest = worth_of_money(beta, run.agents)
        if paid is not None and point.paid is None:
            raise UsageError(
                f"--beta paid={paid:g}, but this run predicts no prices",
                where=run.path,
                hint="take a run that was trained with them: l2d train CACHE --beta paid=0 --out RUN",
            )
        point = replace(
            point,
            beta=tuple(sorted(beta.items())) if isinstance(beta, dict) else float(beta),
            query_costs=tuple(query_costs(rest, run.priced).tolist()),
            paid=None if point.paid is None else paid or 0.0,
        )
    moved = rejector.at(replace(point, run_id=_name(run, beta, weights)))
    return replace(run, rejector=moved, moved=True)


def _name(run: Run, beta: Beta | None, weights: dict[str, float] | None) -> str:
    """What the run is called in tables."""
    parts = []
    if beta is not None:
        parts.append(
            "beta=" + (",".join(f"{k}={v:g}" for k, v in beta.items()) if isinstance(beta, dict) else f"{beta:g}")
        )
    if weights is not None:
        parts.append("lambda=" + ",".join(f"{k}={v:g}" for k, v in weights.items()))
    return f"{run.point.run_id} at {' and '.join(parts)}"


def _what_scores_are(method: str) -> str:
    return {
        "costs": "predicts one total cost, with the query costs of its training in it",
        "chances": "predicts chances of being right, not costs",
        "order": "says which agent is best, not what each would cost",
    }.get(METHODS[method].scores, "trains on total costs, and its scores are not costs")


def guard_in_words(run: Run) -> str:
    """What the guard says at the run's setting, in a sentence."""
    guard = run.rejector.guard
    assert guard is not None  # as of all that can be had at any setting
    if guard.get("compared") == 0:
        return f"{ALONE}, and every input goes to {run.agents[guard['fallback']]} if it can be asked"
    gain = f"held-out gain {guard['gain']:+.4f} ± {guard['standard_error']:.4f} over always {{}}"
    gain = gain.format(run.agents[guard["fallback"]])
    if guard["holds"]:
        name = run.agents[guard["fallback"]]
        return f"choosing agents does not pay here ({gain}), so every input goes to {name} if it can be asked"
    return gain if guard["z"] else f"no guard (--guard 0); {gain}"
