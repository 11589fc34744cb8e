"""Questions with answers that are text, from import to route, SQL and report; by command and in Python."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import refused
from typer.testing import CliRunner

import l2d
from l2d.cache_builder.answers import Answers
from l2d.cli import app
from l2d.data.cache.status import status_rows
from l2d.data.errors import AgentFailure, UsageError
from l2d.data.text_answers import exact_match, f1
from l2d.rejector.report.tiles import _answer

pytestmark = pytest.mark.slow

PAGE = Path(__file__).resolve().parents[2] / "docs" / "text.md"
SUBJECTS = {"place": ["Paris", "Rome", "Oslo"], "year": ["1901", "1912", "1950"]}


def questions(rows: int = 160) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Questions of two kinds, some without an answer, and what three agents answer: each is good at something."""
    draw = np.random.default_rng(0)
    asked, answers = [], []
    for row in range(rows):
        subject = list(SUBJECTS)[row % 2]
        true = str(draw.choice(SUBJECTS[subject]))
        truths = [] if draw.random() < 0.1 else [true, f"the {subject} {true}"]
        ask = f"{'where' if subject == 'place' else 'when'} did it happen, case {row}?"
        asked.append({"id": f"q{row:03}", "question": ask, "answers": {"text": truths, "answer_start": [0]}})
        for name, skill in (("small", 0.4), ("atlas", subject == "place"), ("annals", subject == "year")):
            right = draw.random() < 0.1 + 0.85 * skill
            said = ("" if not truths else f"The {true}.") if right else f"in {draw.choice(SUBJECTS['place'])}"
            answers.append({"id": f"q{row:03}", "agent": name, "answer": said})
    return pl.DataFrame(asked), pl.DataFrame(answers)


def asked_for(path: Path, sql: str) -> list[dict]:
    return l2d.query([path], sql).frame().to_dicts()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with the files that the page names, and what its commands make of them."""
    folder = tmp_path_factory.mktemp("questions")
    asked, answers = questions()
    asked.write_parquet(folder / "questions.parquet")
    asked.drop("answers").head(30).write_csv(folder / "new_questions.csv")
    (folder / "answers.jsonl").write_text("\n".join(json.dumps(row) for row in answers.to_dicts()))
    section = PAGE.read_text(encoding="utf-8").partition("## Answers that are text")[2].partition("\n## ")[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in re.findall(r"```sh\n(.*?)```", section, flags=re.S):
            for line in block.splitlines():
                result = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
                assert result.exit_code == 0, (line, result.stderr)
    return folder


def test_costs_are_one_minus_the_agreement(home):
    asked, answers = questions()
    truths = dict(zip(asked["id"], (record["text"] for record in asked["answers"]), strict=True))
    sql = "SELECT agent, sample_id, pred_text, cost_text FROM predictions JOIN costs USING (agent, sample_id)"
    rows = asked_for(home / "squad.cache", sql)
    found = {(row["agent"], row["sample_id"]): row for row in rows}
    assert len(found) == len(answers)
    for row in answers.iter_rows(named=True):
        here = found[row["agent"], row["id"]]
        assert here["pred_text"] == row["answer"].strip()
        assert here["cost_text"] == pytest.approx(1 - f1(row["answer"], truths[row["id"]]), abs=1e-7)


def test_figures_of_the_system_are_those_of_its_answers(home):
    (found,) = l2d.evaluate(home / "squad.runs" / "one")
    asked, answers = questions()
    truths = dict(zip(asked["id"], (record["text"] for record in asked["answers"]), strict=True))
    said = {(row["agent"], row["id"]): row["answer"] for row in answers.iter_rows(named=True)}
    sql = "SELECT sample_id, agent FROM allocations WHERE split = 'test'"
    rows = asked_for(home / "squad.runs" / "one", sql)
    pairs = [(said[row["agent"], row["sample_id"]], truths[row["sample_id"]]) for row in rows]
    assert found.result["metrics"]["f1"] == pytest.approx(np.mean([f1(*pair) for pair in pairs]))
    assert found.result["metrics"]["exact_match"] == pytest.approx(np.mean([exact_match(*pair) for pair in pairs]))
    assert found.result["metrics"]["f1"] > 1.3 * max(alone["f1"] for alone in found.result["agents"].values())


def test_routing_needs_no_true_answers(home):
    routed = pl.read_csv(home / "where.csv")
    kinds = routed.join(questions()[0], left_on="sample_id", right_on="id")
    right = (kinds["agent"] == "atlas") == kinds["question"].str.starts_with("where")
    assert right.mean() > 0.9


def test_the_report_shows_question_and_texts(home):
    page = (home / "squad.html").read_text(encoding="utf-8")
    assert "did it happen, case" in page
    assert re.search(r"“(Paris|Rome|Oslo|19\d\d)” / “the (place|year) ", page)
    record = l2d.CostCache(home / "squad.cache").record
    assert _answer({"target_text": []}, record, "target") == "has no answer"
    assert _answer({"pred_text": "word " * 100}, record, "pred") == f"“{'word ' * 16} … {'word ' * 16}”"


def test_an_empty_cell_is_no_answer_unless_it_abstains(home, tmp_path):
    asked, answers = questions()
    facts = {"id": "id", "target_text": "answers", "model": "small", "text": ["question"]}
    cache = l2d.import_table(asked, answers, out=tmp_path / "gaps.cache", **facts)
    silent = answers.group_by("agent").agg((pl.col("answer") == "").sum().alias("empty"))
    rows = {row["agent"]: row["unavailable"] for row in status_rows(cache)}
    assert rows == dict(silent.iter_rows())
    exact = Path(tmp_path / "gaps.cache.toml").read_text().replace('kind = "f1" ', 'kind = "exact_match" ')
    Path(tmp_path / "gaps.cache.toml").write_text(exact)
    again = l2d.build(tmp_path / "gaps.cache.toml", tmp_path / "gaps.cache")
    assert again.record.costs == {"text": {"kind": "exact_match"}}


def test_a_python_agent_and_a_column_answer_texts(tmp_path):
    asked, _ = questions(60)
    asked.with_columns(guess=pl.lit("Rome")).write_parquet(tmp_path / "q.parquet")
    (tmp_path / "agent.py").write_text("def ask(batch):\n    return {'text': [None] + ['the 1912'] * 59}\n")
    recipe = tmp_path / "q.toml"
    recipe.write_text(
        '[dataset]\npath = "q.parquet"\nid = "id"\ntarget_text = "answers"\ntext = ["question"]\n[costs.text]\n'
        '[[agents]]\nname = "guess"\nkind = "column"\ntext = "guess"\n'
        '[[agents]]\nname = "mine"\nkind = "python"\nfile = "agent.py"\npartial = true\n'
    )
    cache = l2d.build(recipe, tmp_path / "q.cache")
    sql = "SELECT agent, count(cost_text) AS n, avg(cost_text) AS mean FROM costs GROUP BY 1 ORDER BY 1"
    rows = asked_for(cache.path, sql)
    truths = [record["text"] for record in asked["answers"]]
    assert [row["n"] for row in rows] == [60, 59]
    assert rows[0]["mean"] == pytest.approx(np.mean([1 - f1("Rome", true) for true in truths]))
    assert rows[1]["mean"] == pytest.approx(np.mean([1 - f1("the 1912", true) for true in truths[1:]]))
    assert l2d.verify(cache)
    other = _without_text(recipe)
    refused(lambda: l2d.build(other, tmp_path / "n.cache"), UsageError, "[costs.text] needs `target_text`")


def _without_text(recipe: Path) -> Path:
    changed = recipe.with_name("other.toml")
    changed.write_text(recipe.read_text().replace('target_text = "answers"\n', ""))
    return changed


@pytest.mark.parametrize(("given", "said"), [(["a"], "with 1 texts, expected 2"), (["a", 3], "which is not a text")])
def test_what_is_no_text_is_refused(given, said):
    with pytest.raises(AgentFailure, match=said):
        Answers(text=given).checked("x", ["1", "2"], ["text"], 0)
