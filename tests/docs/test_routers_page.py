"""The commands of docs/routers.md, each run on the published table that it names, as it lies there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from l2d.cli import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "routers.md"
PUBLISHED = next(
    (folder / "shared/data" for folder in Path(__file__).resolve().parents if (folder / "shared/data").is_dir()), None
)


def commands() -> dict[str, list[list[str]]]:
    """Cache -> the commands about it, in the page's order."""
    text = PAGE.read_text(encoding="utf-8")
    found: dict[str, list[list[str]]] = {}
    for block in re.findall(r"```sh\n(.*?)```", text, flags=re.S):
        for line in block.splitlines():
            name = re.search(r"(\w+)\.(?:cache|runs)\b", line)
            assert line.startswith("l2d ") and name, line  # noqa: PT018
            found.setdefault(name[1], []).append(shlex.split(line)[1:])
    return found


def test_the_page_names_every_table():
    assert set(commands()) == {"routerbench", "mmlu_pro", "llmrouter", "routerarena"}


@pytest.mark.skipif(PUBLISHED is None, reason="published tables are not here")
@pytest.mark.parametrize("name", sorted(commands()))
def test_each_command_runs_on_the_table_as_it_was_published(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for command in commands()[name]:
        files = [str(PUBLISHED / word) if (PUBLISHED / word).is_file() else word for word in command]
        result = CliRunner().invoke(app, files, catch_exceptions=False)
        assert result.exit_code == 0, (command, result.stderr)
    assert Path(f"{name}.html").stat().st_size > 10_000
    result = CliRunner().invoke(app, ["evaluate", f"{name}.runs", "--format", "json"], catch_exceptions=False)
    evaluations = json.loads(result.stdout)
    evaluations = evaluations if isinstance(evaluations, list) else [evaluations]
    assert all("router_metrics" in each for each in evaluations)
    if name == "routerbench":
        assert Path("routerbench.png").is_file()
        assert evaluations[0]["router_metrics"]["sweep"]["best"]["aiq"] > 0.8
