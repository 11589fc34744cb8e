"""The rows of a cache's chunks: what a rejector looks at and what each agent costs there, and what is refused.

Shared by rejector/rows/table.py, which joins chunks to tables, and rejector/rows/stream.py, one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from l2d.data.cache import schema
from l2d.data.cache.columns import dense_matrix, gaps, numbers
from l2d.data.errors import DataError, UsageError, nearest
from l2d.data.samples.images import decode_thumbnails
from l2d.data.samples.tokens import Tokens, token_rows, token_sizes
from l2d.rejector.settings import INPUT_HINT

if TYPE_CHECKING:
    from l2d.data.cache.reader import AgentRecord, CostCache
    from l2d.rejector.rows.pictures import Pictures

#: What to do about recorded failures: refuse the split; drop the samples on which an agent (or reference) failed;
#: charge a failure the worst cost of its task that any answer has on the training split; or mask it, so that the agent
#: is unavailable on that sample. An agent that answers only some samples (``partial``) is masked in any case.
FAILURES = ("refuse", "drop", "worst", "mask")

Column: TypeAlias = np.ndarray | pa.Array | pa.ChunkedArray


def check_usable(cache: CostCache, column: str, failures: str) -> None:
    """Refuse what no rejector can be trained on.

    Raises:
        IncompleteCache: parts are missing.
        UsageError: fewer than two agents, no such input, no such treatment of failures.
    """
    if failures not in FAILURES:
        raise UsageError(f"failures = {failures!r}", hint=nearest(failures, FAILURES))
    cache.require_complete()
    if len(cache.agents) < 2:
        raise UsageError(
            f"there is one agent, {cache.agents[0].name!r}: nothing to defer to",
            where=cache.address,
            hint="add an expert to the recipe and build again; agents that are there are not asked again",
        )
    if column not in cache.record.inputs:
        there = [name for name in schema.INPUT_COLUMNS if name in cache.record.inputs]
        files = "name the folder with their files: --images FOLDER --image-size 224"
        raise UsageError(
            f"this cache has no {column} for a rejector to look at; it has {', '.join(there)}",
            where=cache.address,
            hint=files if column == "image" else INPUT_HINT,
        )


@dataclass(frozen=True)
class RejectorInput:
    """What a rejector looks at: which columns of a cache these are, and how they become numbers.

    Attributes:
        name: out of data.cache.schema.INPUT_COLUMNS.
        made: what ``CacheRecord.inputs`` says of it.
        pictures: image files that are looked at in place of the images that the cache keeps.
    """

    name: str
    made: Mapping[str, Any]
    pictures: Pictures | None = None

    @classmethod
    def of(cls, cache: CostCache, name: str) -> RejectorInput:
        """One of the inputs that a cache has."""
        inputs: Mapping[str, Any] = cache.record.inputs
        return cls(name, inputs[name], cache.pictures if name == "image" else None)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns of the samples table, or of the agent that shows its features."""
        if self.pictures is not None:
            return ("sample_id",)
        return tuple(schema.token_column(field) for field in self.made["fields"]) if self.sizes else (self.name,)

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Of fields of token lists, see :func:`l2d.data.samples.tokens.token_sizes`; else none."""
        return token_sizes(self.made)

    @cached_property
    def _vocabularies(self) -> list[tuple[str, ...]]:
        return [tuple(field["vocabulary"]) for field in self.made["fields"].values()]

    def rows(self, values: Mapping[str, Column], rows: int, wanted: np.ndarray | None = None) -> np.ndarray:
        """Float32 (rows, width): images decoded to numbers in [0, 1], token lists padded, all else as it is.

        Args:
            values: at least :attr:`columns`. Without them, as where an agent failed on a whole chunk and has shown
                nothing, the width is 0.
            rows: how many there are.
            wanted: rows that are needed, bool (rows,): image files of others are not decoded. None: all.

        Raises:
            DataError: a token list holds what is not in its vocabulary, or an image file is gone or damaged.
        """
        if self.pictures is not None:
            ids = values["sample_id"]
            return self.pictures.pixels(ids.tolist() if isinstance(ids, np.ndarray) else ids.to_pylist(), wanted)
        if self.sizes:
            parts = zip(self.columns, self._vocabularies, strict=True)
            try:
                fields = [Tokens.from_arrow(values[name], vocabulary) for name, vocabulary in parts]
            except ValueError as error:
                raise DataError(f"token lists: {error}", hint="build the cache again") from error
            return token_rows(fields, [length for _, length in self.sizes])
        column = values.get(self.name)
        if self.name == "image":
            return pixels_of(column)
        if column is None:
            return np.zeros((rows, 0), np.float32)
        return column if isinstance(column, np.ndarray) else dense_matrix(column)


def pixels_of(files: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Encoded images of one size as numbers in [0, 1], float32 (n, 3 * side * side).

    Raises:
        DataError: one of them is not an image.
    """
    return decode_thumbnails(files.to_pylist()).reshape(len(files), -1).astype(np.float32) / 255


def read_costs(parts: Sequence[Mapping[str, Column] | pa.Table], columns: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Raw costs of one chunk.

    Args:
        parts: cost columns of each agent.
        columns: which, one a task.

    Returns:
        Raw costs float32 (n, agents, tasks), 0 for failures; and where an agent failed, bool (n, agents). Both are
        contiguous along n, as the columns are.
    """
    rows = len(parts[0][columns[0]])
    raw, failed = np.empty((len(parts), len(columns), rows), np.float32), np.zeros((len(parts), rows), dtype=bool)
    for agent, part in enumerate(parts):
        for task, name in enumerate(columns):
            values = part[name]
            raw[agent, task] = values if isinstance(values, np.ndarray) else numbers(values)
        first = part[columns[0]]
        if not isinstance(first, np.ndarray):
            failed[agent] = gaps(first)
    return raw.transpose(2, 0, 1), failed.T


def check_finite(
    cache: CostCache,
    sample_id: Callable[[int], str],
    features: np.ndarray,
    raw: np.ndarray,
    agents: list[AgentRecord],
) -> None:
    """Refuse a chunk that nothing can be learnt from.

    Args:
        sample_id: id of a row, for messages.
        features: (n, width).
        raw: (n, agents, tasks).

    Raises:
        DataError: a feature or cost is not finite, or a cost is negative.
    """
    # A sum is finite only if every term is; that of large numbers may overflow, so they are then looked at one by one.
    with np.errstate(over="ignore", invalid="ignore"):
        in_doubt = not np.isfinite(features.sum(dtype=features.dtype))
    if in_doubt and not np.isfinite(features).all():
        sample = sample_id(int((~np.isfinite(features).all(axis=1)).argmax()))
        raise DataError(
            f"sample {sample!r} has a feature that is not finite", where=cache.address, hint="build it again"
        )
    if raw.size and not (raw.min() >= 0 and raw.max() < np.inf):  # as neither is where a cost is not a number
        row, agent, task = np.argwhere(~(np.isfinite(raw) & (raw >= 0)))[0]
        raise DataError(
            f"agent {agents[agent].name!r}: {schema.COST_COLUMNS[cache.record.tasks[task]]} is {raw[row, agent, task]}",
            where=f"sample {sample_id(int(row))!r} in {cache.address}",
            hint="costs are finite and not negative: build the agent again",
        )


class Missing:
    """How answers that are not there are treated: which agents are unavailable then, and which rows are left out.

    Args:
        agents: those that may be allocated to, then the references.
        failures: one of :data:`FAILURES`.
    """

    def __init__(self, agents: list[AgentRecord], failures: str):
        self._agents, self._failures, self.drops = agents, failures, failures == "drop"
        self._is_masked = np.array([failures == "mask" or agent.partial for agent in agents])
        self._is_agent = np.array([agent.role == "agent" for agent in agents])

    def of_agents(self, count: int) -> Missing:
        """The same for the first ``count`` alone."""
        return self if count == len(self._is_agent) else Missing(self._agents[:count], self._failures)

    def unavailable(self, missing: np.ndarray) -> np.ndarray:
        """Where an agent without an answer is unavailable, bool (n, agents); elsewhere it has failed."""
        return missing & self._is_masked

    def failed(self, missing: np.ndarray) -> np.ndarray:
        """Where an agent without an answer has failed, bool (n, agents)."""
        return missing & ~self._is_masked

    def kept(self, missing: np.ndarray, unpriced: np.ndarray | bool = False) -> np.ndarray:
        """Rows that can be learnt from, bool (n,): an agent is available and, with ``drop``, none failed.

        Args:
            unpriced: where an agent cannot be asked, since what its answer was paid is not known, bool (n, agents).
        """
        kept = ~(self.unavailable(missing) | unpriced)[:, self._is_agent].all(axis=1)
        return np.asarray(kept & ~self.failed(missing).any(axis=1) if self.drops else kept)


@dataclass
class Tally:
    """Counts of one split.

    Attributes:
        rows: samples of the split.
        kept: samples that can be learnt from.
        failed: failures by agent (and reference), int (agents,).
        unavailable: samples on which some agent is unavailable.
        first: position of the first agent that failed on the first sample with a failure, and that sample's id.
    """

    missing: Missing
    agents: int
    rows: int = 0
    kept: int = 0
    unavailable: int = 0
    failed: np.ndarray = field(init=False)
    first: tuple[int, str] | None = None

    def __post_init__(self):
        self.failed = np.zeros(self.agents, np.int64)

    def add(self, missing: np.ndarray, sample_id: Callable[[int], str], unpriced: np.ndarray | bool = False) -> None:
        """Count further rows: ``missing`` (bool (n, agents)) says which agent has no answer, ``unpriced`` no price."""
        failed = self.missing.failed(missing)
        self.rows += len(missing)
        self.kept += int(self.missing.kept(missing, unpriced).sum())
        self.unavailable += int((self.missing.unavailable(missing) | unpriced).any(axis=1).sum())
        self.failed += failed.sum(axis=0)
        if self.first is None and failed.any():
            row, agent = np.argwhere(failed)[0]
            self.first = int(agent), sample_id(int(row))

    def add_answered(self, rows: int) -> None:
        """Count further rows on which everybody has answered."""
        self.rows += rows
        self.kept += rows

    def check(self, cache: CostCache, split: str, agents: list[AgentRecord], failures: str) -> None:
        """Refuse a split that has no rows, or failures without a rule for them.

        Raises:
            DataError: that.
        """
        if not self.rows:
            raise DataError(f"the {split} split has no samples", where=cache.address, hint="choose another split")
        if self.first is not None and failures == "refuse":
            agent, sample = self.first
            raise DataError(
                f"agent {agents[agent].name!r} has no answer on {self.failed[agent]} samples of the {split} split",
                where=f"sample {sample!r} in {cache.address}",
                hint="ask again with `l2d build --retry-failures`, or say --failures drop, worst or mask",
            )
        if not self.kept:
            some = "every answer" if failures == "drop" else "any answer"
            hint = "--failures worst, or --failures mask" if failures == "drop" else "ask agents that answer"
            raise DataError(f"no sample of the {split} split has {some}", where=cache.address, hint=hint)
