"""The page of all keys of a recipe, made from the configuration classes: types, limits, defaults and descriptions.

A key is described by the string below its field. One without a description is an error here, so none goes without.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from l2d.cache_builder import agents, costs
from l2d.cache_builder.recipe import BuildConfig, Defaults
from l2d.data import sources

INTRO = """# Recipe keys

Which keys may a recipe have, and what are their defaults? [Recipes](recipe.md) explains how to write one. Unknown keys
are refused, and the nearest known one is suggested. *SQL* is an expression over the columns of your table. This page is
written by `.venv/bin/python docs/reference.py`; `make lint` checks that it is up to date.

At the top of a recipe: `name` (by default the file's name) and `description`, both for people; `unit_paid`, the one
unit that all answers are paid in, such as `USD`; and `license`, what the data may be used for, by name or SPDX
identifier, such as `CC-BY-4.0`, which `l2d push` and `l2d describe` tell others.
"""

#: Base classes whose keys several kinds share: heading, and the words that kinds refer to it by.
SHARED = {
    "AgentConfig": "Keys of every agent",
    "ModelConfig": "Keys of every model",
    "DetectorConfig": "Keys of every detector",
    "TorchvisionConfig": "Keys of torchvision's detectors",
}
NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path", dict: "table"}
SYMBOLS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def described(owner: type) -> dict[str, str]:
    """Field -> the string below it, of the fields that a class itself declares."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    found = {}
    for field, after in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[field.target.id] = " ".join(str(after.value.value).split())
    return found


def plain(docstring: str) -> str:
    """A docstring as Markdown: reStructuredText's literals and references become code, ``a:`` lists stay lists."""
    text = re.sub(r":\w+:`[~.!]?([^`]+)`", lambda found: f"`{found[1].rpartition('.')[2]}`", docstring)
    return text.replace("``", "`")


def kind_of(wanted: object, limits: list[object] = ()) -> str:
    """What a value has to be: its type and limits, or its choices."""
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is typing.Annotated:
        return kind_of(inner[0], [*limits, *inner[1:]])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(kind_of(one, limits) for one in inner if one is not type(None))
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin is list:
        return f"list of {kind_of(inner[0])}"
    if origin is dict or (isinstance(wanted, type) and issubclass(wanted, BaseModel)):
        return "table"
    metadata = [m for limit in limits for m in getattr(limit, "metadata", [limit])]
    bounds = [f"{sign} {getattr(m, name)}" for m in metadata for name, sign in SYMBOLS.items() if hasattr(m, name)]
    return " ".join([NAMES.get(wanted, str(wanted)), " and ".join(bounds)]).strip()


def default_of(field: object) -> str:
    """The default as TOML has it; ``needed`` without one, empty where its description says what happens."""
    value = field.default
    if value is PydanticUndefined:
        return "needed"
    if value is None or value in ([], {}, "") or isinstance(value, BaseModel) or len(str(value)) > 40:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if isinstance(value, (int, float, Path)) else "`" + str(value).replace("'", '"') + "`"


def rows(owner: type[BaseModel], names: list[str]) -> Iterator[str]:
    """A table of these keys of a class.

    Raises:
        SystemExit: a key has no description.
    """
    texts = {}
    for base in reversed(owner.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            texts |= described(base)
    yield "| key | value | default | |\n| --- | --- | --- | --- |"
    for name in names:
        if name not in texts:
            raise SystemExit(f"{owner.__name__}.{name} has no description: write a string below it")
        field = owner.model_fields[name]
        limits = [m for m in field.metadata if m is not None]
        default = "" if name == "workers" else default_of(field)
        cells = [f"`{field.alias or name}`", kind_of(field.annotation, limits), default, texts[name]]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def section(title: str, owner: type[BaseModel], leave_out: set[str] = frozenset()) -> Iterator[str]:
    """A heading, the class's docstring, and its keys, except those that are listed elsewhere."""
    yield f"{title}\n"
    yield plain(inspect.cleandoc(owner.__doc__ or "")) + "\n"
    names = [name for name in owner.model_fields if name not in leave_out]
    if names:
        yield from rows(owner, names)


def nested(owner: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Tables inside a table: their path in a recipe, and their class."""
    for name, field in owner.model_fields.items():
        options = [field.annotation, *typing.get_args(field.annotation)]
        options += [inner for option in options for inner in typing.get_args(option)]
        for option in options:
            if isinstance(option, type) and issubclass(option, BaseModel):
                holders = [field.annotation, *typing.get_args(field.annotation)]
                several = any(typing.get_origin(h) is dict and option in typing.get_args(h) for h in holders)
                yield f"{path}.{name}" + (".NAME" if several else ""), option
                yield from nested(option, f"{path}.{name}")


def tables(owner: type[BaseModel], path: str, level: str) -> Iterator[str]:
    """Sections of the tables inside a table; one for those that have the same keys."""
    found: dict[type[BaseModel], list[str]] = {}
    for place, kind in nested(owner, path):
        found.setdefault(kind, []).append(f"`[{place}]`")
    for kind, places in found.items():
        yield from section(f"{level} {', '.join(dict.fromkeys(places))}", kind)


def agent_sections() -> Iterator[str]:
    """The keys that agents share, then the own keys of each kind."""
    classes = {kind: agents.config_class(kind) for kind in agents.KINDS}
    shared: dict[str, type[BaseModel]] = {}
    for owner in classes.values():
        for base in reversed(owner.__mro__):
            if base.__name__ in SHARED:
                shared.setdefault(base.__name__, base)
    for name in SHARED:
        base = shared[name]
        known = {key for other in base.__mro__[1:] if issubclass(other, BaseModel) for key in other.model_fields}
        again = set(described(base))  # a key that this class describes anew
        yield from section(f"### {SHARED[name]}", base, known - again)
    for kind, owner in classes.items():
        bases = [base for base in owner.__mro__[1:] if base.__name__ in SHARED and base.__name__ != "AgentConfig"]
        known = {key for base in owner.__mro__[1:] if issubclass(base, BaseModel) for key in base.model_fields}
        yield from section(f"### `{kind}`", owner, known - set(described(owner)) | {"kind"})
        if bases:
            listed = " and ".join(f"[{SHARED[b.__name__].lower()}](#{slug(SHARED[b.__name__])})" for b in bases)
            yield f"Also the {listed}.\n"


def slug(heading: str) -> str:
    """The anchor of a heading, as hosts of repositories and Sphinx make it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def page() -> str:
    """The whole page."""
    blocks = [INTRO, "## `[dataset]`\n"]
    for kind in sources.KINDS:
        owner = sources.dataset_config_class(kind)
        blocks += section(f'### `kind = "{kind}"`', owner, {"kind"})
        blocks += tables(owner, "dataset", "####")
    blocks += ["## `[costs]`\n"]
    for title, owner in (("### Of classes and numbers", costs.CostConfig), ("### Of boxes", costs.DetectionCosts)):
        blocks += section(title, owner)
        blocks += tables(owner, "costs", "####")
    blocks += section("## `[defaults]`", Defaults)
    blocks += section("## `[build]`", BuildConfig)
    blocks += ["## `[[agents]]`\n\nIn order. The first is the model, agent 0, whose query cost is 0.\n"]
    blocks += agent_sections()
    return "\n".join(blocks).rstrip() + "\n"
