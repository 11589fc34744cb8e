"""Made-up files in MIMIC-IV's layout, of any size, with a known risk model (:mod:`l2d.data.sources.mimic4.risk`).

Tables, columns, id conventions and sizes are MIMIC-IV's: subject ids of eight digits that begin with 1, hadm ids that
begin with 2 and are in no order of time, dates shifted to the next century, rows ordered by patient and hadm id. They
hold no person's data: codes, patients and dates are all drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl

from l2d.data.cache import store
from l2d.data.errors import DataError, UsageError
from l2d.data.sources.mimic4.risk import COMMON, GROUP_SHARES, GROUPS, SIGMA, Risk, concepts

MOST_PATIENTS = 3_000_000
BLOCK = 20_000  # patients made at once
DAY = 1440  # minutes

README = """Made-up files in the layout of MIMIC-IV's hosp module

Made by l2d (data/sources/mimic4/generator.py): {patients:,} patients, seed {seed}, {drugs} prescriptions a visit.

Data of no person: patients, codes and dates are drawn. Codes have the shape of ICD codes, and mean nothing. Given that
there is a next visit, death at it depends on this visit's codes alone, and so does the length of the stay; how, is in
data/sources/mimic4/risk.py. Tables that this experiment does not need are left out.
"""

Append = Callable[[pl.DataFrame], None]


def write_mimic4(folder: Path, *, patients: int, seed: int = 0, drugs_per_visit: float = 4.0) -> bool:
    """Write ``admissions``, ``patients``, ``diagnoses_icd``, ``procedures_icd`` and ``prescriptions`` as
    ``hosp/TABLE.csv.gz``, and a README.

    The same arguments and the same versions of numpy, polars and zlib give the same bytes. The folder appears whole or
    not at all. Memory is that of :data:`BLOCK` patients and of the ids.

    Args:
        folder: not there yet.
        patients: rows of ``patients``. Three in five have visits, 2.4 each. MIMIC-IV 2.2 has 299,712 patients
            and 431,231 admissions.
        seed: another one draws other patients, under the same risk model.
        drugs_per_visit: mean number of prescriptions; 36 in MIMIC-IV, which makes a file of 15 million rows.

    Returns:
        Whether it was written; False where the folder is there already and its README says it is of these arguments.

    Raises:
        UsageError: fewer than 1 or more than :data:`MOST_PATIENTS` patients, or fewer than no prescriptions.
        DataError: the folder is there already and something else, or cannot be written.
    """
    folder = Path(folder)
    if not 1 <= patients <= MOST_PATIENTS:
        raise UsageError(f"{patients} patients", where=folder, hint=f"give 1 to {MOST_PATIENTS:,}")
    if not 0 <= drugs_per_visit <= 1000:
        raise UsageError(f"{drugs_per_visit} prescriptions a visit", where=folder, hint="give 0 to 1000")
    readme = README.format(patients=patients, seed=seed, drugs=f"{drugs_per_visit:g}").encode()
    if folder.exists():
        if (folder / "README.txt").is_file() and (folder / "README.txt").read_bytes() == readme:
            return False
        raise DataError("this folder is there already", where=folder, hint="name another one, or remove it")

    def fill(temporary: Path) -> None:
        store.commit_bytes(temporary / "README.txt", readme)
        generator = np.random.default_rng([seed, 0])
        subjects = np.sort(generator.choice(10_000_000, patients, replace=False)) + 10_000_000
        hadm_ids = generator.permutation(np.arange(20_000_000, 30_000_000, dtype=np.int32))
        with ExitStack() as stack:
            tables = ("patients", "admissions", "diagnoses_icd", "procedures_icd", "prescriptions")
            write = {
                table: stack.enter_context(store.csv_gz(temporary / "hosp" / f"{table}.csv.gz")) for table in tables
            }
            first = 0
            for number, start in enumerate(range(0, patients, BLOCK)):
                block = np.random.default_rng([seed, 1, number])
                first += _write_block(write, block, subjects[start : start + BLOCK], hadm_ids[first:], drugs_per_visit)

    store.commit_folder(folder, fill)
    return True


def _write_block(
    write: dict[str, Append], rng: np.random.Generator, subjects: np.ndarray, hadm_ids: np.ndarray, drugs: float
) -> int:
    """Draw these patients and all of theirs; returns the number of their visits."""
    n = len(subjects)
    wanted = np.where(rng.random(n) < 0.397, 0, 1 + rng.negative_binomial(0.35, 0.35 / (0.35 + 1.5), n))
    group = rng.choice(GROUPS, size=n, p=GROUP_SHARES)
    age, anchor_year = rng.integers(18, 92, n), rng.integers(2110, 2200, n)
    owner = np.repeat(np.arange(n), wanted)  # of each visit, in order of time

    coded = {
        "diagnoses": _draw_codes(rng, "diagnoses", group[owner], _diagnoses_count(rng, len(owner))),
        "procedures": _draw_codes(rng, "procedures", group[owner], _procedures_count(rng, len(owner))),
    }
    sums = {
        weight: sum(
            np.bincount(visit, getattr(concepts(table), weight)[concept], len(owner))
            for table, (visit, concept) in coded.items()
        )
        for weight in ("mortality", "stay")
    }
    risk = Risk.of_sums(sums["mortality"], sums["stay"])

    # Death at a visit depends on the codes of the one before; no patient has a visit after that.
    is_first = np.append(True, owner[1:] != owner[:-1])[: len(owner)]
    chance = np.where(is_first, 0.02, np.append(0.0, risk.death[:-1])[: len(owner)])
    died = rng.random(len(owner)) < chance
    before = np.cumsum(died) - died
    kept = before == np.repeat(before[is_first], wanted[wanted > 0])

    minutes = np.floor(np.exp(risk.log_days + SIGMA * rng.normal(size=len(owner))) * DAY).astype(np.int64)
    gap = (rng.exponential(200 * DAY, len(owner)) + 60).astype(np.int64)
    elapsed = np.cumsum(minutes + gap) - (minutes + gap)
    admitted = elapsed - np.repeat(elapsed[is_first], wanted[wanted > 0]) + rng.integers(0, 365 * DAY, n)[owner]
    admitted += (anchor_year[owner] - 1970).astype("datetime64[Y]").astype("datetime64[m]").astype(np.int64)
    nth = np.arange(len(owner)) - np.flatnonzero(is_first)[np.cumsum(is_first) - 1]
    version10 = rng.random(n)[owner] + 0.1 * nth > 0.5  # hospitals changed over in 2015

    number = np.cumsum(kept) - 1  # of the visits that are left
    visits = pl.DataFrame(
        {
            "subject_id": subjects[owner[kept]],
            "hadm_id": hadm_ids[: kept.sum()],
            "admittime": _times(admitted[kept]),
            "dischtime": _times((admitted + minutes)[kept]),
            "died": died[kept],
            "version": np.where(version10[kept], 10, 9),
        }
    )
    _write_people(write, rng, visits, subjects, age, anchor_year)
    for table, (visit, concept) in coded.items():
        there = kept[visit]
        _write_codes(write[f"{table}_icd"], table, visits, number[visit[there]], concept[there], rng)
    _write_prescriptions(write["prescriptions"], rng, visits, drugs)
    return visits.height


def _diagnoses_count(rng: np.random.Generator, visits: int) -> np.ndarray:
    count = np.minimum(1 + rng.negative_binomial(2, 2 / (2 + 11.5), visits), 39)
    return np.where(rng.random(visits) < 0.001, 0, count)


def _procedures_count(rng: np.random.Generator, visits: int) -> np.ndarray:
    return np.where(rng.random(visits) < 0.47, 0, rng.geometric(1 / 3, visits))


def _draw_codes(
    rng: np.random.Generator, table: str, group: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Concepts of each visit, about half of them of its patient's group; no concept twice.

    Returns:
        Visit and concept of each row, int64, ordered by visit and otherwise as drawn.
    """
    known = concepts(table)
    visit = np.repeat(np.arange(len(counts)), counts)
    source = np.where(rng.random(len(visit)) < 0.55, group[visit], COMMON)
    at = rng.random(len(visit))
    concept = np.empty(len(visit), np.int64)
    for number, (members, cumulative) in enumerate(known.cumulative):
        mine = source == number
        concept[mine] = members[np.minimum(np.searchsorted(cumulative, at[mine]), len(members) - 1)]
    _, once = np.unique(visit * len(known.group) + concept, return_index=True)
    once.sort()
    return visit[once], concept[once]


def _times(minutes: np.ndarray) -> pl.Series:
    """Minutes since 1970 as MIMIC-IV writes times."""
    return pl.Series(minutes * 60_000).cast(pl.Datetime("ms")).dt.strftime("%Y-%m-%d %H:%M:%S")


def _pick(rng: np.random.Generator, values: list[str], count: int) -> pl.Series:
    return pl.Series(np.array(values)[rng.integers(len(values), size=count)])


def _nothing(*columns: str) -> list[pl.Expr]:
    return [pl.lit(None, pl.String).alias(column) for column in columns]


def _write_people(
    write: dict[str, Append],
    rng: np.random.Generator,
    visits: pl.DataFrame,
    subjects: np.ndarray,
    age: np.ndarray,
    anchor_year: np.ndarray,
) -> None:
    """``patients`` and ``admissions``."""
    died = pl.col("died")
    dod = visits.filter(died).select("subject_id", dod=pl.col("dischtime").str.slice(0, 10))
    write["patients"](
        pl.DataFrame({"subject_id": subjects, "gender": _pick(rng, ["F", "M"], len(subjects))})
        .with_columns(
            anchor_age=pl.Series(age),
            anchor_year=pl.Series(anchor_year),
            anchor_year_group=_pick(rng, ["2008 - 2010", "2011 - 2013", "2014 - 2016", "2017 - 2019"], len(subjects)),
        )
        .join(dod, on="subject_id", how="left", maintain_order="left")
    )
    drawn = {
        "admission_type": ["EW EMER.", "OBSERVATION ADMIT", "URGENT", "SURGICAL SAME DAY ADMISSION", "ELECTIVE"],
        "admission_location": ["EMERGENCY ROOM", "PHYSICIAN REFERRAL", "TRANSFER FROM HOSPITAL"],
        "discharge_location": ["HOME", "HOME HEALTH CARE", "SKILLED NURSING FACILITY", "REHAB"],
        "insurance": ["Medicare", "Medicaid", "Other"],
        "language": ["ENGLISH", "?"],
        "marital_status": ["MARRIED", "SINGLE", "WIDOWED", "DIVORCED"],
        "race": ["WHITE", "BLACK/AFRICAN AMERICAN", "OTHER", "UNKNOWN"],
    }
    full = visits.with_columns(_pick(rng, values, visits.height).alias(name) for name, values in drawn.items())
    write["admissions"](
        full.with_columns(
            *_nothing("admit_provider_id", "edregtime", "edouttime"),
            deathtime=pl.when(died).then("dischtime"),
            discharge_location=pl.when(died).then(pl.lit("DIED")).otherwise("discharge_location"),
            hospital_expire_flag=died.cast(pl.Int8),
        )
        .sort("subject_id", "hadm_id")
        .select(
            "subject_id", "hadm_id", "admittime", "dischtime", "deathtime", "admission_type", "admit_provider_id",
            "admission_location", "discharge_location", "insurance", "language", "marital_status", "race",
            "edregtime", "edouttime", "hospital_expire_flag",
        )
    )  # fmt: skip


def _write_codes(
    append: Append, table: str, visits: pl.DataFrame, visit: np.ndarray, concept: np.ndarray, rng: np.random.Generator
) -> None:
    """``diagnoses_icd`` or ``procedures_icd``; ``visit`` is ascending."""
    first = np.append(True, visit[1:] != visit[:-1])[: len(visit)]
    seq_num = np.arange(len(visit)) - np.flatnonzero(first)[np.cumsum(first) - 1] + 1
    version = visits["version"].to_numpy()[visit]
    names = concepts(table).names
    code = np.where(version == 10, names["icd10"][concept], names["icd9"][concept])
    rows = visits.select("subject_id", "hadm_id", chartdate=pl.col("admittime").str.slice(0, 10))[visit]
    rows = rows.with_columns(seq_num=pl.Series(seq_num), icd_code=pl.Series(code), icd_version=pl.Series(version))
    columns = ["subject_id", "hadm_id", "seq_num", "chartdate", "icd_code", "icd_version"]
    if table == "diagnoses":
        columns.remove("chartdate")
    append(rows.sort("subject_id", "hadm_id", "seq_num").select(columns))


def _write_prescriptions(append: Append, rng: np.random.Generator, visits: pl.DataFrame, mean: float) -> None:
    counts = np.where(rng.random(visits.height) < 0.12, 0, rng.poisson(mean / 0.88, visits.height))
    rows = visits.select("subject_id", "hadm_id", starttime="admittime", stoptime="dischtime")
    rows = rows[np.repeat(np.arange(visits.height), counts)]
    drugs = [
        "Acetaminophen",
        "Heparin",
        "Furosemide",
        "Insulin",
        "Metoprolol Tartrate",
        "Potassium Chloride",
        "Vancomycin",
    ]
    append(
        rows.with_columns(
            *_nothing("poe_id", "poe_seq", "order_provider_id", "formulary_drug_cd", "gsn", "form_val_disp"),
            *_nothing("form_unit_disp", "doses_per_24_hrs"),
            pharmacy_id=pl.Series(rng.integers(10_000_000, 99_999_999, rows.height)),
            drug_type=pl.lit("MAIN"),
            drug=_pick(rng, drugs, rows.height),
            ndc=pl.lit("0"),
            prod_strength=pl.lit("500 mg Tablet"),
            form_rx=pl.lit("TAB"),
            dose_val_rx=pl.lit("500"),
            dose_unit_rx=pl.lit("mg"),
            route=_pick(rng, ["PO", "IV", "SC"], rows.height),
        )
        .sort("subject_id", "hadm_id", "pharmacy_id")
        .select(
            "subject_id", "hadm_id", "pharmacy_id", "poe_id", "poe_seq", "order_provider_id", "starttime", "stoptime",
            "drug_type", "drug", "formulary_drug_cd", "gsn", "ndc", "prod_strength", "form_rx", "dose_val_rx",
            "dose_unit_rx", "form_val_disp", "form_unit_disp", "doses_per_24_hrs", "route",
        )
    )  # fmt: skip
