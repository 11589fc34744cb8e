"""Write the reference pages: docs/cli.md from the command line, docs/keys.md from the classes that read recipes.

With ``--check`` the pages are only compared.
"""

from __future__ import annotations

import re
import sys
import typing
from collections.abc import Iterator
from enum import Enum
from inspect import cleandoc
from pathlib import Path

import recipe_keys
import typer

from l2d.cli import app

INTRO = """# Commands

Which commands are there, and what does each option do? `l2d COMMAND --help` shows the same. This page is written by
`.venv/bin/python docs/reference.py`; `make lint` checks that it is up to date.

`l2d --install-completion` lets the shell complete commands, options and their choices.
"""


def paragraphs(text: str) -> str:
    """A docstring as Markdown; examples (``l2d …``, ``torchrun …``) become one shell block."""
    written, examples = [], []
    for paragraph in re.split(r"\n\s*\n", cleandoc(text.replace("\f", "")).strip()):
        line = " ".join(paragraph.split())
        if re.match(r"(l2d|torchrun) ", line):
            examples.append(line)
        elif line != "Examples:":
            written.append(line)
    if examples:
        written.append("```sh\n" + "\n".join(examples) + "\n```")
    return "\n\n".join(written)


def cell(text: object) -> str:
    """Text as it may stand in a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def word(argument: object) -> str:
    """An argument as the help has it; one of a closed set by its name."""
    is_closed = (argument.metavar or "[").startswith("[")
    return argument.name.upper() if is_closed else argument.metavar.upper()


TYPES = {int: "whole number", float: "number", str: "text", Path: "path"}


def kind(parameter: object) -> str:
    """What a value has to be: its choices, or its type and range; empty for a switch."""
    if getattr(parameter, "is_flag", False):
        return ""
    wanted = parameter.type_descriptor.annotation
    inner = [found for found in typing.get_args(wanted) if found is not type(None)]
    if typing.get_origin(wanted) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if isinstance(wanted, type) and issubclass(wanted, Enum):
        return ", ".join(f"`{choice.value}`" for choice in wanted)
    wanted = inner[0] if inner else wanted
    low, high = parameter.min, parameter.max
    limits = [f"{sign} {bound}" for sign, bound in ((">=", low), ("<=", high)) if bound is not None]
    several = ", several times" if parameter.multiple and parameter.param_type_name == "option" else ""
    if (parameter.metavar or "").startswith("["):
        return ", ".join(f"`{name}`" for name in parameter.metavar.strip("[]").split("|")) + several
    if parameter.metavar and parameter.param_type_name == "option":
        return parameter.metavar + several
    return (
        " ".join([TYPES.get(wanted, getattr(wanted, "__name__", str(wanted))), " and ".join(limits)]).strip() + several
    )


def default(parameter: object) -> str:
    """The default of an option, empty where there is none or where its help says it."""
    value = parameter.default
    if parameter.required:
        return "required"
    if value is None or value is False or callable(value) or value in ([], ()):
        return ""
    if value is True:
        return "on"
    listed = value if isinstance(value, (list, tuple)) else [value]
    return ", ".join(f"`{getattr(item, 'value', item)}`" for item in listed)


def described(name: str, command: object) -> Iterator[str]:
    """A command as Markdown: help, arguments, options; of a group, its commands."""
    yield f"## `{name}`\n\n{paragraphs(command.help or '')}\n"
    if hasattr(command, "commands"):
        for inner, found in command.commands.items():
            yield from described(f"{name} {inner}", found)
        return
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    if arguments:
        yield "| argument | value | |\n| --- | --- | --- |"
        for p in arguments:
            said = (p.help or "").rstrip(".") + ("." if p.required else " (optional).")
            yield f"| `{word(p)}` | {cell(kind(p))} | {cell(said)} |"
        yield ""
    if options:
        yield "| option | value | default | |\n| --- | --- | --- | --- |"
        for p in options:
            names = ", ".join(f"`{flag}`" for flag in (*p.opts, *p.secondary_opts))
            yield f"| {names} | {cell(kind(p))} | {cell(default(p))} | {cell(p.help or '')} |"
        yield ""


def page() -> str:
    """The whole page."""
    group = typer.main.get_command(app)
    blocks = [line for name, command in group.commands.items() for line in described(f"l2d {name}", command)]
    return "\n".join([INTRO, *blocks]).rstrip() + "\n"


PAGES = {"cli.md": page, "keys.md": recipe_keys.page}


def main() -> int:
    """Write the pages, or with ``--check`` say whether they are up to date."""
    outdated = []
    for name, made in PAGES.items():
        path, text = Path(__file__).with_name(name), made()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        outdated.append(name)
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
    if outdated and "--check" in sys.argv[1:]:
        print(
            f"{', '.join(outdated)} of docs/ has to be renewed: run .venv/bin/python docs/reference.py", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
