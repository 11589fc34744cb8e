"""Near-duplicates in kept texts: a prompt of the test split that stands in training with a few other words.

Two texts are near-duplicates where they share most of their word triples: the Jaccard index of the sets of triples
(Broder, *On the resemblance and containment of documents*, 1997). Triples that many texts have are those of a template,
such as ``answer the question``, and do not count. Texts of a few words have too few triples to be told apart; that two
are the same word by word is found of their features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from l2d.data.cache import schema
from l2d.data.cache.reader import CostCache

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

WORDS = 3  # in a row
ALIKE = 0.7  # Jaccard index from which on two texts are near-duplicates
FEWEST = 5  # triples that a text has to have
TEMPLATE = 0.05  # share of the texts, above which a triple is of a template
FEW_TEXTS = 200  # below which a triple may be in ten of them
FREE_TEXT = 30  # mean characters from which on a kept column is text rather than a category
MOST_TEXTS = 200_000  # that are compared
ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Near:
    """A test text, and the most similar text of another split: their ids, and how alike they are."""

    test: str
    other: str
    alike: float


def kept_texts(cache: CostCache) -> list[str]:
    """Kept columns that hold free text."""
    found: list[str] = []
    if not cache.record.num_chunks:
        return found
    part = cache.samples(0, list(cache.record.keep))
    for name in cache.record.keep:
        column = part[name]
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            continue
        lengths = np.array([len(text) for text in column.to_pylist() if text])
        if len(lengths) and lengths.mean() >= FREE_TEXT:
            found.append(name)
    return found


def near_duplicates(cache: CostCache, column: str) -> list[Near]:
    """Test samples with a near-duplicate in training or validation, in order, each with the text most like it."""
    ids: list[str] = []
    texts: list[str] = []
    split: list[str] = []
    for chunk in range(cache.record.num_chunks):
        part = cache.samples(chunk, ["sample_id", "split", column])
        ids += part["sample_id"].to_pylist()
        split += part["split"].to_pylist()
        texts += [text or "" for text in part[column].to_pylist()]
    if len(texts) > MOST_TEXTS:
        kept = np.linspace(0, len(texts) - 1, MOST_TEXTS).astype(np.int64).tolist()
        ids, texts, split = ([values[k] for k in kept] for values in (ids, texts, split))
    is_test = np.array(split) == schema.SPLITS[-1]
    pairs = most_alike(texts, np.flatnonzero(is_test), np.flatnonzero(~is_test))
    return [Near(ids[one], ids[other], alike) for one, other, alike in pairs]


def most_alike(texts: Sequence[str], asked: np.ndarray, among: np.ndarray) -> list[tuple[int, int, float]]:
    """Texts with a near-duplicate among others: their positions, that of the text most like them, and how alike.

    Args:
        asked: positions of the texts that are asked about.
        among: positions of those they are compared with.
    """
    triples = _triples(texts)
    if triples is None or not len(asked) or not len(among):
        return []
    count = np.asarray(triples.sum(axis=1)).ravel()
    others, found = triples[among].T.tocsc(), []
    for start in range(0, len(asked), ROWS_AT_ONCE):
        rows = asked[start : start + ROWS_AT_ONCE]
        shared = (triples[rows] @ others).tocsr()
        for k, row in enumerate(rows):
            places = shared.indices[shared.indptr[k] : shared.indptr[k + 1]]
            if not len(places) or count[row] < FEWEST:
                continue
            both = shared.data[shared.indptr[k] : shared.indptr[k + 1]]
            alike = both / (count[row] + count[among[places]] - both)
            best = int(np.lexsort((places, -alike))[0])
            if alike[best] >= ALIKE:
                found.append((int(row), int(among[places[best]]), float(alike[best])))
    return found


def _triples(texts: Sequence[str]) -> csr_matrix | None:
    """Which text has which triple, 0 or 1, int32 (texts, triples); None where no text has any that counts."""
    from sklearn.feature_extraction.text import CountVectorizer

    most = max(10, round(TEMPLATE * len(texts))) if len(texts) > FEW_TEXTS else 10
    vectorizer = CountVectorizer(
        ngram_range=(WORDS, WORDS), binary=True, min_df=1, max_df=most, token_pattern=r"\w+", dtype=np.int32
    )
    try:
        return vectorizer.fit_transform(texts).tocsr()
    except ValueError:  # an empty vocabulary
        return None
