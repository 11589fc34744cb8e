"""The command line: which commands there are, in which panel. It registers, decides nothing."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from l2d.both_stages import shown_by_agents
from l2d.data.errors import UsageError
from l2d.data.terminal.command import Command, closed
from l2d.data.terminal.process import run_as_command
from l2d.data.terminal.progress import quote, say

#: Name -> script of commands.
DEMOS = {path.stem: path for path in sorted((Path(__file__).parent / "cache_builder" / "recipes").glob("*.demo"))}
DEMO_HINT = "l2d demo photos FOLDER: photographs with VOC's XML files of the same names, or VOCdevkit"
CONTEXT = {"help_option_names": ["-h", "--help"]}

APP: dict[str, Any] = {
    "no_args_is_help": True,
    "rich_markup_mode": "markdown",
    "pretty_exceptions_enable": False,
    "suggest_commands": False,  # one voice: data.terminal.errors suggests
    "context_settings": CONTEXT,
    "help": "Learning to defer, from a table: ask every agent once, then train rejectors on the cached costs.",
    "epilog": "Start with `l2d demo support2`.",
}
PRACTICE_APP: dict[str, Any] = {
    "no_args_is_help": True,
    "rich_markup_mode": "markdown",
    "suggest_commands": False,
    "context_settings": CONTEXT,
    "help": "Data to practise with.",
}


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"l2d {version('l2d')}")
        raise typer.Exit


def _app(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    context.obj = shown_by_agents  # what commands of the second stage may ask of the first


def demo(
    name: Annotated[str, typer.Argument(help="Which data.", **closed(DEMOS))] = "support2",
    data: Annotated[
        Path | None, typer.Argument(help="photos: the folder with your photographs and their boxes.", metavar="FOLDER")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for everything. Default: l2d-demo-NAME.")
    ] = None,
):
    """The whole job on data that ships, or on your photographs: build, sweep, evaluate, query, report.

    Shows each command it runs.

    Examples:

        l2d demo

        l2d demo prompts

        l2d demo digits --out demo

        l2d demo photos my_photographs
    """
    folder, text = out or Path(f"l2d-demo-{name}"), DEMOS[name].read_text(encoding="utf-8")
    if (data is None) == ("{data}" in text):
        what = f"the demo {name} needs a folder" if data is None else f"the demo {name} brings its data along: {data}"
        raise UsageError(what, hint=DEMO_HINT)
    for block in text.split("\n\n"):
        lines = [line.replace("{out}", quote(folder)) for line in block.strip().splitlines()]
        lines = [line.replace("{data}", quote(data)) if data else line for line in lines]
        for line in lines:
            if line.startswith("#"):
                say("\n" + line, bold=True)
        command = "\n".join(line for line in lines if not line.startswith("#"))
        say(f"$ {command}\n")
        whole_app()(shlex.split(command)[1:], prog_name="l2d", standalone_mode=False)
    say(f"\nEverything is in {folder}: go on with the commands above, or open {folder / 'report.html'}", bold=True)


#: Panel of the help -> command names -> modules that have them, in the order in which they are shown. A function is
#: called as its command is, with `_` for `-`, or as the second word says.
PANELS = {
    "Start here": {"demo": "l2d.cli", "import": "l2d.cache_builder.commands_import:import_tables"},
    "Ask the agents": {
        "build": "l2d.cache_builder.commands",
        "extend": "l2d.cache_builder.commands",
        "status": "l2d.data.commands",
        "verify": "l2d.data.commands",
        "audit": "l2d.data.commands",
        "describe": "l2d.data.commands",
        "sign": "l2d.data.commands",
        "push": "l2d.data.commands",
        "fetch": "l2d.data.commands",
    },
    "Train and judge": {
        "train": "l2d.rejector.commands.train",
        "sweep": "l2d.rejector.commands.train",
        "evaluate": "l2d.rejector.commands.judge",
        "theory": "l2d.rejector.commands.judge",
        "worth": "l2d.rejector.commands.judge",
        "add-agent": "l2d.rejector.commands.judge",
        "choose": "l2d.rejector.commands.judge",
        "report": "l2d.rejector.commands.judge",
        "query": "l2d.rejector.commands.query",
    },
    "Put to work": {
        "route": "l2d.rejector.commands.work",
        "policy": "l2d.rejector.commands.work",
        "export": "l2d.rejector.commands.work",
    },
    "At work": {
        "serve": "l2d.rejector.commands.live",
        "replay": "l2d.rejector.commands.live",
        "watch": "l2d.rejector.commands.live",
        "recalibrate": "l2d.rejector.commands.live",
    },
}
PRACTICE = {
    "prompts": "l2d.data.commands",
    "digits": "l2d.data.commands",
    "photos": "l2d.cache_builder.commands",
    "mimic": "l2d.data.commands",
}

#: Commands that multiply no matrices: the threads that numpy would start for that are in the way of the rest.
NO_PRODUCTS = ("status", "query")


def _function(name: str, place: str) -> Callable[..., Any]:
    """What a command calls. Its module is imported here, as others are not needed where one command is given."""
    module, _, function = place.partition(":")
    if module == "l2d.cli":
        return demo
    return getattr(import_module(module), function or name.replace("-", "_"))


@cache
def whole_app() -> typer.Typer:
    """The app with all commands."""
    app = typer.Typer(**APP)
    app.callback()(_app)
    for panel, commands in PANELS.items():
        for name, place in commands.items():
            app.command(name, cls=Command, rich_help_panel=panel)(_function(name, place))
    practice = typer.Typer(**PRACTICE_APP)
    for name, place in PRACTICE.items():
        practice.command(name, cls=Command)(_function(name, place))
    app.add_typer(practice, name="data", rich_help_panel="Practice data")
    return app


def __getattr__(name: str) -> typer.Typer:
    """``app``: all commands, which takes every module of commands."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return whole_app()


def app_for(words: list[str]) -> typer.Typer:
    """The app; where its first word is a command, one of this command alone, which is built in a twentieth of the time.

    Args:
        words: of the command line.
    """
    named = words[0] if words else ""
    place = next((commands[named] for commands in PANELS.values() if named in commands), None)
    if place is None:
        return whole_app()
    alone = typer.Typer(**APP)
    alone.callback()(_app)
    alone.command(named, cls=Command)(_function(named, place))
    return alone


def main() -> None:
    """Entry point: errors the user can act on become one message and their exit code."""
    words = sys.argv[1:]
    if words[:1] and words[0] in NO_PRODUCTS and "numpy" not in sys.modules:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    run_as_command(lambda: app_for(words)(prog_name="l2d", standalone_mode=False), again=["l2d", *words])


if __name__ == "__main__":
    main()
