"""What commands share: their common options, and signatures made from settings that declare theirs."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import typing
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from l2d.data.cache.addresses import place_of
from l2d.data.errors import UsageError
from l2d.data.options import choices, declared, types_of
from l2d.data.sizes import parse_size
from l2d.data.terminal.progress import say


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"
    parquet = "parquet"


class Split(StrEnum):
    train = "train"
    validation = "validation"
    test = "test"


FormatOption = Annotated[Format, typer.Option("--format", "-f", help="How results are printed to stdout.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 …")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Rebuild whatever no longer matches.")]
ReplaceOption = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")]
CacheArgument = Annotated[
    Path,
    typer.Argument(
        help="A cost cache made by `l2d build`: a folder, or an address such as s3://bucket/caches/support2.",
        metavar="CACHE",
        parser=place_of,
    ),
]
LocalCacheArgument = Annotated[
    Path, typer.Argument(help="A cost cache made by `l2d build`.", metavar="CACHE", parser=place_of)
]
FOLDER_VARIABLE, LIMIT_VARIABLE = "L2D_PARTS_FOLDER", "L2D_PARTS_LIMIT"  # see data/cache/kept.py
PartsFolderOption = Annotated[
    Path | None,
    typer.Option(
        help=f"Where copies of parts are kept. Default: ${FOLDER_VARIABLE}, or ~/.cache/l2d/parts.",
        rich_help_panel="Caches in a store",
    ),
]
PartsLimitOption = Annotated[
    str | None,
    typer.Option(
        help=f"How much of them is kept, such as 20GB. Default: ${LIMIT_VARIABLE}, or 10GB.",
        rich_help_panel="Caches in a store",
    ),
]
RunArgument = Annotated[Path, typer.Argument(help="A run made by `l2d train`, or one from a sweep.", metavar="RUN")]
RunsArgument = Annotated[list[Path], typer.Argument(help="Runs, or folders of runs.", metavar="RUN...")]
SplitOption = Annotated[Split, typer.Option(help="Which samples are judged.")]
ImagesOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where the image files lie now that a rejector on pixels looks at. Default: where it was trained on them.",
    ),
]
GroupOption = Annotated[
    str | None,
    typer.Option(help="A kept column: samples with one value are resampled together. Default: `group`, if kept."),
]


def options_of(*settings: type) -> Callable[[Callable], Callable]:
    """Replace each parameter of a settings class by one option for each of its fields.

    The decorated function still receives an instance. A command that takes ``config: TrainConfig`` thus has every
    option that :class:`TrainConfig` declares, with its help, range, choices and panel.
    """

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)
        hints = typing.get_type_hints(function, include_extras=True)
        parameters: list[inspect.Parameter] = []
        made: dict[str, type] = {}
        for name, parameter in signature.parameters.items():
            kind = hints.get(name)
            if kind in settings:
                made[name] = kind
                parameters += _parameters(kind)
            else:
                parameters.append(parameter.replace(annotation=kind))

        @functools.wraps(function)
        def command(**given: Any) -> Any:
            for name, kind in made.items():
                given[name] = kind(**{field: given.pop(field) for field in declared(kind)})
            return function(**given)

        keyword = inspect.Parameter.KEYWORD_ONLY
        made_command: Any = command
        made_command.__signature__ = signature.replace(parameters=[each.replace(kind=keyword) for each in parameters])
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        return command

    return decorate


def _parameters(settings: type) -> list[inspect.Parameter]:
    """One keyword for each declared field, annotated as typer reads it."""
    found = []
    defaults = {name: parameter.default for name, parameter in inspect.signature(settings).parameters.items()}
    for name, one in declared(settings).items():
        facts: dict[str, Any] = {"help": one.help, "rich_help_panel": one.panel, "metavar": one.metavar}
        if one.parse is not None:
            facts["parser"] = one.parse
        elif not choices(settings, name):
            facts |= {"min": one.least, "max": one.most}
        flags = [one.flag]
        if isinstance(defaults[name], bool):
            flags = [f"{one.flag}/--no-{one.flag.removeprefix('--')}"]
        kind: Any = Annotated[types_of(settings)[name], typer.Option(*flags, **facts)]
        found.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=kind))
    return found


def reads_stores(function: Callable) -> Callable:
    """Add the options of caches in stores to a command, and say at its end what was read from them."""
    signature = inspect.signature(function)
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = [one.replace(annotation=hints.get(name, one.annotation)) for name, one in signature.parameters.items()]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters += [
        inspect.Parameter("parts_folder", keyword, default=None, annotation=PartsFolderOption),
        inspect.Parameter("parts_limit", keyword, default=None, annotation=PartsLimitOption),
    ]

    @functools.wraps(function)
    def command(*, parts_folder: Path | None = None, parts_limit: str | None = None, **given: Any) -> Any:
        if parts_limit is not None:
            parse_size(parts_limit, "--parts-limit")
        told = {FOLDER_VARIABLE: parts_folder, LIMIT_VARIABLE: parts_limit}
        before = {name: os.environ.get(name) for name in told}
        os.environ.update({name: str(value) for name, value in told.items() if value is not None})
        try:
            return function(**given)
        finally:  # of a process with several commands, such as a test's
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            say_traffic()

    made: Any = command
    made.__signature__ = signature.replace(parameters=[each.replace(kind=keyword) for each in parameters])
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def say_traffic() -> None:
    """Say what was read from stores since this was last said."""
    mirror = sys.modules.get("l2d.data.cache.mirror")  # not loaded where no store was read
    for line in mirror.traffic_lines() if mirror is not None else ():
        say(line)


def values(text: str, kind: type, option: str) -> list:
    """Values by commas.

    Raises:
        UsageError: there is no value, or one is not a number where numbers are wanted.
    """
    if not text.replace(",", "").strip():
        raise UsageError(f"{option} is empty", hint=f"give one or more values, by commas: {option} …")
    try:
        return [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"{option} {text}: not a list of numbers", hint=f"such as {option} 0.5,1,2") from None


def pairs(text: str, option: str) -> dict[str, float]:
    """name=number pairs by commas.

    Raises:
        UsageError: a part is not such a pair.
    """
    found = {}
    for part in text.split(","):
        name, sign, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            sign = ""
        if not sign:
            raise UsageError(
                f"{option} expects name=value pairs, such as cla=1,reg=0.2; got {part!r}", hint=f"correct {option}"
            )
    return found


def labels(texts: list[str] | None) -> dict[str, str]:
    """WRITTEN=CLASS, one a text.

    Raises:
        UsageError: a text is something else.
    """
    found = {}
    for text in texts or []:
        written, sign, name = text.partition("=")
        if not (written and sign and name):
            raise UsageError(f"--label expects WRITTEN=CLASS; got {text!r}", hint="such as --label yse=yes")
        found[written] = name
    return found
