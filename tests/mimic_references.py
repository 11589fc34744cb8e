"""MIMIC-IV's labels again, in plain pandas and one visit after another; and small odd tables to try both on."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd


def categorize_los(days: int) -> int:
    """PyHealth's ten categories, as its documentation words them."""
    if days < 1:
        return 0
    if 1 <= days <= 7:
        return days
    if 7 < days <= 14:
        return 8
    return 9


def read(folder: Path, table: str) -> pd.DataFrame:
    path = next(folder.glob(f"hosp/{table}.csv*"))
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def reference_samples(folder: Path, require=("diagnoses", "procedures")) -> dict[str, dict]:
    """Visit id -> label, whole days, exact days and lists of codes, for visits followed by another."""
    lists: dict[str, dict[str, list[str]]] = {"diagnoses": {}, "procedures": {}, "prescriptions": {}}
    for field in ("diagnoses", "procedures"):
        rows = read(folder, f"{field}_icd")
        for row in sorted(rows.to_dict("records"), key=lambda row: int(row["seq_num"])):
            codes = lists[field].setdefault(row["hadm_id"], [])
            name = f"icd{row['icd_version']}:{row['icd_code'].strip()}"
            if row["icd_code"].strip() and name not in codes:
                codes.append(name)
    if list(folder.glob("hosp/prescriptions.csv*")):
        for row in read(folder, "prescriptions").to_dict("records"):
            lists["prescriptions"].setdefault(row["hadm_id"], []).append(row["drug"])
    admissions = read(folder, "admissions")
    found = {}
    for _, visits in admissions.groupby("subject_id"):
        visits = sorted(
            visits.to_dict("records"),
            key=lambda v: (pd.Timestamp(v["admittime"]), pd.Timestamp(v["dischtime"] or "2999-01-01"), v["hadm_id"]),
        )
        for visit, following in pairwise(visits):
            if not visit["dischtime"] or not all(lists[field].get(visit["hadm_id"]) for field in require):
                continue
            stay = pd.Timestamp(visit["dischtime"]) - pd.Timestamp(visit["admittime"])
            found[visit["hadm_id"]] = {
                "died": int(following["hospital_expire_flag"] == "1"),
                "category": categorize_los(stay.days),
                "days": max(stay.total_seconds(), 0) / 86400,
                "diagnoses": lists["diagnoses"].get(visit["hadm_id"], []),
                "procedures": lists["procedures"].get(visit["hadm_id"], []),
                "patient": visit["subject_id"],
            }
    return found


def write_hosp(folder: Path, tables: dict[str, pd.DataFrame]) -> Path:
    """``folder/hosp/TABLE.csv.gz``."""
    (folder / "hosp").mkdir(parents=True, exist_ok=True)
    for table, rows in tables.items():
        with gzip.open(folder / "hosp" / f"{table}.csv.gz", "wt") as file:
            rows.to_csv(file, index=False)
    return folder


def odd_tables(seed: int, patients: int = 40) -> dict[str, pd.DataFrame]:
    """Small tables full of what goes wrong: visits of one instant or one day, stays that end before they begin or have
    no end, unknown death flags, patients of one visit, visits without codes, codes twice, blank or padded ones, rows in
    any order.
    """
    rng = np.random.default_rng(seed)
    admissions, codes = [], {"diagnoses_icd": [], "procedures_icd": []}
    hadm = iter(rng.permutation(np.arange(20_000_000, 20_010_000)))
    for subject in range(10_000_000, 10_000_000 + patients):
        times = pd.Timestamp("2150-01-01") + pd.to_timedelta(
            np.cumsum(rng.choice([0, 3, 500], rng.integers(1, 6))), "h"
        )
        for time in times:
            visit = next(hadm)
            hours = rng.choice([-30, -1, 0, 23, 24, 25, 167, 168, 191.99, 192, 335.9, 336, 359, 360, 3000])
            end = time + pd.Timedelta(hours=float(hours)).floor("s")
            admissions.append(
                {
                    "subject_id": subject,
                    "hadm_id": visit,
                    "admittime": time.strftime("%Y-%m-%d %H:%M:%S"),
                    "dischtime": "" if rng.random() < 0.05 else end.strftime("%Y-%m-%d %H:%M:%S"),
                    "admission_type": "URGENT",
                    "hospital_expire_flag": rng.choice(["0", "1", ""], p=[0.6, 0.3, 0.1]),
                }
            )
            for rows in codes.values():
                count = rng.integers(0, 5)
                for number in rng.permutation(count):
                    code = rng.choice(["0331", "4019", "V10", " I10", "E119 ", "", "9604"])
                    version = rng.choice(["9", "10"])
                    row = {"subject_id": subject, "hadm_id": visit, "seq_num": number + 1}
                    rows.append(row | {"icd_code": code, "icd_version": version})
                    if rng.random() < 0.2:
                        rows.append(row | {"seq_num": count + 1 + number, "icd_code": code, "icd_version": version})
    tables = {"admissions": admissions, **codes}
    tables = {name: pd.DataFrame(rows).sample(frac=1, random_state=seed) for name, rows in tables.items()}
    people = [[p, "F", 60, 2150, "2017 - 2019", ""] for p in range(10_000_000, 10_000_000 + patients)]
    names = ["subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod"]
    return tables | {"patients": pd.DataFrame(people, columns=names)}
