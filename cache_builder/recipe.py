"""Recipes: a TOML file with a ``[dataset]``, its ``[costs]`` and the ``[[agents]]`` in order, agent 0 the model."""

from __future__ import annotations

import re
import tomllib
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, InstanceOf, ValidationError, model_validator

from l2d.cache_builder.agents import KINDS, AgentConfig, config_class
from l2d.cache_builder.agents._base import PARTS
from l2d.cache_builder.costs import CostConfig, DetectionCosts
from l2d.data import sources as datasets
from l2d.data.errors import UsageError, nearest
from l2d.data.sources.table import Strict

SHIPPED = Path(__file__).parent / "recipes"

NotNegative = Annotated[float, Field(ge=0)]


class BuildConfig(Strict):
    """``[build]``: a chunk is what is committed at once, a batch is what an agent is asked at once.

    Images take longer than rows of a table, so their chunks are smaller unless the recipe says otherwise.
    """

    chunk_size: Annotated[int, Field(ge=1)] = 4096
    """Samples committed at once. By default 256 for images."""
    batch_size: Annotated[int, Field(ge=1)] = 512
    """Samples that an agent is asked about at once. By default 128 for images."""


BUILD_IMAGES = {"chunk_size": 256, "batch_size": 128}


class Defaults(Strict):
    """``[defaults]``: ``lambda`` and ``beta`` that stage two takes where the user names none. Not part of any cost."""

    weights: Annotated[dict[str, NotNegative], Field(alias="lambda")] = {}
    """Weight of each task's cost: `{ cla = 1.0, reg = 0.2 }`; 1 each if not given."""
    beta: dict[str, NotNegative] | NotNegative = 0.0
    """What the dearest expert costs, the others by `price`; or `{ name = value }`, the others free."""


class Recipe(BaseModel):
    """A whole recipe, checked.

    Raises:
        UsageError: (from :func:`load_recipe`) names file, key and the nearest known key.
    """

    model_config = Strict.model_config

    name: str
    description: str = ""
    unit_paid: str = ""
    """The one unit that all answers are paid in, such as `USD`."""
    license: str = ""
    """What the data may be used for: a name or SPDX identifier, such as `CC-BY-4.0`. It travels with the cache."""
    dataset: InstanceOf[Strict]  # a dataset's configuration, by its kind
    costs: InstanceOf[Strict]  # CostConfig, or DetectionCosts for images
    agents: Annotated[list[AgentConfig], Field(min_length=1)]
    build: BuildConfig = BuildConfig()
    defaults: Defaults = Defaults()

    @model_validator(mode="after")
    def _fits_together(self):
        names = [agent.name for agent in self.agents]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two agents are called {name!r}: give each a name of its own")
        if self.agents[0].reference:
            raise ValueError(f"agent 0 ({names[0]!r}) is the model and cannot be a reference: put the model first")
        for task in ("cla", "reg", "text") if self.dataset.kind == "table" else ():
            has_target = getattr(self.dataset, f"target_{task}") is not None
            has_cost = getattr(self.costs, task) is not None
            if has_cost and not has_target:
                raise ValueError(f"[costs.{task}] needs `target_{task}` in [dataset]")
        if not self.costs.tasks:
            raise ValueError(f"[costs] is empty: give one or more of {', '.join(type(self.costs).model_fields)}")
        for agent in self.agents[1:]:
            if agent.features:
                raise ValueError(f"`features` of {agent.name!r}: only the model, agent 0, is asked about every input")
        for task in self.defaults.weights:
            if task not in self.costs.tasks:
                raise ValueError(f"[defaults] lambda names {task!r}; the tasks are {self.costs.tasks}")
        if isinstance(self.defaults.beta, dict):
            for agent in self.defaults.beta:
                if agent not in names and agent != "paid":
                    raise ValueError(f"[defaults] beta names {agent!r}; the agents are {names}, or `paid`")
        for position, agent in enumerate(self.agents):
            self._has_lenders(agent, self.agents[:position])
            for other in getattr(agent, "of", []):
                if other not in names[:position]:
                    raise ValueError(f"agent {agent.name!r} averages {other!r}, which does not come before it")
                if self.agents[names.index(other)].kind == "average":
                    raise ValueError(f"agent {agent.name!r} averages {other!r}, itself an average: name its agents")
        return self

    def _has_lenders(self, agent: AgentConfig, earlier: list[AgentConfig]) -> None:
        """Raises ValueError unless what counts in place of an agent's answers can be had."""
        for task in PARTS:
            lender, cost = getattr(agent, f"{task}_from"), getattr(agent, f"{task}_cost")
            key = f"{task}_from" if lender is not None else f"{task}_cost"
            if lender is None and cost is None:
                continue
            if task not in self.costs.tasks or "boxes" in self.costs.wanted:
                raise ValueError(f"{key} of {agent.name!r}: there is no [costs.{task}] of answers that are no boxes")
            keys = {t: (getattr(agent, f"{t}_from"), getattr(agent, f"{t}_cost")) for t in PARTS}
            if all(keys.get(t, (None, None)) != (None, None) for t in self.costs.tasks):
                raise ValueError(f"{agent.name!r} answers no task itself: leave one of its *_from and *_cost out")
            found = next((one for one in earlier if one.name == lender), None)
            if lender is not None and found is None:
                raise ValueError(f"{key} of {agent.name!r} is {lender!r}, which does not come before it")
            if found is not None and getattr(found, f"{task}_cost") is not None:
                raise ValueError(f"{key} of {agent.name!r} is {lender!r}, which does not answer {task!r} itself")


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with l2d."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path, or by name if it ships.

    Raises:
        UsageError: there is neither.
    """
    path = Path(name)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # too long, or with a zero byte: not a file
        pass
    shipped = SHIPPED / f"{name}.toml"
    if name in shipped_recipes():
        return shipped
    raise UsageError(
        "there is no such recipe",
        where=name,
        hint=nearest(name, shipped_recipes(), "give a TOML file, or one that ships:"),
    )


def load_recipe(name: str, data: Path | None = None) -> Recipe:
    """Read and check a recipe.

    Args:
        name: path of a TOML file, or the name of a recipe that ships. Paths inside are relative to its folder.
        data: where the dataset lies, in place of the recipe's ``path``.

    Raises:
        UsageError: no such recipe, not TOML, an unknown key (the nearest known one is named), a wrong type or value.
    """
    path = find_recipe(name)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _no_toml(error, path) from error
    return parse_recipe(text, path, data)


def _no_toml(error: Exception, path: Path) -> UsageError:
    return UsageError(f"is not TOML: {error}", where=path, hint="see the recipes that ship for examples")


def parse_recipe(text: str, path: Path, data: Path | None = None) -> Recipe:
    """As :func:`load_recipe`, of a recipe's text, which lies at ``path`` or will."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _no_toml(error, path) from error
    values.setdefault("name", path.stem)
    if isinstance(values.get("dataset"), dict):
        kind = values["dataset"].setdefault("kind", "table")
        if not isinstance(kind, str) or kind not in datasets.KINDS:
            _refuse_kind("dataset", kind, datasets.KINDS, f"{path}, dataset.kind")
        if data is not None:
            values["dataset"]["path"] = str(data.absolute())
        config = datasets.dataset_config_class(kind)
        _resolve(values["dataset"], _paths_of(config), path)
        _resolve_encoders(values["dataset"].get("text"), path)
        values["dataset"] = _validate(config, values["dataset"], path, "dataset.")
        if isinstance(values.get("costs"), dict):
            costs = DetectionCosts if datasets.KINDS[kind].boxes else CostConfig
            values["costs"] = _validate(costs, values["costs"], path, "costs.")
        shows = datasets.KINDS[kind].images or getattr(values["dataset"], "image", None) is not None
        if shows and isinstance(values.get("build", {}), dict):
            values["build"] = {**BUILD_IMAGES, **values.get("build", {})}
    if isinstance(values.get("agents"), list):
        entries = [_agents(entry, position, path) for position, entry in enumerate(values["agents"])]
        values["agents"] = [agent for agents in entries for agent in agents]
        for agent in values["agents"]:
            agent._folder = path.parent.absolute()
    return _validate(Recipe, values, path, "")


def _agents(entry: Any, position: int, path: Path) -> list[AgentConfig]:
    """The agent of an entry, or with ``each`` the agents that it stands for."""
    if not isinstance(entry, dict):
        raise UsageError("agents must be tables", where=f"{path}, agents", hint="write [[agents]]")
    label = f"[[agents]] {position}" + (f" ({entry['name']})" if "name" in entry else "")
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        _refuse_kind("agent", kind, KINDS, f"{path}, {label}")
    entry = dict(entry)
    if kind in ("python", "torch"):
        entry.setdefault("path", ".")  # modules beside the recipe can be imported
    names = [key for key, field in config_class(kind).model_fields.items() if str in typing.get_args(field.annotation)]
    paths = [key for key in _paths_of(config_class(kind)) if key not in names or not _is_name(entry.get(key))]
    _resolve(entry, paths, path)
    if kind == "table" and "each" in entry:
        from l2d.cache_builder.agents.annotators import HOLE, expand

        trial = {**entry, "name": str(entry.get("name", "x")).replace(HOLE, "x")}
        _validate(config_class(kind), trial, path, f"{label} ")
        if entry["each"] is not None:
            return [_validate(config_class(kind), one, path, f"{label} ") for one in expand(entry, f"{path}, {label}")]
    return [_validate(config_class(kind), entry, path, f"{label} ")]


def _is_name(value: object) -> bool:
    """Whether a value that may be a file or a name (``COCO_V1``) is the latter: it has neither slash nor suffix."""
    return isinstance(value, str) and re.fullmatch(r"\w+", value) is not None


def _refuse_kind(what: str, kind: object, known: Iterable[str], where: str) -> typing.NoReturn:
    raise UsageError(f"there is no {what} of kind {kind!r}", where=where, hint=nearest(kind, known, "the kinds are"))


def _paths_of(config: type[Strict]) -> list[str]:
    """Keys of a part of a recipe that name files or folders: relative to the recipe's folder."""

    def has_path(annotation: Any) -> bool:
        return annotation is Path or any(map(has_path, typing.get_args(annotation)))

    return [key for key, field in config.model_fields.items() if has_path(field.annotation)]


def _resolve(table: dict, keys: Iterable[str], recipe: Path) -> None:
    folder = recipe.parent

    def resolved(value: Any, key: str) -> Any:
        if isinstance(value, list):
            return [resolved(one, key) for one in value]
        if not isinstance(value, str):
            return value
        if "\0" in value:
            raise UsageError(f"{value!r} cannot be a path", where=f"{recipe}, {key}", hint="name a file")
        return (folder / value).resolve()

    for key in keys:
        if key in table:
            table[key] = resolved(table[key], key)


def _resolve_encoders(texts: Any, recipe: Path) -> None:
    """Folders of sentence encoders are relative to the recipe; ``package:NAME`` is none."""
    for text in texts.values() if isinstance(texts, dict) else ():
        embed = text.get("embed") if isinstance(text, dict) else None
        if isinstance(embed, str) and not embed.startswith("package:"):
            _resolve(text, ["embed"], recipe)
            text["embed"] = str(text["embed"])


def _validate(model: type[BaseModel], values: dict, path: Path, label: str) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        location = list(problem["loc"])
        key = ".".join(map(str, location)) or "recipe"
        where = f"{path}, {label}{key}"
        if problem["type"] == "extra_forbidden":
            known = _known_keys(model, location[:-1])
            raise UsageError(
                f"unknown key {location[-1]!r}", where=where, hint=nearest(location[-1], known, "known here:")
            ) from None
        what = problem["msg"].removeprefix("Value error, ")
        given = problem.get("input")
        shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
        raise UsageError(f"{what}{shown}", where=where, hint="docs/keys.md lists every key") from None


def _known_keys(model: type[BaseModel], location: list) -> list[str]:
    """Keys of the table at ``location`` inside a model."""
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *typing.get_args(annotation)]
        nested = [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return [field.alias or name for name, field in model.model_fields.items()]
