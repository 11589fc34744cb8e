"""Commands that judge runs: evaluate, theory, choose, report."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from l2d.data.terminal.options import (
    DeviceOption,
    Format,
    FormatOption,
    GroupOption,
    RunArgument,
    RunsArgument,
    Split,
    SplitOption,
)
from l2d.data.terminal.progress import say


class Picture(StrEnum):
    png = "png"
    svg = "svg"


def evaluate(
    runs: RunsArgument,
    split: SplitOption = Split.test,
    group: GroupOption = None,
    format: FormatOption = Format.table,
):
    """Deferral loss, task metrics, allocation, every agent alone, baselines and oracle, with intervals.

    Examples:

        l2d evaluate runs

        l2d evaluate run --split validation --format json

        l2d evaluate runs --group patient
    """
    print_evaluations(runs, split, format, group=group)


def theory(
    run: RunArgument,
    split: SplitOption = Split.test,
    figure: Annotated[Path | None, typer.Option(help="Write the figure: a .png or .svg file.")] = None,
    device: DeviceOption = "cpu",
    format: FormatOption = Format.table,
):
    """Why a rejector falls short: features, class, data, optimisation; the model's heads; the paper's bounds.

    Estimates expected costs, trains the run's settings again on halves of its samples, and refits the model: a minute.

    Examples:

        l2d theory run

        l2d theory runs/multi-task_beta=0_nu=1_seed=0 --split validation --format json --figure theory.png
    """
    import json

    from l2d.data.cache.store import commit_bytes
    from l2d.data.device import resolve_device
    from l2d.data.terminal.render import print_rows, print_table
    from l2d.rejector.theory.diagnosis import shown_parts, theory_rows, theory_section

    say("estimating expected costs, training again on halves, refitting the model; no agent is asked")
    section = theory_section(run, split.value, device=resolve_device(device))
    if format == Format.json:
        print(json.dumps(section, indent=2, ensure_ascii=False))
    elif format == Format.table:
        for title, rows in shown_parts(section).items():
            print_table(rows, title=title)
        print("\n".join([*section["notes"], "", section["verdict"]]))
    else:
        print_rows(list(theory_rows(section)), format.value)
    if figure is not None:
        from l2d.rejector.report.export import picture
        from l2d.rejector.report.figures.theory import theory_figure

        drawn = picture([theory_figure(section)], figure.suffix.lower().lstrip(".") or "png")
        commit_bytes(figure, drawn, replace=True)
        say(f"wrote {figure}")


def choose(
    runs: RunsArgument,
    target: Annotated[
        list[str], typer.Option("--target", "-t", help="QUANTITY<=NUMBER or QUANTITY>=NUMBER; may be repeated.")
    ],
    prefer: Annotated[
        str | None, typer.Option(help="Among those that meet the target. Default: least task_cost, or least budget.")
    ] = None,
    format: FormatOption = Format.table,
):
    """Choose a run of a sweep for a target: on validation, and then what it gave on test.

    Quantities: coverage, budget (mean price), gflops, share_AGENT, task_cost, deferral_loss, accuracy … all metrics.

    Examples:

        l2d choose runs --target "coverage>=0.6"

        l2d choose runs --target "accuracy>=0.9" --target "share_expert_1<=0.25" --prefer budget
    """
    import json

    from l2d.data.terminal.render import print_rows, print_table
    from l2d.rejector.policies.choose import Target
    from l2d.rejector.policies.choose import choose as choose_run
    from l2d.rejector.runs.run import find_runs

    folders = [folder for path in runs for folder in find_runs(path)]
    choice = choose_run(folders, [Target.parse(text) for text in target], prefer=prefer)
    candidates, outcome = choice.tables()
    if format == Format.json:
        print(json.dumps(choice.to_json(), indent=2, ensure_ascii=False))
    elif format == Format.table:
        print_table(candidates, title="Settings on validation, means over seeds")
        print_table(outcome, title=f"Chosen: {choice.run}")
    else:
        print_rows(outcome, format.value)
    for row in choice.to_json()["targets"]:
        if not row["met_on_test"]:
            say(
                f"{row['target']} is met on validation ({row['validation']:.4g}), not on test: {row['test_of_run']:.4g}"
            )


def report(
    runs: RunsArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML page.")] = Path("report.html"),
    by: Annotated[
        list[str] | None,
        typer.Option(help="Column or SQL expression to group samples by; may be repeated. Default: the most telling."),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of a detection dataset's images, for examples.")] = None,
    figure: Annotated[Path | None, typer.Option(help="The main figures as one picture: a .png or .svg file.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for every figure as a picture of its own.")] = None,
    figure_format: Annotated[Picture, typer.Option(help="File format for --figures.")] = Picture.png,
    split: SplitOption = Split.test,
    group: GroupOption = None,
    theory: Annotated[bool, typer.Option("--theory", help="Add the `l2d theory` diagnosis (about 30 s).")] = False,
):
    """One self-contained HTML page: findings, figures, where each agent wins, examples, results, runs.

    Examples:

        l2d report runs --out report.html

        l2d report runs --out report.html --by cluster --by "age > 60" --figures figures --figure-format svg

        l2d report runs --theory --group patient
    """
    from l2d.rejector.evaluation.evaluate import evaluate_runs
    from l2d.rejector.report.export import write_figure, write_figures
    from l2d.rejector.report.page import write_report
    from l2d.rejector.runs.run import find_runs

    evaluations = evaluate_runs([folder for path in runs for folder in find_runs(path)], split.value, group=group)
    write_report(evaluations, out, by=by, images=images, theory=theory, group=group)
    print(out)
    if figure is not None:
        write_figure(evaluations, figure)
        print(figure)
    if figures is not None:
        for file in write_figures(evaluations, figures, format=figure_format.value, by=by):
            print(file)


def print_evaluations(
    paths: list[Path], split: Split, format: Format, *, one: bool | None = None, group: str | None = None
) -> None:
    """Print evaluations; as JSON one object for one run, a list for a sweep."""
    import json

    from l2d.data.terminal.render import print_rows, print_table
    from l2d.rejector.evaluation.evaluate import evaluate_runs
    from l2d.rejector.evaluation.summary import findings, flat_rows, settings_of, tables
    from l2d.rejector.runs.run import RUN_FILE, find_runs

    evaluations = evaluate_runs([folder for path in paths for folder in find_runs(path)], split.value, group=group)
    if format == Format.json:
        ordered = [evaluation.result for members in settings_of(evaluations) for evaluation in members]
        if one is None:
            one = len(paths) == 1 and (paths[0] / RUN_FILE).is_file()  # a run, not a folder of runs
        print(json.dumps(ordered[0] if one else ordered, indent=2, ensure_ascii=False))
    elif format == Format.table:
        by_cache: dict[Path, list] = {}
        for evaluation in evaluations:
            by_cache.setdefault(evaluation.cache.path, []).append(evaluation)
        for members in by_cache.values():
            for title, rows in tables(members):
                print_table(rows, title=title)
            print("\n".join(findings(members)) + "\n")
    else:
        print_rows(flat_rows(evaluations), format.value)
