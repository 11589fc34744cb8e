"""Text as sentence embeddings: a frozen encoder's vectors, along the directions in which training texts differ most.

The encoder is the user's (:mod:`l2d.data.samples.embedders`). Its vectors have hundreds of numbers, so they are
projected on their principal components on the training split (Hotelling 1933), as words are on theirs. What the encoder
is made of is kept with the components: a cache or a run makes the same features without the folder that it came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from l2d.data.errors import CorruptPart, DataError
from l2d.data.samples.embedders import Embedder, embedder_in, embedder_of, folder_of
from l2d.data.samples.text import (
    COUNTS,
    GRID,
    LEAST_SHARE,
    MOST_TEXTS,
    RESTORE_HINT,
    ROWS_AT_ONCE,
    TextSettings,
    counts_of,
    texts_of,
    words_of,
)

MODEL = "model."  # before the names of an encoder's arrays


@dataclass(frozen=True, kw_only=True)
class EmbeddedText:
    """A text, as :func:`fit_embedding` found it in training.

    Attributes:
        expression, name: SQL that gives it, and what its columns are called by.
        rows, empty, fitted: training rows, those without text, and texts that the components were fitted on.
        explained: share of the variance of the training texts' vectors that the components keep.
        encoder: kind of the encoder, see :class:`l2d.data.samples.embedders.Embedder`.
        mean: of the training texts' vectors, float64 (vector,).
        directions: float64 (vector, components).
        embedder: the encoder.
    """

    expression: str
    name: str
    rows: int
    empty: int
    fitted: int
    explained: float
    encoder: str
    mean: np.ndarray = field(repr=False, compare=False)
    directions: np.ndarray = field(repr=False, compare=False)
    embedder: Embedder = field(repr=False, compare=False)

    @property
    def components(self) -> int:
        """How many directions."""
        return self.directions.shape[1]

    def columns(self) -> list[str]:
        """Names of its features: counts, then components."""
        named = [f"{self.name} embedding {place + 1}" for place in range(self.components)]
        return [*(f"{self.name}: {name}" for name in COUNTS), *named]

    def encode(self, column: pl.Series) -> Iterator[np.ndarray]:
        """Its columns, some rows after the other: float64 (rows, width); components are 0 where there is no text.

        Raises:
            DataError: the column holds no text.
            UsageError: the extra ``text`` is not installed.
        """
        texts = texts_of(column, self.expression)
        for start in range(0, len(texts), ROWS_AT_ONCE):
            part = texts[start : start + ROWS_AT_ONCE]
            filled = (part != "").to_numpy()
            components = np.zeros((len(part), self.components))
            if filled.any():
                components[filled] = projected(self.embedder(part.filter(filled).to_list()), self.mean, self.directions)
            yield np.hstack([counts_of(part, words_of(part)), components])

    # --- kept in a cache ----------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """All but the arrays, as plain values."""
        arrays = ("mean", "directions", "embedder")
        facts = {name: value for name, value in vars(self).items() if name in self.__annotations__}
        return {name: value for name, value in facts.items() if name not in arrays} | {"width": len(self.columns())}

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays, those of the encoder among them."""
        model = {f"{MODEL}{name}": array for name, array in self.embedder.arrays().items()}
        return {"mean": self.mean, "directions": self.directions.astype(np.float32), **model}

    def encoder_digest(self) -> str:
        """Of the encoder, 16 hex digits."""
        arrays = self.embedder.arrays()
        content = hashlib.sha256()
        for name in sorted(arrays):
            content.update(name.encode())
            content.update(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
        return content.hexdigest()[:16]

    @classmethod
    def of(cls, facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> EmbeddedText:
        """Inverse of :meth:`to_json` and :meth:`arrays`."""
        facts = {name: value for name, value in facts.items() if name != "width"}
        mean, directions = arrays["mean"], arrays["directions"].astype(np.float64)
        if mean.shape != directions.shape[:1] or directions.ndim != 2:
            raise CorruptPart("mean and directions of its embedding do not fit together", hint=RESTORE_HINT)
        model = {name.removeprefix(MODEL): array for name, array in arrays.items() if name.startswith(MODEL)}
        return cls(**facts, mean=mean, directions=directions, embedder=embedder_of(facts["encoder"], model))


def projected(vectors: np.ndarray, mean: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Components of vectors, float64 (n, components), row by row, so that a row's bits are its own."""
    return np.stack([(row - mean) @ directions for row in vectors.astype(np.float64)])


def fit_embedding(column: pl.Series, name: str, settings: TextSettings) -> EmbeddedText:
    """Encode the texts of training rows and fit the components.

    Of more than :data:`l2d.data.samples.text.MOST_TEXTS` texts that many are taken, evenly from the first to the last.

    Args:
        column: the training rows, in order.
        name: what the features are called by.
        settings: with ``embed``.

    Raises:
        DataError: it is no text, no row has any, or all are the same.
        UsageError: there is no such encoder, or the extra ``text`` is not installed.
    """
    assert settings.embed is not None
    expression = settings.expression
    texts = texts_of(column, expression)
    filled = texts.filter(texts != "")
    if filled.is_empty():
        raise DataError(f"text {expression!r} has no value in the training split", hint="leave it out")
    if len(filled) > MOST_TEXTS:
        filled = filled.gather(np.linspace(0, len(filled) - 1, MOST_TEXTS).astype(np.int64))
    embedder = embedder_in(folder_of(settings.embed))
    vectors = embedder(filled.to_list()).astype(np.float64)
    mean = np.round(vectors.mean(axis=0) / GRID) * GRID
    centred = vectors - mean
    variances, rows = np.linalg.eigh(centred.T @ centred)
    variances, rows = variances[::-1], rows.T[::-1]
    if not variances[0] > 1e-9 * len(vectors):
        hint = "leave it out, or read it word by word: without embed"
        raise DataError(f"text {expression!r} has the same embedding in all {len(texts):,} training rows", hint=hint)
    kept = np.flatnonzero(variances[: settings.components] > LEAST_SHARE**2 * variances[0])
    rows = rows[kept]
    rows = rows * np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)])[:, None]
    return EmbeddedText(
        expression=expression,
        name=name,
        rows=len(texts),
        empty=int((texts == "").sum()),
        fitted=len(filled),
        explained=round(float(variances[kept].sum() / np.maximum(variances, 0).sum()), 6),
        encoder=embedder.kind,
        mean=mean,
        directions=np.round(rows.T / GRID) * GRID,
        embedder=embedder,
    )
