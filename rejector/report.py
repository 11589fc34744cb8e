"""One self-contained HTML page: figures, the paper's table, regrets, agents and run facts."""

from __future__ import annotations

import base64
from pathlib import Path

from data import store

from .evaluation import Evaluation
from .figures import draw
from .intervals import RESAMPLES
from .summary import headline, paper_table, regret_table

TEMPLATE = Path(__file__).parent / "report.html.j2"


def write_report(evaluations: list[Evaluation], out: Path) -> None:
    """Write the page; a section for each cache and folder of runs.

    Args:
        evaluations: of :func:`rejector.evaluation.evaluate_runs`.
        out: an ``.html`` file; it is replaced.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    groups: dict[tuple, list[Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault((evaluation.run.cache_path, evaluation.run.path.parent), []).append(evaluation)
    sections = [
        {
            "headline": headline(members),
            "figure": base64.b64encode(draw(members)).decode(),
            "results": paper_table(members),
            "regrets": regret_table(members),
            "agents": [
                {"agent": a.name, "role": a.role, "kind": a.kind, "price": f"{a.price:g}", "description": a.description}
                for a in members[0].cache.all_agents
            ],
        }
        for members in groups.values()
    ]
    runs = [
        {
            "run": evaluation.run.point.run_id,
            "rejector": evaluation.run.rejector.config.network,
            "best epoch": str(evaluation.run.rejector.best_epoch + 1),
            "validation risk": f"{evaluation.run.rejector.validation_risk:.4f}",
            f"{evaluation.result['split']} loss": f"{evaluation.result['deferral_loss']:.4f}",
            "cache": evaluation.cache.path.name,
        }
        for evaluation in evaluations
    ]
    names = list(dict.fromkeys(evaluation.cache.record.name for evaluation in evaluations))
    page = environment.get_template(TEMPLATE.name).render(
        name=", ".join(names), sections=sections, runs=runs, resamples=f"{RESAMPLES:,}"
    )
    store.commit_bytes(out, page.encode(), replace=True)


def write_figure(evaluations: list[Evaluation], out: Path) -> None:
    """Write one figure of all runs on the first cache, as PNG."""
    first = evaluations[0].run.cache_path
    runs = {
        e.run.point.run_id: e for e in evaluations if e.run.cache_path == first
    }  # a point trained twice counts once
    store.commit_bytes(out, draw(list(runs.values())), replace=True)
