"""What typer has to say about a wrong word, in the voice of all other errors: what, where, what next."""

from __future__ import annotations

import re
from typing import Any

import typer

from l2d.data.errors import UsageError, close_to, nearest
from l2d.data.terminal.command import as_typed

#: All of typer's complaints about words. Typer brings its own copy of click and does not export this.
TyperUsageError: Any = typer.BadParameter.__base__


def in_our_voice(error: Any) -> UsageError | None:
    """Typer's error as one of ours; None if it is the help of a command that was given nothing."""
    context = error.ctx
    command = context.command_path if context is not None else "l2d"
    kind = type(error).__name__
    if kind == "NoArgsIsHelpError":
        return None
    more = f"`{command} --help` has examples"
    if kind == "NoSuchOption":
        known = [flag for parameter in context.command.params for flag in parameter.opts]
        near = close_to(error.option_name, known)
        guess = f"did you mean {near}? " if near else ""
        return UsageError(
            f"`{command}` has no option {error.option_name}", hint=guess + f"`{command} --help` lists all"
        )
    unknown = re.match(r"No such command '(.+?)'", error.message or "")
    if unknown and context is not None:
        return UsageError(
            f"`{command}` has no command {unknown[1]!r}",
            hint=nearest(unknown[1], context.command.list_commands(context), "the commands are"),
        )
    parameter = getattr(error, "param", None)
    name = as_typed(parameter) if parameter is not None else None
    if kind == "MissingParameter":
        return UsageError(f"`{command}` needs {name or 'another argument'}", hint=more)
    text = _reason(error).rstrip(".").strip()
    refused = re.match(r"'(.*?)' is not one of (.*)", text)
    if refused:
        known = re.findall(r"'([^']*)'", refused[2])
        return UsageError(f"unknown value {refused[1]!r} for {name}", hint=nearest(refused[1], known))
    text = text[:1].lower() + text[1:]
    if name is None:
        return UsageError(text, hint=more)
    return UsageError(f"{name} {text}" if text.startswith("expects") else f"{name}: {text}", hint=more)


def _reason(error: Any) -> str:
    """Why a word was refused; a number that pydantic refused is told with what was given."""
    message = (error.message or "").removeprefix("Value error, ")
    problems: list[Any] = getattr(error.__cause__, "errors", list)()
    if not problems or "value_error" in problems[0]["type"]:
        return message
    given, limits = problems[0]["input"], problems[0].get("ctx", {})
    for key, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
        if key in limits:
            return f"expects a number {sign} {limits[key]:g}; got {given}"
    kind = {"int": "a whole number", "float": "a number"}.get(problems[0]["type"].split("_")[0])
    return f"expects {kind}; got {given!r}" if kind else message
