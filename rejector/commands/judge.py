"""Commands that judge runs: evaluate, theory, choose, report."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l2d.data.terminal.options import (
    DeviceOption,
    Format,
    FormatOption,
    GroupOption,
    ImagesOption,
    ReplaceOption,
    RunArgument,
    RunsArgument,
    Split,
    SplitOption,
    reads_stores,
)
from l2d.data.terminal.progress import say
from l2d.rejector.commands.setting import OtherBetaOption, OtherLambdaOption, one_beta, one_lambda

if TYPE_CHECKING:
    from l2d.rejector.results import Evaluations


class Picture(StrEnum):
    png = "png"
    svg = "svg"


@reads_stores
def evaluate(
    runs: RunsArgument,
    split: SplitOption = Split.test,
    group: GroupOption = None,
    causal: Annotated[
        bool, typer.Option("--causal", help="Add what deferring saves on the deferred samples and at the margin.")
    ] = False,
    robust: Annotated[
        float | None,
        typer.Option(
            help="Add attacks that move each feature by at most this many standard deviations of training.",
            metavar="RADIUS",
        ),
    ] = None,
    images: ImagesOption = None,
    format: FormatOption = Format.table,
):
    """Deferral loss, task metrics, allocation, every agent alone, baselines and oracle, with intervals.

    Examples:

        l2d evaluate runs

        l2d evaluate run --split validation --format json

        l2d evaluate runs --group patient

        l2d evaluate cascade

        l2d evaluate runs --causal --robust 0.1
    """
    from l2d.data.terminal.render import print_result
    from l2d.rejector.decisions.evaluated import PolicyEvaluations
    from l2d.rejector.library import evaluate as judge
    from l2d.rejector.runs.files import RUN_FILE

    one = len(runs) == 1 and (runs[0] / RUN_FILE).is_file()  # a run, not a folder of runs
    found = judge(runs, split=split.value, group=group, causal=causal, robust=robust, images=images)
    if isinstance(found, PolicyEvaluations):
        print_result(found, format.value)
    else:
        print_evaluations(found, format, one=one)


@reads_stores
def theory(
    run: RunArgument,
    split: SplitOption = Split.test,
    figure: Annotated[Path | None, typer.Option(help="Write the figure: a .png or .svg file.")] = None,
    device: DeviceOption = "cpu",
    images: ImagesOption = None,
    format: FormatOption = Format.table,
):
    """Why a rejector falls short: features, class, data, optimization; the model's heads; the paper's bounds.

    For a run of method best: whose costs can be predicted, and what each column of the input is worth.

    Estimates expected costs, trains the run's settings again on halves of its samples, and refits the model: a minute.

    Examples:

        l2d theory run

        l2d theory runs/multi-task_beta=0_nu=1_seed=0 --split validation --format json --figure theory.png
    """
    from l2d.data.terminal.render import print_result
    from l2d.rejector.library import theory as diagnose

    say("estimating expected costs, training again on halves; no agent is asked")
    found = diagnose(run, split=split.value, device=device, images=images)
    print_result(found, format.value)
    if figure is not None:
        found.write_figure(figure)
        say(f"wrote {figure}")


@reads_stores
def choose(
    runs: RunsArgument,
    target: Annotated[
        list[str], typer.Option("--target", "-t", help="QUANTITY<=NUMBER or QUANTITY>=NUMBER; may be repeated.")
    ],
    prefer: Annotated[
        str | None, typer.Option(help="Among those that meet the target. Default: least task_cost, or least budget.")
    ] = None,
    images: ImagesOption = None,
    format: FormatOption = Format.table,
):
    """Choose a run of a sweep for a target: on validation, and then what it gave on test.

    Quantities: coverage, budget (mean price), gflops, share_AGENT, task_cost, deferral_loss, accuracy … all metrics.

    Examples:

        l2d choose runs --target "coverage>=0.6"

        l2d choose runs --target "accuracy>=0.9" --target "share_expert_1<=0.25" --prefer budget
    """
    from l2d.data.terminal.render import print_result
    from l2d.rejector.library import choose as choose_run

    choice = choose_run(runs, *target, prefer=prefer, images=images)
    print_result(choice, format.value)
    for row in choice.to_json()["targets"]:
        if not row["met_on_test"]:
            say(
                f"{row['target']} is met on validation ({row['validation']:.4g}), not on test: {row['test_of_run']:.4g}"
            )


@reads_stores
def report(
    runs: RunsArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML page.")] = Path("report.html"),
    by: Annotated[
        list[str] | None,
        typer.Option(help="Column or SQL expression to group samples by; may be repeated. Default: the most telling."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A detection dataset's images, for examples and rejectors on pixels. Default: where a rejector was "
            "trained on them, else the small ones in the cache.",
        ),
    ] = None,
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
    from l2d.rejector.library import report as write

    files = write(
        runs,
        out,
        by=by or (),
        images=images,
        figure=figure,
        figures=figures,
        figure_format=figure_format.value,
        split=split.value,
        group=group,
        theory=theory,
    )
    for file in files:
        print(file)


def print_evaluations(found: Evaluations, format: Format, *, one: bool) -> None:
    """Print evaluations; as JSON one object for one run, a list for a sweep."""
    from l2d.data.terminal.render import print_json, print_result

    if format == Format.json and one:
        print_json(found.to_json()[0])
    else:
        print_result(found, format.value)


def worth(
    run: RunArgument,
    split: SplitOption = Split.test,
    group: GroupOption = None,
    beta: OtherBetaOption = None,
    lambda_: OtherLambdaOption = None,
    new: Annotated[
        Path | None,
        typer.Option(help="Answers of a new agent to 50 to 200 samples: sample_id, and cost, correct or answer."),
    ] = None,
    charge: Annotated[float, typer.Option(min=0, help="For an answer of the new agent, in units of loss.")] = 0.0,
    buy: Annotated[int, typer.Option(min=0, help="Name the samples that the new agent should answer next.")] = 0,
    figure: Annotated[Path | None, typer.Option(help="Write the figure: a .png or .svg file.")] = None,
    save: Annotated[Path | None, typer.Option(help="Folder to keep it in, for SQL (view agent_values).")] = None,
    overwrite: ReplaceOption = False,
    images: ImagesOption = None,
    format: FormatOption = Format.table,
):
    """What each agent is worth: what is lost without it, its share of the gain, the charge at which it stops paying.

    Of a saved policy, such as a cascade: what each agent adds to the policy, which is searched for again without it.
    With --new: whether an agent that is not in the cache is worth adding, from some of its answers.

    Examples:

        l2d worth run

        l2d worth cascade --save values

        l2d worth run --new answers.csv --charge 0.02 --buy 20
    """
    from l2d.data.terminal.render import print_result
    from l2d.rejector.at_work import worth as tell
    from l2d.rejector.decisions.new_agent import NewAgent

    found = tell(
        run,
        split=split.value,
        group=group,
        beta=one_beta(beta),
        weights=one_lambda(lambda_),
        new=new,
        charge=charge,
        buy=buy,
        figure=figure,
        save=save,
        overwrite=overwrite,
        images=images,
    )
    print_result(found, format.value)
    if isinstance(found, NewAgent) and found.next:
        say(f"ask it next about: {', '.join(found.next)}")
    for file in (figure, save):
        if file is not None:
            say(f"wrote {file}")


def add_agent(
    run: RunArgument,
    ask: Annotated[int, typer.Option(min=0, help="How many samples to name, that it should answer: 50 to 200.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write them: a CSV file, with kept columns.")] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Its answers so far: sample_id, and cost, correct or answer.")
    ] = None,
    charge: Annotated[float, typer.Option(min=0, help="For an answer of it, in units of loss.")] = 0.0,
    rest: Annotated[
        Path | None, typer.Option(help="Write the samples of the cache that it has not answered: a CSV file.")
    ] = None,
    split: SplitOption = Split.test,
    beta: OtherBetaOption = None,
    lambda_: OtherLambdaOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    overwrite: ReplaceOption = False,
    format: FormatOption = Format.table,
):
    """Add an agent step by step: which samples to ask it about first, what it is worth by that, and what is left.

    First --ask: samples that are spread over what is predicted of the agents so far. Then --answers: whether it is
    worth adding, before the whole table is paid for; with --ask, which samples would tell most next. If it is, --rest:
    what it has to answer still; `l2d extend` then puts its answers into the cache.

    Examples:

        l2d add-agent run --ask 100 --out ask.csv

        l2d add-agent run --answers answers.csv --charge 0.02 --ask 50 --out more.csv

        l2d add-agent run --answers answers.csv --charge 0.02 --rest rest.csv
    """
    from l2d.data.terminal.render import print_result
    from l2d.rejector.at_work import add_agent as add

    found = add(
        run,
        ask=ask,
        out=out,
        answers=answers,
        charge=charge,
        rest=rest,
        split=split.value,
        beta=one_beta(beta),
        weights=one_lambda(lambda_),
        seed=seed,
        overwrite=overwrite,
    )
    print_result(found, format.value)
    if out is not None:
        say(f"wrote {out}: ask it about these {len(found.asked):,} samples, then give all its answers: --answers FILE")
    if rest is not None:
        say(f"wrote {rest}: {found.rest:,} samples that it has not answered; with all its answers in one file ANSWERS:")
        say("next: l2d extend CACHE ANSWERS --name NAME")
