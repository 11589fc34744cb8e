"""Which sample each row of a file of answers is about: by id, and what to do with rows about one sample."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import polars as pl

from l2d.cache_builder.agents._answer_file import ROW, AnswerFile
from l2d.data.errors import DataError
from l2d.data.samples.cells import first_true
from l2d.data.samples.texts import series_of

IdRule = Literal["text", "number"]
Repeats = Literal["refuse", "first", "last", "mean", "majority"]
NUMBER = r"^[+-]?\d+(\.0*)?$"
ANSWERS = ("cla", "prob", "reg", "text")  # the others are notes


def match_ids(
    file: AnswerFile, rows: pl.DataFrame, column: str, samples: Sequence[str], rule: IdRule, *, others: str
) -> np.ndarray:
    """Position in ``samples`` of the sample that each row is about, -1 where it is about none and may be left out.

    Args:
        rows: of the file.
        column: with the ids.
        samples: ids of the dataset, in order.
        rule: ids are the same if they are the same text, or with ``number`` if they are the same whole number:
            ``007``, ``7`` and ``7.0``.
        others: ``drop`` leaves out rows about samples that the dataset does not have; ``refuse`` does not.

    Raises:
        DataError: a row has no id; two samples have one number; a row is about a sample that the dataset does not have,
            or about one that it has in another form.
    """
    ids = file.text(column, rows)
    if ids.null_count():
        row = rows[ROW][first_true(ids.is_null())]
        raise DataError(f"{column} is empty", where=file.where(row), hint="say which sample it is about")
    if rule == "text" and len(ids) == len(samples) and ids.equals(series_of(samples)):
        return np.arange(len(ids), dtype=np.uint32)  # a wide file in the dataset's order
    known, asked = _positions(_Samples(samples)), ids.alias("id").to_frame()
    if rule == "text" and ids.equals(known["id"]):
        return np.arange(len(ids), dtype=np.uint32)
    if rule == "number":
        known, asked = known.with_columns(by_number("id")), asked.with_columns(by_number("id"))
        twice = known["id"].is_duplicated()
        if twice.any():
            one, two = (samples[k] for k in known["at"].filter(known["id"] == known["id"].filter(twice)[0])[:2])
            raise DataError(
                f'ids = "number", but samples {one!r} and {two!r} are one number',
                where=file.path,
                hint='compare them as text: ids = "text"',
            )
    at = asked.join(known, on="id", how="left", maintain_order="left")["at"].fill_null(-1).to_numpy()
    strange = at < 0
    if strange.any():
        _refuse_look_alikes(file, rows, ids, strange, samples, rule)
        if others == "refuse":
            position = int(strange.argmax())
            raise DataError(
                f"sample {ids[position]!r} is not in the dataset ({int(strange.sum())} of {len(at)} rows)",
                where=file.where(rows[ROW][position]),
                hint=f"the dataset's ids are like {samples[0]!r}; "
                'others = "drop" (--drop-others) leaves such answers out',
            )
    return at


@dataclass(frozen=True, eq=False)
class _Samples:
    """A list of ids that is told from another by being it: agents of one build share it."""

    ids: Sequence[str]

    def __hash__(self) -> int:
        return id(self.ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Samples) and other.ids is self.ids


@lru_cache(maxsize=1)
def _positions(samples: _Samples) -> pl.DataFrame:
    """Columns ``id``, without blanks around it, and ``at``."""
    ids = series_of(samples.ids).alias("id").str.strip_chars()
    return ids.to_frame().with_columns(at=pl.int_range(pl.len()))


def by_number(column: str) -> pl.Expr:
    """Ids with whole numbers written in one way; other ids as they are."""
    text = pl.col(column)
    short = text.str.replace(r"\.0*$", "").str.replace(r"^\+", "").str.replace(r"^(-?)0+(\d)", "${1}${2}")
    return pl.when(text.str.contains(NUMBER)).then(short).otherwise(text).alias(column)


def number_rule_fits(samples: pl.Series, ids: pl.Series) -> tuple[str, str] | None:
    """Whether two columns of ids share none as text and some as numbers, with no two ids of one column the same number.

    Returns:
        An id of the answers and the sample's id that it is the number of; None where the rule is not needed.
    """
    if samples.equals(ids):
        return None
    samples, ids = samples.unique(), ids.unique()
    if ids.is_in(samples.implode()).all():
        return None
    numbers = [column.alias("id").to_frame().with_columns(by_number("id").alias("number")) for column in (ids, samples)]
    if any(frame["number"].n_unique() < frame.height for frame in numbers):
        return None
    joined = numbers[0].join(numbers[1], on="number", how="inner").filter(pl.col("id") != pl.col("id_right")).sort("id")
    return None if joined.is_empty() else (joined["id"][0], joined["id_right"][0])


def canonical(identifier: str) -> str:
    """An id without what programs lose or add: blanks, case, leading zeros, ``.0``, forms of Unicode."""
    text = unicodedata.normalize("NFKC", identifier).casefold().replace("\\", "/")
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"\s+", "", re.sub(r"\.0+$", "", text.strip())))


def variants(identifier: str) -> list[tuple[str, bool, bool]]:
    """A canonical id, without its folders, without a file's suffix; and which of the two was left off."""
    form = canonical(identifier)
    found = []
    for text, folder in ((form, False), (form.rpartition("/")[2], True)):
        found += [(text, folder, False), (re.sub(r"\.[a-z]{1,4}g?$", "", text), folder, True)]
    return [one for k, one in enumerate(found) if one[0] not in [text for text, _, _ in found[:k]]]


def _refuse_look_alikes(
    file: AnswerFile, rows: pl.DataFrame, ids: pl.Series, strange: np.ndarray, samples: Sequence[str], rule: IdRule
) -> None:
    """Raises :class:`DataError` where an id that is not of the dataset differs from one of it in its form alone."""
    forms = {variant: sample for sample in reversed(samples) for variant in variants(sample)}
    for position in np.flatnonzero(strange):
        written = ids[int(position)]
        # what was left off of both may tell two files of one name apart
        near = [
            forms[text, folder, suffix]
            for text, no_folder, no_suffix in variants(written)
            for folder, suffix in itertools.product((False, True), repeat=2)
            if (text, folder, suffix) in forms and not (folder and no_folder) and not (suffix and no_suffix)
        ]
        if not near:
            continue
        sample = near[0]
        same_number = pl.DataFrame({"id": [sample, written]}).select(by_number("id")).to_series().n_unique() == 1
        advice = "write them alike in both files"
        if rule == "text" and same_number:
            advice = 'ids = "number" (--ids number) takes them for one'
        raise DataError(
            f"sample {written!r} is not in the dataset, which has {sample!r} ({int(strange.sum())} of {len(ids)} rows "
            "are about samples that it does not have)",
            where=file.where(rows[ROW][int(position)]),
            hint=advice,
        )


def one_row_each(
    table: pl.DataFrame, repeats: Repeats, where: Callable[[int], str], name_of: Callable[[int], str], *, whole: bool
) -> pl.DataFrame:
    """Rows about one sample made one.

    A row in which the agent says nothing counts only where it is the sample's only one; so what is noted there, a
    price say, is not that of an answer in another row. With ``refuse`` rows may fill each other's gaps and not
    contradict each other. ``first`` and ``last`` take a row;
    ``mean`` is that of numbers and probabilities; ``majority`` is that of classes or texts, ties to the one that was
    answered first, and the mean of numbers. What was paid and how long it took is then summed, since every answer took
    it.

    Args:
        table: ``at`` (the sample's position), :data:`ROW`, and the answers, NaN where there are none: ``cla``,
            ``prob_0`` …, ``reg``, ``paid``, ``seconds``; and ``text``, null where there is none.
        where: a row, for messages.
        name_of: a position's sample, for messages.
        whole: the file is this agent's alone.

    Raises:
        DataError: two rows about a sample contradict each other, and nothing says which counts.
    """
    if not table["at"].is_duplicated().any():
        return table
    names = [name for name in table.columns if name not in ("at", ROW)]
    numeric = [name for name in names if name != "text"]
    table = table.sort(ROW).with_columns(pl.col(numeric).fill_nan(None))
    said = [name for name in names if name.partition("_")[0] in ANSWERS]
    answers = pl.any_horizontal(pl.col(said).is_not_null())
    table = table.filter(answers | ~answers.any().over("at"))
    groups = table.group_by("at", maintain_order=True)
    if repeats == "refuse":
        clashes = groups.agg(pl.col(names).drop_nulls().n_unique() > 1)
        clashing = clashes.filter(pl.any_horizontal(pl.col(names)))
        if len(clashing):
            at = clashing["at"][0]
            column = next(name for name in names if clashing[name][0])
            values = table.filter((pl.col("at") == at) & pl.col(column).is_not_null())
            first, second = values[ROW][0], values[ROW].filter(values[column] != values[column][0])[0]
            whose = "a second row of the file" if whole else "two rows"
            (file, _, row), (other, _, _) = (where(one).rpartition(", ") for one in (first, second))
            row = row if file == other else where(first)
            raise DataError(
                f"sample {name_of(at)!r} is answered by {whose}, the first in {row}, and "
                f"they differ ({len(clashing)} samples are)",
                where=where(second),
                hint=("name the column `annotator`, or " if whole else "leave one, or ")
                + 'say which counts: repeats = "first", "last", "mean" or "majority" (--repeats)',
            )
        found = groups.agg(pl.col(names).drop_nulls().first(), pl.col(ROW).first())
    elif repeats in ("first", "last"):
        found = table.unique("at", keep=repeats, maintain_order=True)
    else:
        numbers = [name for name in said if name not in ("cla", "text")]
        notes = [name for name in names if name not in said]
        counted = [pl.col(numbers).mean(), pl.col(ROW).first()]
        counted += [pl.when(pl.col(note).count() > 0).then(pl.col(note).sum()).alias(note) for note in notes]
        for name in {"cla", "text"} & set(said):
            counted.append(pl.col(name).drop_nulls().mode(maintain_order=True).first())
        found = groups.agg(counted)
    return found.with_columns(pl.col(numeric).fill_null(float("nan"))).select(table.columns)
