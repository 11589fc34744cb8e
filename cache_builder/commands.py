"""The command that makes a cost cache from a recipe."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from l2d.data.errors import UsageError
from l2d.data.terminal.options import Format, FormatOption, OverwriteOption
from l2d.data.terminal.progress import Bars, quote, say


class EngineName(StrEnum):
    local = "local"
    ray = "ray"


class OnFailure(StrEnum):
    stop = "stop"
    record = "record"


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
        int | None,
        typer.Option(min=1, help="Ray workers per agent (needs --engine ray). Default: one per GPU, or CPU."),
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
    with Bars() as bars:
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
    for line in report.remarks:
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
