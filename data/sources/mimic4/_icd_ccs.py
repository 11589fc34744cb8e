"""From ICD codes to the few hundred categories of AHRQ's Clinical Classifications Software (CCS), by a file of it.

Three layouts are read: AHRQ's for ICD-10 (``ccs_pr_icd10pcs_….csv``, ``ccs_dx_icd10cm_….csv``), AHRQ's for ICD-9
(``$prref ….csv``, ``$dxref ….csv``: a line of text before the header) and PyHealth's (``ICD10PROC_to_CCSPROC.csv``).
None ships with l2d. AHRQ: https://hcup-us.ahrq.gov/toolssoftware/ccs10/ccs10.jsp
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import polars as pl

from l2d.data.errors import DataError

HINT = "give AHRQ's CCS file, or a CSV file with a header such as ICD10PROC,CCSPROC"
_QUOTES = " '\""  # AHRQ puts single quotes around everything, and pads with blanks


def read_ccs(path: Path) -> pl.DataFrame:
    """A CCS file as a table of ``version`` (``"9"`` or ``"10"``), ``code`` (without a dot) and ``ccs``, all texts.

    Raises:
        DataError: there is no such file, no header names an ICD and a CCS column, or a code has two categories; names
            the row.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read: {error}", where=path, hint=HINT) from error
    header, code_column, ccs_column, version = _header(rows, path)
    found: dict[str, str] = {}
    for number, row in enumerate(rows[header + 1 :], start=header + 2):
        if not row:
            continue
        if len(row) <= max(code_column, ccs_column):
            raise DataError(f"the row has {len(row)} columns", where=f"{path}, line {number}", hint=HINT)
        code = row[code_column].strip(_QUOTES).replace(".", "").upper()
        category = row[ccs_column].strip(_QUOTES)
        if not code or not category:
            continue  # AHRQ's ICD-9 files begin with such a row
        if found.setdefault(code, category) != category:
            raise DataError(
                f"code {code} is in category {found[code]} and in {category}",
                where=f"{path}, line {number}",
                hint="single-level CCS puts a code into one category: remove one of the rows",
            )
    if not found:
        raise DataError("there are no codes in it", where=path, hint=HINT)
    return pl.DataFrame({"version": version, "code": list(found), "ccs": list(found.values())})


def _header(rows: list[list[str]], path: Path) -> tuple[int, int, int, str]:
    """Number of the header's row, of the columns of code and category, and the version of ICD."""
    for number, row in enumerate(rows[:5]):
        names = [name.strip(_QUOTES).upper() for name in row]
        codes = [i for i, name in enumerate(names) if re.match(r"ICD.?(9|10)", name)]
        categories = [i for i, name in enumerate(names) if re.fullmatch(r"CCS([ _]?CATEGORY|PROC|CM)?", name)]
        if codes and categories:
            version = "10" if re.match(r"ICD.?10", names[codes[0]]) else "9"
            return number, codes[0], categories[0], version
    raise DataError("no header names a column of ICD codes and one of CCS categories", where=path, hint=HINT)
