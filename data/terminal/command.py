"""How words become values: an option of one value is given once, and closed sets are listed, completed and checked."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import typer
from typer.core import TyperCommand

from l2d.data.errors import UsageError, nearest


class Command(TyperCommand):
    """A command that refuses an option of one value which is given twice; click would silently keep the last."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click; in addition every value of an option is kept or refused.

        Raises:
            UsageError: an option of one value is given more than once.
        """
        if args and not ctx.resilient_parsing:
            given: list[Any] = self.make_parser(ctx).parse_args(args=list(args))[2]
            for parameter in given:
                once = parameter.param_type_name == "option" and not (parameter.multiple or parameter.is_flag)
                if once and given.count(parameter) > 1:
                    raise UsageError(
                        f"{as_typed(parameter)} is given {given.count(parameter)} times, and takes one value",
                        hint=f"give it once; `{ctx.command_path} --help` says what it takes",
                    )
        return super().parse_args(ctx, args)


def closed(known: Collection[str], *, several: bool = False) -> dict[str, Any]:
    """What makes the value of an option or argument one of a table's names: typer's arguments for it.

    The help lists the names, the shell completes them, and another word is refused with the nearest one. A ``Literal``
    does as much where the names are not those of a table.

    Args:
        several: more than one, by commas or by repeating the option; the command receives all of them, in order.
    """

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",") if several else ("", "", incomplete)
        return [f"{before}{comma}{name}" for name in known if name.startswith(last)]

    def check(param: typer.CallbackParam, value: Any) -> Any:
        if value is None:
            return None
        words = [word.strip() for text in value for word in text.split(",")] if several else [value]
        words = [word for word in words if word] if several else words
        if value and not words:
            raise UsageError(f"{as_typed(param)} is empty", hint=f"choose from {', '.join(known)}")
        for word in words:
            if word not in known:
                raise UsageError(f"unknown value {word!r} for {as_typed(param)}", hint=nearest(word, known))
        return words if several else value

    return {"metavar": f"[{'|'.join(known)}]", "autocompletion": complete, "callback": check}


def as_typed(parameter: Any) -> str:
    """A parameter as it is typed: its long flag, or the word that the help has for an argument."""
    flags = sorted((flag for flag in parameter.opts if flag.startswith("-")), key=len)
    if flags:
        return flags[-1]
    closed_set = (parameter.metavar or "").startswith("[")
    return parameter.name.upper() if closed_set or not parameter.metavar else parameter.metavar
