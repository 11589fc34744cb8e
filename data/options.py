"""Options declared once: a field of a settings dataclass says its help, range, choices and panel.

The command line (:func:`l2d.data.terminal.options.options_of`), the checks, the commands in a report and the tables of
the documentation are made from these fields. Nothing here is specific to a terminal, so that a library's settings need
no command line.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, fields
from functools import cache
from types import UnionType
from typing import Any, cast

from l2d.data.errors import UsageError, nearest

_KEY = "option"


@dataclass(frozen=True)
class Option:
    """What there is to say about a setting, apart from its name, type and default.

    ``least`` and ``most`` are allowed values, ``above`` and ``below`` are not. ``parse`` makes the value from what was
    typed, where the type alone does not say how.
    """

    help: str
    flag: str
    panel: str | None = None
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    parse: Callable[[str], Any] | None = None
    metavar: str | None = None

    def check(self, name: str, value: Any) -> None:
        """Refuse a number out of range.

        Raises:
            UsageError: names the setting, the value and the range.
        """
        bounds = (
            (self.least, ">=", lambda bound: value >= bound),
            (self.above, ">", lambda bound: value > bound),
            (self.most, "<=", lambda bound: value <= bound),
            (self.below, "<", lambda bound: value < bound),
        )
        given = [(bound, sign, holds) for bound, sign, holds in bounds if bound is not None]
        if not given:
            return
        finite = isinstance(value, int) or math.isfinite(value)
        if not (finite and all(holds(bound) for bound, _, holds in given)):
            limits = " and ".join(f"{sign} {bound:g}" for bound, sign, _ in given)
            raise UsageError(f"{name} = {value}", hint=f"{name} is a number {limits}")


def option(default: Any, help: str, *, flag: str | None = None, **facts: Any) -> Any:
    """A field of a frozen settings dataclass that is an option of commands, see :class:`Option`.

    Args:
        default: its value if nothing is said.
        help: one line.
        flag: as it is typed; ``--`` and the field's name if None.
        facts: further fields of :class:`Option`.
    """
    return field(default=default, metadata={_KEY: (help, flag, facts)})


@cache
def declared(settings: Hashable) -> dict[str, Option]:
    """Field -> option, in order, of a dataclass made with :func:`option`."""
    found = {}
    for each in fields(cast(Any, settings)):
        if _KEY in each.metadata:
            help, flag, facts = each.metadata[_KEY]
            found[each.name] = Option(help, flag or "--" + each.name.replace("_", "-"), **facts)
    return found


@cache
def types_of(settings: Hashable) -> dict[str, Any]:
    """Field -> its type, as an object."""
    return typing.get_type_hints(settings)


def choices(settings: type, name: str) -> tuple[str, ...]:
    """The values a field may have, where its type is a ``Literal``; otherwise none."""
    kind = types_of(settings)[name]
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()


def check(settings: Any) -> None:
    """Refuse values that are not among a field's choices or not in its range.

    Raises:
        UsageError: names the setting and the value, and what may be given.
    """
    kind: type = type(settings)
    for name, one in declared(kind).items():
        value, allowed = getattr(settings, name), choices(kind, name)
        if allowed and value not in allowed:
            raise UsageError(f"{name} = {value!r}", hint=nearest(value, allowed))
        if value is not None and not allowed:
            one.check(name, value)


def as_typed(settings: Any) -> list[str]:
    """The words that give these settings on a command line: those that differ from the defaults."""
    words: list[str] = []
    kind: type = type(settings)
    for each in fields(settings):
        value = getattr(settings, each.name)
        if value == each.default or each.name not in declared(kind):
            continue
        flag = declared(kind)[each.name].flag
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag.removeprefix('--')}")
        else:
            words += [flag, f"{value}"]
    return words


def markdown_table(settings: type) -> str:
    """The options as a table of a documentation page: option, values, default, what it is."""
    lines = ["| option | values | default | |", "| --- | --- | --- | --- |"]
    defaults = {each.name: each.default for each in fields(settings)}
    for name, one in declared(settings).items():
        default = defaults[name]
        shown = "" if default is None else str(default).lower() if isinstance(default, bool) else f"`{default}`"
        flag = f"{one.flag}/--no-{one.flag.removeprefix('--')}" if isinstance(default, bool) else one.flag
        lines.append(f"| `{flag}` | {_values(settings, name, one)} | {shown} | {one.help} |")
    return "\n".join(lines) + "\n"


def _values(settings: type, name: str, one: Option) -> str:
    allowed = choices(settings, name)
    if allowed:
        return ", ".join(f"`{value}`" for value in allowed)
    kind = types_of(settings)[name]
    if typing.get_origin(kind) in (typing.Union, UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if kind is bool:
        return ""
    bounds = ((one.least, ">="), (one.above, ">"), (one.most, "<="), (one.below, "<"))
    limits = ", ".join(f"{sign} {bound:g}" for bound, sign in bounds if bound is not None)
    return one.metavar.lower() if one.metavar else f"{'a whole number' if kind is int else 'a number'} {limits}".strip()
