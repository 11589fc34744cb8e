"""Agreement of texts: figures of two other implementations of SQuAD's script, and true answers in every form."""

from __future__ import annotations

import polars as pl
import pytest

from l2d.data.errors import DataError
from l2d.data.samples.true_texts import true_texts
from l2d.data.text_answers import agreements, exact_match, f1, normalised

#: Answer, true answers, exact match and F1: what transformers 4.57.1 (`squad_metrics.get_raw_scores`, the script of
#: SQuAD 2.0) gives, and torchmetrics 1.9.0 (`text.SQuAD`) wherever there is a true answer.
PUBLISHED = [
    ("the Denver Broncos", ["Denver Broncos", "The Broncos", "denver broncos of Colorado"], 1, 1),
    ("in the year 1912", ["1912", "April 1912"], 0, 1 / 2),
    ("A cat sat on the mat.", ["the cat sat", "cat, cat and mat"], 0, 2 / 3),
    ("cat cat cat", ["the cat and the cat"], 0, 2 / 3),
    ("", [], 1, 1),
    ("Paris", [], 0, 0),
    ("", ["Paris"], 0, 0),
    ("the", ["Paris"], 0, 0),
    ("The", ["an"], 1, 1),
    ("U.S.A.", ["USA", "United States"], 1, 1),
    ("well-known poet", ["well known poet"], 0, 0.4),
    ("Ärger über die Straße", ["ärger ÜBER die Strasse", "über die straße"], 0, 6 / 7),
    ("  two   words ", ["two words"], 1, 1),
    ("theatre another", ["theatre  another!"], 1, 1),
    ("42 %", ["42%", "42 percent"], 1, 1),
    ("“Hamlet”", ["Hamlet"], 0, 0),
]


@pytest.mark.parametrize(("answer", "truths", "exact", "overlap"), PUBLISHED)
def test_figures_are_those_of_the_published_script(answer, truths, exact, overlap):
    assert exact_match(answer, truths) == exact
    assert f1(answer, truths) == pytest.approx(overlap, abs=1e-12)


def test_articles_go_after_punctuation():
    assert normalised("The-cat, a.n  (an) apple") == "thecat apple"  # a.n becomes an, and goes with the other


def test_no_answer_agrees_with_nothing():
    found = agreements([None, "Paris", ""], [["Paris"], ["Paris", "paris!"], []])
    assert found["exact_match"].tolist() == found["f1"].tolist() == [0, 1, 1]


TEXTS = [["Rome", "the city of Rome"], [], ["1912"]]


@pytest.mark.parametrize(
    "column",
    [
        pl.Series("answers", TEXTS),
        pl.Series("answers", ['["Rome", "the city of Rome"]', "[]", '["1912"]']),
        pl.Series("answers", [{"text": texts, "answer_start": [0]} for texts in TEXTS]),
    ],
    ids=["lists", "JSON in cells", "records as SQuAD has them"],
)
def test_true_answers_in_every_form(column):
    found, notes = true_texts(column.to_frame(), "answers")
    assert found.to_list() == TEXTS
    assert notes[-1] == "true answers: 1 of 3 questions have none, where an empty text is right"


def test_one_true_answer_a_row():
    table = pl.DataFrame({"year": [1912, 7], "place": ["[sic]", "Rome"]})
    assert true_texts(table, "year")[0].to_list() == [["1912"], ["7"]]
    assert true_texts(table, "place")[0].to_list() == [["[sic]"], ["Rome"]]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pl.Series("x", ["a", None]), "row 1 has no target_text"),
        (pl.Series("x", [["a"], ["b", None]]), "row 1 of target_text has a gap"),
        (pl.Series("x", [1.5, 2.0]), "is of type Float64"),
        (pl.Series("x", [[1.0], [2.0]]), "is a list of Float64"),
    ],
)
def test_what_is_no_text_is_refused(column, said):
    with pytest.raises(DataError, match=said):
        true_texts(column.to_frame(), "x")
