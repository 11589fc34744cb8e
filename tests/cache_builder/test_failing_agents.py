"""Agents that fail under way: agent and sample are named, finished chunks stay, and the build resumes."""

from __future__ import annotations

import pytest
from conftest import Workshop, no_temporaries, refused
from recipes import RECIPE, agent

from l2d.data.errors import AgentFailure, IncompleteCache, UsageError

AGENT = """
def ask(batch, mode_file, log):
    with open(mode_file) as file:
        mode = file.read()
    with open(log, "a") as file:
        file.writelines(f"{sample}\\n" for sample in batch.ids)
    good = {"prob": [[0.25, 0.75] for _ in batch.ids], "reg": [2.0 for _ in batch.ids]}
    if "p0063" not in batch.ids or mode == "ok":
        return good
    row = batch.ids.index("p0063")
    if mode == "short":
        return {"prob": good["prob"][:-1], "reg": good["reg"]}
    if mode == "nan":
        good["reg"][row] = float("nan")
    if mode == "huge":
        good["reg"][row] = 1e300
    if mode == "raise":
        raise ConnectionError("the service is down")
    if mode == "class":
        return {"cla": [7 if k == row else 0 for k in range(len(batch.ids))], "reg": good["reg"]}
    if mode == "fraction":
        return {"cla": [0.5 if k == row else 0 for k in range(len(batch.ids))], "reg": good["reg"]}
    if mode == "sum":
        good["prob"][row] = [0.5, 0.6]
    if mode == "negative":
        good["prob"][row] = [-0.5, 1.5]
    if mode == "words":
        good["reg"] = ["two"] * len(batch.ids)
    if mode == "no value":
        del good["reg"]
    if mode == "no class":
        del good["prob"]
    if mode == "none":
        return None
    if mode == "extra":
        good["confidence"] = 1
    return good
"""


def python_recipe(workshop: Workshop, mode: str) -> str:
    (workshop.folder / "agent.py").write_text(AGENT)
    (workshop.folder / "mode").write_text(mode)
    options = {"mode_file": str(workshop.folder / "mode"), "log": str(workshop.folder / "log")}
    return RECIPE.plus(agent("robot", "python", file="agent.py", options=options))


MODES = {
    "short": ("shape (19, 2), expected (20, 2)", "p0050", "p0069"),
    "nan": ("`reg` = nan", "not finite", "'p0063'"),
    "huge": ("`reg`", "32-bit", "'p0063'"),
    "raise": ("ConnectionError('the service is down')", "p0050", "p0069"),
    "class": ("7", "not a class index below 2", "'p0063'"),
    "fraction": ("0.5", "not a class index below 2", "'p0063'"),
    "sum": ("does not sum to 1", "'p0063'"),
    "negative": ("outside [0, 1]", "'p0063'"),
    "words": ("no numbers", "p0050"),
    "no value": ("gave no value", "p0050"),
    "no class": ("gave no class", "p0050"),
    "none": ("NoneType", "p0050", "p0069"),
    "extra": ("confidence", "p0050", "p0069"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.slow
def test_a_failing_agent_is_named_finished_chunks_stay_and_the_build_resumes(workshop, mode):
    text = python_recipe(workshop, mode)
    refused(lambda: workshop.build(text), AgentFailure, "'robot'", *MODES[mode])
    assert no_temporaries(workshop)
    parts = workshop.folder / "cache" / "agents" / "robot" / "predictions"
    assert [file.name for file in parts.iterdir()] == ["00000.parquet"]
    kept = workshop.files()
    del kept["agents/robot/agent.json"]  # it learns how many seconds an answer takes
    with pytest.raises(IncompleteCache):
        workshop.cache().require_complete()
    (workshop.folder / "mode").write_text("ok")
    (workshop.folder / "log").unlink()
    assert workshop.build(text).asked == {"model": 0, "expert": 0, "cheap": 0, "robot": 70}
    assert (workshop.folder / "log").read_text().split() == workshop.table["id"].to_list()[50:]
    after = workshop.files()
    assert {name: after[name] for name in kept} == kept
    workshop.cache().verify()


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        ("1 / 0", AgentFailure, "ZeroDivisionError"),
        ("def ask(:", AgentFailure, "SyntaxError"),
        ("", UsageError, "'ask'"),
    ],
)
def test_an_agents_file_that_does_not_run_is_refused_by_name(workshop, content, kind, words):
    text = python_recipe(workshop, "ok")
    (workshop.folder / "agent.py").write_text(content)
    refused(lambda: workshop.build(text), kind, "'robot'", words, "agent.py")
    assert no_temporaries(workshop)
