"""Hospitalisations in the Common Longitudinal ICU Format (CLIF, https://clif-icu.com)."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from l2d.data.errors import DataError
from l2d.data.sources.mimic4._visits import VisitTables, collect, require_columns

HOSPITALIZATION = (
    "patient_id", "hospitalization_id", "admission_dttm", "discharge_dttm", "age_at_admission",
    "admission_type_category", "discharge_category",
)  # fmt: skip
#: CLIF's names of code systems; procedures are also coded in CPT and HCPCS, which MIMIC-IV's table does not hold.
DIAGNOSES = {"ICD9CM": "9", "ICD10CM": "10"}
PROCEDURES = {"ICD9": "9", "ICD9PCS": "9", "ICD10PCS": "10"}


def read_clif(folder: Path) -> VisitTables:
    """The tables ``clif_hospitalization``, ``clif_patient``, ``clif_hospital_diagnosis``, ``clif_patient_procedures``.

    A patient died in hospital if ``discharge_category`` is ``Expired``. Of a visit's diagnoses the primary ones come
    first, then all in the file's order. There are no prescriptions in this format.

    Raises:
        DataError: a file is missing, damaged or lacks a column; names it.
    """
    files = {
        "visits": folder / "clif_hospitalization.parquet",
        "patients": folder / "clif_patient.parquet",
        "diagnoses": folder / "clif_hospital_diagnosis.parquet",
        "procedures": folder / "clif_patient_procedures.parquet",
    }
    for file in files.values():
        if not file.is_file():
            raise DataError("there is no such file", where=file, hint="give the folder of CLIF's Parquet files")
    table = collect(
        require_columns(pl.scan_parquet(files["visits"]), HOSPITALIZATION, files["visits"]), files["visits"]
    )
    patients = require_columns(pl.scan_parquet(files["patients"]), ["patient_id", "sex_category"], files["patients"])
    gender = collect(patients, files["patients"]).unique("patient_id", keep="first", maintain_order=True)
    for column in ("admission_dttm", "discharge_dttm"):
        if not isinstance(table.schema[column], pl.Datetime):
            raise DataError(
                f"{column} is of type {table.schema[column]}", where=files["visits"], hint="it has to be a timestamp"
            )
    visits = (
        table.with_columns(pl.col("patient_id").cast(pl.String))
        .join(gender.with_columns(pl.col("patient_id").cast(pl.String)), on="patient_id", how="left")
        .with_row_index("row", offset=1)
        .select(
            "row",
            patient="patient_id",
            visit=pl.col("hospitalization_id").cast(pl.String),
            admitted="admission_dttm",
            discharged="discharge_dttm",
            died=pl.col("discharge_category") == "Expired",
            age=pl.col("age_at_admission").cast(pl.Int32),
            gender="sex_category",
            admission_type="admission_type_category",
        )
    )
    return VisitTables(
        visits=visits,
        diagnoses=_codes(files["diagnoses"], "diagnosis", DIAGNOSES, first=(pl.col("diagnosis_primary") != 1)),
        procedures=_codes(files["procedures"], "procedure", PROCEDURES),
        prescriptions=None,
        files=files,
    )


def _codes(file: Path, kind: str, versions: dict[str, str], first: pl.Expr | None = None) -> pl.LazyFrame:
    """``visit``, ``position``, ``version``, ``code``; rows of other code systems are left out."""
    columns = ["hospitalization_id", f"{kind}_code", f"{kind}_code_format"]
    if first is not None:
        columns += first.meta.root_names()
    table = require_columns(pl.scan_parquet(file), columns, file).with_row_index("position")
    place = pl.col("position").cast(pl.Int64)
    return table.select(
        visit=pl.col("hospitalization_id").cast(pl.String),
        position=place if first is None else place + first.fill_null(True).cast(pl.Int64) * 2**32,
        version=pl.col(f"{kind}_code_format").replace_strict(versions, default=None),
        code=f"{kind}_code",
    ).drop_nulls("version")
