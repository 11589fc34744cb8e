"""What stage one works on: samples in a fixed order with targets, rejector inputs and the source's columns."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from . import schema
from .errors import DataError


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Consecutive samples handed to an agent.

    ``target_cla`` and ``target_reg`` are there for simulated experts, whose competence is defined by the truth; a real
    agent has no business reading them. ``answers`` holds the cached answers of the agents named in
    :attr:`Agent.needs`, as Parquet columns.
    """

    ids: list[str]
    rows: range  # their positions in the dataset
    features: np.ndarray  # float32 (batch, width)
    columns: pl.DataFrame  # the source's columns, and `cluster`
    target_cla: np.ndarray | None  # int32 (batch,)
    target_reg: np.ndarray | None  # float32 (batch,)
    answers: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """All samples of a dataset.

    Raises:
        DataError: ids repeat, or a target is missing or not finite.
    """

    name: str
    ids: list[str]
    split: np.ndarray  # (n,) of "train", "validation", "test"
    features: np.ndarray  # float32 (n, width)
    columns: pl.DataFrame
    target_cla: np.ndarray | None  # int32 (n,): index into classes
    target_reg: np.ndarray | None  # float32 (n,)
    classes: tuple[str, ...]
    keep: tuple[str, ...]  # columns that go into the cache for SQL
    inputs: dict[str, Any]
    config: dict[str, Any]  # what made it, part of the fingerprint
    unit_reg: str = ""  # what target_reg is measured in, for people

    def __post_init__(self):
        if not self.ids:
            raise DataError("the dataset has no samples", where=self.name, hint="check the path and `where`")
        first: dict[str, int] = {}
        for position, sample_id in enumerate(self.ids):
            if sample_id in first:
                raise DataError(
                    f"sample id {sample_id!r} stands at rows {first[sample_id]} and {position}",
                    where=self.name,
                    hint="every sample needs an id of its own: name another column as `id`",
                )
            first[sample_id] = position
        if self.target_reg is not None and not np.isfinite(self.target_reg).all():
            sample = self.ids[int(np.flatnonzero(~np.isfinite(self.target_reg))[0])]
            raise DataError(
                f"sample {sample!r} has no finite target_reg", where=self.name, hint="filter it with `where`"
            )
        if self.target_cla is None and self.target_reg is None:
            raise DataError("there is no target", where=self.name, hint="give target_cla, target_reg or both")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def train(self) -> np.ndarray:
        """Boolean mask of the training split, (n,)."""
        return self.split == "train"

    def batch(self, rows: range, answers: dict[str, Any] | None = None) -> Batch:
        """The samples at ``rows``, ready for an agent."""
        part = slice(rows.start, rows.stop)
        return Batch(
            ids=self.ids[part],
            rows=rows,
            features=self.features[part],
            columns=self.columns[part],
            target_cla=None if self.target_cla is None else self.target_cla[part],
            target_reg=None if self.target_reg is None else self.target_reg[part],
            answers=answers or {},
        )

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Which samples, in which order: with another one, nothing of a cache can be kept."""
        return {"samples": len(self.ids), "ids_and_order": schema.ids_digest(self.ids)}

    @cached_property
    def content(self) -> dict[str, Any]:
        """Digest of everything else an agent may have looked at; each agent says which of these it reads."""
        columns = {f"column {name}": _digest(self.columns[name]) for name in self.columns.columns}
        return {
            "split": schema.ids_digest(self.split.tolist())[:16],
            "target_cla": _content(self.target_cla),
            "target_reg": _content(self.target_reg),
            "features": _content(self.features),
            "classes": list(self.classes),
            **columns,
        }

    def fingerprint(self) -> dict[str, Any]:
        """Fields that tell this dataset from another: which samples, how they are described, what they hold."""
        kept = {name: value for name, value in self.content.items() if not name.startswith("column ")}
        kept |= {f"column {name}": self.content[f"column {name}"] for name in self.keep}
        return {**{f"dataset.{key}": value for key, value in self.config.items()}, **self.identity, **kept}


def _digest(column: pl.Series) -> str:
    """Of a column's values; missing ones are a text no value has."""
    return schema.ids_digest(["\0" if value is None else repr(value) for value in column.to_list()])[:16]


def _content(values: np.ndarray | None) -> str | None:
    return None if values is None else hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]
