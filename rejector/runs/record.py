"""``run.json`` as a typed record: what a stranger's run says is checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Required

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from l2d.data.cache.records import Count, faults_of_input, without_plugins
from l2d.data.errors import CorruptPart
from l2d.rejector.methods import METHODS

_OPEN = ConfigDict(extra="allow", allow_inf_nan=False)
MOST_UNITS = 1 << 20  # of a layer
MOST_LAYERS = 1000

Text = Annotated[str, Field(max_length=1 << 16)]
Setting = bool | int | float | Text | None
Cost = Annotated[float, Field(ge=0)]


class _Point(TypedDict, total=False):
    """The grid point."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]  # how pydantic is told
    run_id: Required[Text]
    method: Required[Text]
    beta: Required[float | list[tuple[Text, float]]]
    nu: Required[float]
    seed: Required[int]
    weights: Required[dict[Text, Cost]]
    query_costs: Required[list[Cost]]
    paid: float | None
    cost: Required[Text | None]


class _Place(TypedDict, total=False):
    """The cache that it was trained on."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    path: Required[Text]
    relative_path: Text
    name: Required[Text]
    fingerprint: Required[dict[Text, Text]]


class _Images(TypedDict):
    """The image files that it was trained on."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    relative_path: Text
    digest: Text | None


class _Input(TypedDict, total=False):
    """What it looks at. ``made`` is checked as ``cache.json`` has it."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    column: Required[Literal["features", "tokens", "image"]]
    made: Required[dict[str, Any]]
    id: Text | list[Text] | None
    shown_by: dict[str, Any] | None


class _Seen(TypedDict, total=False):
    """What it has met in training."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    rows: Count
    least: list[float] | None
    most: list[float] | None
    validation: Required[list[Count]]


class _Guard(TypedDict):
    """Whether one agent answers everything."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    z: float
    fallback: Count
    gain: float
    standard_error: float
    samples: Count
    holds: bool


class _Versions(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    torch: Text


class _Run(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    point: _Point
    training: dict[Text, Setting]
    agents: Annotated[list[Text], Field(min_length=1)]
    cache: _Place
    digests: dict[Text, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
    history: list[list[float | None]]
    best_epoch: Annotated[int, Field(ge=0)]
    validation_risk: float | None  # None of a method that has no such thing
    input: NotRequired[_Input]
    images: NotRequired[_Images]
    seen: NotRequired[_Seen | None]
    guard: NotRequired[_Guard]
    best: NotRequired[dict[Text, Any]]
    prices: NotRequired[list[Cost | None]]
    grid_points: Count
    grid_seconds: Cost
    versions: _Versions


def check_run(facts: dict[str, Any], path: Path) -> None:
    """Refuse what ``run.json`` cannot say.

    Raises:
        CorruptPart: names the field.
    """
    hint = "train it again, or restore it from a copy"
    try:
        _adapter().validate_python(facts)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CorruptPart(f"says what cannot be: {where}: {first['msg']}", where=path, hint=hint) from None
    if facts["point"].get("method") not in METHODS:
        what = f"says what cannot be: there is no method {facts['point'].get('method')!r}"
        raise CorruptPart(what, where=path, hint=hint)
    costs, agents = len(facts["point"].get("query_costs", ())), len(facts["agents"])
    if costs != agents:
        raise CorruptPart(f"says what cannot be: {costs} query costs of {agents} agents", where=path, hint=hint)
    wrong = list(_faults(facts))
    if wrong:
        raise CorruptPart(f"says what cannot be: {wrong[0]}", where=path, hint=hint)
    router_cost = facts["training"].get("router_cost", 0.0)
    if type(router_cost) not in (int, float) or router_cost < 0:
        raise CorruptPart(f"says what cannot be: training.router_cost = {router_cost!r}", where=path, hint=hint)
    for name, most in (("hidden", MOST_UNITS), ("layers", MOST_LAYERS)):  # what these say is allocated
        value = facts["training"].get(name, 1)
        if type(value) is not int or not 0 <= value <= most:
            raise CorruptPart(f"says what cannot be: training.{name} = {value!r}", where=path, hint=hint)


def _faults(facts: dict[str, Any]) -> Iterator[str]:
    """What cannot be, although each field by itself can."""
    for name in ("network", "failures"):
        if not isinstance(facts["training"].get(name), str):
            yield f"training.{name} = {facts['training'].get(name)!r}"
    agents, looks_at, seen = len(facts["agents"]), facts.get("input"), facts.get("seen")
    if len(facts.get("prices", facts["agents"])) != agents:
        yield f"{len(facts['prices'])} prices of {agents} agents"
    if "guard" in facts and facts["guard"]["fallback"] >= agents:
        yield f"guard.fallback = {facts['guard']['fallback']} of {agents} agents"
    if seen is not None:
        least, most = seen.get("least"), seen.get("most")
        if len(seen["validation"]) != agents:
            yield f"seen.validation has {len(seen['validation'])} numbers of {agents} agents"
        if (least is None) != (most is None) or (least and most and len(least) != len(most)):
            yield "seen.least and seen.most are not of the same features"
        if least is not None and "rows" not in seen:
            yield "seen.rows is missing"
    if looks_at is not None:
        for what in faults_of_input(looks_at["column"], looks_at["made"]):
            yield f"input.made: {what}"


@cache
def _adapter() -> TypeAdapter:
    with without_plugins():
        return TypeAdapter(_Run)
