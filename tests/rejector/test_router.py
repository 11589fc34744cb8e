"""One input at a time: the bits of `l2d route`, whatever the columns are; caps, exploring, reasons, refusals."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import l2d
from l2d.data.errors import DataError, UsageError
from l2d.rejector.route import route
from l2d.rejector.served import open_served


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    """A table of text, dates, truth values, lists, computed columns and gaps, whose agents have prices."""
    folder = tmp_path_factory.mktemp("questions")
    generator = np.random.default_rng(3)
    rows, words = 160, np.array(["sum", "proof", "poem", "river", "why", "seven", "Prove"])
    hard = generator.random(rows) < 0.5
    table = pl.DataFrame(
        {
            "q": [f"q{k}" for k in range(rows)],
            "prompt": [" ".join(generator.choice(words[3:] if h else words[:3], 6)) + ("?" if h else "") for h in hard],
            "asked": [None if k % 19 == 4 else date(2026, 1, 1) + timedelta(days=int(k)) for k in range(rows)],
            "long": generator.random(rows) < 0.4,
            "tokens": [None if k % 11 == 3 else int(v) for k, v in enumerate(generator.integers(0, 900, rows))],
            "place": [generator.normal(size=3).round(3).tolist() for _ in range(rows)],
            "kind": [None if k % 13 == 5 else str(v) for k, v in enumerate(generator.choice(["a", "b"], rows))],
            "truth": generator.integers(0, 2, rows),
        }
    )
    answers = pl.concat(
        table.select("q", who=pl.lit(name), answer=answer, usd=0.001 * price * pl.col("prompt").str.len_chars())
        for name, price, answer in (
            ("small", 1, pl.when(pl.Series(hard)).then(1 - pl.col("truth")).otherwise("truth")),
            ("large", 20, pl.col("truth")),
        )
    )
    columns = ["asked", "long", "tokens", "ln(1 + tokens) AS more", "place", "kind", "UPPER(kind) AS loud"]
    cache = l2d.import_table(
        table, answers, out=folder / "cache", id="q", target="truth", model="small", text=["prompt"], columns=columns,
        annotator="who", cla="answer", paid="usd",
    )  # fmt: skip
    l2d.train(cache, folder / "run", beta={"paid": 2.0}, guard=0.0)
    table.write_parquet(folder / "table.parquet")
    return folder


def routed(run: Path, table: Path, out: Path) -> tuple[list[str], np.ndarray]:
    """Agents and scores that `l2d route` gives every row of a file."""
    route(run, table, out, overwrite=True)
    found = pl.read_parquet(out)
    return found["agent"].to_list(), found.select(pl.col("^score_.*$")).to_numpy()


@pytest.mark.parametrize("name", ["linear", "mlp", "transformer", "best"])
def test_a_router_gives_the_bits_of_route(patient_runs, tmp_path, name):
    table, run = patient_runs / "patients.parquet", patient_runs / name
    agents, scores = routed(run, table, tmp_path / "out.parquet")
    router = l2d.load_router(run)
    decisions = router.route_batch(pl.read_parquet(table).to_dicts())
    assert [decision.agent for decision in decisions] == agents
    np.testing.assert_array_equal(np.stack([decision.scores for decision in decisions]), scores)
    assert len(set(agents)) > 1


def test_so_it_does_for_text_dates_lists_and_computed_columns(questions, tmp_path):
    table = questions / "table.parquet"
    agents, scores = routed(questions / "run", table, tmp_path / "out.parquet")
    router = l2d.load_router(questions / "run")
    rows = pl.read_parquet(table).to_dicts()
    decisions = router.route_batch(rows)
    assert [decision.agent for decision in decisions] == agents
    np.testing.assert_array_equal(np.stack([decision.scores for decision in decisions]), scores)
    written = {**rows[0], "asked": "2026-01-01"}  # as JSON has it
    np.testing.assert_array_equal(router.route(written).scores, scores[0])
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(router.route, rows * 2))
    np.testing.assert_array_equal(np.stack([one.scores for one in together]), np.tile(scores, (2, 1)))


@pytest.mark.parametrize("name", ["linear", "mlp", "best"])
def test_no_torch_is_loaded(patient_runs, name):
    code = "import sys, l2d; l2d.load_router(sys.argv[1]).route({'x1': 1.0, 'x2': None, 'ward': 'a'}); "
    done = subprocess.run(
        [sys.executable, "-c", code + "assert 'torch' not in sys.modules", patient_runs / name], capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


def test_what_is_predicted_is_said(questions):
    router = l2d.load_router(questions / "run")
    row = pl.read_parquet(questions / "table.parquet").to_dicts()[0]
    decision = router.route(row)
    assert decision.costs is not None
    assert decision.agent == min(decision.costs, key=decision.costs.get) == decision.ranked[0]
    assert list(decision.ranked) == sorted(decision.costs, key=decision.costs.get)
    prices = l2d.load_run(questions / "run").rejector.predicted_prices("new", ["q0"], decision.features[None])[0]
    assert decision.price == prices[router.agents.index(decision.agent)]
    assert (decision.propensity, decision.explored, decision.id) == (1.0, False, None)


def test_a_reason_names_what_moved_the_choice(patient_runs):
    """Against scores with each feature at its training mean, taken one by one."""
    router = l2d.load_router(patient_runs / "best")
    decision = router.route({"x1": 2.0, "x2": 0.1, "ward": "b"})
    run, first, second = open_served(patient_runs / "best"), *(router.agents.index(n) for n in decision.ranked[:2])

    def lead(features: np.ndarray) -> float:
        scores = run.scores(features[None])[0].astype(float)
        return scores[first] - scores[second]

    at_mean = decision.features.copy()
    at_mean[0] = run.mean[0]
    moved = dict(decision.moved)
    assert moved["x1"] == pytest.approx(lead(decision.features) - lead(at_mean))
    assert set(moved) == {"x1", "x2", "ward"}
    assert decision.moved[0][0] in decision.reason
    assert decision.ranked[1] in decision.reason


def test_caps_and_absences(questions, patient_runs):
    router = l2d.load_router(questions / "run")
    rows = pl.read_parquet(questions / "table.parquet").to_dicts()
    prices = [decision.price for decision in router.route_batch(rows, cap=0.05)]
    assert all(price is not None and price <= 0.05 for price in prices)
    nobody = router.route(rows[0], cap=0.0)
    assert (nobody.agent, nobody.ranked, nobody.price) == (None, (), None)
    assert "cap" in nobody.reason
    only = router.route(rows[0], available=["large"])
    assert (only.ranked, only.reason) == (("large",), "large is the one agent that can be asked")
    for wrong, said in (
        ({"available": ["largest"]}, "large"),
        ({"available": []}, "names no agent"),
        ({"cap": -1}, "cap"),
    ):
        with pytest.raises(UsageError, match=said):
            router.route(rows[0], **wrong)


def test_exploring_draws_with_the_probabilities_that_it_says(patient_runs):
    router = l2d.load_router(patient_runs / "best", explore=0.3, seed=1)
    row = {"x1": 2.0, "x2": 0.1, "ward": "b"}
    allowed = [name for name in router.agents if name != router.agents[-1]]
    greedy = l2d.load_router(patient_runs / "best").route(row, available=allowed).agent
    counts, said = dict.fromkeys(router.agents, 0), {}
    for _ in range(2000):
        decision = router.route(row, available=allowed)
        counts[decision.agent] += 1
        said[decision.agent] = decision.propensity
        assert decision.explored == (decision.agent != greedy)
    assert counts.pop(router.agents[-1]) == 0
    assert sum(said.values()) == pytest.approx(1)
    for name, count in counts.items():
        assert abs(count / 2000 - said[name]) < 4 * (said[name] * (1 - said[name]) / 2000) ** 0.5, name


def test_an_input_that_cannot_be_used_is_refused(patient_runs, questions):
    router = l2d.load_router(patient_runs / "best")
    good = {"x1": 1.0, "x2": None, "ward": "a"}
    for change, said in (
        ({"x1": "much"}, "'x1' is 'much'"), ({"ward": 3}, "'ward' is 3"), ({"x1": 1e300}, "32-bit"), ({"x1": []}, "x1"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=said):
            router.route({**good, **change})
    with pytest.raises(DataError, match=r"no column 'x1'[\s\S]*is it 'X1'"):
        router.route({"X1": 1.0, "x2": None, "ward": "a"})
    with pytest.raises(DataError, match="features"):
        router.route(np.zeros(99, np.float32))
    with pytest.raises(UsageError, match="a text alone"):
        router.route("just words")
    with pytest.raises(DataError, match="not list"):
        router.route([1, 2])
    row = pl.read_parquet(questions / "table.parquet").to_dicts()[0]
    asked = l2d.load_router(questions / "run")
    with pytest.raises(DataError, match="ISO 8601"):
        asked.route({**row, "asked": "01/02/2026"})
    missing = router.route({**good, "x1": float("nan")})
    np.testing.assert_array_equal(missing.scores, router.route({**good, "x1": None}).scores)


def test_a_router_is_refused_what_makes_no_sense(patient_runs, tmp_path):
    with pytest.raises(UsageError, match="explore"):
        l2d.load_router(patient_runs / "best", explore=2)
    with pytest.raises(UsageError, match="not heard"):
        l2d.load_router(patient_runs / "best", shadow=patient_runs / "mlp")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="a log is a folder"):
        l2d.load_router(patient_runs / "best", log=tmp_path / "file")
