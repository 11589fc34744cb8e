"""The command that makes a cost cache from tables with answers."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l2d.data.errors import UsageError
from l2d.data.terminal.options import DeviceOption, Format, FormatOption, OverwriteOption, labels, values
from l2d.data.terminal.progress import Bars, quote, say

if TYPE_CHECKING:
    from l2d.cache_builder.importing.draft import Draft


class IdRule(StrEnum):
    text = "text"
    number = "number"


class Repeats(StrEnum):
    refuse = "refuse"
    first = "first"
    last = "last"
    mean = "mean"
    majority = "majority"


class ImportFormat(StrEnum):
    predictions = "predictions"
    scores = "scores"
    detections = "detections"


class Coordinates(StrEnum):
    pixels = "pixels"
    pixels_from_1 = "pixels_from_1"
    fractions = "fractions"


class Categories(StrEnum):
    ids = "ids"
    from_0 = "from_0"
    from_1 = "from_1"


class Match(StrEnum):
    id = "id"
    file_name = "file_name"
    stem = "stem"


PANEL = "Detections"
#: Options that `detections` shares with tables, and those of its own.
SHARED = {"kind", "files", "out", "model", "label", "drop_others", "dry_run", "device", "overwrite", "format"}
OWN = {"agent", "images", "classes", "line", "coordinates", "categories", "match", "partial"}


def import_tables(
    context: typer.Context,
    kind: Annotated[
        ImportFormat, typer.Argument(help="predictions, scores of answers, or detections.", metavar="FORMAT")
    ],
    files: Annotated[
        list[Path],
        typer.Argument(help="FEATURES ANSWERS, may be one file; or TRUTH RESULTS… of detections.", metavar="FILE..."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the cost cache.")],
    id_column: Annotated[
        str | None,
        typer.Option("--id", help="Column of sample ids, or several by commas. Default: what the layout says."),
    ] = None,
    answers_id: Annotated[str | None, typer.Option(help="Its name in ANSWERS, where that differs.")] = None,
    ids: Annotated[
        IdRule | None, typer.Option(help="Compare ids as text, or as numbers: 007, 7 and 7.0 are one.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Column of FEATURES: the true class.")] = None,
    target_reg: Annotated[str | None, typer.Option(help="Column of FEATURES: the true number.")] = None,
    target_text: Annotated[
        str | None, typer.Option(help="Column of FEATURES: the true answers, a text or a list of texts.")
    ] = None,
    annotator: Annotated[str | None, typer.Option(help="Column of ANSWERS that says whose a row is.")] = None,
    agents: Annotated[str | None, typer.Option(help="Agents with columns of their own, by commas.")] = None,
    cla: Annotated[str | None, typer.Option(help="Column of answered classes; {} is an agent's name.")] = None,
    prob: Annotated[
        str | None, typer.Option(help="Column of the second class's probability, or one a class, by commas.")
    ] = None,
    normalise: Annotated[bool, typer.Option("--normalise", help="Divide probabilities by their sum.")] = False,
    reg: Annotated[str | None, typer.Option(help="Column of answered numbers, or of scores.")] = None,
    answer: Annotated[str | None, typer.Option(help="Column of answered texts.")] = None,
    abstains: Annotated[
        list[str] | None,
        typer.Option(help='A text that says the question has no answer, "" the empty cell; may be repeated.'),
    ] = None,
    scale: Annotated[str, typer.Option(metavar="WORST,BEST", help="Lowest and highest score.")] = "0,1",
    paid: Annotated[str | None, typer.Option(help="Column of ANSWERS: what each answer cost.")] = None,
    unit_paid: Annotated[str | None, typer.Option(help="Unit of --paid and --prices, such as USD.")] = None,
    prices: Annotated[
        Path | None,
        typer.Option(help="Table of prices: a row an agent, such as name,input,output."),
    ] = None,
    per: Annotated[
        float | None, typer.Option(help="How many --prices or --paid are for: 1000000 for a million tokens.")
    ] = None,
    cla_from: Annotated[str | None, typer.Option(help="Whose class counts for agents that give none.")] = None,
    cla_cost: Annotated[float | None, typer.Option(min=0, help="Or the cost that they are charged.")] = None,
    reg_from: Annotated[str | None, typer.Option(help="Whose number counts for agents that give none.")] = None,
    reg_cost: Annotated[float | None, typer.Option(min=0, help="Or the cost that they are charged.")] = None,
    text_from: Annotated[str | None, typer.Option(help="Whose text counts for agents that give none.")] = None,
    text_cost: Annotated[float | None, typer.Option(min=0, max=1, help="Or the cost that they are charged.")] = None,
    repeats: Annotated[
        Repeats, typer.Option(help="Which of several answers of one agent about one sample counts.")
    ] = Repeats.refuse,
    model: Annotated[
        str | None, typer.Option(help="Agent 0, yours: free. Default: a network trained here; none.")
    ] = None,
    features: Annotated[str | None, typer.Option(help="Columns the rejector sees, by commas. Default: all.")] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="Column of text to read word by word; may be repeated.")
    ] = None,
    embed: Annotated[
        str | None,
        typer.Option(help="Folder of a sentence encoder (model2vec, ONNX), or package:NAME, that reads --text."),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="WRITTEN=CLASS, for misspelt labels; may be repeated.")
    ] = None,
    missing: Annotated[
        list[str] | None, typer.Option(help="A text that means a missing answer; may be repeated.")
    ] = None,
    drop_others: Annotated[bool, typer.Option("--drop-others", help="Leave out answers on other samples.")] = False,
    agent: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=PATH, results under another name than the file's; may be repeated.", rich_help_panel=PANEL
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the images. Default: beside XML files; else none.", rich_help_panel=PANEL),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Classes in order, by commas, or a file with one a line.", rich_help_panel=PANEL),
    ] = None,
    line: Annotated[
        str | None,
        typer.Option(help="Fields of text files. Default: label score x1 y1 x2 y2.", rich_help_panel=PANEL),
    ] = None,
    coordinates: Annotated[
        Coordinates | None,
        typer.Option(help="What coordinates count. Default: fractions if all are in [0, 1].", rich_help_panel=PANEL),
    ] = None,
    categories: Annotated[
        Categories | None,
        typer.Option(
            help="What labels that are numbers count. Default: ids of the truth, or from 0.", rich_help_panel=PANEL
        ),
    ] = None,
    match: Annotated[
        Match | None,
        typer.Option(
            help="What names an image in RESULTS. Default: its id; with COCO's truth, text files go by stem.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="Images that RESULTS do not name have no answer.", rich_help_panel=PANEL),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the recipe; write and build nothing.")] = False,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    format: FormatOption = Format.table,
):
    """Build a cache from your own tables, and write the recipe for it next to it, as CACHE.toml.

    ANSWERS has a row for each answer and a column with the annotator, or a row for each sample and a column for each
    agent. CSV, Parquet, JSON, JSONL, or a folder of them; an agent that has not answered a sample is unavailable there.
    RouterBench, LLMRouterBench, LLMRouter, EmbedLLM, RouteLLM, RouterArena and OpenL2D are recognised.

    Detections: TRUTH is COCO's annotations, a VOCdevkit, or a folder of VOC's XML files; RESULTS are a detector's each:
    COCO's results, a table, or a folder of text files.

    Examples:

        l2d import predictions features.csv answers.csv --id case --target diagnosis --out my.cache

        l2d import predictions cases.csv votes.csv --id case --target label --annotator reader --out votes.cache

        l2d import scores routerbench.csv --id sample_id --features eval_name --text prompt --out router.cache

        l2d import scores results/bench --out bench.cache --dry-run

        l2d import scores answers.csv --prices prices.csv --per 1000000 --unit-paid USD --out priced.cache

        l2d import detections instances_val2017.json yolo.json --agent detr=runs/detr/bbox.json --out boxes.cache
    """
    _refuse_options_of_others(context, kind)
    if kind == ImportFormat.detections:
        from l2d.cache_builder.importing.detections import LINE, DetectionSource, draft_detections

        found = DetectionSource(
            files[0], _results(files[1:], agent or []), model=model, images=images, classes=_names(classes),
            labels=labels(label), line=line or LINE, coordinates=coordinates and coordinates.value,
            categories=categories and categories.value, match=match and match.value, partial=partial,
            drop_others=drop_others,
        )  # fmt: skip
        _finish(draft_detections(found, out.parent, out.name, say), out, dry_run, device, overwrite, format)
        return
    from l2d.cache_builder.importing.source import Source
    from l2d.cache_builder.library import draft_of

    if len(files) > 2:
        what = f"{kind.value} takes FEATURES and ANSWERS, or one file, not {len(files)} files"
        raise UsageError(what, hint="l2d import --help has examples")
    of_others = {"cla": (cla_from, cla_cost), "reg": (reg_from, reg_cost), "text": (text_from, text_cost)}
    for task, (name, cost) in of_others.items():
        if name is not None and cost is not None:
            raise UsageError(f"--{task}-from and --{task}-cost", hint="one or the other")
    bounds = values(scale, float, "--scale")
    if len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise UsageError(f"--scale {scale}", hint="the worst and the best score, such as --scale 0,100")
    source = Source(
        files[0], files[-1], id_column or "", answers_id=answers_id, ids=ids and ids.value, target=target,
        target_reg=target_reg, target_text=target_text, answer=answer, abstains=abstains or [], annotator=annotator,
        agents=values(agents, str, "--agents") if agents else [],
        cla=cla, prob=values(prob, str, "--prob") if prob and "," in prob else prob, normalise=normalise, reg=reg,
        scale=(bounds[0], bounds[1]), paid=paid, unit_paid=unit_paid, prices=prices, per=per,
        repeats=repeats.value, model=model,
        lent={task: name for task, (name, _) in of_others.items() if name is not None},
        charged={task: cost for task, (_, cost) in of_others.items() if cost is not None},
        columns=values(features, str, "--features") if features else [], text=text or [],
        embed=embed, missing=missing or [],
        labels=labels(label), others="drop" if drop_others else "refuse",
    )  # fmt: skip
    _finish(draft_of(kind.value, source, out, say), out, dry_run, device, overwrite, format)


def _finish(draft: Draft, out: Path, dry_run: bool, device: str, overwrite: bool, format: Format) -> None:
    """Print the recipe, or build it and say what can be done next."""
    from l2d.cache_builder.commands import print_status
    from l2d.cache_builder.library import build_draft

    if dry_run:
        print(draft.recipe, end="")
        return
    recipe = out.parent / f"{out.name}.toml"
    with Bars() as bars:
        cache = build_draft(draft, out, device, overwrite, say, bars.start)
    print_status(cache, format)
    say(f"to change what was imported: edit {recipe}, then l2d build {quote(recipe)} --out {quote(out)}")
    if len(cache.agents) == 1:
        say(f"one agent alone leaves nothing to choose: add another to {recipe} and build, or import both together")
        return
    runs = out.with_suffix(".runs")
    say(f"next: l2d sweep {quote(out)} --out {quote(runs)} && l2d report {quote(runs)} --out report.html")


def _refuse_options_of_others(context: typer.Context, kind: ImportFormat) -> None:
    """An option of tables would do nothing with detections, and the other way round."""
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name in SHARED or source is None or source.name != "COMMANDLINE":
            continue
        if (name in OWN) != (kind == ImportFormat.detections):
            whose = "detections alone" if name in OWN else "tables"
            raise UsageError(f"{parameter.opts[0]} is for {whose}", hint=f"leave it out of l2d import {kind.value}")


def _results(files: list[Path], named: list[str]) -> dict[str, Path]:
    """Agent -> its results: files by their names, then those that are given one."""
    given = [(path.stem if path.suffix else path.name, path) for path in files]
    for text in named:
        name, sign, path = text.partition("=")
        if not (name and sign and path):
            raise UsageError(f"--agent expects NAME=PATH; got {text!r}", hint="such as --agent detr=detr/bbox.json")
        given.append((name, Path(path)))
    twice = [name for name, count in Counter(name for name, _ in given).items() if count > 1]
    if twice:
        raise UsageError(f"two agents are called {twice[0]!r}", hint="name them: --agent NAME=PATH")
    return dict(given)


def _names(text: str | None) -> list[str] | None:
    """Classes by commas, or those of a file."""
    if text is None:
        return None
    if "," not in text and Path(text).is_file():
        lines = Path(text).read_text(encoding="utf-8-sig").splitlines()
        return [line.strip() for line in lines if line.strip()]
    return values(text, str, "--classes")
