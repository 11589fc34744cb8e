"""Made-up MIMIC-IV files: the layout, and that their risk is the one that is written down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import refused
from mimic_references import categorize_los, read, reference_samples
from scipy.stats import binomtest, chisquare, kstest

from l2d.data.errors import DataError, UsageError
from l2d.data.sources.mimic4.generator import write_mimic4
from l2d.data.sources.mimic4.reader import Mimic4Config, load_mimic4
from l2d.data.sources.mimic4.risk import INTERCEPT, LOG_DAYS, SIGMA, Risk, concepts, true_risk

PATIENTS = 4000


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("generator") / "mimic"
    assert write_mimic4(folder, patients=PATIENTS, seed=11)
    return folder


@pytest.fixture(scope="module")
def samples(folder) -> pd.DataFrame:
    return pd.DataFrame([{"visit": visit, **row} for visit, row in reference_samples(folder, []).items()])


@pytest.fixture(scope="module")
def risk(samples) -> Risk:
    return true_risk(samples["diagnoses"], samples["procedures"])


@pytest.mark.slow
def test_tables_are_as_mimic_has_them(folder):
    admissions, patients = read(folder, "admissions"), read(folder, "patients")
    assert len(patients) == PATIENTS
    assert patients["subject_id"].str.fullmatch(r"1\d{7}").all()
    assert patients["subject_id"].is_unique
    assert admissions["hadm_id"].str.fullmatch(r"2\d{7}").all()
    assert admissions["hadm_id"].is_unique
    ordered = admissions.sort_values(["subject_id", "hadm_id"], kind="stable")
    assert ordered.index.is_monotonic_increasing
    by_time = admissions.sort_values(["subject_id", "admittime"]).groupby("subject_id")["hadm_id"]
    assert 0.3 < by_time.apply(lambda ids: ids.is_monotonic_increasing)[by_time.size() == 2].mean() < 0.7
    assert 1.2 < len(admissions) / PATIENTS < 1.6  # 431,231 of 299,712
    for table, per_visit in (("diagnoses_icd", 11), ("procedures_icd", 1.55), ("prescriptions", 4)):
        rows = read(folder, table)
        assert 0.8 < len(rows) / len(admissions) / per_visit < 1.2
        assert set(rows["hadm_id"]) <= set(admissions["hadm_id"])
        if table != "prescriptions":
            numbers = rows.groupby("hadm_id")["seq_num"].apply(
                lambda n: sorted(n.astype(int)) == list(range(1, len(n) + 1))
            )
            assert numbers.all()
            assert set(rows["icd_version"]) == {"9", "10"}
            assert rows["icd_code"].str.match("0").any()  # leading zeros, which a reader could lose
            assert not rows.duplicated(["hadm_id", "icd_code", "icd_version"]).any()


def test_the_dead_have_no_later_visit_and_a_date(folder):
    admissions, patients = read(folder, "admissions"), read(folder, "patients").set_index("subject_id")
    dead = admissions[admissions["hospital_expire_flag"] == "1"]
    last = admissions.groupby("subject_id")["admittime"].max()
    assert (dead["admittime"].to_numpy() == last[dead["subject_id"]].to_numpy()).all()
    assert (dead["deathtime"] == dead["dischtime"]).all()
    assert (dead["discharge_location"] == "DIED").all()
    assert (patients["dod"][dead["subject_id"]].to_numpy() == dead["deathtime"].str[:10].to_numpy()).all()
    years = admissions.groupby("subject_id")["admittime"].min().str[:4].astype(int)
    assert (patients["anchor_year"].astype(int)[years.index] == years).all()


@pytest.mark.slow
def test_risk_is_the_sum_that_its_documentation_says(samples, risk):
    """Weights looked up code by code, in plain Python."""
    weights = {}
    for table in ("diagnoses", "procedures"):
        known = concepts(table)
        for version, names in known.names.items():
            for i, name in enumerate(names):
                weights[table, f"{version}:{name}"] = (known.mortality[i], known.stay[i])
    for i, row in samples.head(300).iterrows():
        found = [weights[table, code] for table in ("diagnoses", "procedures") for code in row[table]]
        mortality, stay = (sum(pair[k] for pair in found) for k in (0, 1))
        logit = INTERCEPT + min(max(mortality, -4), 4)
        assert risk.death[i] == pytest.approx(1 / (1 + np.exp(-logit)))
        assert risk.log_days[i] == pytest.approx(LOG_DAYS + min(max(stay, -1.5), 1.5))
    assert true_risk([["icd9:none"], []], [[], []]).death == pytest.approx(1 / (1 + np.exp(-INTERCEPT)))


def test_deaths_occur_as_often_as_the_risk_says(samples, risk):
    assert len(samples) > 2500
    died = samples["died"].to_numpy()
    for part in np.array_split(np.argsort(risk.death), 5):  # in every fifth, from the safest to the most endangered
        spread = np.sqrt((risk.death[part] * (1 - risk.death[part])).sum())
        assert abs(died[part].sum() - risk.death[part].sum()) < 4 * spread
    assert np.ptp([risk.death[part].mean() for part in np.array_split(np.argsort(risk.death), 5)]) > 0.05


def test_stays_are_distributed_as_the_risk_says(samples, risk):
    deviation = (np.log(samples["days"].clip(lower=1 / 1440)) - risk.log_days) / SIGMA
    assert kstest(deviation, "norm").pvalue > 1e-4
    probability = risk.stay_categories
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    counts = np.bincount(samples["category"], minlength=10)
    assert chisquare(counts, probability.sum(axis=0)).pvalue > 1e-4
    draws = np.exp(risk.log_days[0] + SIGMA * np.random.default_rng(0).normal(size=20_000))
    drawn = np.bincount([categorize_los(int(days)) for days in draws], minlength=10)
    assert chisquare(drawn, probability[0] * len(draws)).pvalue > 1e-4


def test_risk_among_sub_sampled_visits(folder, samples):
    """Bayes' rule: after most survivors are left out, deaths are as frequent as ``death_among`` says."""
    dataset = load_mimic4(Mimic4Config(path=folder, negatives=1.0, require=[]), "test")
    rows = samples.set_index("visit").loc[dataset.ids]
    risk = true_risk(rows["diagnoses"], rows["procedures"])
    chance = risk.death_among(dataset.inputs["preparation"]["share_of_negatives"])
    assert abs(chance.sum() - dataset.target_cla.sum()) < 5 * np.sqrt((chance * (1 - chance)).sum())
    right = ((chance > 0.5) == dataset.target_cla).sum()
    best = np.maximum(chance, 1 - chance).mean()  # accuracy that nobody can beat, but by luck
    assert binomtest(int(right), len(dataset), best).pvalue > 1e-4
    assert 0.7 < best < 0.9


@pytest.mark.slow
def test_the_same_arguments_give_the_same_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_mimic4(tmp_path / name, patients=300, seed=seed)
    contents = [{file.name: file.read_bytes() for file in (tmp_path / name).rglob("*.gz")} for name in ("a", "b", "c")]
    assert contents[0] == contents[1]
    assert all(contents[0][name] != contents[2][name] for name in contents[0])
    assert write_mimic4(tmp_path / "a", patients=300, seed=1) is False
    refused(lambda: write_mimic4(tmp_path / "a", patients=301, seed=1), DataError, "there already")
    refused(lambda: write_mimic4(tmp_path / "d", patients=0), UsageError, "0 patients")
    refused(lambda: write_mimic4(tmp_path / "d", patients=9, drugs_per_visit=-1.0), UsageError, "prescriptions")
    assert not (tmp_path / "d").exists()


@pytest.mark.slow
def test_one_patient_is_enough_to_write(tmp_path):
    for seed in range(3):
        write_mimic4(tmp_path / str(seed), patients=1, seed=seed, drugs_per_visit=0.0)
        assert len(read(tmp_path / str(seed), "patients")) == 1
