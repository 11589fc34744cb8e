"""Splits: exact shares in every stratum, and the same for a sample whatever the order it comes in."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from l2d.data.errors import DataError
from l2d.data.samples import splits
from l2d.data.samples.split_names import Splits
from l2d.data.samples.splits import hash_split, require_all_splits

FRACTIONS = (0.6, 0.2, 0.2)
NAMES = ("train", "validation", "test")


def split_of(ids, strata=None, fractions=FRACTIONS, salt="l2d"):
    return hash_split(ids, [()] * len(ids) if strata is None else strata, fractions=fractions, salt=salt)


def numbered(count: int) -> list[str]:
    return [f"sample-{number}" for number in range(count)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(5, 90), min_size=1, max_size=6),
    st.sampled_from([(0.6, 0.2, 0.2), (0.8, 0.1, 0.1), (0.34, 0.33, 0.33), (0.5, 0.25, 0.25), (0.2, 0.2, 0.6)]),
)
def test_each_stratum_has_its_fractions_to_one_sample(sizes, fractions):
    strata = [stratum for stratum, size in enumerate(sizes) for _ in range(size)]
    try:
        split = split_of(numbered(len(strata)), strata, fractions)
    except DataError:
        assume(False)  # too few samples for three splits
    for stratum, size in enumerate(sizes):
        counts = Counter(split[np.array(strata) == stratum].tolist())
        assert sum(counts.values()) == size
        for name, fraction in zip(NAMES, fractions, strict=True):
            assert abs(counts[name] - fraction * size) < 1 + 1e-9


def test_a_hundred_samples_split_60_20_20():
    assert Counter(split_of(numbered(100)).tolist()) == {"train": 60, "validation": 20, "test": 20}


def test_membership_is_by_rank_of_the_salted_sha256():
    ids = numbered(50)
    ranked = sorted(ids, key=lambda sample: hashlib.sha256(f"salt:{sample}".encode()).hexdigest())
    split = dict(zip(ids, split_of(ids, salt="salt").tolist(), strict=True))
    assert [split[sample] for sample in ranked] == ["train"] * 30 + ["validation"] * 10 + ["test"] * 10


@pytest.mark.parametrize("bits", [0, 2, 5])
def test_where_the_first_64_bits_are_equal_all_256_count(monkeypatch, bits):
    """Which never happens, so the first bits are cut down here."""
    whole = splits._words
    monkeypatch.setattr(splits, "_hashes", lambda ids, salt: whole(ids, salt)[:, 0] >> np.uint64(64 - bits))
    monkeypatch.setattr(splits, "_words", lambda ids, salt: cut(whole(ids, salt)))

    def cut(words: np.ndarray) -> np.ndarray:
        words[:, 0] >>= np.uint64(64 - bits)
        return words

    ids = numbered(60)
    full = {sample: hashlib.sha256(f"l2d:{sample}".encode()).digest() for sample in ids}
    ranked = sorted(ids, key=lambda sample: (full[sample][0] >> (8 - bits), full[sample][8:]))
    split = dict(zip(ids, split_of(ids).tolist(), strict=True))
    assert [split[sample] for sample in ranked] == ["train"] * 36 + ["validation"] * 12 + ["test"] * 12


@settings(max_examples=40, deadline=None)
@given(st.integers(20, 200), st.integers(0, 10_000))
def test_row_order_changes_nothing(count, seed):
    ids = numbered(count)
    strata = [number % 3 for number in range(count)]
    before = dict(zip(ids, split_of(ids, strata).tolist(), strict=True))
    order = np.random.default_rng(seed).permutation(count)
    shuffled = split_of([ids[k] for k in order], [strata[k] for k in order])
    assert {ids[k]: name for k, name in zip(order, shuffled.tolist(), strict=True)} == before


def test_another_salt_draws_another_split_of_the_same_shares():
    ids = numbered(300)
    one, other = split_of(ids, salt="a"), split_of(ids, salt="b")
    assert Counter(one.tolist()) == Counter(other.tolist())
    agreement = (one == other).mean()
    assert 0.3 < agreement < 0.6  # 0.44 if independent
    np.testing.assert_array_equal(one, split_of(ids, salt="a"))


def test_strata_are_split_on_their_own():
    ids = numbered(200)
    alone = split_of(ids[:80])
    together = split_of(ids, ["small"] * 80 + ["large"] * 120)
    np.testing.assert_array_equal(together[:80], alone)


def test_the_split_does_not_follow_the_order_of_ids():
    train = np.flatnonzero(split_of(numbered(1000)) == "train")
    assert abs(train.mean() - 499.5) < 40  # a cut by position would give 299.5


@pytest.mark.parametrize("count", [1, 2])
def test_a_split_without_samples_is_refused_by_name(count):
    with pytest.raises(DataError, match=r"the (train|validation|test) split has no samples") as caught:
        split_of(numbered(count))
    assert f"{count} samples" in caught.value.what
    assert "fraction" in caught.value.hint


def test_a_fraction_too_small_for_any_sample_is_refused():
    with pytest.raises(DataError, match="the validation split has no samples"):
        split_of(numbered(20), fractions=(0.8, 0.001, 0.199))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_small_strata_are_spread_over_the_splits_in_proportion(size):
    """Were each cut at the same place, strata of one sample would all be training and none tested."""
    ids = numbered(3000 * size)
    counts = Counter(split_of(ids, strata=[position // size for position in range(len(ids))]).tolist())
    for name, fraction in zip(NAMES, (0.6, 0.2, 0.2), strict=True):
        assert abs(counts[name] / len(ids) - fraction) < 0.03


def test_an_unknown_split_name_is_refused():
    with pytest.raises(DataError, match="unknown split 'dev'") as caught:
        require_all_splits(np.array(["train", "validation", "test", "dev"]))
    assert "train, validation, test" in caught.value.hint
    require_all_splits(np.array(["train", "validation", "test"]))


def test_strata_may_be_columns():
    """A column each, as a table has them: the split is that of their rows as tuples, a missing value included."""
    ids = numbered(120)
    one, two = ["a" if k % 3 else None for k in range(120)], [str(k % 4) for k in range(120)]
    rows = [*zip(one, two, strict=True)]
    assert split_of(ids, pl.DataFrame({"one": one, "two": two})).tolist() == split_of(ids, rows).tolist()


def test_a_name_that_is_no_splits_is_refused():
    with pytest.raises(DataError, match="unknown split 'tset', of sample 2"):
        Splits.of(np.array(["train", "tset", "test"]))
