"""Commands that put a rejector to work: route, policy, export."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from l2d.data.cache.addresses import place_of
from l2d.data.errors import DataError
from l2d.data.terminal.options import (
    Format,
    FormatOption,
    ReplaceOption,
    RunArgument,
    Split,
    SplitOption,
    pairs,
    reads_stores,
)
from l2d.data.terminal.progress import Bars, quote, say
from l2d.rejector.commands.setting import CalibrationOption, OtherBetaOption, OtherLambdaOption, one_beta, one_lambda


class Mode(StrEnum):
    prices = "prices"
    batch = "batch"
    exact = "exact"


class Ask(StrEnum):
    auto = "auto"
    router = "router"
    topk = "topk"
    committee = "committee"
    cascade = "cascade"
    adaptive = "adaptive"


class Combine(StrEnum):
    vote = "vote"
    mean = "mean"
    weighted = "weighted"


class Family(StrEnum):
    fixed_sequence = "fixed-sequence"
    bonferroni = "bonferroni"


IMAGES = "Images"
BEYOND = "Beyond one agent"
PROMISES = "Promises"


class Calibration(StrEnum):
    auto = "auto"
    implied = "implied"
    linear = "linear"
    isotonic = "isotonic"


@reads_stores
def route(
    context: typer.Context,
    run: RunArgument,
    source: Annotated[
        list[Path],
        typer.Argument(
            help="A Parquet or CSV file: the source's columns, or `features`. A cache. Images, or folders of images.",
            metavar="INPUT…",
            parser=place_of,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The allocations: a .parquet or .csv file.")],
    id_column: Annotated[
        str | None, typer.Option("--id", help="Column of sample ids. Default: the recipe's `id`, else row numbers.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="What `l2d policy --save` wrote: decide by it.", metavar="POLICY")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Answers so far, for a policy that looks at them: sample_id, agent, answer.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="An agent that cannot be asked now; may be repeated.", metavar="AGENT")
    ] = None,
    beta: OtherBetaOption = None,
    lambda_: OtherLambdaOption = None,
    calibration: CalibrationOption = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="Where the agent is described whose features of images the run looks at. Default: beside its cache.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="What that agent runs on: auto, cpu, cuda, cuda:1 …", rich_help_panel=IMAGES)
    ] = "auto",
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where the image files of a cache lie. Default: where the run was trained on them.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 where inputs are unlike those of training; they are written.")
    ] = False,
    overwrite: ReplaceOption = False,
    format: FormatOption = Format.table,
):
    """Allocate new inputs: which agent each should go to, and every agent's score.

    Reads and writes in batches, so a file of any size will do. The cache that the run was trained on is not needed.

    Examples:

        l2d route run new_patients.csv --out allocations.parquet

        l2d route run new_patients.parquet --out allocations.csv --id patient --format json

        l2d route run new_patients.csv --out allocations.parquet --without expert_1 --without expert_2

        l2d route run new_patients.csv --out allocations.parquet --beta 0.07

        l2d route run new_patients.csv --policy cascade --answers answers.csv --out round_2.csv

        l2d route run new_patients.csv --calibration calibration.toml --out allocations.parquet

        l2d route run new_photos more/cat.jpg --out allocations.csv
    """
    from l2d.data.terminal.render import print_result

    options: dict[str, Any] = {"id_column": id_column, "without": without or (), "overwrite": overwrite}
    given = source[0] if len(source) == 1 else source
    if answers is not None or _decides_beyond(policy):
        from l2d.rejector.at_work import route as by_policy
        from l2d.rejector.decisions.routing import PolicyRoute

        with Bars() as bars:
            round_ = by_policy(
                run, given, out, policy=policy, answers=answers, beta=one_beta(beta), weights=one_lambda(lambda_),
                calibration=calibration, progress=lambda rows: bars.start("routing", rows), **options,
            )  # fmt: skip
        print_result(round_, format.value)
        say(f"wrote {out}; sample ids: {round_.ids}")
        if isinstance(round_, PolicyRoute) and round_.to_ask:
            say(f"{round_.to_ask:,} inputs wait for an answer: ask, then give the answers with --answers")
        return
    from l2d.rejector.route import route as run_route
    from l2d.rejector.rows.foreign import sentences
    from l2d.rejector.rows.photographs import Showing

    with Bars() as bars:
        done = run_route(
            run,
            given,
            out,
            policy=policy,
            beta=one_beta(beta),
            weights=one_lambda(lambda_),
            calibration=calibration,
            showing=Showing(context.obj(device), recipe),
            images=images,
            progress=lambda rows: bars.start("routing", rows),
            **options,
        )
    print_result(done, format.value)
    if done.setting:
        say(done.setting["guard"])
    if done.calibration:
        say(f"{calibration}: {done.calibration}")
    if done.unrouted:
        say(f"{done.unrouted:,} inputs go to no agent (null): none is available for them")
    say(f"wrote {out}; sample ids: {done.ids}")
    if done.passed_over:
        names = ", ".join(done.passed_over[:3]) + (", …" if len(done.passed_over) > 3 else "")
        say(f"left out {len(done.passed_over):,} that are neither JPEG nor PNG: {names}")
    for line in sentences(done.foreign):
        say(f"unlike training: {line}")
    if strict and done.foreign:
        raise DataError(
            "--strict: inputs are unlike those of training", where=source[0], hint="their allocations are written"
        )


def _decides_beyond(policy: Path | None) -> bool:
    """Whether it is a policy of the decision engine, whose modules are not loaded where there is none."""
    if policy is None:
        return False
    from l2d.rejector.decisions.saved import is_policy

    return is_policy(policy)


@reads_stores
def policy(
    run: RunArgument,
    budget: Annotated[
        float | None, typer.Option(help="Mean price per input: in money if the run pays it, else in `price`.")
    ] = None,
    gflops: Annotated[float | None, typer.Option(help="Mean GFLOPs per input, of the agent that answers.")] = None,
    coverage: Annotated[float | None, typer.Option(help="Share that the model keeps, met exactly.")] = None,
    capacity: Annotated[
        str | None,
        typer.Option(help="The most an agent may get of a batch: a=0.3 (a share), b=100 (samples), c=60/minute."),
    ] = None,
    beta: OtherBetaOption = None,
    lambda_: OtherLambdaOption = None,
    split: SplitOption = Split.test,
    mode: Annotated[
        Mode, typer.Option(help="prices: fitted on validation, each input for itself; batch; exact (HiGHS).")
    ] = Mode.prices,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples per batch; capacities apply to each batch. Default: the split.")
    ] = None,
    calibration: Annotated[
        Calibration, typer.Option(help="From scores to costs; auto: what predicts best on validation.")
    ] = Calibration.auto,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the allocations (Parquet).")] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the policy, for `l2d route --policy`: prices as JSON, others a folder.")
    ] = None,
    ask: Annotated[
        Ask | None,
        typer.Option(help="Which rules to search; auto: the simplest that is not beaten.", rich_help_panel=BEYOND),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, max=5, help="Agents for one input at most. Default: 2.", rich_help_panel=BEYOND)
    ] = None,
    combine: Annotated[
        Combine | None, typer.Option(help="How several answers become one. Default: weighted.", rich_help_panel=BEYOND)
    ] = None,
    abstain: Annotated[
        float | None, typer.Option(help="Cost of giving no answer, in units of loss.", rich_help_panel=BEYOND)
    ] = None,
    cap: Annotated[
        str | None, typer.Option(help="The most one input may take: price=10,seconds=2.", rich_help_panel=BEYOND)
    ] = None,
    queue: Annotated[
        Path | None, typer.Option(help="Write the inputs without an answer, most urgent first.", rich_help_panel=BEYOND)
    ] = None,
    every: Annotated[
        float | None,
        typer.Option(help="Seconds from batch to batch, for capacities that are rates.", rich_help_panel=BEYOND),
    ] = None,
    wait: Annotated[
        float | None,
        typer.Option(help="Cost of waiting a batch for a full agent; else none waits.", rich_help_panel=BEYOND),
    ] = None,
    risk: Annotated[
        list[str] | None,
        typer.Option(
            help="Withhold answers until this can be promised: error<=0.05; may be repeated.", rich_help_panel=PROMISES
        ),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="With which the risk is promised. Default: 0.95.", rich_help_panel=PROMISES)
    ] = None,
    on_average: Annotated[
        bool, typer.Option("--on-average", help="Promise a mean (conformal risk control).", rich_help_panel=PROMISES)
    ] = False,
    family: Annotated[
        Family | None, typer.Option(help="How tests of several thresholds are corrected.", rich_help_panel=PROMISES)
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Kept column: promise in each of its groups.", rich_help_panel=PROMISES)
    ] = None,
    overwrite: ReplaceOption = False,
    format: FormatOption = Format.table,
):
    """Allocate under constraints, ask several agents, or promise an error. What it gave, and what it costs.

    Budgets and capacities alone allocate each input to one agent by prices. With an option of the last two panels,
    the decision engine searches committees and cascades, and may give no answer.

    Examples:

        l2d policy run --budget 0.3 --save policy.json

        l2d policy run --coverage 0.6 --capacity expert_1=0.3,expert_2=400 --mode batch --out allocations.parquet

        l2d policy run --ask cascade --depth 3 --save cascade

        l2d policy run --risk "error<=0.05" --confidence 0.95 --queue queue.csv
    """
    from l2d.data.terminal.render import print_result
    from l2d.rejector.at_work import policy as allocate
    from l2d.rejector.runs.files import one_run

    done = allocate(
        run,
        budget=budget,
        gflops=gflops,
        coverage=coverage,
        capacity=capacity,
        beta=one_beta(beta),
        weights=one_lambda(lambda_),
        split=split.value,
        mode=mode.value,
        batch_size=batch_size,
        calibration=calibration.value,
        out=out,
        save=save,
        overwrite=overwrite,
        ask=None if ask is None else ask.value,
        depth=depth,
        combine=None if combine is None else combine.value,
        abstain=abstain,
        cap=None if cap is None else pairs(cap, "--cap"),
        risk=risk or None,
        confidence=confidence,
        on_average=on_average,
        family=None if family is None else family.value,
        by=by,
        queue=queue,
        every=every,
        wait=wait,
    )
    print_result(done, format.value)
    for line in done.notes():
        say(line)
    for file in (out, queue):
        if file is not None:
            say(f"wrote {file}")
    if save is not None:
        say(f"wrote {save}; next: l2d route {quote(one_run(run))} INPUT --policy {quote(save)} --out FILE")


@reads_stores
def export(
    run: RunArgument,
    onnx: Annotated[Path, typer.Option("--onnx", help="The ONNX file.")],
    beta: OtherBetaOption = None,
    lambda_: OtherLambdaOption = None,
    overwrite: ReplaceOption = False,
    format: FormatOption = Format.table,
):
    """Write the rejector for production: an ONNX model from raw features to scores and the agent's index.

    Standardisation is inside, the batch size is free; agents, query costs and features' names are in its metadata.
    Needs the extra `onnx`: pip install 'l2d[onnx]'.

    Examples:

        l2d export run --onnx rejector.onnx

        l2d export runs/multi-task_beta=0.1_nu=1_seed=0 --onnx rejector.onnx --format json
    """
    from l2d.data.terminal.render import print_result
    from l2d.rejector.at_work import export as write_model

    found = write_model(run, onnx, beta=one_beta(beta), weights=one_lambda(lambda_), overwrite=overwrite)
    print_result(found, format.value)
