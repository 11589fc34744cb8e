"""Promises: p-values are exact, what is promised holds at its rate, and what cannot be promised is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import binomtest

import l2d as library
from l2d.data.errors import UsageError
from l2d.rejector.decisions.promises import (
    Judged,
    Risk,
    conformal_risk_control,
    hoeffding_bentkus,
    learn_then_test,
    p_value,
    possible,
    thresholds_of,
    upper_bound,
    worst_p,
)


def drawn(generator: np.random.Generator, n: int, groups: int = 0) -> tuple[Judged, np.ndarray]:
    """Samples with a chance of being wrong, and a prediction of it that is off."""
    chance = generator.beta(0.5, 4, n)
    expected = np.clip(0.8 * chance + 0.05 + 0.05 * generator.normal(size=n), 0, 1)
    wrong = generator.random(n) < chance
    group = generator.integers(groups, size=n) if groups else None
    return Judged(expected=expected, wrong=wrong, cost=wrong * 0.5, group=group), chance


def test_p_values_are_the_exact_test_s():
    generator = np.random.default_rng(0)
    for n in (1, 7, 60, 500):
        for limit in (0.05, 0.3):
            losses = (generator.random(n) < 0.2).astype(float)
            exact = binomtest(int(losses.sum()), n, limit, alternative="less").pvalue
            assert p_value(losses, limit) == pytest.approx(exact)
            interval = binomtest(int(losses.sum()), n).proportion_ci(0.9, method="exact")  # 5 % on each side
            assert upper_bound(losses, 0.05) == pytest.approx(interval.high)
    assert p_value(np.zeros(0), 0.1) == 1
    assert p_value(np.zeros(58), 0.05) > 0.05 >= p_value(np.zeros(59), 0.05)  # the rule of three


def test_hoeffding_bentkus_is_valid_for_losses_between():
    generator, limit, below = np.random.default_rng(1), 0.2, 0
    for _ in range(2000):
        losses = generator.beta(0.5, 2.0, 80)  # of mean 0.2: the hypothesis holds, just
        below += p_value(losses, limit) <= 0.05
    assert below <= 0.05 * 2000
    assert hoeffding_bentkus(0.0, 100, 0.1) == pytest.approx((1 - 0.1) ** 100, rel=1e-6)
    losses = np.full(200, 0.1)
    bound = upper_bound(losses, 0.05)
    assert p_value(losses, bound) == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize(("family", "limit"), [("fixed-sequence", 0.1), ("bonferroni", 0.1), ("fixed-sequence", 0.06)])
def test_a_promise_holds_at_its_rate(family, limit):
    generator, exceeded, promised, times = np.random.default_rng(3), 0, 0, 150
    whole, chance = drawn(np.random.default_rng(9), 100_000)
    for _ in range(times):
        (pilot, _), (calibration, _) = drawn(generator, 600), drawn(generator, 400)
        found = learn_then_test(
            calibration,
            [Risk("error", limit)],
            thresholds_of(pilot.expected, 30),
            confidence=0.9,
            family=family,
            pilot=pilot,
        )
        if found.threshold is not None:
            promised += 1
            exceeded += chance[whole.expected <= found.threshold].mean() > limit
    assert binomtest(exceeded, times, 0.1, alternative="greater").pvalue > 0.01
    assert promised > times / 4 or limit < 0.1


#: What MAPIE 1.6.0's BinaryClassificationController says of the samples below, the risk being a BinaryRisk of errors
#: among the answers that are given: threshold -> p-value; and the thresholds that each correction leaves at 95 %.
MAPIE_P = {
    0.02: 0.0001248669245853109, 0.05: 6.263116231396352e-06, 0.1: 0.0003116066403635457, 0.15: 0.0007226303590510219,
    0.2: 0.07031234657124277, 0.25: 0.3595821384062788, 0.3: 0.6404759557687034, 0.4: 0.96904793713932,
    0.5: 0.9998617170394225, 0.7: 0.9999993353033713, 1.0: 0.9999995533716651,
}  # fmt: skip
MAPIE_VALID = {"bonferroni": [0.02, 0.05, 0.1, 0.15], "fixed-sequence": [0.02, 0.05, 0.1, 0.15]}


@pytest.mark.parametrize("family", list(MAPIE_VALID))
def test_thresholds_are_those_of_mapie(family):
    generator = np.random.default_rng(20)
    expected = np.round(np.sort(generator.beta(0.5, 3, 800)), 4)
    wrong = generator.random(800) < 0.6 * expected
    judged = Judged(expected=expected, wrong=wrong, cost=wrong.astype(float))
    found = learn_then_test(judged, [Risk("error", 0.05)], np.array(list(MAPIE_P)), family=family)
    assert {row["threshold"]: row["p"] for row in found.tried} == pytest.approx(MAPIE_P, rel=1e-9)
    assert [row["threshold"] for row in found.tried if row["promised"]] == MAPIE_VALID[family]
    assert found.threshold == 0.15


def test_conformal_risk_control_promises_the_mean():
    generator, risks, told = np.random.default_rng(5), [], 0.05
    whole, chance = drawn(np.random.default_rng(9), 100_000)
    for _ in range(200):
        calibration, _ = drawn(generator, 150)
        found = conformal_risk_control(calibration, [Risk("error_of_all", told)], np.linspace(0.01, 1, 60))
        given = np.zeros(len(chance), bool) if found.threshold is None else whole.expected <= found.threshold
        risks.append((chance * given).mean())
    error = np.std(risks) / len(risks) ** 0.5
    assert np.mean(risks) <= told + 3 * error
    assert np.mean(risks) >= told - 0.02  # and not by promising nothing
    with pytest.raises(UsageError, match="may fall when more is answered"):
        conformal_risk_control(calibration, [Risk("error", 0.1)], np.linspace(0.01, 1, 5))


def test_several_risks_and_groups_are_as_strict_as_the_strictest():
    judged, _ = drawn(np.random.default_rng(2), 900, groups=3)
    risks = [Risk("error", 0.12), Risk("abstained", 0.6)]
    for threshold in (0.1, 0.2):
        worst = max(
            p_value(judged.losses(risk.quantity, threshold, np.flatnonzero(judged.group == code)), risk.limit)
            for risk in risks for code in range(3)
        )  # fmt: skip
        assert worst_p(judged, risks, threshold) == pytest.approx(worst)
    thresholds = np.linspace(0.05, 0.6, 40)
    found = learn_then_test(judged, risks, thresholds, pilot=drawn(np.random.default_rng(3), 900, groups=3)[0])
    if found.threshold is not None:
        assert worst_p(judged, risks, found.threshold) <= 0.05
    assert found.groups == 3


def test_what_cannot_be_promised_says_what_could():
    judged, _ = drawn(np.random.default_rng(2), 300)
    thresholds = np.linspace(0.05, 0.6, 20)
    found = learn_then_test(judged, [Risk("error", 0.001)], thresholds)
    assert found.threshold is None
    (row,) = found.instead
    bounds = [upper_bound(judged.losses("error", t), 0.05 / 20) for t in thresholds]
    assert row["limit"] == pytest.approx(min(bounds))
    assert possible(judged, [Risk("error", 0.001)], thresholds, 0.05) == found.instead


def test_the_command_promises_and_refuses(patient_runs, tmp_path, l2d, l2d_done):
    run = patient_runs / "best"
    done = ["policy", run, "--ask", "router", "--risk"]
    code, _, err = l2d(*done, "error<=0.001", "--save", tmp_path / "none")
    assert code == 2
    assert "no setting can promise error<=0.001 with 95% confidence" in err
    assert "what could be promised: error<=" in err
    assert not (tmp_path / "none").exists()
    out = json.loads(
        l2d_done(*done, "error<=0.5", "--confidence", "0.8", "--save", tmp_path / "kept", "--format", "json")
    )
    promise = out["promise"]
    assert promise["confidence"] == 0.8
    assert promise["kept"][0]["risk"] == "error<=0.5"
    policy = library.load_policy(tmp_path / "kept")
    assert policy.rule.above == promise["threshold"]
    shares = library.evaluate(tmp_path / "kept").to_json()[0]
    assert shares["risks"] == ["error<=0.5"]
    average = json.loads(l2d_done(*done, "error_of_all<=0.5", "--on-average", "--format", "json"))
    assert average["promise"]["confidence"] is None
