"""Text as features: what its words say (TF-IDF, then a truncated SVD) and how it is written (lengths and counts).

Latent semantic analysis (Deerwester et al. 1990), weighted as scikit-learn's ``TfidfVectorizer(sublinear_tf=True)``:
counts as ``1 + ln(count)``, times ``1 + ln((1 + texts) / (1 + texts with the word))``, brought to length 1. The
directions are those of the largest singular values. Everything is fitted on training texts alone. Each row is worked
out by itself, from sums, products and square roots in a fixed order: a row has the same bits alone, in a batch and on
another machine. Words are found by polars, which takes a fraction of scikit-learn's time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from l2d.data.errors import CorruptPart, DataError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

#: A word: letters, digits and underscores. Scripts that put no blanks between words (Thai to Burmese, Khmer, kana, Han)
#: count letter by letter, else a sentence would be a word.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = rf"[{UNSPACED}]|[^\W{UNSPACED}]+"
#: Share of the characters -> regular expression whose matches are counted.
SHARES = {"digits": r"\d", "capitals": r"\p{Lu}", "symbols": r"[^\w\s]", "others than ASCII": r"[^\x00-\x7F]"}
COUNTS = ("characters", "words", "lines", *(f"share of {name}" for name in SHARES))
FEWEST = 2  # training texts with a word, below which it is not in the vocabulary
MOST_TEXTS = 50_000  # training texts that the vocabulary and the directions are fitted on
ROWS_AT_ONCE = 8_192
#: Weights and directions are multiples of this, so that their last digits, which differ between libraries of linear
#: algebra and their numbers of threads, are nobody's features.
GRID = 2.0**-16
LEAST_SHARE = 1e-6  # of the largest singular value, below which a direction is noise
HEAVIEST = 3  # words that name a direction
RESTORE_HINT = "restore text-*.safetensors from a copy, or build again in another folder"


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """How a text becomes features.

    Attributes:
        expression: SQL that gives the text, or a list of texts, which are put together.
        components: columns of what the words say, at most.
        terms: most words in the vocabulary: those that most training texts have.
        phrases: up to how many words in a row are terms of their own.
        embed: a folder, or ``package:NAME``, with a sentence encoder that is used in place of the words, see
            :mod:`l2d.data.samples.embedded_text`.
    """

    expression: str
    components: int = 32
    terms: int = 20_000
    phrases: int = 1
    embed: str | None = None


@dataclass(frozen=True, kw_only=True)
class TextFeature:
    """A text, as :func:`fit_text` found it in training.

    Attributes:
        expression, name: SQL that gives it, and what its columns are called by.
        rows, empty, fitted: training rows, those without text, and texts that it was fitted on.
        explained: share of the training texts' squared length, which is 1 each, that the directions keep.
        phrases: see :class:`TextSettings`.
        vocabulary: the terms, sorted.
        weights: of the terms, float64 (terms,).
        directions: float64 (terms, components).
    """

    expression: str
    name: str
    rows: int
    empty: int
    fitted: int
    explained: float
    phrases: int
    vocabulary: tuple[str, ...] = field(repr=False)
    weights: np.ndarray = field(repr=False, compare=False)
    directions: np.ndarray = field(repr=False, compare=False)

    @property
    def components(self) -> int:
        """How many directions."""
        return self.directions.shape[1]

    def columns(self) -> list[str]:
        """Names of its features: counts, then directions, which are called by their heaviest words."""
        heaviest = np.argsort(-np.abs(self.directions), axis=0, kind="stable")[:HEAVIEST].T
        says = (", ".join(self.vocabulary[term] for term in terms) for terms in heaviest)
        named = [f"{self.name} component {place + 1} ({words})" for place, words in enumerate(says)]
        return [*(f"{self.name}: {name}" for name in COUNTS), *named]

    def encode(self, column: pl.Series) -> Iterator[np.ndarray]:
        """Its columns, some rows after the other: float64 (rows, width).

        Raises:
            DataError: the column holds no text.
        """
        texts = texts_of(column, self.expression)
        for start in range(0, len(texts), ROWS_AT_ONCE):
            part = texts[start : start + ROWS_AT_ONCE]
            words = words_of(part)
            bags = _weighted(_counted(terms_of(words, self.phrases), len(part), self._terms), self.weights)
            yield np.hstack([counts_of(part, words), bags @ self.directions])

    @cached_property
    def _terms(self) -> pl.Enum:
        return pl.Enum(self.vocabulary)

    # --- kept in a cache ----------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """All but the arrays, as plain values."""
        arrays = ("vocabulary", "weights", "directions")
        facts = {name: value for name, value in vars(self).items() if name in self.__annotations__}
        return {name: value for name, value in facts.items() if name not in arrays} | {"width": len(self.columns())}

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays; terms as UTF-8, one a line."""
        terms = np.frombuffer("\n".join(self.vocabulary).encode(), np.uint8)
        return {"vocabulary": terms, "weights": self.weights, "directions": self.directions.astype(np.float32)}

    @classmethod
    def of(cls, facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> TextFeature:
        """Inverse of :meth:`to_json` and :meth:`arrays`."""
        facts = {name: value for name, value in facts.items() if name != "width"}
        vocabulary = tuple(arrays["vocabulary"].tobytes().decode().split("\n"))
        weights, directions = arrays["weights"], arrays["directions"].astype(np.float64)
        if (len(vocabulary),) != weights.shape or weights.shape != directions.shape[:1] or directions.ndim != 2:
            raise CorruptPart("vocabulary, weights and directions of its text do not fit together", hint=RESTORE_HINT)
        return cls(**facts, vocabulary=vocabulary, weights=weights, directions=directions)


def fit_text(column: pl.Series, name: str, settings: TextSettings) -> TextFeature:
    """Fit vocabulary, weights and directions on the texts of training rows.

    Of more than :data:`MOST_TEXTS` texts that many are taken, evenly from the first to the last. The SVD is ARPACK's to
    full precision: it takes as long as the randomized one, and its result depends on no seed.

    Args:
        column: the training rows, in order.
        name: what the features are called by.

    Raises:
        DataError: it is no text, no row has any, all are the same, or no word is in two of them.
    """
    from scipy.sparse import vstack

    expression = settings.expression
    texts = texts_of(column, expression)
    filled = texts.filter(texts != "")
    if filled.is_empty():
        raise DataError(f"text {expression!r} has no value in the training split", hint="leave it out")
    if filled.n_unique() == 1 and len(filled) == len(texts):
        raise DataError(f"text {expression!r} is the same in all {len(texts):,} training rows", hint="leave it out")
    if len(filled) > MOST_TEXTS:
        filled = filled.gather(np.linspace(0, len(filled) - 1, MOST_TEXTS).astype(np.int64))
    parts = [words_of(filled[start : start + ROWS_AT_ONCE]) for start in range(0, len(filled), ROWS_AT_ONCE)]
    found = pl.concat(terms_of(part, settings.phrases).unique()["term"].value_counts() for part in parts)
    known = found.group_by("term").agg(pl.col("count").sum()).filter(pl.col("count") >= FEWEST)
    if known.is_empty():
        raise DataError(
            f"text {expression!r}: no word is in {FEWEST} of the {len(filled):,} training texts",
            hint="is it an id or a name? It needs words that come again, else leave it out",
        )
    known = known.sort("count", "term", descending=[True, False]).head(settings.terms).sort("term")
    vocabulary, having = tuple(known["term"].to_list()), known["count"].cast(pl.Float64).to_numpy()
    weights = np.round((1 + np.log((1 + len(filled)) / (1 + having))) / GRID) * GRID
    counts = [_counted(terms_of(part, settings.phrases), len(part), pl.Enum(vocabulary)) for part in parts]
    directions, explained = _directions(_weighted(vstack(counts, "csr"), weights), settings.components)
    return TextFeature(
        expression=expression,
        name=name,
        rows=len(texts),
        empty=int((texts == "").sum()),
        fitted=len(filled),
        explained=explained,
        phrases=settings.phrases,
        vocabulary=vocabulary,
        weights=weights,
        directions=directions,
    )


def packed(texts: Sequence[Any]) -> bytes | None:
    """The arrays of text features as safetensors; None without any."""
    from safetensors.numpy import save

    arrays = {f"{k}.{name}": array for k, text in enumerate(texts) for name, array in text.arrays().items()}
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}) if texts else None


def unpacked(digest: str | None, content: bytes | None) -> list[dict[str, np.ndarray]]:
    """Inverse of :func:`packed`: the arrays of each text.

    Args:
        digest: SHA-256 of the content; None where there is none.

    Raises:
        CorruptPart: it is other content.
    """
    from safetensors.numpy import load

    if digest is None:
        return []
    if content is None or hashlib.sha256(content).hexdigest() != digest:
        raise CorruptPart("the vocabulary of its text is not what was written", hint=RESTORE_HINT)
    found: dict[int, dict[str, np.ndarray]] = {}
    for name, array in load(content).items():
        number, _, part = name.partition(".")
        found.setdefault(int(number), {})[part] = array
    return [found[number] for number in sorted(found)]


def texts_of(column: pl.Series, expression: str) -> pl.Series:
    """A column as texts without blanks around them; a missing one is empty, a list of texts is put together in lines.

    Raises:
        DataError: it is a column of something else.
    """
    kind = column.dtype
    if isinstance(kind, pl.List | pl.Array) and kind.inner in (pl.String, pl.Null):
        lists = column.cast(pl.List(pl.String))
        column = lists.list.eval(pl.element().drop_nulls()).list.join("\n")
    elif isinstance(kind, pl.Categorical | pl.Enum) or kind == pl.Null:
        column = column.cast(pl.String)
    elif kind != pl.String:
        raise DataError(
            f"text {expression!r} is of type {kind}",
            hint=f"numbers, dates and lists of numbers are `features`; CAST({expression} AS VARCHAR) is text",
        )
    return column.fill_null("").str.strip_chars()


def words_of(texts: pl.Series) -> pl.Series:
    """The words of each text, in small letters and in order: lists."""
    return texts.str.to_lowercase().str.extract_all(WORD)


def terms_of(texts: pl.Series, phrases: int) -> pl.DataFrame:
    """Words, and up to so many in a row, of texts as :func:`words_of` gives them: ``row`` (the position), ``term``."""
    found = texts.alias("term").to_frame().with_row_index("row")
    words = found.filter(pl.col("term").list.len() > 0).explode("term")
    parts = [words]
    for more in range(1, phrases):
        together = pl.concat_str([pl.col("term").shift(-k) for k in range(more + 1)], separator=" ")
        same = pl.col("row") == pl.col("row").shift(-more)
        parts.append(words.select(pl.col("row"), together, same.alias("same")).filter("same").drop("same"))
    return pl.concat(parts)


def _counted(terms: pl.DataFrame, texts: int, vocabulary: pl.Enum) -> csr_matrix:
    """How often each text has each term, int64 (texts, terms), in order of the terms."""
    from scipy.sparse import csr_matrix

    width = len(vocabulary.categories)
    known = terms.select("row", pl.col("term").cast(vocabulary, strict=False).to_physical()).drop_nulls()
    places = known["row"].to_numpy().astype(np.int64) * width + known["term"].to_numpy()
    places, counts = np.unique(places, return_counts=True)
    starts = np.searchsorted(places, np.arange(texts + 1) * width)
    return csr_matrix((counts, places % width, starts), shape=(texts, width))


def _weighted(counts: csr_matrix, weights: np.ndarray) -> csr_matrix:
    """Counts (texts, terms) as TF-IDF, rows of length 1 (or 0 where a text has no known term)."""
    most = int(counts.data.max(initial=1))
    logarithms = np.round((1 + np.log(np.arange(1, most + 1))) / GRID) * GRID
    found = counts.astype(np.float64)
    found.data = logarithms[counts.data - 1] * weights[counts.indices]
    squares = found.copy()
    squares.data **= 2
    lengths = np.sqrt(squares @ np.ones(counts.shape[1]))
    found.data /= np.repeat(lengths, np.diff(found.indptr))
    return found


def _directions(bags: csr_matrix, components: int) -> tuple[np.ndarray, float]:
    """Directions of the largest singular values, (terms, components or fewer), and the share that they keep."""
    if min(bags.shape) <= components:
        _, values, rows = np.linalg.svd(bags.toarray(), full_matrices=False)
    else:
        from sklearn.decomposition import TruncatedSVD

        svd = TruncatedSVD(components, algorithm="arpack", tol=0, random_state=0).fit(bags)
        values, rows = svd.singular_values_, svd.components_
    kept = values > LEAST_SHARE * values.max()
    rows = rows[kept]
    rows = rows * np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)])[:, None]
    total = float((bags.data**2).sum())
    return np.round(rows.T / GRID) * GRID, round(float((values[kept] ** 2).sum()) / total, 6)


def counts_of(texts: pl.Series, words: pl.Series) -> np.ndarray:
    """:data:`COUNTS` of each text, float64 (n, counts)."""
    characters = texts.str.len_chars().cast(pl.Float64).to_numpy()
    lines = texts.str.count_matches("\n", literal=True).cast(pl.Float64).to_numpy() + (characters > 0)
    found = [characters, words.list.len().cast(pl.Float64).to_numpy(), lines]
    found += [
        texts.str.count_matches(one).cast(pl.Float64).to_numpy() / np.maximum(characters, 1) for one in SHARES.values()
    ]
    return np.column_stack(found)
