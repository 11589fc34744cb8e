"""A decision log read back: every record once, whatever processes have done or were killed at."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from l2d.data.cache import store
from l2d.data.cache.journal import lines_of
from l2d.data.errors import DataError, UsageError
from l2d.rejector.serving.record import DECISION, FALL, INPUTS, JOURNALS, OUTCOME, PARTS, RUNS, SCHEMA, STEP


@dataclass(frozen=True)
class Log:
    """What a log holds.

    Attributes:
        path: its folder.
        records: see :data:`l2d.rejector.serving.record.SCHEMA`.
    """

    path: Path
    records: pl.DataFrame

    @cached_property
    def decisions(self) -> pl.DataFrame:
        """A row a decision, oldest first, with ``cost``, ``paid`` and ``took`` of its outcome, null without one."""
        outcomes = (
            self.records.filter(pl.col("kind") == OUTCOME)
            .sort("time", maintain_order=True)
            .unique("id", keep="last", maintain_order=True)
            .select("id", "cost", "paid", pl.col("seconds").alias("took"))
        )
        found = self.records.filter(pl.col("kind") == DECISION).unique("id", keep="first", maintain_order=True)
        return found.drop("cost", "paid").join(outcomes, on="id", how="left").sort("time", maintain_order=True)

    @cached_property
    def steps(self) -> pl.DataFrame:
        """A row an answer to a decision of a policy that may ask several agents, oldest first."""
        found = self.records.filter(pl.col("kind") == STEP).unique(
            ["id", "step", "replied"], keep="last", maintain_order=True
        )
        columns = ("id", "time", "run", "step", "replied", "silent", "sure", "paid", "asked", "agent", "answered_by",
                   "expected", "answer")  # fmt: skip
        return found.sort("time", maintain_order=True).select(columns)

    @cached_property
    def inputs(self) -> pl.DataFrame:
        """Sums over features, a row a lot of inputs."""
        return self.records.filter(pl.col("kind") == INPUTS).select("run", "time", "rows", "sums", "squares", "outside")

    @cached_property
    def falls(self) -> pl.DataFrame:
        """When a guard fell back, for which run, to which agent (its position), after how many outcomes."""
        found = self.records.filter(pl.col("kind") == FALL).sort("time", maintain_order=True)
        return found.select("run", "time", "agent", pl.col("rows").alias("outcomes"))

    @cached_property
    def runs(self) -> dict[str, dict[str, Any]]:
        """Digest -> what is known of a run that decided."""
        return {path.stem: store.read_json(path) for path in sorted((self.path / RUNS).glob("*.json"))}

    def one_run(self, digest: str | None = None) -> tuple[str, dict[str, Any], pl.DataFrame]:
        """Digest, facts and decisions of one run.

        Raises:
            UsageError: the run has decided nothing here; or several have, and none is named.
        """
        there = self.decisions["run"].unique(maintain_order=True).to_list()
        if digest is None and len(there) > 1:
            named = ", ".join(f"{one[:12]} ({self.runs[one]['run_id']})" for one in there)
            raise UsageError(f"{len(there)} runs decided here: {named}", where=self.path, hint="name one: --run DIGEST")
        chosen = [one for one in there if digest is None or one.startswith(digest)]
        if len(chosen) != 1:
            raise UsageError(
                "no decision of that run is in the log" if there else "there is no decision in the log",
                where=self.path,
                hint=f"decisions are of {', '.join(one[:12] for one in there)}" if there else "serve some: l2d serve",
            )
        return chosen[0], self.runs[chosen[0]], self.decisions.filter(pl.col("run") == chosen[0])


def read_log(path: Path | str) -> Log:
    """Read a log, also while it is written.

    Raises:
        UsageError: there is no log.
        CorruptPart: a part of it is damaged.
    """
    path = Path(path)
    if not (path / PARTS).is_dir() and not (path / JOURNALS).is_dir():
        raise UsageError("there is no decision log here", where=path, hint="make one: l2d serve RUN --log FOLDER")
    journals = sorted((path / JOURNALS).glob("*.jsonl"))
    live = [(journal, journal_frame(journal)) for journal in journals]
    parts = parts_of(path)  # listed after the journals, which may have become parts meanwhile
    there = {part.stem for part in parts}
    frames = [parts_frame(parts), *(frame for journal, frame in live if journal.stem not in there)]
    return Log(path, pl.concat(frames))


def parts_of(log: Path) -> list[Path]:
    """The parts that count, in name order: those that another replaces do not."""
    for _ in range(10):
        found = sorted((log / PARTS).glob("*.parquet"))
        try:
            replaced = {name for part in found if part.stem.startswith("all-") for name in _replaces(part)}
        except FileNotFoundError:  # joined meanwhile: look again
            continue
        return [part for part in found if part.name not in replaced]
    raise DataError("parts keep disappearing", where=log, hint="try again")


def _replaces(part: Path) -> list[str]:
    return json.loads(store.facts_of(pq.read_schema(part)).get("replaces", "[]"))


def parts_frame(parts: list[Path]) -> pl.DataFrame:
    """The records of parts."""
    tables = [store.read_table(part) for part in parts]
    frames = [pl.DataFrame(schema=SCHEMA), *(_as_records(table) for table in tables)]
    return pl.concat(frames)


def _as_records(table: pa.Table) -> pl.DataFrame:
    found = pl.from_arrow(table.replace_schema_metadata(None))
    assert isinstance(found, pl.DataFrame)
    return found.select(
        pl.col(name).cast(kind) if name in found.columns else pl.lit(None, kind).alias(name)
        for name, kind in SCHEMA.items()
    )


def journal_frame(path: Path) -> pl.DataFrame:
    """The records of a journal; lines that a full disk cut short are none."""
    lines = [line for line in lines_of(path) if line.startswith(b"{") and line.endswith(b"}")]
    if not lines:
        return pl.DataFrame(schema=SCHEMA)
    try:
        return pl.read_ndjson(io.BytesIO(b"\n".join(lines)), schema=SCHEMA)
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"cannot be read: {str(error).splitlines()[0]}", where=path, hint="move it away to go on without it"
        ) from error


def digest_of_names(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:24]


class Known:
    """Which decisions other writers have made: what is in the log when it is asked for."""

    def __init__(self, log: Path):
        self._log = log
        self._count: dict[str, int] = {}

    def __call__(self, writer: str, number: int) -> bool:
        if number >= self._count.get(writer, 0):
            self._refresh(writer)
        return number < self._count.get(writer, 0)

    def _refresh(self, writer: str) -> None:
        if len(writer) != 12 or not writer.isalnum():
            return
        found = 0
        for journal in (self._log / JOURNALS).glob(f"{writer}-*.jsonl"):
            found = max(found, _count(journal_frame(journal), writer))
        parts = [p for p in parts_of(self._log) if p.name.startswith((f"{writer}-", "all-"))]
        for part in parts:
            table = store.read_table(part, ["kind", "id"])
            found = max(found, _count(pl.DataFrame(pl.from_arrow(table)), writer))
        self._count[writer] = found


def _count(records: pl.DataFrame, writer: str) -> int:
    ids = records.filter((pl.col("kind") == DECISION) & pl.col("id").str.starts_with(f"{writer}-"))["id"]
    numbers = ids.str.split("-").list.last().cast(pl.Int64)
    return int(numbers.max() or 0) + 1 if len(numbers) else 0  # type: ignore[arg-type]
