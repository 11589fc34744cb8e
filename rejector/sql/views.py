"""SQL of the views that are made of other views, and of the macros."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from l2d.data.cache import schema
from l2d.rejector.sql.files import quoted, text

#: What a view's rows come from -> the views, and how that is named or made.
ROWS_OF = {
    "cache": (
        {"samples", "features", "images", "tokens", "vocabularies", "agents", "costs", "predictions", "prices",
         "classes", "boxes", "class_ap"},
        "name it too: l2d query RUN CACHE …",
    ),
    "run": ({"allocations", "scores", "runs", "run_agents"}, "name it too: l2d query CACHE RUN …"),
    "saved policy": ({"policies", "decisions"}, "l2d policy … --save FOLDER keeps one"),
    "result of l2d worth": ({"agent_values"}, "l2d worth … --save FOLDER keeps one"),
}  # fmt: skip


def why_empty(tables: Iterable[str], there: Collection[str]) -> list[str]:
    """A sentence for each kind of thing that a query's views are made of and that no path has.

    Args:
        tables: views that the query reads.
        there: those keys of :data:`ROWS_OF` that lie at the paths.
    """
    found = []
    for kind, (views, hint) in ROWS_OF.items():
        empty = sorted(views.intersection(tables))
        if empty and kind not in there:
            verb = "have" if len(empty) > 1 else "has"
            found.append(f"{' and '.join(empty)} {verb} no rows, as no {kind} is among the paths: {hint}")
    return found


def long_view(width: int) -> str:
    """Scores and total costs of every agent, a row for each run, sample and agent."""
    if width == 0:
        cells = "NULL::FLOAT AS score, NULL::FLOAT AS cost"
    else:
        score, cost = (
            f"CASE r.agent_index {' '.join(f'WHEN {j} THEN a.{name}_{j}' for j in range(width))} END"
            for name in ("score", "cost")
        )
        cells = f"{score} AS score, {cost} AS cost"
    return (
        f"CREATE TEMP VIEW scores AS SELECT a.cache, a.run_id, a.sample_id, a.split, r.agent_index, r.agent, "
        f"{cells} FROM allocations a JOIN run_agents r ON a.run_id = r.run_id"
    )


def token_view(fields: list[str]) -> str:
    """Codes of every token list, a row for each sample, field and position."""
    lists = [
        f"SELECT cache, sample_id, {text(name)} AS field, "
        f"generate_subscripts({quoted(schema.token_column(name))}, 1)::INTEGER AS position, "
        f"unnest({quoted(schema.token_column(name))}) AS code_index FROM samples"
        for name in fields
    ] or ["SELECT cache, sample_id, '' AS field, 0 AS position, 0 AS code_index FROM samples WHERE false"]
    return (
        f"CREATE TEMP VIEW tokens AS SELECT t.cache, t.sample_id, t.field, t.position, v.code "
        f"FROM ({' UNION ALL '.join(lists)}) t JOIN vocabularies v USING (cache, field, code_index)"
    )


BOX = ("score", "x1", "y1", "x2", "y2")


def box_view(of_samples: set[str], of_predictions: set[str]) -> str:
    """Every true and every found box, with the name of its class: a row each.

    Args:
        of_samples, of_predictions: columns that these have; without boxes the view is empty.
    """
    true, found = f"unnest({schema.TARGET_BOXES}) AS b", f"unnest({schema.PRED_BOXES}) AS b"
    parts = []
    if schema.TARGET_BOXES in of_samples:
        parts.append(f"SELECT cache, NULL::VARCHAR AS agent, sample_id, {true} FROM samples")
    if schema.PRED_BOXES in of_predictions:
        parts.append(f"SELECT cache, agent::VARCHAR, sample_id, {found} FROM predictions")
    if not parts:
        numbers = ", ".join(f"0::DOUBLE AS {name}" for name in BOX)
        return (
            "CREATE TEMP VIEW boxes AS SELECT cache, ''::VARCHAR AS agent, sample_id, 0 AS class_index, '' AS class, "
            f"{numbers}, false AS ignored FROM samples WHERE false"
        )
    numbers = ", ".join(f"f.b.{name} AS {name}" for name in BOX)
    return (
        f"CREATE TEMP VIEW boxes AS SELECT f.cache, f.agent, f.sample_id, f.b.label AS class_index, c.class, "
        f"{numbers}, f.b.ignore OR f.b.crowd AS ignored FROM ({' UNION ALL '.join(parts)}) f "
        "LEFT JOIN classes c ON f.cache = c.cache AND f.b.label = c.class_index"
    )


def price_view(columns: set[str]) -> str:
    """What each answer of an agent was paid, null where that is not known; see :func:`l2d.data.cache.paid.paid_by`.

    Args:
        columns: that predictions have.
    """
    said = "coalesce(p.paid, a.paid_each)" if "paid" in columns else "a.paid_each"
    answered = "p.failure IS NULL" if "failure" in columns else "false"  # no predictions at all
    return (
        f"CREATE TEMP VIEW prices AS SELECT p.cache, p.agent, p.agent_index, p.sample_id, "
        f"CASE WHEN a.price = 0 THEN 0 ELSE {said} END::DOUBLE AS paid FROM predictions p "
        f"JOIN agents a ON p.cache = a.cache AND p.agent = a.agent WHERE a.role = 'agent' AND {answered}"
    )


def _total_costs() -> list[str]:
    """One macro for each number of tasks: DuckDB tells them apart by how many arguments they have."""
    overloads = []
    for tasks in (1, 2, 3):
        costs, weights = ([f"{letter}{k}" for k in range(tasks)] for letter in "cw")
        # no weight: the task does not count; no cost: the agent has no answer, and nothing can be allocated to it
        terms = [
            f"CASE WHEN coalesce({w}, 0) = 0 THEN 0 ELSE coalesce(nullif({c}::DOUBLE, 'nan'), 'inf') * {w} END"
            for c, w in zip(costs, weights, strict=True)
        ]
        overloads.append(f"({', '.join([*costs, *weights, 'beta'])}) AS {' + '.join(terms)} + coalesce(beta, 0)")
    return overloads


_AVAILABLE = "[CASE WHEN isfinite(costs[j]) THEN score END FOR score, j IN scores]"

MACRO_SQL = (
    f"CREATE TEMP MACRO allocate(scores) AS list_position(scores, list_max(scores)) - 1, "
    f"(scores, costs) AS list_position({_AVAILABLE}, list_max({_AVAILABLE})) - 1",
    "CREATE TEMP MACRO cheapest(costs) AS list_position(costs, list_min(costs)) - 1",
    "CREATE TEMP MACRO argmin_agent(agent, cost, agent_index) AS "
    "arg_min(agent, (cost, agent_index)) FILTER (WHERE isfinite(cost))",
    f"CREATE TEMP MACRO total_cost {', '.join(_total_costs())}",
)
