"""One self-contained HTML page: findings, figures, where each agent wins, examples, the paper's table, run facts.

Figures are Vega-Lite specifications that the page draws itself, with the libraries embedded: it loads nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from altair.utils.schemapi import debug_mode

from l2d.data.cache import store
from l2d.data.cache.reader import AgentRecord
from l2d.data.terminal.layout import format_value
from l2d.rejector.decisions.saved import SavedPolicy, place
from l2d.rejector.evaluation.evaluation import Evaluation
from l2d.rejector.evaluation.findings import findings
from l2d.rejector.evaluation.intervals import RESAMPLES
from l2d.rejector.evaluation.router_metrics import router_tables
from l2d.rejector.evaluation.settings import corrected, difference_text, verdict
from l2d.rejector.evaluation.summary import headline, paper_table, regret_table
from l2d.rejector.report.allocations import Decisions, decisions_of, sample_columns
from l2d.rejector.report.examples import LEAST_SCORE, choose, with_answers
from l2d.rejector.report.figures import theme
from l2d.rejector.report.figures.cost_quality import quality_for_cost
from l2d.rejector.report.figures.costs import importance, reliability
from l2d.rejector.report.figures.decisions import beyond_one_agent
from l2d.rejector.report.figures.rejectors import Figure, compare
from l2d.rejector.report.figures.sweep import sweep
from l2d.rejector.report.figures.trade_offs import by_group, risk_for_coverage
from l2d.rejector.report.groups import bins_by, most_telling, without_few
from l2d.rejector.report.reproduce import commands
from l2d.rejector.report.script import script_beside
from l2d.rejector.report.shown import Layout, labels_of, lay_out
from l2d.rejector.report.tiles import tiles_of
from l2d.rejector.runs.files import read_facts

TEMPLATE = Path(__file__).parent / "report.html.j2"


def by_cache(evaluations: list[Evaluation]) -> list[list[Evaluation]]:
    """Evaluations of each cache; a run that is given twice counts once."""
    groups: dict[Path, dict[Path, Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault(evaluation.run.cache_path, {}).setdefault(evaluation.run.path.resolve(), evaluation)
    return [list(members.values()) for members in groups.values()]


@debug_mode(False)
def figures_of(layout: Layout, by: list[str] | None = None) -> list[Figure]:
    """All figures of a cache.

    Args:
        by: columns or SQL expressions to look at the samples by. If None, the cluster if there is one, and what tells
            most about which agent is cheap.

    Raises:
        UsageError: an expression is wrong.
    """
    return _figures(layout, decisions_of(layout.focus), by)[0]


def _figures(
    layout: Layout, decisions: Decisions, by: list[str] | None, *, worth: bool = True
) -> tuple[list[Figure], Any]:
    """The figures, and the columns that samples can be grouped by. ``worth``: with what columns are worth."""
    columns = sample_columns(layout.focus, decisions.ids)
    if by:
        chosen = [without_few(bins_by(columns, expression)) for expression in by]
    else:
        known = [name for name in ("cluster",) if name in columns.column_names]
        chosen = [without_few(bins_by(columns, name)) for name in known]
        others = columns.drop_columns(known) if known else columns
        chosen += most_telling(others, decisions, most=2 - len(chosen))
    made = [sweep(layout), compare(layout), quality_for_cost(layout), risk_for_coverage(layout, decisions)]
    made += [reliability(layout), importance(layout, layout.focus[0].result["split"]) if worth else None]
    made += [by_group(layout, decisions, bins, number) for number, bins in enumerate(chosen, start=1)]
    return [figure for figure in made if figure is not None], columns


@debug_mode(False)
def write_report(
    evaluations: list[Evaluation],
    out: Path,
    *,
    by: list[str] | None = None,
    images: Path | None = None,
    theory: bool = False,
    group: str | None = None,
    policies: Sequence[SavedPolicy] = (),
) -> None:
    """Write the page; a section for each cache.

    Args:
        evaluations: of :func:`l2d.rejector.evaluation.evaluate.evaluate_runs`.
        out: an ``.html`` file; it is replaced.
        by: see :func:`figures_of`.
        images: folder beneath which the images of a detection dataset lie, for the examples; None: where a rejector on
            pixels looks at them.
        theory: examine the first run of the setting looked at closely, as ``l2d theory`` does: half a minute.
        policies: of the runs' caches; each cache's section has a figure of its own.
        group: the column by which they were evaluated; it stands in the command that makes the page again.

    Raises:
        UsageError: an expression of ``by`` is wrong, or ``images`` has none of them.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_value
    caches = by_cache(evaluations)
    with script_beside() as script:
        sections = [_section(number, members, by, images, theory) for number, members in enumerate(caches, start=1)]
        embedded = script().replace("</script", "<\\/script")
    for section, members in zip(sections, caches, strict=True):
        of_cache = [policy for policy in policies if policy.cache_path == place(members[0].run.cache_path)]
        section["figures"] = [*section["figures"], *beyond_one_agent(of_cache)]
    specs = {
        f"{section['id']}-{figure.name}-{panel.name}": _for_page(panel.spec)
        for section in sections
        for figure in section["figures"]
        for panel in figure.panels
    }
    names = list(dict.fromkeys(evaluation.cache.record.name for evaluation in evaluations))
    page = environment.get_template(TEMPLATE.name).render(
        name=", ".join(names),
        sections=sections,
        specs=_json(specs),
        themes=_json({scheme: theme.config(scheme) for scheme in theme.SCHEMES}),
        schemes=theme.SCHEMES,
        palettes=theme.PALETTES,
        others=theme.OTHERS,
        script=embedded,
        commands=commands(
            evaluations,
            out,
            [
                *(["--group", group] if group else []),
                *(word for expression in by or () for word in ("--by", expression)),
                *(["--images", str(images)] if images is not None else []),
                *(["--theory"] if theory else []),
            ],
            policies=[policy.path for policy in policies],
            images=images,
        ),
        runs=_run_rows(evaluations),
        resamples=f"{RESAMPLES:,}",
        least_score=LEAST_SCORE,
    )
    store.commit_bytes(out, page.encode(), replace=True)


def _json(value: object) -> str:
    """JSON that may stand in a script element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _for_page(spec: dict[str, Any]) -> dict[str, Any]:
    """As wide as its place; agents' colours are explained once for a whole section."""
    autosize = {"type": "fit-x", "contains": "padding"}
    return {**_without_agent_legend(spec), "width": "container", "autosize": autosize}


def _without_agent_legend(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_agent_legend(item) for item in value]
    if not isinstance(value, dict):
        return value
    copy = {key: _without_agent_legend(item) for key, item in value.items() if key != "datasets"}
    if "datasets" in value:
        copy["datasets"] = value["datasets"]
    if copy.get("field") == "agent" and "legend" in copy:
        copy["legend"] = None
    return copy


def _section(
    number: int, members: list[Evaluation], by: list[str] | None, images: Path | None, theory: bool
) -> dict[str, Any]:
    layout = lay_out(members)
    decisions = decisions_of(layout.focus)
    figures, columns = _figures(layout, decisions, by, worth=not theory)  # of the theory it is a part
    tables: dict[str, list[dict[str, Any]]] = {}
    if theory:
        from l2d.rejector.report.figures.theory import theory_part  # brings scikit-learn

        part = theory_part(layout, members[0].result["split"])
        figures, tables = [*figures, part.figure], part.tables
    cache, record = members[0].cache, members[0].cache.record
    if images is None:  # where a rejector looks at image files, they can be shown
        looked_at = members[0].run.rejector.config.images
        images = Path(looked_at) if looked_at is not None else None
    examples = with_answers(choose(decisions), layout.focus, columns, images)
    cast = layout.cast
    label = labels_of(layout.groups, with_beta=True)[layout.groups.index(layout.focus)]
    return {
        "id": f"cache{number}",
        "name": record.name,
        "cache": cache.address,
        "headline": headline(members),
        "answer": _answer_of(layout),
        "findings": findings(members),
        "cards": _cards(layout),
        "focus": label,
        "single": len(layout.groups) == 1,
        "legend": [(cast.slot(name), name) for name in cast.entries],
        "figures": figures,
        "theory": tables,
        "examples": [
            (cast.slot(agent), agent, [tiles_of(e, record, cast) for e in examples if e.chosen == position])
            for position, agent in enumerate(layout.focus[0].measured.names)
            if agent in cast.named
        ],
        "unit": record.unit_reg if any("target_reg" in e.answers["target"] for e in examples) else "",
        "detection": any(example.size[0] for example in examples),
        "pictures": any(example.image for example in examples),
        "results": paper_table(members, whole=True),
        "regrets": regret_table(members),
        "routers": router_tables(members) if len({tuple(member.run.agents) for member in members}) == 1 else [],
        "agents": [
            {
                "agent": a.name,
                "role": a.role,
                "kind": a.kind,
                "price": "not known" if a.price is None else f"{a.price:g}",
                **_paid(a, members[0]),
                "description": a.description,
            }
            for a in cache.all_agents
        ],
    }


def _paid(agent: AgentRecord, evaluation: Evaluation) -> dict[str, str]:
    """What an answer of an agent was paid on average, where that is known."""
    if evaluation.measured.prices is None:
        return {}
    mean = evaluation.result["agents"].get(agent.name, {}).get("mean_paid")
    unit = evaluation.cache.record.unit_paid
    return {f"mean paid ({unit})" if unit else "mean paid": "" if mean is None else f"{mean:.6g}"}


def _answer_of(layout: Layout) -> str:
    """Does the rejector beat the best constant agent? In one sentence."""
    result = layout.focus[0].result
    constant, difference = result["best_constant"], result["over_seeds"]["regret"]["best_constant"]
    found = verdict(result, difference)
    verbs = {"better": "beats", "worse": "is worse than", "no difference shown": "is not shown to beat"}
    loss, alone = result["over_seeds"]["deferral_loss"]["mean"], result["agents"][constant]["mean_cost"]
    where = f"At β {layout.focus[0].run.point.beta_text} the" if layout.swept else "The"
    told = f"{difference_text(difference)}, {corrected(difference['p_holm'])}"
    if found not in verbs:  # too few samples
        return f"{where} rejector cannot be told from the best constant agent, {constant}: {found}; {told}."
    return (
        f"{where} rejector {verbs[found]} the best constant agent, {constant}: {loss:.4f} against {alone:.4f}, {told}."
    )


def _cards(layout: Layout) -> list[tuple[str, str, str]]:
    """The focus in four figures: title, value, what else there is to say."""
    result = layout.focus[0].result
    loss = result["over_seeds"]["deferral_loss"]
    constant, oracle = result["best_constant"], result["oracle_loss"]
    spread = f"± {loss['std']:.4f} over {len(layout.focus)} seeds" if len(layout.focus) > 1 else "one seed"
    cards = [("Deferral loss", f"{loss['mean']:.4f}", spread)]
    bound = ("Oracle", f"{oracle:.4f}", "the cheapest agent each time")
    best = result["agents"][constant]["mean_cost"]
    cards += [("Best constant agent", f"{best:.4f}", f"{constant} alone"), bound]
    if best > oracle:
        closed = (best - loss["mean"]) / (best - oracle)
        more = "of what lies between the best constant agent and the oracle"
        if closed <= 0:
            more = "it costs more than the best constant agent"
        cards.append(("Gap closed", f"{100 * closed:.0f} %" if closed > 0 else "none", more))
    return cards


def _run_rows(evaluations: list[Evaluation]) -> list[dict[str, str]]:
    rows = []
    for evaluation in evaluations:
        run, facts = evaluation.run, read_facts(evaluation.run.path)
        rows.append(
            {
                "run": run.point.run_id,
                "cache": evaluation.cache.address.rstrip("/").rpartition("/")[2],
                "rejector": run.rejector.config.network,
                "best epoch": f"{run.rejector.best_epoch + 1} of {run.rejector.config.epochs}",
                "validation risk": f"{run.rejector.validation_risk:.4f}",
                f"{evaluation.result['split']} loss": f"{evaluation.result['deferral_loss']:.4f}",
                "trained": f"{facts['grid_points']} together in {facts['grid_seconds']:.1f} s",
                "torch": facts["versions"]["torch"],
            }
        )
    return rows
