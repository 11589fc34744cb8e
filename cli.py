"""The command line: parses, calls the library, renders. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from l2d.data.errors import L2DError, UsageError

USAGE_ERROR = typer.BadParameter.__base__  # typer brings its own copy of click and does not export this

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Learning to defer, from a table: ask every agent once, then train rejectors on the cached costs.",
    epilog="Start with `l2d demo support2`.",
)


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"
    parquet = "parquet"


class EngineName(StrEnum):
    local = "local"
    ray = "ray"


class QueryFormat(StrEnum):
    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"
    parquet = "parquet"


class Split(StrEnum):
    train = "train"
    validation = "validation"
    test = "test"


class OnFailure(StrEnum):
    stop = "stop"
    record = "record"


class Failures(StrEnum):
    refuse = "refuse"
    drop = "drop"
    worst = "worst"
    mask = "mask"


class Mode(StrEnum):
    prices = "prices"
    batch = "batch"
    exact = "exact"


class Calibration(StrEnum):
    auto = "auto"
    implied = "implied"
    linear = "linear"
    isotonic = "isotonic"


FormatOption = Annotated[Format, typer.Option("--format", "-f", help="How results are printed to stdout.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 …")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Discard what was made from something else.")]
ReplaceOption = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")]
CacheArgument = Annotated[Path, typer.Argument(help="A cost cache made by `l2d build`.", metavar="CACHE")]
RunArgument = Annotated[Path, typer.Argument(help="A run made by `l2d train`, or one of a sweep's.", metavar="RUN")]
RunsArgument = Annotated[list[Path], typer.Argument(help="Runs, or folders of runs.", metavar="RUN...")]

# What `train` and `sweep` have in common.
RejectorOption = Annotated[
    str,
    typer.Option(
        help="linear, mlp or transformer; conv over cached images. A transformer reads token lists where the cache "
        "has them, else features: token_transformer and feature_transformer say which."
    ),
]
CostOption = Annotated[str | None, typer.Option(help="SQL over cost_cla, cost_reg … in place of the weighted sum.")]
EpochsOption = Annotated[int, typer.Option(min=1)]
BatchSizeOption = Annotated[int, typer.Option(min=1)]
LearningRateOption = Annotated[float, typer.Option(help="Adam's learning rate.")]
ScheduleOption = Annotated[str, typer.Option(help="cosine, linear or constant.")]
WarmupOption = Annotated[float, typer.Option(min=0, max=1, help="Share of the steps.")]
WeightDecayOption = Annotated[float, typer.Option(min=0, help="Decoupled (AdamW).")]
HiddenOption = Annotated[int, typer.Option(min=1, help="Hidden units, or token width.")]
LayersOption = Annotated[int, typer.Option(min=1, help="Hidden layers of the mlp; blocks of the token_transformer.")]
DropoutOption = Annotated[float, typer.Option(min=0, max=0.99, help="Of the token_transformer, in training.")]
LossOption = Annotated[str, typer.Option(help="surrogate (the paper's), regression or one_vs_all.")]
RecentreOption = Annotated[
    bool, typer.Option("--recentre/--no-recentre", help="Train on costs less the sample's cheapest.")
]
PatienceOption = Annotated[
    int, typer.Option(min=0, help="Stop so many epochs after the lowest validation risk. 0: never.")
]
MemoryOption = Annotated[
    str | None, typer.Option(help="Rows held at once, such as 500MB or 2GiB; more are streamed. Default: all of them.")
]
FailuresOption = Annotated[
    Failures,
    typer.Option(help="Recorded failures: refuse; drop those samples; charge the worst training cost; mask the agent."),
]

OnlyOption = Annotated[
    str | None, typer.Option(help="Agents to choose among, by commas, the model one of them. Default: all.")
]
ClassifierOption = Annotated[
    str,
    typer.Option(help="For the methods of docs/methods.md: the cached model's classes, or a classifier of their own."),
]
AlphaOption = Annotated[
    float, typer.Option(min=0, max=1, help="Of mozannar_sontag and realizable, see docs/methods.md.")
]
TrainRowsOption = Annotated[
    float | None, typer.Option(help="Train on a share of the split below 1, or on so many rows, drawn by the seed.")
]

BETA_HELP = "Query cost: one number (the dearest expert's, others by price), or name=value pairs."
LAMBDA_HELP = "Task weights, such as cla=1,reg=0.2. Default: the recipe's."


@app.command()
def build(
    recipe: Annotated[str, typer.Argument(help="A TOML file, or the name of a recipe that ships.", metavar="RECIPE")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the cost cache.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and why; asks one batch each.")
    ] = False,
    on_failure: Annotated[OnFailure, typer.Option(help="Where an agent fails: stop, or record a missing answer.")] = (
        OnFailure.stop
    ),
    retry_failures: Annotated[bool, typer.Option("--retry-failures", help="Ask recorded failures again.")] = False,
    keep_answers: Annotated[
        list[str] | None, typer.Option(help="Keep this agent's answers though it has changed; may be repeated.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Where the dataset lies, in place of the recipe's path.")] = None,
    engine: Annotated[EngineName, typer.Option(help="Where agents are asked: here, or on a Ray cluster.")] = (
        EngineName.local
    ),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Of each agent, with --engine ray. Default: all GPUs, or CPUs.")
    ] = None,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Do this share of the chunks; jobs with the others may run anywhere.")
    ] = "1/1",
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda, cuda:1; cuda:0,cuda:1 divides the chunks among processes.")
    ] = "auto",
    overwrite: OverwriteOption = False,
    format: FormatOption = Format.table,
):
    """Stage one: ask every agent once and write the cost cache. The same command resumes.

    Examples:

        l2d build support2 --out support2.cache

        l2d build my_recipe.toml --out my.cache --dry-run

        l2d build voc2012 --data VOCdevkit --out voc.cache

        l2d build my_recipe.toml --out my.cache --shard 2/8
    """
    from l2d.cache_builder.builder import build as build_cache
    from l2d.cache_builder.dry_run import dry_run as plan_build
    from l2d.cache_builder.engines.processes import build_in_processes
    from l2d.cache_builder.engines.ray import ray_engine
    from l2d.cache_builder.engines.shards import Shard
    from l2d.cache_builder.recipe import load_recipe
    from l2d.data.cache.reader import CostCache
    from l2d.data.cache.status import column_lines, status_rows
    from l2d.data.terminal.render import print_rows

    if workers is not None and engine is not EngineName.ray:
        raise UsageError("--workers is for --engine ray", hint="here: --device cpu,cpu divides the chunks among two")
    loaded = load_recipe(recipe, data)
    say(f"{loaded.name}: {loaded.description}" if loaded.description else loaded.name)
    if dry_run:
        print_rows(plan_build(loaded, out, device=device, retry_failures=retry_failures), format.value)
        return
    if "," in device:
        if shard != "1/1" or engine is EngineName.ray or overwrite:
            raise UsageError(f"--device {device} with --shard, --engine ray or --overwrite", hint="one or the other")
        options = ["--on-failure", on_failure.value, *(f"--keep-answers={name}" for name in keep_answers or ())]
        options += [f"--data={data}"] if data else []
        build_in_processes(recipe, out, device.split(","), options + ["--retry-failures"] * retry_failures)
        device = device.split(",")[0]
    with _Bars() as bars:
        report = build_cache(
            loaded,
            out,
            device=device,
            overwrite=overwrite,
            on_failure=on_failure.value,
            retry_failures=retry_failures,
            keep_answers=keep_answers or (),
            shard=Shard.parse(shard),
            engine=ray_engine(workers=workers) if engine is EngineName.ray else None,
            progress=bars.start,
        )
    asked = {name: samples for name, samples in report.asked.items() if samples}
    if asked:
        say("asked: " + ", ".join(f"{name} {samples:,} samples" for name, samples in asked.items()))
    else:
        say("nothing to ask: every answer was there already")
    for line in column_lines(CostCache(out)):
        say(line)
    print_rows(status_rows(CostCache(out)), format.value)
    unavailable = {name: count for name, count in report.unavailable.items() if count}
    if unavailable:
        say("no answer: " + ", ".join(f"{name} on {count:,} samples" for name, count in unavailable.items()))
    failed = {name: count for name, count in report.failed.items() if count}
    if failed:
        say("failures recorded: " + ", ".join(f"{name} {count:,}" for name, count in failed.items()))
        sql = "SELECT agent, failure, count(*) FROM predictions WHERE failure IS NOT NULL GROUP BY ALL"
        say(f'why:  l2d query {quote(out)} "{sql}"')
        say(f"next: l2d build {quote(recipe)} --out {quote(out)} --retry-failures, or l2d train … --failures drop")
        return
    if report.unfinished:
        say(f"shard {shard} is done; the other shards have the rest. When all are: l2d build {quote(recipe)} --out …")
        return
    say(f"next: l2d train {quote(out)} --out RUN")


class ImportFormat(StrEnum):
    predictions = "predictions"
    scores = "scores"


@app.command("import")
def import_tables(
    kind: Annotated[ImportFormat, typer.Argument(help="predictions, or scores from 0 to 1.", metavar="FORMAT")],
    files: Annotated[list[Path], typer.Argument(help="FEATURES ANSWERS; scores may be one file.", metavar="FILE...")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the cost cache.")],
    id_column: Annotated[str, typer.Option("--id", help="Column of sample ids, in both files.")],
    target: Annotated[str | None, typer.Option(help="Column of FEATURES: the true class.")] = None,
    target_reg: Annotated[str | None, typer.Option(help="Column of FEATURES: the true number.")] = None,
    annotator: Annotated[str | None, typer.Option(help="Column of ANSWERS that says whose a row is.")] = None,
    cla: Annotated[str | None, typer.Option(help="Column of answered classes; {} is an agent's name.")] = None,
    prob: Annotated[str | None, typer.Option(help="Or of the second class's probability.")] = None,
    reg: Annotated[str | None, typer.Option(help="Column of answered numbers, or of scores.")] = None,
    paid: Annotated[str | None, typer.Option(help="Column of ANSWERS: what each answer cost.")] = None,
    model: Annotated[str | None, typer.Option(help="Agent 0. Default: a network trained here.")] = None,
    features: Annotated[str | None, typer.Option(help="Columns the rejector sees, by commas. Default: all.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="WRITTEN=CLASS, for misspelt labels; may be repeated.")
    ] = None,
    drop_others: Annotated[bool, typer.Option("--drop-others", help="Leave out answers on other samples.")] = False,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    format: FormatOption = Format.table,
):
    """A cache from tables you have. The recipe that this takes is written beside it, as CACHE.toml, to be edited.

    ANSWERS has a row for each answer and a column with the annotator, or a row for each sample and a column for each
    agent. Parquet, CSV or JSONL; who has not answered a sample is unavailable there.

    Examples:

        l2d import predictions features.csv answers.csv --id case --target diagnosis --out my.cache

        l2d import predictions cases.csv votes.csv --id case --target label --annotator reader --out votes.cache

        l2d import scores routerbench.csv --id sample_id --features eval_name --out router.cache
    """
    from l2d.cache_builder.importing.predictions import Source, recipe_of_predictions, write_recipe
    from l2d.cache_builder.importing.scores import recipe_of_scores

    most = "FEATURES and ANSWERS" if kind == ImportFormat.predictions else "one file, or FEATURES and SCORES"
    if len(files) != 2 and (kind == ImportFormat.predictions or len(files) != 1):
        raise UsageError(f"{kind.value} takes {most}, not {len(files)} files", hint="l2d import --help has examples")
    source = Source(
        files[0], files[-1], id_column, target=target, target_reg=target_reg, annotator=annotator, cla=cla, prob=prob,
        reg=reg, paid=paid, model=model, columns=_list(features, str, "--features") if features else [],
        labels=dict(_label(text) for text in label or []), others="drop" if drop_others else "refuse",
    )  # fmt: skip
    recipe = out.parent / f"{out.name}.toml"
    make = recipe_of_predictions if kind == ImportFormat.predictions else recipe_of_scores
    write_recipe(make(source, recipe.parent, say), recipe, overwrite=overwrite)
    say(f"recipe: {recipe} (edit it, then l2d build {quote(recipe)} --out {quote(out)})")
    build(str(recipe), out, device=device, overwrite=overwrite, format=format)
    runs = out.with_suffix(".runs")
    say(f"or:   l2d sweep {quote(out)} --out {quote(runs)} && l2d report {quote(runs)} --out report.html")


@app.command()
def status(cache: CacheArgument, format: FormatOption = Format.table):
    """What a cache holds: agents, parts done and missing, mean raw costs by split.

    Examples:

        l2d status support2.cache

        l2d status support2.cache --format json
    """
    from l2d.data.cache.reader import CostCache
    from l2d.data.cache.status import column_lines, status_rows
    from l2d.data.terminal.render import print_rows

    opened = CostCache(cache)
    for line in column_lines(opened):
        say(line)
    print_rows(status_rows(opened), format.value)
    opened.require_complete()


@app.command()
def verify(cache: CacheArgument, format: FormatOption = Format.table):
    """Read everything back: page checksums, samples, rows, seals. Exit 3 names the file that is wrong.

    Examples:

        l2d verify support2.cache

        l2d verify support2.cache && echo safe to train on
    """
    from l2d.data.cache.reader import CostCache
    from l2d.data.terminal.render import print_rows

    parts = CostCache(cache).verify()
    if format == Format.table:
        print(f"{cache}: {parts} parts are what was written")
    else:
        print_rows([{"cache": str(cache), "parts": parts, "sound": True}], format.value)


@app.command()
def push(
    cache: CacheArgument,
    url: Annotated[str, typer.Argument(help="s3://…, gs://…, a folder: what fsspec has a driver for.", metavar="URL")],
):
    """Copy a complete cache to an object store, as plain Parquet. The same command resumes.

    Examples:

        l2d push support2.cache s3://bucket/support2.cache

        l2d push support2.cache /mnt/shared/support2.cache
    """
    from l2d.data.cache.reader import CostCache
    from l2d.data.cache.remote import push as push_cache

    with _Bars() as bars:
        copied = push_cache(CostCache(cache), url, bars.start("pushing", None, "files"))
    say(f"copied {copied:,} files; next: l2d fetch {quote(url)} --out CACHE")


@app.command()
def fetch(
    url: Annotated[str, typer.Argument(help="Where `l2d push` has put a cache.", metavar="URL")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the local copy.")],
    format: FormatOption = Format.table,
):
    """Copy a cache from an object store and verify every byte. The same command resumes.

    Examples:

        l2d fetch s3://bucket/support2.cache --out support2.cache
    """
    from l2d.data.cache.remote import fetch as fetch_cache
    from l2d.data.cache.status import status_rows
    from l2d.data.terminal.render import print_rows

    with _Bars() as bars:
        cache = fetch_cache(url, out, bars.start("fetching", None, "files"))
    print_rows(status_rows(cache), format.value)
    say(f"next: l2d train {quote(out)} --out RUN")


@app.command()
def audit(
    cache: CacheArgument,
    group: Annotated[
        list[str] | None, typer.Option(help="A kept column that should not be in two splits; may be repeated.")
    ] = None,
    format: FormatOption = Format.table,
):
    """Leakage: ids, groups or inputs in two splits; agents that know the training samples.

    Examples:

        l2d audit support2.cache

        l2d audit my.cache --group patient --format json
    """
    from dataclasses import asdict

    from l2d.data.cache.audit import audit as run_audit
    from l2d.data.cache.reader import CostCache
    from l2d.data.terminal.render import print_rows, print_table

    findings = run_audit(CostCache(cache), groups=tuple(group or ()))
    rows = [finding.row() for finding in findings]
    gaps = [gap.row() for finding in findings for gap in finding.gaps]
    if format == Format.table:
        print_table(rows)
        print_table(gaps, title="Mean cost of each agent on training and on test samples")
    elif format == Format.json:
        print_rows(
            [row | {"gaps": [asdict(gap) for gap in f.gaps]} for row, f in zip(rows, findings, strict=True)],
            format.value,
        )
    else:
        print_rows(rows, format.value)
    warnings = sum(finding.level == "warning" for finding in findings)
    count = "1 warning" if warnings == 1 else f"{warnings} warnings"
    say(f"{count}: figures on test may be too good" if warnings else "no warning")


@app.command()
def train(
    cache: CacheArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    rejector: RejectorOption = "mlp",
    method: Annotated[str, typer.Option(help="multi-task, mozannar_sontag, knn …: docs/methods.md.")] = "multi-task",
    beta: Annotated[str | None, typer.Option(help=BETA_HELP)] = None,
    lambda_: Annotated[str | None, typer.Option("--lambda", help=LAMBDA_HELP)] = None,
    nu: Annotated[float, typer.Option(min=0, help="Surrogate: 0 sum-exponential, 1 log-softmax, 2 MAE.")] = 1.0,
    cost: CostOption = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    epochs: EpochsOption = 100,
    batch_size: BatchSizeOption = 1024,
    lr: LearningRateOption = 3e-3,
    schedule: ScheduleOption = "cosine",
    warmup: WarmupOption = 0.1,
    weight_decay: WeightDecayOption = 0.0,
    hidden: HiddenOption = 64,
    layers: LayersOption = 2,
    dropout: DropoutOption = 0.0,
    loss: LossOption = "surrogate",
    recentre: RecentreOption = False,
    patience: PatienceOption = 0,
    memory: MemoryOption = None,
    failures: FailuresOption = Failures.refuse,
    only: OnlyOption = None,
    classifier: ClassifierOption = "cached",
    alpha: AlphaOption = 1.0,
    train_rows: TrainRowsOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    format: FormatOption = Format.table,
):
    """Train one rejector on a cost cache. No agent is asked.

    Examples:

        l2d train support2.cache --out run

        l2d train support2.cache --out run --beta expert_1=0.05,expert_2=0.1 --nu 0.5 --rejector linear
    """
    from l2d.rejector.training.rejector import TrainConfig

    config = TrainConfig(
        network=rejector, hidden=hidden, epochs=epochs, batch_size=batch_size, lr=lr, schedule=schedule,
        warmup=warmup, weight_decay=weight_decay, layers=layers, dropout=dropout, loss=loss, recentre=recentre,
        patience=patience, memory=_bytes(memory), failures=failures.value, classifier=classifier, alpha=alpha,
        train_rows=train_rows,
    )  # fmt: skip
    grid = {
        "methods": [method],
        "weights": [_pairs(lambda_, "--lambda")] if lambda_ else [],
        "betas": _betas([beta]) if beta else [],
        "nus": [nu],
        "seeds": [seed],
        "cost": cost,
    }
    if len(grid["betas"]) > 1:
        raise UsageError(f"--beta {beta} gives {len(grid['betas'])} values", hint="for a grid: l2d sweep")
    if _sweep(cache, grid, config, lambda point: out, device, overwrite, only) is None:
        return
    _evaluate([out], Split.test, format)
    sql = "SELECT agent, count(*) FROM allocations GROUP BY ALL"
    say(f'next: l2d report {quote(out)}, or l2d query {quote(out)} {quote(cache)} "{sql}"')


@app.command()
def sweep(
    cache: CacheArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the runs, one folder each.")],
    rejector: RejectorOption = "mlp",
    method: Annotated[str, typer.Option(help="One or more, by commas: docs/methods.md.")] = "multi-task",
    beta: Annotated[list[str] | None, typer.Option(help=BETA_HELP + " Numbers by commas; may be repeated.")] = None,
    lambda_: Annotated[list[str] | None, typer.Option("--lambda", help=LAMBDA_HELP + " May be repeated.")] = None,
    nu: Annotated[str, typer.Option(help="Numbers >= 0, by commas.")] = "1",
    cost: CostOption = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many: 0, 1, …")] = 4,
    epochs: EpochsOption = 100,
    batch_size: BatchSizeOption = 1024,
    lr: LearningRateOption = 3e-3,
    schedule: ScheduleOption = "cosine",
    warmup: WarmupOption = 0.1,
    weight_decay: WeightDecayOption = 0.0,
    hidden: HiddenOption = 64,
    layers: LayersOption = 2,
    dropout: DropoutOption = 0.0,
    loss: LossOption = "surrogate",
    recentre: RecentreOption = False,
    patience: PatienceOption = 0,
    memory: MemoryOption = None,
    failures: FailuresOption = Failures.refuse,
    only: OnlyOption = None,
    classifier: ClassifierOption = "cached",
    alpha: AlphaOption = 1.0,
    train_rows: TrainRowsOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    format: FormatOption = Format.table,
):
    """Train a grid of rejectors together: methods x lambda x beta x nu x seeds. No agent is asked.

    Examples:

        l2d sweep support2.cache --out runs --method multi-task,classification-only,regression-only

        l2d sweep support2.cache --out betas --beta 0,0.05,0.1,0.2,0.4 --seeds 4

        l2d sweep digits.cache --only model,expert_5 --out others --method knn,confidence,mozannar_sontag,realizable

        torchrun --standalone --nproc-per-node 2 --no-python l2d sweep support2.cache --out runs
    """
    from l2d.rejector.training.rejector import TrainConfig

    config = TrainConfig(
        network=rejector, hidden=hidden, epochs=epochs, batch_size=batch_size, lr=lr, schedule=schedule,
        warmup=warmup, weight_decay=weight_decay, layers=layers, dropout=dropout, loss=loss, recentre=recentre,
        patience=patience, memory=_bytes(memory), failures=failures.value, classifier=classifier, alpha=alpha,
        train_rows=train_rows,
    )  # fmt: skip
    grid = {
        "methods": _list(method, str, "--method"),
        "weights": [_pairs(text, "--lambda") for text in lambda_ or []],
        "betas": _betas(beta) if beta else [],
        "nus": _list(nu, float, "--nu"),
        "seeds": list(range(seeds)),
        "cost": cost,
    }
    folders = _sweep(cache, grid, config, lambda point: out / point.run_id, device, overwrite, only)
    if folders is None:
        return
    _evaluate(folders, Split.test, format, one=False)
    say(f"next: l2d report {quote(out)}, or l2d evaluate {quote(out)} --split validation")


@app.command()
def evaluate(
    runs: RunsArgument,
    split: Split = Split.test,
    group: Annotated[
        str | None,
        typer.Option(help="A kept column: samples of one value are resampled together. Default: `group`, if kept."),
    ] = None,
    format: FormatOption = Format.table,
):
    """Deferral loss, task metrics, allocation, every agent alone, baselines and oracle, with intervals.

    Examples:

        l2d evaluate runs

        l2d evaluate run --split validation --format json

        l2d evaluate runs --group patient
    """
    _evaluate(runs, split, format, group=group)


@app.command()
def theory(
    run: RunArgument,
    split: Split = Split.test,
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


@app.command()
def route(
    run: RunArgument,
    source: Annotated[
        Path,
        typer.Argument(help="A Parquet or CSV file: the source's columns, or `features`. Or a cache.", metavar="INPUT"),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The allocations: a .parquet or .csv file.")],
    id_column: Annotated[
        str | None, typer.Option("--id", help="Column of sample ids. Default: the recipe's `id`, else row numbers.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="A file of `l2d policy --save`: allocate by its prices.")] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="An agent that cannot be asked now; may be repeated.", metavar="AGENT")
    ] = None,
    overwrite: ReplaceOption = False,
    format: FormatOption = Format.table,
):
    """Allocate inputs that nobody has labelled: which agent each should go to, and every agent's score.

    Reads and writes in batches, so a file of any size will do. The cache that the run was trained on is not needed.

    Examples:

        l2d route run new_patients.csv --out allocations.parquet

        l2d route run new_patients.parquet --out allocations.csv --id patient --format json

        l2d route run new_patients.csv --out allocations.parquet --without expert_1 --without expert_2
    """
    from l2d.data.terminal.render import print_rows
    from l2d.rejector.route import route as run_route

    with _Bars() as bars:
        done = run_route(
            run,
            source,
            out,
            id_column=id_column,
            policy=policy,
            without=without or (),
            overwrite=overwrite,
            progress=lambda rows: bars.start("routing", rows),
        )
    rate = f"{done.samples:,} inputs in {done.seconds:.1f} s, {done.samples / done.seconds:,.0f} a second"
    print_rows(done.rows(), format.value, title=rate)
    if done.nobody:
        say(f"{done.nobody:,} go to nobody (null): no agent has an answer for them")
    say(f"wrote {out}; sample ids: {done.ids}")


@app.command()
def policy(
    run: RunArgument,
    budget: Annotated[float | None, typer.Option(help="Mean price per input, in the recipe's prices.")] = None,
    gflops: Annotated[float | None, typer.Option(help="Mean GFLOPs per input, of the agent that answers.")] = None,
    coverage: Annotated[float | None, typer.Option(help="Share that the model keeps, met exactly.")] = None,
    capacity: Annotated[
        str | None, typer.Option(help="At most so much for an agent: expert_1=0.3 (a share), expert_2=100 (samples).")
    ] = None,
    split: Split = Split.test,
    mode: Annotated[
        Mode, typer.Option(help="prices: fitted on validation, each input for itself; batch; exact (HiGHS).")
    ] = Mode.prices,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples allocated together, that capacities are of. Default: the split.")
    ] = None,
    calibration: Annotated[
        Calibration, typer.Option(help="From scores to costs; auto: what predicts best on validation.")
    ] = Calibration.auto,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the allocations (Parquet).")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the prices, for `l2d route --policy` (JSON).")] = None,
    overwrite: ReplaceOption = False,
    format: FormatOption = Format.table,
):
    """Allocate under constraints: a total budget, an exact coverage, capacities. What it gave, and what it costs.

    Examples:

        l2d policy run --budget 0.3 --save policy.json

        l2d policy run --coverage 0.6 --capacity expert_1=0.3,expert_2=400 --mode batch --out allocations.parquet
    """
    import json

    from l2d.data.cache import store
    from l2d.data.terminal.render import print_rows, print_table
    from l2d.rejector.policies.constraints import make_constraints, parse_capacity
    from l2d.rejector.policies.policy import allocation_table, narrate, report_tables, run_policy
    from l2d.rejector.runs.run import load_run, one_run, open_cache

    opened = load_run(one_run(run))
    constraints = make_constraints(
        open_cache(opened).agents,
        budget=budget,
        gflops=gflops,
        coverage=coverage,
        capacity=parse_capacity(capacity) if capacity else None,
    )
    _check_out(out, overwrite)
    _check_out(save, overwrite)
    if save is not None and mode != Mode.prices:
        raise UsageError(f"--save goes with --mode prices, not {mode.value}", hint="only prices serve other inputs")
    done = run_policy(
        opened,
        constraints,
        split=split.value,
        mode=mode.value,
        batch_size=batch_size,
        calibration=calibration.value,
    )
    limits, outcomes = report_tables(done.result)
    if format == Format.json:
        print(json.dumps(done.result, indent=2, ensure_ascii=False))
    elif format == Format.table:
        print_table(limits, title=f"{done.result['run_id']}: {done.result['num_samples']:,} {split.value} samples")
        print_table(outcomes)
    else:
        print_rows(outcomes, format.value)
    for line in narrate(done.result):
        say(line)
    if out is not None:
        store.commit_table(out, allocation_table(done), {"run_id": opened.point.run_id}, replace=overwrite)
        say(f"wrote {out}")
    if save is not None:
        done.policy.save(save, overwrite=overwrite)
        say(f"wrote {save}; next: l2d route {quote(opened.path)} INPUT --policy {quote(save)} --out FILE")


@app.command()
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


@app.command()
def query(
    arguments: Annotated[
        list[str],
        typer.Argument(
            help="Caches, runs or folders, then one SQL query. Without a query: a prompt, or stdin.",
            metavar='PATH... ["SQL"]',
        ),
    ],
    format: Annotated[
        QueryFormat | None, typer.Option("--format", "-f", help="How rows are printed to stdout. Default: table.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write to a .csv, .json, .jsonl or .parquet file instead.")
    ] = None,
    overwrite: ReplaceOption = False,
    memory_limit: Annotated[
        str | None,
        typer.Option(help="What DuckDB may hold, such as 4GB; more goes to disk. Default: 60 % of all."),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds a query may take, its output included. Default: as many as it needs.")
    ] = None,
):
    """SQL over every cache and run beneath the paths.

    Views: samples, features, images, tokens, vocabularies, agents, costs, predictions, allocations, scores, runs,
    run_agents.
    `DESCRIBE costs` lists a view's columns. The cookbook is docs/sql.md.

    Examples:

        l2d query demo "SELECT agent, count(*) AS samples, avg(deferral_cost) FROM allocations GROUP BY ALL ORDER BY 1"

        l2d query my.cache "SELECT ward, agent, avg(cost_cla) FROM costs JOIN samples USING (sample_id) GROUP BY 1, 2"

        l2d query my.cache my.runs "FROM scores" --out scores.parquet --memory-limit 4GB --timeout 600

        l2d query my.cache my.runs
    """  # fmt: skip
    from l2d.rejector.sql.prompt import Console, read_statements, run_prompt, run_script
    from l2d.rejector.sql.query import QuerySession, check_target

    paths, sql = _paths_and_sql(arguments)
    if out is not None:
        if format is not None:
            raise UsageError("--format and --out together", hint="the suffix of --out says how it is written")
        check_target(out, overwrite=overwrite)
    elif overwrite:
        raise UsageError("--overwrite without --out", hint="it is about the file of --out")
    interactive = sql is None and sys.stdin.isatty() and sys.stdout.isatty()
    if out is not None and sql is None:
        statements = [] if interactive else list(read_statements(iter(sys.stdin)))
        if len(statements) != 1:
            raise UsageError("--out takes the result of one query", hint='l2d query PATH "SQL" --out FILE')
        sql = statements[0]
    with QuerySession(paths, memory_limit=_bytes(memory_limit, "--memory-limit"), timeout=timeout) as session:
        for note in session.notes:
            say(f"note: {note}")
        if out is not None:
            rows = session.run(sql).save(out, overwrite=overwrite)
            say(f"wrote {out}: {rows:,} rows")
            return
        formats = [(format or QueryFormat.table).value]
        formats += [name.value for name in QueryFormat if name not in (*formats, QueryFormat.parquet)]
        console = Console(session, _print_result, formats)
        if sql is not None:
            _print_result(session.run(sql), formats[0])
        elif interactive:
            run_prompt(console, lambda error: say(f"error: {error}"))
        else:
            run_script(console, sys.stdin)


def _paths_and_sql(arguments: list[str]) -> tuple[list[Path], str | None]:
    """Paths, and the query if the last argument is one: it is no path that exists, and more than a lone word."""
    *paths, last = arguments
    if not last.strip() or not any(character in last for character in " \n\t;(") or _is_there(last):
        return [Path(path) for path in arguments], None
    if not paths:
        raise UsageError("a query, but no path before it", hint='l2d query CACHE "SELECT * FROM agents"')
    return [Path(path) for path in paths], last


def _print_result(result, format: str) -> None:
    from l2d.data.terminal.render import TABLE_ROWS, print_batches

    if not print_batches(result.schema, result, format):
        say(f"the first {TABLE_ROWS:,} rows; all of them: --format csv, or --out FILE")


class Picture(StrEnum):
    png = "png"
    svg = "svg"


@app.command()
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
    figure_format: Annotated[Picture, typer.Option(help="Of the pictures in --figures.")] = Picture.png,
    split: Split = Split.test,
    group: Annotated[
        str | None,
        typer.Option(help="A kept column: samples of one value are resampled together. Default: `group`, if kept."),
    ] = None,
    theory: Annotated[
        bool, typer.Option("--theory", help="Say too why the rejector falls short, as `l2d theory`: half a minute.")
    ] = False,
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


@app.command()
def export(
    run: RunArgument,
    onnx: Annotated[Path, typer.Option("--onnx", help="The ONNX file.")],
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
    from l2d.data.terminal.render import print_rows
    from l2d.rejector.export import export_run

    print_rows([export_run(run, onnx, overwrite=overwrite).row()], format.value)


@app.command()
def digits(
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder to make, in Pascal VOC's layout; or a .parquet or .csv file: a row a digit."
        ),
    ],
    images: Annotated[float, typer.Option(min=0.01, help="How many scenes, as a multiple of the usual.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
):
    """Compose real handwritten digits into scenes with boxes: a semi-synthetic detection set in Pascal VOC's layout.

    Examples:

        l2d digits --out VOCdevkit

        l2d build digits --data VOCdevkit --out digits.cache

        l2d digits --out digits.parquet
    """
    from l2d.data.sources.digits import IMAGES, write_digit_table, write_digits

    if out.suffix.lower() in (".parquet", ".csv"):
        if images != 1.0 or seed:
            raise UsageError("--images and --seed are for scenes; a table has the digits as they are", hint="drop them")
        written = write_digit_table(out)
        print(out)
        say("1,797 digits of 8 x 8 pixels" + ("" if written else "; the file was there already"))
        say(f"next: l2d build mozannar_sontag_digits --data {quote(out)} --out digits.cache")
        return
    counts = {name: max(1, round(images * count)) for name, count in IMAGES.items()}
    written = write_digits(out, images=counts, seed=seed)
    print(out)
    numbers = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    say(f"scenes: {numbers}" + ("" if written else "; they were there already"))
    say(f"next: l2d build digits --data {quote(out)} --out digits.cache")


@app.command()
def mimic(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make, in MIMIC-IV's layout.")],
    patients: Annotated[int, typer.Option(min=1, help="299712 is the size of MIMIC-IV 2.2: 431,000 visits.")] = 40_000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
):
    """Draw made-up patients in MIMIC-IV's layout, their risk known: to try the experiment, and to check its answer.

    Examples:

        l2d mimic --out mimic

        l2d build mimic4 --data mimic --out mimic.cache
    """
    from l2d.data.sources.mimic4.generator import write_mimic4

    written = write_mimic4(out, patients=patients, seed=seed)
    print(out)
    say(f"made-up patients: {patients:,}" + ("" if written else "; they were there already"))
    say(f"next: l2d build mimic4 --data {quote(out)} --out mimic.cache")


@app.command()
def demo(
    name: Annotated[str, typer.Argument(help="support2 or digits")] = "support2",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for everything. Default: l2d-demo-NAME.")
    ] = None,
):
    """The whole job on data that ships: build, sweep, evaluate, query, report. Shows each command it runs.

    Examples:

        l2d demo

        l2d demo digits --out demo
    """
    from l2d.cache_builder.recipe import SHIPPED

    script = SHIPPED / f"{name}.demo"
    if not script.is_file():
        names = sorted(path.stem for path in SHIPPED.glob("*.demo"))
        raise UsageError(f"there is no demo {name!r}", hint=f"the demos are {', '.join(names)}")
    folder = out or Path(f"l2d-demo-{name}")
    for block in script.read_text(encoding="utf-8").split("\n\n"):
        lines = [line.replace("{out}", quote(folder)) for line in block.strip().splitlines()]
        for line in lines:
            if line.startswith("#"):
                say("\n" + line, bold=True)
        command = "\n".join(line for line in lines if not line.startswith("#"))
        say(f"$ {command}\n")
        app(shlex.split(command)[1:], standalone_mode=False)
    say(f"\nEverything is in {folder}: go on with the commands above, or open {folder / 'report.html'}", bold=True)


def _check_out(out: Path | None, overwrite: bool) -> None:
    if out is not None and out.exists() and (not overwrite or out.is_dir()):
        raise UsageError("this is there already", where=out, hint="give another --out, or type --overwrite")


def quote(path: object) -> str:
    """A path as it has to be typed."""
    return shlex.quote(str(path))


def say(text: str, *, bold: bool = False) -> None:
    """Narration, to stderr."""
    typer.secho(text, err=True, bold=bold)


def _is_there(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # longer than a file's name may be
        return False


def _sweep(
    cache: Path, grid: dict, config, folder_of: Callable, device: str, overwrite: bool, only: str | None
) -> list[Path] | None:
    """Train; folders of the runs. None in the processes of a `torchrun` that have nothing to say."""
    from l2d.data.cache.reader import CostCache
    from l2d.data.device import resolve_device
    from l2d.rejector.grid import chosen_agents, make_grid
    from l2d.rejector.sweep import sweep as run_sweep
    from l2d.rejector.training.distributed import is_first

    opened = CostCache(cache)
    if only is not None:
        opened = chosen_agents(opened, _list(only, str, "--only"))
    points = make_grid(opened, **grid)
    folders = [folder_of(point) for point in points]
    if is_first():
        _warn_of_leaks(opened)
    with _Bars() as bars:
        advance = bars.epochs(config.epochs)
        done = run_sweep(
            opened, points, folders, config, device=resolve_device(device), overwrite=overwrite,
            progress=advance, narrate=say,
        )  # fmt: skip
    if not is_first():
        return None
    if done.trained:
        what = "1 rejector" if done.trained == 1 else f"{done.trained} rejectors together"
        say(f"trained {what} in {done.seconds:.1f} s, asking no agent")
    if done.left_out:
        say(f"left out {done.left_out:,} samples for want of answers")
    if done.trained < len(folders):
        say(f"{len(folders) - done.trained} of {len(folders)} were trained already")
    return done.folders


def _warn_of_leaks(cache) -> None:
    """One line if test samples are in another split too; silent otherwise."""
    from l2d.data.cache.audit import leaks

    for finding in leaks(cache)[:1]:
        say(f"warning: {finding.check}: {finding.what} (see: l2d audit {quote(cache.path)})")


def _evaluate(
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


class _Bars:
    """Progress bars on stderr, silent where that is no terminal."""

    def __enter__(self) -> _Bars:
        self.bars = []
        return self

    def __exit__(self, *_) -> None:
        for bar in self.bars:
            bar.close()

    def start(self, agent: str, samples: int | None, unit: str = "samples") -> Callable[[int], None]:
        from tqdm import tqdm

        for bar in self.bars:
            bar.close()
        self.bars.append(tqdm(total=samples, desc=agent, unit=f" {unit}", disable=None))
        return self.bars[-1].update

    def epochs(self, total: int) -> Callable[[int, int, float], None]:
        from tqdm import tqdm

        bar = None

        def advance(epoch: int, rows: int, risk: float) -> None:
            nonlocal bar
            if bar is None or epoch == 0:  # of another wave
                bar = tqdm(total=total * rows, desc="training", unit=" rows", unit_scale=True, disable=None)
                self.bars.append(bar)
            bar.set_postfix_str(f"epoch {epoch + 1}/{total}, validation risk {risk:.4f}", refresh=False)
            bar.update(rows)

        return advance


def _bytes(text: str | None, option: str = "--memory") -> int | None:
    """A size such as 500MB or 2GiB."""
    if text is None:
        return None
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    number = text.strip().rstrip("BbIiKkMmGg ")
    try:
        size = float(number) * units[text.strip()[len(number) :].strip().upper()]
        if not 0 < size < float("inf"):
            raise ValueError
    except (ValueError, KeyError):
        raise UsageError(f"{option} {text}: no size", hint=f"such as {option} 500MB or 2GiB") from None
    return round(size)


def _label(text: str) -> tuple[str, str]:
    written, sign, name = text.partition("=")
    if not (written and sign and name):
        raise UsageError(f"--label {text}: no WRITTEN=CLASS", hint="such as --label yse=yes")
    return written, name


def _list(text: str, kind: type, option: str) -> list:
    if not text.replace(",", "").strip():
        raise UsageError(f"{option} is empty", hint=f"give one or more values, by commas: {option} …")
    try:
        return [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"{option} {text}: not a list of numbers", hint=f"such as {option} 0.5,1,2") from None


def _pairs(text: str, option: str) -> dict[str, float]:
    pairs = {}
    for part in text.split(","):
        name, sign, value = part.partition("=")
        try:
            pairs[name.strip()] = float(value)
        except ValueError:
            sign = ""
        if not sign:
            raise UsageError(f"{option} {text}: {part!r} is no name=value", hint=f"such as {option} cla=1,reg=0.2")
    return pairs


def _betas(texts: list[str]) -> list[float | dict[str, float]]:
    betas: list[float | dict[str, float]] = []
    for text in texts:
        betas += [_pairs(text, "--beta")] if "=" in text else _list(text, float, "--beta")
    return betas


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived; not an Exception, so that nothing on the way takes it for an agent's failure."""


def main() -> None:
    """Entry point: errors the user can act on become one message and their exit code."""

    def interrupt(number: int, _) -> None:
        raise Interrupted(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        sys.exit(app(prog_name="l2d", standalone_mode=False))
    except L2DError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except USAGE_ERROR as error:  # a wrong option or argument
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:  # whoever read our stdout, `head` say, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Interrupted as stopped:
        say(f"\ninterrupted; what is finished is kept. To go on: {shlex.join(['l2d', *sys.argv[1:]])}")
        sys.exit(128 + stopped.args[0])


if __name__ == "__main__":
    main()
