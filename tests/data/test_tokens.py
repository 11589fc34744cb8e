"""Token lists against plain Python lists."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from l2d.data.cache import schema
from l2d.data.samples.tokens import SPECIAL, Tokens, fit_vocabulary

CODES = [f"C{number}" for number in range(30)]


def random_lists(rows: int, seed: int = 0) -> list[list[str]]:
    """Lists of 0 to 9 codes; low numbers are frequent."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, 10, size=rows)
    return [[CODES[int(29 * generator.random() ** 3)] for _ in range(length)] for length in lengths]


def slow_encode(lists, vocabulary):
    """Indices by Python's own look-up."""
    return [[vocabulary.index(code) if code in vocabulary[2:] else 1 for code in codes] for codes in lists]


def as_lists(tokens: Tokens) -> list[list[int]]:
    return [tokens.values[a:b].tolist() for a, b in itertools.pairwise(tokens.offsets)]


def test_encoding_is_a_look_up_in_the_vocabulary():
    lists = random_lists(200)
    vocabulary = fit_vocabulary(lists[:100], min_count=5)
    for given in (lists, pl.Series(lists, dtype=pl.List(pl.String))):
        tokens = Tokens.encode(given, vocabulary)
        assert as_lists(tokens) == slow_encode(lists, vocabulary)
    assert (tokens.values == 1).any()
    expected = [[code if code in vocabulary else "<unk>" for code in codes] for codes in lists]
    assert tokens.to_lists() == expected


def test_the_vocabulary_is_what_is_frequent_enough():
    lists = random_lists(300)
    counts = Counter(code for codes in lists for code in codes)
    expected = sorted((code for code in counts if counts[code] >= 20), key=lambda code: (-counts[code], code))
    assert fit_vocabulary(lists, min_count=20) == (*SPECIAL, *expected)
    assert 0 < len(expected) < len(counts)
    assert fit_vocabulary([[], None]) == SPECIAL


def test_missing_codes_and_lists_are_left_out_and_special_names_are_no_codes():
    lists = [["a", None, "", "b"], None, [], ["<pad>", "<unk>", "a"], [None]]
    vocabulary = fit_vocabulary(lists)
    assert vocabulary == (*SPECIAL, "a", "b")
    assert as_lists(Tokens.encode(lists, vocabulary)) == [[2, 3], [], [], [1, 1, 2], []]
    assert as_lists(Tokens.encode([[], ["a"]], SPECIAL)) == [[], [1]]
    assert len(Tokens.encode([], vocabulary)) == 0


@pytest.mark.parametrize("rows", [slice(3, 17), slice(None, None, -3), [5, 5, 0], np.arange(40) % 3 == 0, slice(0, 0)])
def test_taking_rows_and_joining_them(rows):
    lists = random_lists(40)
    vocabulary = fit_vocabulary(lists)
    tokens = Tokens.encode(lists, vocabulary)
    positions = np.arange(40)[rows]
    expected = slow_encode([lists[row] for row in positions], vocabulary)
    assert as_lists(tokens.take(rows)) == as_lists(tokens[rows]) == expected
    assert as_lists(Tokens.concatenate([tokens[7:], tokens.take(rows)])) == as_lists(tokens)[7:] + expected
    with pytest.raises(ValueError, match="vocabularies"):
        Tokens.concatenate([tokens, Tokens.encode(lists, SPECIAL)])


@pytest.mark.parametrize("max_length", [1, 4, 20])
def test_padding_keeps_the_first_codes(max_length):
    lists = random_lists(50)
    tokens = Tokens.encode(lists, fit_vocabulary(lists))
    indices, mask = tokens.padded(max_length)
    assert (indices.dtype, indices.shape) == (np.int64, (50, max_length))
    for row, expected in enumerate(as_lists(tokens)):
        kept = expected[:max_length]
        assert indices[row].tolist() == kept + [0] * (max_length - len(kept))
        assert mask[row].tolist() == [True] * len(kept) + [False] * (max_length - len(kept))


def test_a_round_trip_through_arrow_also_in_pieces():
    lists = random_lists(60)
    tokens = Tokens.encode(lists, fit_vocabulary(lists))
    column = tokens.to_arrow()
    assert column.type == schema.TOKENS
    assert column.to_pylist() == as_lists(tokens)
    pieces = pa.chunked_array([column.slice(13, 20), column.slice(40)])
    found = Tokens.from_arrow(pieces, tokens.vocabulary)
    assert as_lists(found) == as_lists(tokens)[13:33] + as_lists(tokens)[40:]


def test_what_does_not_fit_together_is_refused():
    good = Tokens.encode([["a"], ["b", "a"]], fit_vocabulary([["a", "b"]]))
    wrong = [
        (good.values, good.offsets, ("a", "b")),
        (good.values.astype(np.int64), good.offsets, good.vocabulary),
        (good.values, good.offsets[:-1], good.vocabulary),
        (good.values, good.offsets[::-1].copy(), good.vocabulary),
        (good.values - 2, good.offsets, good.vocabulary),
        (good.values + 2, good.offsets, good.vocabulary),
    ]
    for arguments in wrong:
        with pytest.raises(ValueError, match=r"vocabulary begins|int32|offsets|outside"):
            Tokens(*arguments)


def test_the_digest_tells_lists_apart():
    vocabulary = fit_vocabulary([["a", "b", "c"]])
    same = [Tokens.encode([["a", "b"], ["c"]], vocabulary) for _ in range(2)]
    others = [
        Tokens.encode([["a"], ["b", "c"]], vocabulary),
        Tokens.encode([["b", "a"], ["c"]], vocabulary),
        Tokens.encode([["a", "b"], ["c"]], (*SPECIAL, "a", "b", "d", "c")),
    ]
    assert same[0].digest == same[1].digest
    assert len({tokens.digest for tokens in [*same, *others]}) == 4
