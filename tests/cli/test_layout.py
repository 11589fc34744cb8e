"""Tables of text: what is laid out without rich is laid out as by it."""

from __future__ import annotations

import random

from l2d.data.terminal.layout import _by_rich, _simple, table_text


def test_tables_are_laid_out_as_by_rich():
    draw = random.Random(0)
    words = ["", "a", "bb", "some words", "x" * 30, "0", "-1.5", "12,345", "[1, 2]", "a b", "_"]
    seen = 0
    for _ in range(150):
        width = draw.randint(1, 5)
        rows = [[draw.choice(words) for _ in range(width)] for _ in range(draw.randint(1, 7))]
        body = [None if draw.random() < 0.2 else row for row in rows[1:]]
        right = [draw.random() < 0.5 for _ in range(width)]
        found = _simple(rows[0], body, right)
        if found is not None:
            seen += 1
            assert found == _by_rich(rows[0], body, right)
    assert seen > 75


def test_letters_of_other_widths_are_left_to_rich():
    rows = [{"agent": "m", "n": 1}, None, {"agent": "漢字", "n": 12345}]
    assert table_text(rows) == "\n agent        n\n ──────────────\n m            1\n\n 漢字    12,345\n"
    assert table_text([]) == ""


def test_a_title_stands_in_one_line_however_narrow_the_table_is():
    assert table_text([{"n": 1}], title="longer than that") == "longer than that\n\n n\n ─\n 1\n"
