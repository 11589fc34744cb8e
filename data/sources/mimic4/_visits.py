"""Hospital visits of patients: the tables every source of them gives, and the labels made of their order in time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from l2d.data.errors import DataError

Stay = Literal["categories", "days", "log_days"]

#: What ``target_reg`` is measured in.
UNITS = {"categories": "stay category 0-9", "days": "days", "log_days": "log2(1 + days)"}

DAY = 86_400  # seconds


@dataclass(frozen=True, kw_only=True)
class VisitTables:
    """A source's tables in a common form. All ids and codes are texts: a leading zero belongs to a code.

    Attributes:
        visits: a row a visit: ``patient``, ``visit``, ``admitted`` and ``discharged`` (datetimes, the latter may be
            missing), ``died`` (boolean: in hospital, during this visit; null where the source does not say), ``row``
            (for messages, from 1), and any other column, which is kept for SQL.
        diagnoses: a row a code, lazily: ``visit``, ``position`` (integer, ascending within a visit), ``version``
            (``"9"`` or ``"10"``) and ``code``; each may be missing.
        procedures: the same.
        prescriptions: ``visit`` of each prescription, lazily; None where the source has no such table.
        files: table -> its file, for messages.
    """

    visits: pl.DataFrame
    diagnoses: pl.LazyFrame
    procedures: pl.LazyFrame
    prescriptions: pl.LazyFrame | None
    files: dict[str, Path]

    @property
    def codes(self) -> dict[str, pl.LazyFrame]:
        """The tables that become token lists."""
        return {"diagnoses": self.diagnoses, "procedures": self.procedures}


def label_visits(visits: pl.DataFrame, stay: Stay, file: Path) -> pl.DataFrame:
    """Order visits in time and label them: did the patient die in hospital at the next one, how long was this one.

    A patient's visits are ordered by ``admitted``, those admitted at the same instant by ``discharged`` and then by
    id: by time, never by id alone, since hospital ids are random. (PyHealth 1.1, and with it the code of the paper,
    orders by id.) A patient's last visit has no label. A death flag that is missing counts as survival, as in PyHealth.
    Where an admission follows one with the death flag (a flag in error, or an organ donor's readmission) the label is
    still the flag of the admission that follows; the reader counts such patients and says so.

    Args:
        visits: as in :class:`VisitTables`.
        stay: what ``target_reg`` is. ``categories`` are PyHealth's ten of whole days: below 1 day 0; 1 to 7 as they
            are; 8 to 14 are 8; more are 9. ``days`` are exact days, ``log_days`` are ``log2(1 + days)``. A visit that
            ends before it begins counts as 0 days.
        file: where the visits come from, for messages.

    Returns:
        The visits in order (patient, then time), with ``days`` (float), ``target_cla`` (int32, 1 for death at the next
        visit; null for a patient's last) and ``target_reg`` (float32; null where there is no discharge).

    Raises:
        DataError: two visits have one id, or a visit has no patient or no admission time; names the row.
    """
    for column, what in {"visit": "id", "patient": "patient", "admitted": "admission time"}.items():
        missing = visits.filter(pl.col(column).is_null())
        if missing.height:
            raise DataError(
                f"a visit has no {what} ({missing.height} such rows)",
                where=f"{file}, row {missing['row'][0]}",
                hint="restore the file: without it there is no order of visits",
            )
    repeated = visits.filter(pl.col("visit").is_duplicated()).sort("visit", "row")
    if repeated.height:
        raise DataError(
            f"visit {repeated['visit'][0]} stands there twice",
            where=f"{file}, rows {repeated['row'][0]} and {repeated['row'][1]}",
            hint="a visit has one row: is the file concatenated with itself?",
        )
    days = (pl.col("discharged") - pl.col("admitted")).dt.total_seconds().clip(lower_bound=0) / DAY
    return (
        visits.sort("patient", "admitted", "discharged", "visit", nulls_last=True)
        .with_columns(days=days, died=pl.col("died").fill_null(False))
        .with_columns(
            target_cla=pl.col("died").shift(-1).over("patient").cast(pl.Int32),
            target_reg=stay_of(pl.col("days"), stay).cast(pl.Float32),
        )
    )


def stay_of(days: pl.Expr, stay: Stay) -> pl.Expr:
    """Length of stay in the unit ``stay``, from days (0 or more)."""
    if stay == "days":
        return days
    if stay == "log_days":
        return (1 + days).log(2)
    whole = days.floor()
    return pl.when(whole <= 7).then(whole).when(whole <= 14).then(8.0).when(whole.is_not_null()).then(9.0)


def visits_with(codes: pl.LazyFrame, file: Path) -> pl.DataFrame:
    """Ids of the visits that a table mentions: a column ``visit``. Reads the table in a stream.

    Raises:
        DataError: the file cannot be read.
    """
    return collect(codes.select("visit").drop_nulls().unique(), file)


def code_lists(codes: pl.LazyFrame, samples: pl.DataFrame, file: Path) -> pl.Series:
    """Each sample's codes, every code once, in the order of its first position; null for a sample without.

    Args:
        codes: ``visit``, ``position``, ``code``.
        samples: ``visit`` of each sample, n of them.
        file: for messages.

    Returns:
        Lists of text, (n,), in the order of ``samples``.

    Raises:
        DataError: the file cannot be read.
    """
    numbered = samples.select("visit").with_row_index("sample")
    once = (
        codes.drop_nulls(["visit", "code"])
        .join(numbered.lazy(), on="visit", how="inner")
        .group_by("sample", "code")
        .agg(pl.col("position").min())
        .sort("sample", "position", "code")
    )
    found = collect(once.select("sample", "code"), file).group_by("sample", maintain_order=True).agg("code")
    return numbered.join(found, on="sample", how="left", maintain_order="left")["code"]


def collect(frame: pl.LazyFrame, file: Path) -> pl.DataFrame:
    """Run a query in a stream, so that memory holds its result and not the file.

    Raises:
        DataError: the file is not there, damaged, or has a value that is none of its column's; names the file.
    """
    try:
        return frame.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"cannot be read: {reason}", where=file, hint="restore this file, whole") from error


def require_columns(frame: pl.LazyFrame, columns: Sequence[str], file: Path) -> pl.LazyFrame:
    """A file's columns of these names.

    Raises:
        DataError: it cannot be read, or lacks one; names the file and what it has.
    """
    try:
        there = frame.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"cannot be read: {reason}", where=file, hint="restore this file, whole") from error
    lacking = [column for column in columns if column not in there]
    if lacking:
        raise DataError(
            f"there is no column {lacking[0]!r}; the columns are {', '.join(there)}",
            where=file,
            hint="use the file as it was published, header included",
        )
    return frame.select(columns)
