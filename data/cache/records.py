"""``cache.json``, ``agent.json`` and seals as typed records: what a stranger's file says is checked before it is used.

A digest tells damage, not intent: whoever writes a file writes its digest too. So each field has a type and bounds,
numbers agree with each other and with the seals, and nothing is allocated or counted up to before that is known.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Required

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from l2d.data.cache import schema
from l2d.data.errors import CorruptPart

MOST_CHUNKS = 1_000_000  # of a cache: each is a file for each agent and kind
MOST_ROWS = 1 << 31  # of a chunk
MOST_AGENTS = 100_000
MOST_WIDTH = 1 << 24  # numbers in a row of features

_OPEN = ConfigDict(extra="allow", allow_inf_nan=False)
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Text = Annotated[str, Field(max_length=1 << 20)]
Name = Annotated[str, Field(min_length=1, max_length=1 << 12)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Number = Annotated[float, Field(ge=0)]
Task = Annotated[str, Field(pattern="^(cla|reg|map|text)$")]


class _Encoded(TypedDict, total=False):
    """What a source column became: other fields are the encoder's own (:mod:`l2d.data.samples.features`)."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]  # how pydantic is told
    type: Required[Name]
    name: Text
    expression: Text
    indicator: bool
    categories: Annotated[list[Any], Field(min_length=1, max_length=MOST_WIDTH)]
    medians: Annotated[list[float], Field(max_length=MOST_WIDTH)]
    width: Annotated[int, Field(ge=1, le=MOST_WIDTH)]


class _Dense(TypedDict, total=False):
    """How the rows of features were made."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    width: Annotated[int, Field(ge=1, le=MOST_WIDTH)]
    names: list[Text] | None
    encoder: list[_Encoded] | None
    agent: Name | None
    frozen: Digest  # SHA-256 of what text features were fitted to, and part of its file's name
    columns: dict[Text, Text]  # that the encoder reads, and their types
    reading: dict[Text, Any]  # how they were read


class _Field(TypedDict, total=False):
    """A field of tokens."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    vocabulary: Required[Annotated[list[Text], Field(max_length=MOST_WIDTH)]]
    max_length: Required[Annotated[int, Field(ge=1, le=MOST_WIDTH)]]


class _Tokens(TypedDict, total=False):
    """How lists of tokens were made."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    fields: Required[dict[Text, _Field]]
    columns: dict[Text, Text]


class _Image(TypedDict, total=False):
    """How small images were made."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    size: Annotated[int, Field(ge=1, le=MOST_WIDTH)]


class _Read(TypedDict, total=False):
    """What became of a source table's columns, in words."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    columns: list[Text]
    notes: list[Text]


class _Inputs(TypedDict, total=False):
    """Input column -> how it was made; and facts of the dataset, such as its category_ids."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    features: _Dense
    tokens: _Tokens
    image: _Image
    table: _Read
    annotations: _Read


@dataclass(frozen=True, kw_only=True)
class CacheRecord:
    """``cache.json``: everything about a cache that is not about one agent."""

    __pydantic_config__ = _STRICT

    name: Text
    num_samples: Count
    chunk_size: Annotated[int, Field(ge=1, le=MOST_ROWS)]
    tasks: Annotated[list[Task], Field(min_length=1)]  # the tasks with a cost, in the order of schema.TASKS
    classes: list[Text]  # class index -> name; empty without a classification task
    unit_reg: Text  # what target_reg is measured in
    inputs: _Inputs
    keep: list[Name]  # columns of the source table that are kept for SQL
    #: Names of all agents and references, in order: the cache is complete when all have answered.
    agents: Annotated[list[Name], Field(max_length=MOST_AGENTS)]
    costs: dict[str, Any]  # the cost table
    defaults: dict[str, Any]  # the recipe's lambda and beta, used where the user names none
    fingerprint: dict[str, Any]  # of the dataset: field -> value
    schema_version: int = schema.SCHEMA_VERSION
    unit_paid: Text = ""  # the one unit that all agents' answers are paid in, such as USD; empty: not said
    license: Text = ""  # what the data may be used for: a name or SPDX identifier, such as CC-BY-4.0; empty: not said

    @property
    def num_chunks(self) -> int:
        return -(-self.num_samples // self.chunk_size)

    @property
    def cost_digest(self) -> str:
        """Names the cost parts: the cost table, and the targets the costs are taken against."""
        targets = [self.fingerprint.get(name) for name in ("target_cla", "target_reg")]
        targets += [self.fingerprint[name] for name in ("target_boxes", "target_text") if name in self.fingerprint]
        return schema.digest([self.costs, targets])

    def chunk_rows(self, chunk: int) -> range:
        """Positions of the samples of a chunk in the dataset's order."""
        start = chunk * self.chunk_size
        return range(start, min(start + self.chunk_size, self.num_samples))

    def faults(self) -> list[str]:
        """What cannot be, although each field by itself can."""
        wrong = []
        if self.num_chunks > MOST_CHUNKS:
            wrong.append(f"num_samples = {self.num_samples:,} in chunks of {self.chunk_size:,}")
        if len(set(self.agents)) < len(self.agents):
            wrong.append("two agents have one name")
        if self.tasks != [task for task in schema.TASKS if task in self.tasks]:
            wrong.append(f"tasks = {self.tasks}")
        wrong += [f"costs of {task}" for task in self.tasks if not isinstance(self.costs.get(task), dict)]
        wrong += _faults_of_features(self.inputs.get("features", {}))
        weights = self.defaults.get("lambda", {})
        if not isinstance(weights, dict) or not all(_is_number(weight) for weight in weights.values()):
            wrong.append(f"defaults.lambda = {weights!r}")
        return wrong


@dataclass(frozen=True, kw_only=True)
class AgentRecord:
    """``agent.json``: one frozen agent.

    ``role`` is ``agent`` (may be allocated to) or ``reference`` (reported beside the agents, never allocated to: the
    average of all experts, say). ``index`` counts agents and references together, in recipe order; 0 is the model.
    ``price`` scales a single ``beta``; it is relative, so GFLOPS, dollars and minutes all serve. None is a price that
    is not known, which is not the same as 0, what is free.

    A ``partial`` agent answers some samples only. Where it has no answer (``failure`` is :data:`schema.NO_ANSWER`) it
    is unavailable: no sample can be allocated to it there, which is neither a failure nor a cost of 0.
    """

    __pydantic_config__ = _STRICT

    name: Name
    index: Annotated[int, Field(ge=0, le=MOST_AGENTS)]
    kind: Text
    role: Literal["agent", "reference"]
    price: Number | None
    description: Text
    queries: list[Name]  # whose query costs an answer takes: its own name or the agents it averages, and its lenders
    fingerprint: dict[str, Any] = field(default_factory=dict)
    gflops: Number | None = None  # of one answer, where known
    seconds: Number | None = None  # of one answer: the mean of what its answers say, or as measured by the build
    paid: float | None = None  # for one answer: the mean of what its answers say
    paid_each: Number | None = None  # for every answer alike, as the recipe says
    partial: bool = False
    lent: dict[Task, Name] = field(default_factory=dict)  # task -> the agent whose answer counts for it
    charged: dict[Task, float] = field(default_factory=dict)  # task that it does not answer -> the cost of that

    def faults(self) -> list[str]:
        """What cannot be, although each field by itself can."""
        frozen = self.fingerprint.get("frozen", "0" * 16)
        is_digest = isinstance(frozen, str) and len(frozen) == 16 and set(frozen) <= set("0123456789abcdef")
        return [] if is_digest else [f"fingerprint.frozen = {frozen!r}"]


@dataclass(frozen=True, kw_only=True)
class SealedPart:
    """What a seal says of a part."""

    __pydantic_config__ = _STRICT

    rows: Count
    bytes: Count
    sha256: Digest
    skeleton: Digest


def _faults_of_features(made: Mapping[str, Any]) -> list[str]:
    names, width = made.get("names"), made.get("width")
    wrong = [f"{len(names)} names of {width} features"] if names and width is not None and len(names) != width else []
    for each in made.get("encoder") or ():
        if each["type"] == "CategoricalFeature" and not {"name", "categories"} <= set(each):
            wrong.append("an encoder of categories without them")
    return wrong


def faults_of_input(column: str, made: dict[str, Any]) -> list[str]:
    """What cannot be of what a run keeps of one of a cache's inputs.

    Args:
        column: ``features``, ``tokens`` or ``image``.
        made: what ``CacheRecord.inputs`` says of it.
    """
    try:
        _adapter(_Inputs).validate_python({column: made})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return [f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"]
    return _faults_of_features(made) if column == "features" else []


def checked(kind: Any, value: dict, where: Path | str) -> Any:
    """A record made of a JSON object.

    Raises:
        CorruptPart: a field is missing, unknown, of another type or out of its bounds; names it.
    """
    try:
        record = _adapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise _not_ours(f"{place}: {first['msg']}", where) from None
    if wrong := record.faults():
        raise _not_ours("; ".join(wrong), where)
    return record


def checked_seal(value: object, record: CacheRecord, where: Path | str) -> dict[str, dict]:
    """What a seal says of each part of its folder, once it is known to be about all chunks of the cache and no more.

    Raises:
        CorruptPart: it is about other parts, rows or sizes than the cache can have.
    """
    names = [f"{chunk:05d}.parquet" for chunk in range(record.num_chunks)]
    if not isinstance(value, dict) or sorted(value) != sorted(names):
        raise _not_ours(f"it does not seal the {record.num_chunks:,} parts of this cache", where)
    for chunk, name in enumerate(names):
        try:
            part = _adapter(SealedPart).validate_python(value[name])
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise _not_ours(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}", where) from None
        if part.rows != len(record.chunk_rows(chunk)):
            raise _not_ours(f"{name} has {part.rows:,} rows, not {len(record.chunk_rows(chunk)):,}", where)
    return value


@cache
def _adapter(kind: Any) -> TypeAdapter:
    with without_plugins():
        return TypeAdapter(kind)


@contextmanager
def without_plugins() -> Iterator[None]:
    """Build no plugin of pydantic's into what is made inside, which would read the metadata of all that is installed.

    As typer does for the options of commands; a record is not for a plugin to look at.
    """
    before = os.environ.get("PYDANTIC_DISABLE_PLUGINS")
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYDANTIC_DISABLE_PLUGINS"]
        else:
            os.environ["PYDANTIC_DISABLE_PLUGINS"] = before


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")  # type: ignore[operator]  # type() has told


def _not_ours(what: str, where: Path | str) -> CorruptPart:
    hint = "restore this file from a copy, or build (or train) again in another folder"
    return CorruptPart(f"says what cannot be: {what}", where=where, hint=hint)
