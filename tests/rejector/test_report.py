"""The report: what it says is what the evaluation says, it loads nothing, and browsers show it on any screen."""

from __future__ import annotations

import copy
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import chromium
import numpy as np
import polars as pl
import pytest

from l2d.data.cache.reader import CostCache
from l2d.rejector.evaluation.evaluate import evaluate_runs
from l2d.rejector.evaluation.findings import predicted_in_words
from l2d.rejector.evaluation.guarded import guard_in_words
from l2d.rejector.report.allocations import decisions_of, sample_columns
from l2d.rejector.report.groups import most_telling
from l2d.rejector.report.page import write_report
from l2d.rejector.report.reproduce import build_command, commands
from l2d.rejector.report.shown import lay_out


@pytest.fixture(scope="module")
def runs(make_cache, make_runs, tmp_path_factory) -> list[Path]:
    """Three methods at one beta, and multi-task at three more: two seeds each, in two folders."""
    folder = tmp_path_factory.mktemp("report")
    cache = make_cache(folder)
    config = {"config": {"network": "linear", "epochs": 6, "lr": 0.05}, "seeds": [0, 1]}
    methods = ["multi-task", "classification-only", "regression-only"]
    table = make_runs(cache, folder / "table", methods=methods, betas=[0.05], **config)
    return table + make_runs(cache, folder / "sweep", betas=[0.05, 0.1, 0.2, 0.4], **config)


@pytest.fixture(scope="module")
def evaluations(runs):
    return evaluate_runs(runs)


@pytest.fixture(scope="module")
def page(evaluations, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report(evaluations, out, by=["ward", "x1 > 0", "x2"])
    return out


def specs_of(page: Path) -> dict[str, dict]:
    """The charts' specifications, as the page's own script reads them."""
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="specs">(.*?)</script>', text, re.DOTALL).group(1))


def rows_of(spec: dict, *columns: str) -> list[dict]:
    """Rows of a specification's data that have these columns."""
    tables = spec["datasets"].values()
    return [row for table in tables for row in table if set(columns) <= set(row)]


def of_setting(evaluations, **wanted) -> dict:
    """``over_seeds`` of the setting with these fields."""
    found = [e.result for e in evaluations if all(e.result[name] == value for name, value in wanted.items())]
    return found[0]["over_seeds"]


@pytest.mark.slow
def test_the_sweep_shows_the_evaluations_numbers(page, evaluations):
    specs = specs_of(page)
    for beta in (0.05, 0.1, 0.2, 0.4):
        summary = of_setting(evaluations, method="multi-task", beta=beta)
        for name, value in (
            ("loss", summary["deferral_loss"]),
            ("smooth_l1", summary["metrics"]["smooth_l1"]),
            ("accuracy", {key: 100 * number for key, number in summary["metrics"]["accuracy"].items()}),
        ):
            (row,) = [
                row
                for row in rows_of(specs[f"cache1-sweep-{name}"], "beta", "series")
                if row["beta"] == f"{beta:g}" and row["series"] == "multi-task"
            ]
            assert (row["value"], row["std"]) == pytest.approx((value["mean"], value["std"]))
            assert (row["low"], row["high"]) == pytest.approx(
                (value["mean"] - value["std"], value["mean"] + value["std"])
            )
        shares = [r for r in rows_of(specs["cache1-sweep-shares"], "share") if r["beta"] == f"{beta:g}"]
        assert {r["agent"]: r["share"] for r in shares} == pytest.approx(
            {agent: 100 * share["mean"] for agent, share in summary["allocation"].items()}
        )
        assert (shares[0]["from"], shares[-1]["to"]) == pytest.approx((0, 100))


def test_the_comparison_shows_every_baseline_and_its_interval(page, evaluations):
    specs, result = specs_of(page), lay_out(evaluations).focus[0].result
    losses = {row["name"]: row["value"] for row in rows_of(specs["cache1-rejectors-loss"], "name", "kind")}
    expected = {
        method: of_setting(evaluations, method=method, beta=0.05)["deferral_loss"]["mean"]
        for method in ("multi-task", "classification-only", "regression-only")
    }
    for agent, alone in result["agents"].items():
        title = f"{agent} alone" if alone["role"] == "agent" else f"{agent} (reference)"
        expected[title] = alone["mean_cost"]
    expected |= {"oracle": result["oracle_loss"]}
    assert {name: losses[name] for name in expected} == pytest.approx(expected)
    shown = {row["name"]: row for row in rows_of(specs["cache1-rejectors-difference"], "low")}
    regret = result["over_seeds"]["regret"]
    names = {
        "oracle": regret["oracle"],
        "random, same shares": regret["random_same_shares"],
        f"best constant agent ({result['best_constant']})": regret["best_constant"],
        "classification-only": regret["classification-only"],
        "regression-only": regret["regression-only"],
        **{
            f"{agent} alone": result["over_seeds"]["agents"][agent]
            for agent in result["allocation"]
            if agent not in (result["best_constant"], result["best_agent"])
        },
    }
    assert set(names) <= set(shown)
    for name, interval in names.items():
        for end in ("value", "low", "high"):
            assert shown[name][end] == pytest.approx(interval[end]), name


def test_groups_are_counted_by_an_independent_reader(page, evaluations, runs):
    """Shares and regret of each ward, from the Parquet files by polars."""
    folder = runs[0].parent.parent
    samples = pl.concat([pl.read_parquet(file) for file in sorted((folder / "cache" / "samples").glob("*.parquet"))])
    focus = [e.run.path for e in lay_out(evaluations).focus]
    parts = [pl.read_parquet(path / "allocations.parquet") for path in focus]
    table = pl.concat(parts).filter(pl.col("split") == "test").join(samples.select("sample_id", "ward"), on="sample_id")
    agents = list(evaluations[0].result["allocation"])
    best = agents.index(lay_out(evaluations).focus[0].result["best_constant"])
    specs = specs_of(page)
    for (ward,), members in table.group_by("ward"):
        label = f"{ward} ({members['sample_id'].n_unique()})"
        shown = [r for r in rows_of(specs["cache1-where-1-shares"], "who") if r["bin"] == label]
        shares = {r["agent"]: r["share"] for r in shown if r["who"] == "rejector"}
        assert shares == pytest.approx({a: 100 * (members["agent"] == a).mean() for a in agents})
        costs = members.select([f"cost_{j}" for j in range(len(agents))]).to_numpy()
        cheapest = costs == costs.min(axis=1, keepdims=True)
        expected = 100 * (cheapest / cheapest.sum(axis=1, keepdims=True)).mean(axis=0)
        found = {r["agent"]: r["share"] for r in shown if r["who"] == "cheapest agent"}
        assert list(found.values()) == pytest.approx(expected)
        for panel, baseline in (("best", costs[:, best]), ("oracle", costs.min(axis=1))):
            (row,) = [r for r in rows_of(specs[f"cache1-where-1-regret-{panel}"], "low") if r["bin"] == label]
            difference = (members["deferral_cost"].to_numpy() - baseline).mean()
            assert row["value"] == pytest.approx(difference, abs=1e-6)
            assert row["low"] <= row["value"] <= row["high"]


def test_the_page_has_a_place_for_every_chart_and_says_everything_in_words(page, evaluations):
    text = page.read_text(encoding="utf-8")
    specs = specs_of(page)
    assert len(specs) >= 14
    for name in specs:
        place = re.search(rf'<div class="chart" id="{name}" role="img" aria-label="([^"]*)"', text)
        assert place is not None, name
        assert len(place.group(1)) > 30, name
    assert {name.split("-")[1] for name in specs} == {"sweep", "rejectors", "cost", "risk", "where"}
    assert sum(name.startswith("cache1-where-") for name in specs) == 9  # three groupings, three panels each
    assert "multi-task" in text
    assert "classification-only (Mao et al. 2023a)" in text  # the paper’s table
    assert len(text) < 3_000_000
    loads = re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', text.split("<script>")[0])
    assert loads == []


@pytest.mark.slow
def test_a_title_from_the_data_cannot_end_the_script_or_the_markup(evaluations, tmp_path):
    out = tmp_path / "report.html"
    write_report(evaluations, out, by=["CASE WHEN x1 > 0 THEN '</script><b id=injected>' ELSE 'no' END"])
    text = out.read_text(encoding="utf-8")
    assert "<b id=injected>" not in text
    labels = {row["bin"].split(" (")[0] for row in rows_of(specs_of(out)["cache1-where-1-shares"], "who")}
    assert labels == {"</script><b id=injected>", "no"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium.BROWSER is None:
        pytest.skip("no Chromium here")
    browser = chromium.Chromium(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


DRAWN = "document.documentElement.dataset.drawn"


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")])
def test_a_browser_draws_every_chart_and_asks_for_nothing(browser, page, width, scheme):
    browser.open(page, width=width, scheme=scheme, ready=DRAWN)
    assert browser.requests() == []
    assert browser.complaints() == []
    assert browser.ask(DRAWN) == scheme
    empty = (
        "[...document.querySelectorAll('.chart')].filter(c => !c.querySelector('svg path, svg text')).map(c => c.id)"
    )
    assert browser.ask(empty) == []
    assert browser.ask("document.querySelectorAll('.chart svg').length") == len(specs_of(page))
    assert browser.ask("document.documentElement.scrollWidth") <= width
    wider = (
        "[...document.querySelectorAll('.chart svg')].filter(s => s.getBoundingClientRect().right > innerWidth).length"
    )
    assert browser.ask(wider) == 0

    from io import BytesIO

    from PIL import Image

    pixels = np.asarray(Image.open(BytesIO(browser.screenshot())).convert("L"), dtype=float)
    assert pixels.shape[1] == width
    assert (np.median(pixels) > 200) == (scheme == "light")
    assert pixels.std() > 10  # something is drawn on it


def test_agents_keep_their_colour_throughout(browser, page, evaluations):
    """Every bar's segment and every mark of an agent, in all charts, in its colour of the legend."""
    browser.open(page, width=1280, scheme="light", ready=DRAWN)
    legend = browser.ask(
        "Object.fromEntries([...document.querySelectorAll('.legend .chip')].map(c => [c.textContent.trim(), "
        "getComputedStyle(c.querySelector('.dot')).backgroundColor]))"
    )
    bars = browser.ask(
        "[...document.querySelectorAll('.chart path[aria-roledescription=bar]')].map("
        "p => [p.getAttribute('aria-label'), getComputedStyle(p).fill])"
    )
    assert len(bars) > 30
    for label, colour in bars:
        agent = re.search(r"agent: (\w+)", label).group(1)
        assert colour == legend[agent], label


def test_decisions_agree_with_the_evaluation(evaluations):
    layout = lay_out(evaluations)
    for members in layout.groups:
        decisions = decisions_of(members)
        everyone = np.arange(len(decisions.ids))
        summary = members[0].result["over_seeds"]
        assert decisions.losses.mean() == pytest.approx(summary["deferral_loss"]["mean"], abs=1e-6)
        assert decisions.oracle.mean() == pytest.approx(members[0].result["oracle_loss"], abs=1e-6)
        assert dict(zip(decisions.agents, decisions.shares(everyone), strict=True)) == pytest.approx(
            {agent: share["mean"] for agent, share in summary["allocation"].items()}
        )
    columns = sample_columns(layout.focus, decisions.ids[::-1])
    assert columns["sample_id"].to_pylist() == decisions.ids[::-1]
    assert {"ward", "x1", "target_cla"} <= set(columns.column_names)


@pytest.mark.timeout(120)
def test_the_commands_it_prints_make_the_same_runs(runs, evaluations, tmp_path, monkeypatch):
    """Each command, parsed by the command line itself, asks for the very runs and settings it stands for."""
    from l2d import cli
    from l2d.rejector import library
    from l2d.rejector.commands import train
    from l2d.rejector.sweep import SweepReport

    asked = {}

    def record(cache, points, folders, config, **_):
        for point, folder in zip(points, folders, strict=True):
            asked[folder] = (replace(point, run_id=""), config)
        return SweepReport(folders, 0, 0.0)

    monkeypatch.setattr(library, "train_points", record)
    monkeypatch.setattr(train, "_print_on_test", lambda *_, **__: False)
    building, *training, report = commands(evaluations, tmp_path / "report.html")
    cache = evaluations[0].cache
    assert shlex.split(building) == ["l2d", "build", str(cache.path.parent / "recipe.toml"), "--out", str(cache.path)]
    assert [shlex.split(line)[:2] for line in training] == [["l2d", "sweep"], ["l2d", "sweep"]]
    alone = commands(evaluations[3:4], tmp_path / "report.html")[1:-1]
    assert shlex.split(alone[0])[:2] == ["l2d", "train"]
    for line in [*training, *alone]:
        cli.app(shlex.split(line)[1:], standalone_mode=False)
    assert asked == {e.run.path: (replace(e.run.point, run_id=""), e.run.rejector.config) for e in evaluations}
    assert shlex.split(report) == ["l2d", "report", *map(str, {run.parent: None for run in runs}), "--out",
                                   str(tmp_path / "report.html")]  # fmt: skip


def test_the_build_it_prints_runs_from_any_folder(detection_runs, tmp_path, monkeypatch):
    """Recipe and data are found where they lie beside the cache: the command itself says that nothing is to do."""
    from l2d import cli

    cache, home = CostCache(detection_runs[0]), detection_runs[0].parent
    monkeypatch.chdir(tmp_path)
    line = build_command(cache)
    assert shlex.split(line) == ["l2d", "build", str(home / "recipe.toml"), "--out", str(cache.path)]
    before = {file: file.stat().st_mtime_ns for file in cache.path.rglob("*.parquet")}
    cli.app(shlex.split(line)[1:], standalone_mode=False)
    assert {file: file.stat().st_mtime_ns for file in cache.path.rglob("*.parquet")} == before
    shipped = copy.copy(cache)
    shipped.record = replace(cache.record, name="digits")
    assert shlex.split(build_command(shipped, images=home / "devkit"))[:5] == [
        "l2d", "build", "digits", "--data", str(home / "devkit")
    ]  # fmt: skip
    shipped.path = tmp_path / "digits.cache"
    (tmp_path / "VOCdevkit").mkdir()
    assert shlex.split(build_command(shipped))[4] == str(tmp_path / "VOCdevkit")
    shipped.record = replace(cache.record, name="support2")
    assert shlex.split(build_command(shipped)) == ["l2d", "build", "support2", "--out", str(shipped.path)]


def test_the_cost_quality_figure_has_every_baseline_where_arithmetic_puts_it(page, evaluations):
    """Prices and losses without query costs, from the shares and losses of the evaluation."""
    layout = lay_out(evaluations)
    (result,) = [e.result for e in layout.focus if e.run.point.seed == 0]
    prices = {agent.name: agent.price for agent in evaluations[0].cache.agents}
    query_costs = dict(zip(prices, evaluations[0].run.point.query_costs, strict=True))
    shown = {row["name"]: row for row in rows_of(specs_of(page)["cache1-cost-quality-task_loss-for-cost"], "text")}
    assert shown["oracle, β 0.05"]["y"] == pytest.approx(
        result["oracle_loss"] - sum(share * query_costs[a] for a, share in result["oracle"]["allocation"].items()),
        abs=1e-6,
    )
    for agent, price in prices.items():
        row = shown[f"{agent} alone"]
        alone = result["agents"][agent]["mean_cost"]
        assert (row["x"], row["y"]) == pytest.approx((price, alone - query_costs[agent]), abs=1e-6)
        assert row["y_low"] < row["y"] < row["y_high"]
    shares = of_setting(evaluations, method="multi-task", beta=0.05)
    paid = sum(share["mean"] * query_costs[agent] for agent, share in shares["allocation"].items())
    asked = sum(share["mean"] * prices[agent] for agent, share in shares["allocation"].items())
    for name, loss in (
        ("multi-task, β 0.05", shares["deferral_loss"]["mean"]),
        ("random, same shares, β 0.05", shares["random_same_shares_loss"]["mean"]),
    ):
        assert (shown[name]["x"], shown[name]["y"]) == pytest.approx((asked, loss - paid), abs=1e-6)
        assert shown[name]["y_low"] < shown[name]["y"] < shown[name]["y_high"]
    names = {"random, same shares, β 0.05", "everyone", "oracle, β 0.4", "classification-only, β 0.05"}
    assert names <= set(shown)


@pytest.fixture(scope="module")
def crowd(make_runs, tmp_path_factory) -> list[Path]:
    """Runs over 29 agents with names of 36 characters, of which one lacks some answers; a subject tells who is good."""
    folder = tmp_path_factory.mktemp("crowd")
    generator = np.random.default_rng(5)
    rows, names = 300, [f"organisation/language-model-{k:02d}-chat1" for k in range(29)]
    assert {len(name) for name in names} == {36}
    subject = generator.integers(0, 3, rows)
    noise = {f"svd_{k}": generator.normal(size=rows).round(4) for k in range(6)}
    table = {"id": [f"q{k:03d}" for k in range(rows)], "subject": np.array(["law", "physics", "history"])[subject]}
    pl.DataFrame(table | noise).write_csv(folder / "questions.csv")
    answers = pl.DataFrame(
        [(table["id"][row], name, float(generator.random() < (0.9 if subject[row] == k % 3 else 0.3)), 1.0 + k)
         for k, name in enumerate(names) for row in range(rows) if k != 7 or row % 9],
        schema=["id", "model", "score", "price"], orient="row",
    )  # fmt: skip
    answers.write_csv(folder / "answers.csv")
    arguments = ["import", "scores", folder / "questions.csv", folder / "answers.csv", "--id", "id", "--annotator",
                 "model", "--reg", "score", "--paid", "price", "--out", folder / "crowd.cache"]  # fmt: skip
    from l2d import cli

    cli.app([str(argument) for argument in arguments], standalone_mode=False)
    config = {"network": "linear", "epochs": 6, "lr": 0.05}
    return make_runs(CostCache(folder / "crowd.cache"), folder / "runs", betas=[0.0, 0.01, 0.5], config=config)


@pytest.fixture(scope="module")
def crowded(crowd, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("crowded") / "report.html"
    write_report(evaluate_runs(crowd), out)
    return out


@pytest.mark.slow
def test_of_many_agents_a_few_have_a_colour_and_a_table_has_all(crowd, crowded):
    evaluations = evaluate_runs(crowd)
    layout, specs = lay_out(evaluations), specs_of(crowded)
    cast, names = layout.cast, list(evaluations[0].result["allocation"])
    assert len(cast.entries) == 8
    assert sorted(cast.named + cast.others) == sorted(names)
    assert {members[0].result["best_constant"] for members in layout.groups} <= set(cast.named)
    for beta in ("0", "0.01", "0.5"):
        shares = of_setting(evaluations, beta=float(beta))["allocation"]
        drawn = {r["agent"]: r["share"] for r in rows_of(specs["cache1-sweep-shares"], "share") if r["beta"] == beta}
        assert list(drawn) == cast.entries
        assert sum(drawn.values()) == pytest.approx(100)
        assert drawn["22 others"] == pytest.approx(100 * sum(shares[name]["mean"] for name in cast.others))
    text = crowded.read_text(encoding="utf-8")
    table = text.split("Which agent answers</p>")[1].split("</table>")[0]
    assert all(name in table for name in names)
    places = {row["beta"]: row["at"] for row in rows_of(specs["cache1-sweep-loss"], "series", "at")}
    assert places == {"0": 0.0, "0.01": 0.01, "0.5": 0.5}


def test_groups_are_by_what_a_reader_knows_before_numbered_columns(crowd):
    layout = lay_out(evaluate_runs(crowd))
    decisions = decisions_of(layout.focus)
    columns = sample_columns(layout.focus, decisions.ids)
    questions = pl.read_csv(crowd[0].parent.parent / "questions.csv")
    known = dict(questions.select("id", "subject").iter_rows())
    assert columns["subject"].to_pylist() == [known[sample] for sample in decisions.ids]
    assert most_telling(columns, decisions)[0].title == "subject"


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
@pytest.mark.slow
def test_many_long_names_fit_the_page_and_no_label_lies_on_another(browser, crowded, width, scheme):
    browser.open(crowded, width=width, scheme=scheme, ready=DRAWN)
    assert browser.complaints() == []
    assert browser.ask("document.documentElement.scrollWidth") <= width
    wide = (
        "[...document.querySelectorAll('.example')].filter(e => [...e.querySelectorAll('table, .chip, h4')]"
        ".some(c => c.getBoundingClientRect().right > e.getBoundingClientRect().right)).length"
    )
    assert browser.ask(wide) == 0
    overlapping = """[...document.querySelectorAll('.chart[id*=cost-quality]')].flatMap(chart => {
      const boxes = [...chart.querySelectorAll('.mark-text.role-mark text')].filter(t => t.textContent.trim())
        .map(t => [t.textContent, t.getBoundingClientRect()]);
      return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) => p.left < q.right - 1 &&
        q.left < p.right - 1 && p.top < q.bottom - 2 && q.top < p.bottom - 2).map(([b]) => a + ' on ' + b));
    })"""
    assert browser.ask(overlapping) == []


# --- runs that predict costs ------------------------------------------------------------------------------------------


@pytest.mark.timeout(180)
@pytest.mark.parametrize("theory", [False, True])
def test_a_run_that_predicts_costs_shows_them_paid_and_what_columns_are_worth(browser, patient_runs, tmp_path, theory):
    [evaluation] = evaluate_runs([patient_runs / "best"])
    page = tmp_path / "report.html"
    write_report([evaluation], page, theory=theory)
    specs, result = specs_of(page), evaluation.result
    names = [name.partition("-")[2] for name in specs]
    of_agents = [name for name in names if name.startswith("reliability-")]
    assert len(of_agents) == len(result["allocation"])
    first = max(result["allocation"], key=result["allocation"].get)
    drawn = rows_of(specs["cache1-reliability-agent-0"], "agent", "low")
    assert [row["actual"] for row in drawn] == result["reliability"][first]["actual"]
    worth = "theory" if theory else "importance"
    assert {f"{worth}-worth-loss", f"{worth}-worth-explained"} <= set(names)
    assert len([name for name in names if name.endswith("worth-loss")]) == 1
    shown = rows_of(specs[f"cache1-{worth}-worth-loss"], "column", "value")
    assert {row["column"] for row in shown} == {"x1", "x2", "ward"}
    text = page.read_text(encoding="utf-8")
    assert predicted_in_words(result) in text
    browser.open(page, width=390, scheme="light", ready=DRAWN)
    assert browser.complaints() == []
    assert browser.ask("document.documentElement.scrollWidth") <= 390
    empty = "[...document.querySelectorAll('.chart')].filter(c => !c.querySelector('svg path, svg text')).length"
    assert browser.ask(empty) == 0


def test_a_guard_that_holds_has_its_paragraph(patient_runs, tmp_path):
    from l2d.rejector.library import sweep

    runs = sweep(patient_runs / "cache", tmp_path / "runs", betas=[{"expert": 0.15}], weights={"cla": 1}, guard=1e9)
    evaluations = evaluate_runs(runs.folders)
    write_report(evaluations, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"The guard holds: {guard_in_words(evaluations[0].result['guard'], len(evaluations[0].losses))}" in text
