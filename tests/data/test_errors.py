"""The one place that says "did you mean"."""

from __future__ import annotations

import pytest

from l2d.data.errors import close_to, nearest


@pytest.mark.parametrize(
    ("given", "known", "expected"),
    [
        ("agee", ["age", "sex"], "did you mean 'age'? choose from age, sex"),
        ("AGE", ["age", "sex"], "did you mean 'age'? choose from age, sex"),
        ("age", ["Age"], "did you mean 'Age'? choose from Age"),
        ("weight", ["age", "sex"], "choose from age, sex"),
        (7, ["age"], "choose from age"),
    ],
)
def test_the_nearest_known_name_is_offered_and_all_are_listed(given, known, expected):
    assert nearest(given, known) == expected


def test_a_long_list_is_cut_and_counted():
    assert nearest("zzz", [f"c{n}" for n in range(1200)], "it has", most=3) == "it has c0, c1, c2 … 1,200 in all"


def test_of_two_names_that_differ_in_case_one_is_offered():
    assert close_to("ab", ["AB", "Ab"]) in ("AB", "Ab")
    assert close_to("ab", []) is None
