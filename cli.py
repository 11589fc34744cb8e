"""The command line: which commands there are, in which panel. It registers, decides nothing."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from l2d.both_stages import shown_by_agents
from l2d.cache_builder.commands import build, extend, photos
from l2d.cache_builder.commands_import import import_tables
from l2d.data.commands import audit, describe, digits, fetch, mimic, prompts, push, sign, status, verify
from l2d.data.errors import UsageError
from l2d.data.terminal.command import Command, closed
from l2d.data.terminal.process import run_as_command
from l2d.data.terminal.progress import quote, say
from l2d.rejector.commands.judge import add_agent, choose, evaluate, report, theory, worth
from l2d.rejector.commands.live import recalibrate, replay, serve, watch
from l2d.rejector.commands.query import query
from l2d.rejector.commands.train import sweep, train
from l2d.rejector.commands.work import export, policy, route

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
app = typer.Typer(**APP)
practice = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    suggest_commands=False,
    context_settings=CONTEXT,
    help="Data to practise with.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"l2d {version('l2d')}")
        raise typer.Exit


@app.callback()
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
        app(shlex.split(command)[1:], prog_name="l2d", standalone_mode=False)
    say(f"\nEverything is in {folder}: go on with the commands above, or open {folder / 'report.html'}", bold=True)


#: Panel of the help -> command names -> commands, in the order in which they are shown.
PANELS = {
    "Start here": {"demo": demo, "import": import_tables},
    "Ask the agents": {
        "build": build,
        "extend": extend,
        "status": status,
        "verify": verify,
        "audit": audit,
        "describe": describe,
        "sign": sign,
        "push": push,
        "fetch": fetch,
    },
    "Train and judge": {
        "train": train,
        "sweep": sweep,
        "evaluate": evaluate,
        "theory": theory,
        "worth": worth,
        "add-agent": add_agent,
        "choose": choose,
        "report": report,
        "query": query,
    },
    "Put to work": {"route": route, "policy": policy, "export": export},
    "At work": {"serve": serve, "replay": replay, "watch": watch, "recalibrate": recalibrate},
}
PRACTICE = {"prompts": prompts, "digits": digits, "photos": photos, "mimic": mimic}

for panel, commands in PANELS.items():
    for name, command in commands.items():
        app.command(name, cls=Command, rich_help_panel=panel)(command)
for name, command in PRACTICE.items():
    practice.command(name, cls=Command)(command)
app.add_typer(practice, name="data", rich_help_panel="Practice data")


def app_for(words: list[str]) -> typer.Typer:
    """The app; where its first word is a command, one of this command alone, which is built in a twentieth of the time.

    Args:
        words: of the command line.
    """
    named = words[0] if words else ""
    command = next((commands[named] for commands in PANELS.values() if named in commands), None)
    if command is None:
        return app
    alone = typer.Typer(**APP)
    alone.callback()(_app)
    alone.command(named, cls=Command)(command)
    return alone


def main() -> None:
    """Entry point: errors the user can act on become one message and their exit code."""
    words = sys.argv[1:]
    run_as_command(lambda: app_for(words)(prog_name="l2d", standalone_mode=False), again=["l2d", *words])


if __name__ == "__main__":
    main()
