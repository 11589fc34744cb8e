"""``run.json`` as a typed record: what a stranger's run says is checked before anything is made of it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from l2d.data.cache.records import without_plugins
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
    run_id: Text
    method: Text
    beta: float | list[tuple[Text, float]]
    nu: float
    seed: int
    weights: dict[Text, Cost]
    query_costs: list[Cost]
    paid: float | None
    cost: Text | None


class _Place(TypedDict, total=False):
    """The cache that it was trained on."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    path: Text
    relative_path: Text
    fingerprint: dict[Text, Text]


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
    router_cost = facts["training"].get("router_cost", 0.0)
    if type(router_cost) not in (int, float) or router_cost < 0:
        raise CorruptPart(f"says what cannot be: training.router_cost = {router_cost!r}", where=path, hint=hint)
    for name, most in (("hidden", MOST_UNITS), ("layers", MOST_LAYERS)):  # what these say is allocated
        value = facts["training"].get(name, 1)
        if type(value) is not int or not 0 <= value <= most:
            raise CorruptPart(f"says what cannot be: training.{name} = {value!r}", where=path, hint=hint)


@cache
def _adapter() -> TypeAdapter:
    with without_plugins():
        return TypeAdapter(_Run)
