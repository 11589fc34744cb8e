"""The commands and the Python of docs/beyond_one_agent.md, run in order, and the table that the page shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from l2d.cli import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "beyond_one_agent.md"


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    commands = [line for block in re.findall(r"```sh\n(.*?)```", text, flags=re.S) for line in block.splitlines()]
    assert len(commands) >= 7
    shown = re.search(r"```text\n(.*?)```", text, flags=re.S)
    assert shown is not None
    for command in commands:
        assert command.startswith("l2d ")
        result = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
        assert result.exit_code == 0, (command, result.stderr)
        if "--ask cascade --depth" in command:
            rows = [line.split() for line in shown[1].splitlines() if "router  " in line or "policy (" in line]
            for row in rows:
                assert row[-5:] in [line.split()[-5:] for line in result.stdout.splitlines()], row
    assert {"ask"} == set(pl.read_csv("first_round.csv")["action"])
    assert len(pl.read_csv("queue.csv")) > 10
    page = Path("report.html").read_text(encoding="utf-8")
    assert "Beyond one agent: cascade, promised" in page
    assert Path("worth.png").stat().st_size > 10_000
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.S):
        exec(compile(block, str(PAGE), "exec"), {})
