"""What has moved: false alarms as rare as stated, changes found, and nothing said of what has not moved."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

import l2d
from l2d.data.errors import UsageError
from l2d.rejector.evaluation.betting import Betting


def first_alarm(values: np.ndarray, low: float, high: float, alpha: float) -> int | None:
    test = Betting(0.0, 1.0, low, high)
    for number, value in enumerate(values.tolist(), 1):
        test.see(value)
        if test.wealth >= 1 / alpha:
            return number
    return None


def test_false_alarms_are_as_rare_as_stated_however_often_one_looks():
    generator = np.random.default_rng(0)
    alarms = sum(
        first_alarm((generator.random(800) < 0.3).astype(float), 0.3, 0.3, 0.05) is not None for _ in range(300)
    )
    assert alarms / 300 <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


@pytest.mark.parametrize("chance", [0.1, 0.5])
def test_a_change_is_found_on_either_side(chance):
    generator = np.random.default_rng(1)
    found = [first_alarm((generator.random(1000) < chance).astype(float), 0.27, 0.33, 0.01) for _ in range(40)]
    assert all(found)
    assert np.median(found) < 150


def test_capital_is_that_of_its_bets():
    """Against the definition, bet by bet: the bet looks only at what came before."""
    values = [0.2, 0.9, 0.9, 0.4, 1.0]
    test, up, down = Betting(0.0, 1.0, 0.3, 0.4), 0.5, 0.5
    seen, squares = [0.5], [0.25]
    for value in values:
        test.see(value)
        mean, variance = sum(seen) / len(seen), sum(squares) / len(squares)
        gaps = (mean - 0.4, 0.3 - mean)
        bets = [
            min(most, max(0.0, gap / (variance + gap**2)))
            for gap, most in zip(gaps, (0.75 / 0.4, 0.75 / 0.7), strict=True)
        ]
        up, down = up * (1 + bets[0] * (value - 0.4)), down * (1 + bets[1] * (0.3 - value))
        seen.append(value)
        squares.append((value - sum(seen) / len(seen)) ** 2)
    assert (test.up, test.down) == pytest.approx((up, down))


@pytest.fixture(scope="module")
def served(patient_runs, tmp_path_factory):
    """Serves the linear run twice: as it was tested, and with inputs and an agent that have changed."""
    run = patient_runs / "best"
    table = pl.read_parquet(patient_runs / "patients.parquet")
    known = pl.read_parquet(run / "allocations.parquet").filter(pl.col("split") == "test")
    costs = {row["sample_id"]: row for row in known.iter_rows(named=True)}
    rows = [row for row in table.to_dicts() if row["id"] in costs]
    folder = tmp_path_factory.mktemp("watched")

    def serve(name: str, *, shift: float = 0.0, changed: str | None = None) -> None:
        router = l2d.load_router(run, log=folder / name)
        for _ in range(6):
            for row in rows:
                decision = router.route({**row, "x1": row["x1"] + shift})
                place = router.agents.index(decision.agent)
                cost = costs[row["id"]][f"cost_{place}"] - router.query_costs[place]
                router.feedback(decision, max(0.0, 1 - cost if decision.agent == changed else cost))
        router.close()
        router.log.close()

    decisions = pl.Series([l2d.load_router(run).route(row).agent for row in rows])
    most = decisions.value_counts(sort=True)[decisions.name][0] if decisions.name else decisions.mode()[0]
    serve("as before")
    serve("shifted", shift=1.5)
    serve("changed", changed=most)
    return folder, run, most


def test_nothing_is_said_of_what_has_not_moved(served):
    folder, run, _ = served
    found = l2d.watch(folder / "as before", run)
    assert found.moved == []
    assert "nothing has moved" in found.notes()[0]
    assert {one.name for one in found.found if one.what == "agent"} == set(l2d.load_router(run).agents)


def test_inputs_that_moved_are_named(served, l2d):
    folder, run, _ = served
    code, _, err = l2d("watch", folder / "shifted", run, "--strict")
    assert code == 3
    assert "input x1" in err
    assert "input x2" not in err


def test_an_agent_that_changed_under_its_name_is_named(served):
    folder, run, most = served
    moved = {(one.what, one.name): one for one in l2d.watch(folder / "changed", run).moved}
    assert ("agent", most) in moved
    assert "another agent answers under this name" in moved["agent", most].do
    assert not {name for what, name in moved if what == "agent"} - {most}


def test_a_log_of_another_run_is_refused(served, patient_runs):
    folder, _, _ = served
    with pytest.raises(UsageError, match="no decision of that run"):
        l2d.watch(folder / "changed", patient_runs / "linear")
