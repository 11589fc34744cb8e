"""The page from import to the first recalibration: all of its Python and commands in order, and the output it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from l2d.cli import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "life_of_a_router.md"
RULE = "─"


def test_a_shown_line_is_compared():
    assert is_shown(" a   1  …", ["a 1 2 3"])
    assert not is_shown(" a   2", ["a 1 2 3"])


def is_shown(line: str, printed: list[str]) -> bool:
    """Whether a line of the page was printed, whatever the blanks; one that ends with … is the beginning of one."""
    words = " ".join(line.split())
    if words.endswith("…"):
        return any(one.startswith(words.removesuffix("…").rstrip()) for one in printed)
    return words in printed


@pytest.mark.slow
def test_the_page_runs_and_prints_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    served: list = []
    monkeypatch.setattr("l2d.rejector.serving.server.serve", lambda run, **options: served.append((run, options)))
    blocks = re.findall(r"```(python|sh|text)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    said: dict = {}
    printed: list[str] = []
    commands, shown = [], 0
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, str(PAGE), "exec"), said)
        elif kind == "sh":
            printed = []
            for line in block.splitlines():
                result = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
                assert result.exit_code == 0, (line, result.stderr)
                printed += [" ".join(one.split()) for one in (result.stdout + result.stderr).splitlines()]
                commands.append(line.split()[1])
        else:
            missing = [line for line in block.splitlines() if RULE not in line and not is_shown(line, ["", *printed])]
            assert missing == []
            shown += 1
    life = ["import", "sweep", "report", "serve", "watch", "replay", "recalibrate", "route", "serve", "add-agent"]
    assert commands == [*life, "add-agent", "extend", "sweep"]
    assert shown == 8
    assert [options["calibration"] for _, options in served] == [None, Path("calibration.toml")]
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")[:200]
