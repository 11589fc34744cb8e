"""MIMIC-IV: death at the next visit and length of this one from its diagnoses and procedures (paper, section 5.2).

Reads ``hosp/*.csv.gz`` as PhysioNet publishes them (or unpacked, ``*.csv``), in a stream. The same preparation takes
the tables of the Common Longitudinal ICU Format, see :mod:`l2d.data.sources.mimic4._clif`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import Field

from l2d.data.errors import DataError
from l2d.data.samples.cells import first_true
from l2d.data.samples.code_features import CodeClusters, CodeFeatures, code_clusters, code_features
from l2d.data.samples.dataset import Dataset
from l2d.data.samples.patient_split import PatientSplit, split_by_patient
from l2d.data.samples.tokens import SPECIAL, Tokens, fit_vocabulary, token_inputs
from l2d.data.sources.mimic4._clif import read_clif
from l2d.data.sources.mimic4._icd_ccs import read_ccs
from l2d.data.sources.mimic4._visits import (
    UNITS,
    Stay,
    VisitTables,
    code_lists,
    collect,
    label_visits,
    require_columns,
    visits_with,
)
from l2d.data.sources.table import Strict

Table = Literal["diagnoses", "procedures", "prescriptions"]
FIELDS = ("diagnoses", "procedures")


class CodesConfig(Strict):
    """``[dataset.diagnoses]``, ``[dataset.procedures]``: what becomes of a table's codes."""

    prefix: Annotated[int, Field(ge=1)] | None = None
    """Characters kept of each ICD code; all if not given."""
    max_length: Annotated[int, Field(ge=1)] = 40
    """Codes that a network looks at: the first of a visit."""


class Mimic4Config(Strict):
    """``[dataset]`` of MIMIC-IV's layout. A sample is a visit that is followed by another of the same patient."""

    kind: Literal["mimic4"] = "mimic4"
    path: Path
    """The folder that holds `hosp`, or the one with CLIF's Parquet files."""
    layout: Literal["mimic4", "clif"] = "mimic4"
    """MIMIC-IV's files, or the Common Longitudinal ICU Format."""
    stay: Stay = "categories"
    """Length of stay as PyHealth's ten categories, in days, or as `log2(1 + days)`."""
    require: list[Table] = ["diagnoses", "procedures"]
    """A visit needs a row in each of these tables."""
    ccs: Path | list[Path] | None = None
    """Files that map ICD procedure codes to CCS; codes stay as they are if not given."""
    unmapped: Literal["keep", "drop"] = "keep"
    """What becomes of codes of a version that a CCS file maps, but not this code."""
    negatives: Annotated[float, Field(gt=0)] | None = None
    """Survivors kept for each death; all if not given."""
    seed: int = 42
    """Draws the survivors that are kept."""
    min_count: Annotated[int, Field(ge=1)] = 2
    """Codes of fewer training visits than this become `<unk>`."""
    diagnoses: CodesConfig = CodesConfig()
    """What becomes of diagnoses, see below."""
    procedures: CodesConfig = CodesConfig()
    """What becomes of procedures, see below."""
    split: PatientSplit = PatientSplit()
    """Shares of the patients, see below."""
    features: CodeFeatures | None = None
    """Codes as numbers, for `two_head` and `--rejector mlp`, see below; none if not given."""
    clusters: CodeClusters | None = None
    """k-means on the training split, as column `cluster`, see below; none if not given."""


def load_mimic4(config: Mimic4Config, name: str) -> Dataset:
    """Read the tables and prepare everything stage one needs.

    Samples are in the order of patient, then time; their ids are visit ids. Columns: ``patient``, ``age``, ``gender``,
    ``admission_type``, ``days``, ``num_diagnoses``, ``num_procedures`` and ``cluster``. ``inputs["preparation"]``
    counts the visits and what became of them.

    Args:
        config: the recipe's ``[dataset]``, its paths absolute.
        name: the recipe's name, for messages.

    Raises:
        DataError: a file is missing, damaged or not as published, or no samples are left; names file and row.
    """
    tables = read_clif(config.path) if config.layout == "clif" else read_mimic4(config.path)
    try:
        return _prepare(tables, config, name)
    except DataError as error:
        if error.where in (None, name):
            raise type(error)(error.what, where=config.path, hint=error.hint) from error
        if config.layout == "mimic4" and error.where in [tables.files[field] for field in FIELDS]:
            _refuse_codes(error.where)
        raise


def _prepare(tables: VisitTables, config: Mimic4Config, name: str) -> Dataset:
    codes = {field: name_codes(table, field, config) for field, table in tables.codes.items()}
    visits = label_visits(tables.visits, config.stay, tables.files["visits"])
    samples = visits.filter(pl.col("target_cla").is_not_null())
    facts = {"visits": visits.height, "patients": visits["patient"].n_unique(), "with_next_visit": samples.height}
    samples = samples.filter(pl.col("target_reg").is_not_null())
    facts["without_discharge"] = facts["with_next_visit"] - samples.height
    for table in config.require:
        rows = tables.prescriptions if table == "prescriptions" else codes[table]
        if rows is None:
            raise DataError(
                "there are no prescriptions", where=config.path, hint='leave "prescriptions" out of `require`'
            )
        before = samples.height
        samples = samples.join(visits_with(rows, tables.files[table]), on="visit", how="semi", maintain_order="left")
        facts[f"without_{table}"] = before - samples.height
    positive = samples["target_cla"].to_numpy() == 1
    if not positive.any() or positive.all():
        raise DataError(
            f"of {samples.height} visits that could be samples, {positive.sum()} are followed by a death",
            hint=f"both have to occur; what became of the visits: {facts}",
        )
    if config.negatives is not None:
        kept = balanced(samples["visit"].to_list(), positive, config.negatives, config.seed)
        facts["share_of_negatives"] = float((~positive[kept]).sum() / (~positive).sum())
        samples, positive = samples[kept], positive[kept]
    facts |= {"samples": samples.height, "positive": int(positive.sum())}

    split = split_by_patient(samples["patient"], positive, config.split)
    train = split == "train"
    tokens = {}
    for field, rows in codes.items():
        lists = code_lists(rows, samples, tables.files[field])
        vocabulary = fit_vocabulary(lists.filter(pl.Series(train)), config.min_count)
        if len(vocabulary) == len(SPECIAL) and not lists.drop_nulls().len() and field not in config.require:
            continue  # no visit has any: the rejector looks at the other codes
        if len(vocabulary) == len(SPECIAL):
            raise DataError(
                f"no code of {field} occurs in {config.min_count} training visits",
                hint="lower `min_count`, or add patients",
            )
        tokens[field] = Tokens.encode(lists, vocabulary)
    if not tokens:
        raise DataError("no visit has any code", hint="are diagnoses and procedures those of these admissions?")
    lengths = {field: getattr(config, field).max_length for field in tokens}
    inputs: dict = {"tokens": token_inputs(tokens, lengths), "preparation": facts}
    notes = _notes(visits, [field for field in FIELDS if field not in tokens])
    if notes:
        inputs["annotations"] = {"notes": notes}
    features = None
    if config.features is not None:
        features, inputs["features"] = code_features(tokens, train, config.features)
    columns = samples.select("patient", "age", "gender", "admission_type", "days").with_columns(
        pl.Series(f"num_{field}", tokens[field].counts if field in tokens else np.zeros(samples.height, np.int64))
        for field in FIELDS
    )
    if config.clusters is not None:
        cluster, inputs["clusters"] = code_clusters(tokens, train, config.clusters)
        columns = columns.with_columns(pl.Series("cluster", cluster))
    return Dataset(
        name=name,
        ids=samples["visit"].to_list(),
        split=split,
        features=features,
        tokens=tokens,
        columns=columns,
        target_cla=samples["target_cla"].to_numpy().copy(),
        target_reg=samples["target_reg"].to_numpy().copy(),
        classes=("survived", "died"),
        keep=tuple(columns.columns),
        inputs=inputs,
        config=config.model_dump(mode="json", exclude={"path", "ccs"}),  # their content is in the tokens
        unit_reg=UNITS[config.stay],
    )


def balanced(ids: list[str], positive: np.ndarray, negatives: float, seed: int) -> np.ndarray:
    """All positive samples and ``negatives`` times as many others, by a hash of their ids.

    Returns:
        Positions that stay, ascending, int64. All of them where the others are fewer.
    """
    others = np.flatnonzero(~positive)
    wanted = round(negatives * int(positive.sum()))
    rank = [hashlib.blake2b(f"{seed}:{ids[i]}".encode(), digest_size=16).digest() for i in others.tolist()]
    chosen = others[sorted(range(len(others)), key=rank.__getitem__)[:wanted]]
    return np.sort(np.concatenate([np.flatnonzero(positive), chosen]))


def name_codes(table: pl.LazyFrame, field: str, config: Mimic4Config) -> pl.LazyFrame:
    """A table's codes as the names they have in the vocabulary: ``icd10:I2510``, ``icd9:4019``, ``ccs:222``.

    Args:
        table: see :class:`l2d.data.sources.mimic4._visits.VisitTables`.

    Returns:
        ``visit``, ``position``, ``code``; without rows that have no code.
    """
    prefix = getattr(config, field).prefix
    plain = pl.col("code").str.strip_chars().str.replace_all(".", "", literal=True).str.to_uppercase()
    table = table.with_columns(code=plain).filter(pl.col("code") != "")
    icd = pl.format("icd{}:{}", "version", plain if prefix is None else plain.str.slice(0, prefix))
    if field == "procedures" and config.ccs is not None:
        files = config.ccs if isinstance(config.ccs, list) else [config.ccs]
        maps = pl.concat([read_ccs(file) for file in files]).unique(["version", "code"], keep="first")
        table = table.join(maps.lazy(), on=["version", "code"], how="left")
        if config.unmapped == "drop":
            mapped = maps["version"].unique().implode()
            table = table.filter(pl.col("ccs").is_not_null() | ~pl.col("version").is_in(mapped))
        icd = pl.coalesce(pl.format("ccs:{}", "ccs"), icd)
    return table.select("visit", "position", code=icd)


def _notes(visits: pl.DataFrame, empty: list[str]) -> list[str]:
    """What was read in a special way, a line each."""
    notes = [f"{field}: no visit has a code, so nothing is made of them" for field in empty]
    again = visits.filter(pl.col("died") & pl.col("target_cla").is_not_null())
    if again.height:
        notes.append(
            f"{again['patient'].n_unique():,} patients have {again.height:,} admissions that end with the death flag "
            "and are followed by another; each is labelled by the flag of the one that follows, as in PyHealth"
        )
    return notes


# --- PhysioNet's files ----------------------------------------------------------------------------------------------

ADMISSIONS = ("subject_id", "hadm_id", "admittime", "dischtime", "admission_type", "hospital_expire_flag")
PATIENTS = ("subject_id", "gender", "anchor_age", "anchor_year")
CODES = ("hadm_id", "seq_num", "icd_code", "icd_version")
TIME = "%Y-%m-%d %H:%M:%S"


def read_mimic4(path: Path) -> VisitTables:
    """The tables in ``hosp``. Admissions and patients are read here, the long ones where they are used.

    Raises:
        DataError: a file other than ``prescriptions`` is missing, is damaged or lacks a column, or a value of
            ``admissions`` or ``patients`` cannot be read; names file and row.
    """
    folder = path / "hosp" if (path / "hosp").is_dir() else path
    files = {
        "visits": _file(folder, "admissions"),
        "patients": _file(folder, "patients"),
        "diagnoses": _file(folder, "diagnoses_icd"),
        "procedures": _file(folder, "procedures_icd"),
        "prescriptions": _file(folder, "prescriptions", optional=True),
    }
    codes = {field: _codes(files[field]) for field in FIELDS}
    prescriptions = None
    if files["prescriptions"] is not None:
        prescriptions = _texts(files["prescriptions"], ["hadm_id"]).select(visit="hadm_id")
    else:
        del files["prescriptions"]
    return VisitTables(visits=_visits(files), **codes, prescriptions=prescriptions, files=files)


def _file(folder: Path, table: str, *, optional: bool = False) -> Path | None:
    for name in (f"{table}.csv.gz", f"{table}.csv"):
        if (folder / name).is_file():
            return folder / name
    if optional:
        return None
    raise DataError(
        f"there is no {table}.csv.gz",
        where=folder,
        hint="give MIMIC-IV's folder that holds `hosp` (physionet.org/content/mimiciv), or one by `l2d data mimic`",
    )


def _texts(file: Path, columns: tuple[str, ...] | list[str]) -> pl.LazyFrame:
    """Columns of a CSV file, all as text: ``0331`` is a code and no number."""
    return require_columns(pl.scan_csv(file, infer_schema=False), columns, file)


def _codes(file: Path) -> pl.LazyFrame:
    version = pl.col("icd_version").replace_strict(["9", "10"], ["9", "10"])
    return _texts(file, CODES).select(
        visit="hadm_id", position=pl.col("seq_num").cast(pl.Int64), version=version, code="icd_code"
    )


def _refuse_codes(file: Path) -> None:
    """Raises :class:`DataError` naming the first row with an odd number or version, if that is what is wrong."""
    number, version = pl.col("seq_num"), pl.col("icd_version")
    bad = (number.is_not_null() & number.cast(pl.Int64, strict=False).is_null()) | ~version.is_in(["9", "10"])
    found = collect(_texts(file, CODES).with_row_index("row", offset=1).filter(bad.fill_null(False)).head(1), file)
    for row in found.iter_rows(named=True):
        raise DataError(
            f"seq_num is {row['seq_num']!r}, icd_version is {row['icd_version']!r}",
            where=f"{file}, row {row['row']}",
            hint="a whole number, and 9 or 10",
        )


def _visits(files: dict[str, Path]) -> pl.DataFrame:
    file = files["visits"]
    table = collect(_texts(file, ADMISSIONS), file).with_row_index("row", offset=1)
    for column in ("admittime", "dischtime"):
        parsed = table[column].str.to_datetime(TIME, strict=False)
        _refuse(table, parsed.is_null() & table[column].is_not_null(), column, file, "write 2150-03-15 08:00:00")
        table = table.with_columns(parsed.alias(column))
    flag = pl.col("hospital_expire_flag")
    odd = table.select((flag.is_not_null() & ~flag.is_in(["0", "1"])).alias("odd"))["odd"]
    _refuse(table, odd, "hospital_expire_flag", file, "write 0, 1, or nothing where it is unknown")
    patients = collect(_texts(files["patients"], PATIENTS), files["patients"]).with_row_index("row", offset=1)
    for column in ("anchor_age", "anchor_year"):
        parsed = patients[column].cast(pl.Int32, strict=False)
        bad = parsed.is_null() & patients[column].is_not_null()
        _refuse(patients, bad, column, files["patients"], "write a whole number")
        patients = patients.with_columns(parsed.alias(column))
    repeated = patients.filter(pl.col("subject_id").is_duplicated()).sort("subject_id", "row")
    if repeated.height:
        raise DataError(
            f"patient {repeated['subject_id'][0]} stands there twice",
            where=f"{files['patients']}, rows {repeated['row'][0]} and {repeated['row'][1]}",
            hint="a patient has one row",
        )
    return table.join(patients.drop("row"), on="subject_id", how="left", maintain_order="left").select(
        "row",
        "admission_type",
        "gender",
        patient="subject_id",
        visit="hadm_id",
        admitted="admittime",
        discharged="dischtime",
        died=flag == "1",
        age=pl.col("anchor_age") + pl.col("admittime").dt.year() - pl.col("anchor_year"),
    )


def _refuse(table: pl.DataFrame, bad: pl.Series, column: str, file: Path, hint: str) -> None:
    """Raises :class:`DataError` naming the first bad row, if there is one."""
    if bad.any():
        first = first_true(bad)
        raise DataError(f"{column} is {table[column][first]!r}", where=f"{file}, row {first + 1}", hint=hint)
