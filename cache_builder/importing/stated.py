"""Totals that a file states beside its rows, compared with the rows: a headline may be of other answers than these."""

from __future__ import annotations

import numpy as np
import polars as pl

from l2d.cache_builder.agents._answer_file import AnswerFile, Piece
from l2d.cache_builder.importing.entries import Answers
from l2d.cache_builder.importing.paid import Paid

MEANS = ("performance", "accuracy", "acc", "score", "mean_score", "average_score")
COSTS = ("total_cost", "cost")
COUNTS = ("counts", "count", "num_samples")
CLOSE = 5e-4  # of a share: rounded to three digits
MOST_SHOWN = 8


def compared(answers: Answers, score: str, paid: Paid) -> list[str]:
    """What files state of their rows, in sentences: what differs, or that all is the same. Empty where none states any.

    A mean is of the rows that have a score, or of all rows, one without counting as 0, which is then said. It may be
    in per cent.
    """
    file = answers.file
    if answers.annotator is None or score not in file.columns:
        return []
    differing: list[str] = []
    checked = {"mean score": 0, "cost": 0, "count": 0}
    for piece, rows in file.stating():
        for what, line in _of_piece(file, piece, rows, score, paid):
            checked[what] += 1
            if line is not None:
                differing.append(f"{piece.file}: {line}")
    found = [f"the total differs from the rows in {line}" for line in differing[:MOST_SHOWN]]
    if len(differing) > MOST_SHOWN:
        found.append(f"and {len(differing) - MOST_SHOWN:,} more totals differ from their rows")
    if any(checked.values()) and not differing:
        listed = ", ".join(f"{what} of {count:,}" for what, count in checked.items() if count)
        found.append(f"the totals that the files state are those of their rows ({listed} files)")
    return found


def _of_piece(
    file: AnswerFile, piece: Piece, rows: pl.DataFrame, score: str, paid: Paid
) -> list[tuple[str, str | None]]:
    """What was compared, and how it differs, None where it does not."""
    found: list[tuple[str, str | None]] = []
    values = file.numbers(score, rows)
    known = values[~np.isnan(values)]
    missing = len(values) - len(known)
    for name in MEANS:
        if name in piece.stated and len(known):
            stated, mean, of_all = piece.stated[name], float(known.mean()), float(known.sum()) / len(values)
            line = None
            if not _same(stated, mean):
                line = f"its {name} is {stated:g}, the mean of its {len(known):,} scores {mean:.4f}"
                if missing and _same(stated, of_all):
                    line += f" ({missing:,} rows have no score, which it counts as 0; here they are missing)"
            found.append(("mean score", line))
            break
    column = paid.column
    if column is not None and column in rows.columns and paid.per == 1:
        total = float(np.nansum(file.numbers(column, rows)))
        for name in COSTS:
            if name in piece.stated:
                stated = piece.stated[name]
                same = abs(stated - total) <= 1e-3 * max(abs(stated), abs(total)) + 1e-9
                line = None if same else f"its {name} is {stated:g}, the sum of its rows {total:g}"
                found.append(("cost", line))
                break
    for name in COUNTS:
        if name in piece.stated:
            stated = piece.stated[name]
            line = None if stated == len(rows) else f"its {name} is {stated:,.0f}, and it has {len(rows):,} rows"
            found.append(("count", line))
            break
    return found


def _same(stated: float, mean: float) -> bool:
    """Whether a stated mean is that of the rows, as a share or in per cent."""
    return abs(stated - mean) <= CLOSE or abs(stated / 100 - mean) <= CLOSE
