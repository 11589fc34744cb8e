"""The main job, end to end on real patients, as `l2d demo support2` runs it; and the quick start's own-data example."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from programs import demo_in, program

pytestmark = pytest.mark.slow

QUICKSTART = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    return demo_in(tmp_path_factory.mktemp("demo"), "support2")


def test_the_demo_prints_the_table_and_the_sql_answers(demo):
    folder, result = demo
    for text in ("classification-only (Mao et al. 2023a)", "regression-only (Mao et al. 2024e)", "multi-task"):
        assert text in result.stdout
    assert "disease" in result.stdout
    assert "cheapest_agent_pct" in result.stdout
    assert "average_of_both (reference)" in result.stdout
    assert (folder / "report.html").stat().st_size > 50_000
    assert (folder / "figure.png").stat().st_size > 20_000


def test_the_multi_task_rejector_beats_every_baseline_with_its_interval(demo):
    folder, _ = demo
    results = json.loads(program("evaluate", folder / "support2.runs" / "table", "--format", "json").stdout)
    assert len(results) == 12
    ours = [r for r in results if r["method"] == "multi-task"]
    assert sorted(r["seed"] for r in ours) == [0, 1, 2, 3]
    regret = ours[0]["over_seeds"]["regret"]
    for baseline in ("best_agent", "random_same_shares", "classification-only", "regression-only"):
        assert regret[baseline]["high"] < 0, baseline
    assert regret["oracle"]["low"] > 0


def test_the_real_agents_are_reported_as_they_are(demo):
    folder, _ = demo
    results = json.loads(program("evaluate", folder / "physicians.runs", "--format", "json").stdout)
    agents = results[0]["agents"]
    assert set(results[0]["allocation"]) == {"model", "physician", "support_model"}
    assert agents["average_of_both"]["role"] == "reference"
    assert agents["average_of_both"]["brier"] < min(agents["physician"]["brier"], agents["support_model"]["brier"])
    for result in results:
        assert result["deferral_loss"] == pytest.approx(result["metrics"]["brier"], abs=1e-6)


def test_what_the_demo_leaves_can_be_verified_and_the_demo_goes_on_where_it_stopped(demo):
    folder, _ = demo
    assert program("verify", folder / "support2.cache").returncode == 0
    again = program("demo", "support2", "--out", folder)
    assert again.returncode == 0
    assert "asked:" not in again.stderr
    assert "12 of 12 were trained already" in again.stderr


def test_the_digits_demo_runs_on_a_few_scenes(tmp_path):
    """Its own script, with fewer scenes and epochs: the detectors learn nothing, but everything has to fit together."""
    script = (Path(__file__).parents[2] / "cache_builder" / "recipes" / "digits.demo").read_text(encoding="utf-8")
    commands = "\n".join(line for line in script.splitlines() if not line.startswith("#"))
    commands = commands.replace("VOCdevkit\n", "VOCdevkit --images 0.02\n", 1).replace("--epochs 200", "--epochs 2")
    printed = ""
    for block in commands.replace("{out}", str(tmp_path)).strip().split("\n\n"):
        if block.strip():
            result = program(*shlex.split(block)[1:])
            assert result.returncode == 0, result.stderr
            printed += result.stdout
    assert "mAP %" in printed
    assert "expert_2 alone" in printed
    assert (tmp_path / "report.html").is_file()
    results = json.loads(program("evaluate", tmp_path / "digits.runs", "--format", "json").stdout)
    assert len(results) == 28
    prices = {
        row["agent"]: row["price"]
        for row in json.loads(program("status", tmp_path / "digits.cache", "-f", "json").stdout)
    }
    first, second = prices["expert_1"], prices["expert_2"]
    assert 0 < first < second
    betas = {r["beta"]: r for r in results}
    cost = betas[0.5]["agents"]["expert_1"]["mean_cost"] - betas[0.01]["agents"]["expert_1"]["mean_cost"]
    assert cost == pytest.approx(0.49 * first / second, rel=1e-3)  # beta_1 = beta_2 / R_G


def test_the_quick_start_s_example_for_own_data_runs(tmp_path):
    blocks = dict(re.findall(r"```(toml|python|sh)\n# (?:\S+)\n(.*?)```", QUICKSTART, re.DOTALL))
    (tmp_path / "my_recipe.toml").write_text(blocks["toml"], encoding="utf-8")
    (tmp_path / "my_agents.py").write_text(blocks["python"], encoding="utf-8")
    generator = np.random.default_rng(0)
    rows = 400
    age, died = generator.uniform(20, 95, rows).round(), generator.integers(0, 2, rows)
    days = generator.integers(0, 60, rows)
    pl.DataFrame(
        {
            "patient": np.arange(rows),
            "age": age,
            "ward": generator.choice(["icu", "general"], rows),
            "lactate": generator.exponential(2, rows),
            "died": died,
            "days": days,
            "doctor_risk": np.clip(0.6 * died + 0.2 + 0.2 * generator.random(rows), 0, 1),
            "doctor_days": days + generator.integers(0, 5, rows),
        }
    ).write_csv(tmp_path / "patients.csv")
    commands = re.search(r"```sh\n(l2d build my_recipe.*?)```", QUICKSTART, re.DOTALL).group(1)
    commands = re.sub(r"#.*", "", commands).replace("--beta", "--epochs 2 --beta")
    script = f'l2d() {{ "{sys.executable}" -m l2d.cli "$@"; }}\nset -e\n{commands}'
    result = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "doctor" in result.stdout
    assert (tmp_path / "report.html").is_file()
