"""Near-duplicates of texts across splits, against a comparison of all pairs by hand."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
import pytest

import l2d
from l2d.data.cache.audit_text import ALIKE, FEWEST, most_alike

WORDS = [f"word{k}" for k in range(400)]


def texts(rows: int, seed: int = 0) -> list[str]:
    """A template, then words of its own."""
    generator = np.random.default_rng(seed)
    own = (generator.choice(WORDS, generator.integers(12, 30)) for _ in range(rows))
    return ["Answer the following question. " + " ".join(words) for words in own]


def altered(text: str, how: int) -> str:
    """With one more word, one word less, other capitals or other marks."""
    words = text.split()
    return [f"{text} thanks", " ".join(words[:-1]), text.upper(), text.replace(" ", ",  ")][how]


def by_hand(texts: list[str], asked: list[int], among: list[int]) -> dict[int, float]:
    """All pairs: position -> the largest Jaccard index of the triples that few texts have, if it is large enough."""
    triples = []
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        triples.append({tuple(words[k : k + 3]) for k in range(len(words) - 2)})
    often = {one for one in set().union(*triples) if sum(one in each for each in triples) > 10}
    triples = [each - often for each in triples]
    found = {}
    for one in asked:
        best = max(len(triples[one] & triples[k]) / max(1, len(triples[one] | triples[k])) for k in among)
        if best >= ALIKE and len(triples[one]) >= FEWEST:
            found[one] = best
    return found


def test_it_finds_what_all_pairs_give():
    first = texts(90)
    asked = [*(altered(first[k], k % 4) for k in range(12)), *texts(30, 1), "too short"]
    both = [*first, *asked]
    rows = list(range(len(first), len(both)))
    found = most_alike(both, np.array(rows), np.arange(len(first)))
    assert {one: alike for one, _, alike in found} == pytest.approx(by_hand(both, rows, list(range(len(first)))))
    assert [(one, other) for one, other, _ in found] == [(len(first) + k, k) for k in range(12)]


def test_texts_of_a_template_alone_and_empty_ones_are_like_nothing():
    same = ["Answer the following question."] * 30
    assert most_alike(same, np.arange(5), np.arange(5, 30)) == []
    assert most_alike([""] * 5, np.arange(2), np.arange(2, 5)) == []


def test_the_audit_of_a_cache_names_them(tmp_path):
    first = texts(160)
    frame = pl.DataFrame({"id": [f"q{k}" for k in range(160)], "prompt": first})
    frame = frame.with_columns(split=pl.Series(["train"] * 100 + ["validation"] * 20 + ["test"] * 40))
    copies = [altered(first[k], k % 4) for k in range(6)]
    frame = frame.with_columns(prompt=pl.Series([*first[:120], *copies, *first[126:]]))
    frame = frame.with_columns(small=pl.Series([1.0, 0.0] * 80), big=pl.Series([1.0, 1.0, 0.0, 1.0] * 40))
    facts = {"agents": ["small", "big"], "text": ["prompt"], "kind": "scores"}
    cache = l2d.import_table(frame, out=tmp_path / "c", **facts)
    (note,) = [one for one in l2d.audit(cache).findings if one.check.startswith("near")]
    assert (note.level, "not kept" in note.what) == ("note", True)
    recipe = tmp_path / "c.toml"
    recipe.write_text(recipe.read_text().replace("text = [", 'keep = ["prompt"]\ntext = ['))
    cache = l2d.build(recipe, tmp_path / "kept")
    (found,) = [one for one in l2d.audit(cache).findings if one.check == "near-duplicated prompt"]
    assert (found.level, found.samples) == ("warning", 6)
    assert found.examples[0] == "q120 ~ q0"
