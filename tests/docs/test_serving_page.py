"""The page about routers: its Python and its commands do what it says, one after another."""

from __future__ import annotations

import io
import re
import shlex
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import polars as pl

import l2d as library

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("l2d ")
]


def test_everything_on_the_page_runs(patient_runs, tmp_path, monkeypatch, l2d):
    (tmp_path / "runs").mkdir()
    shutil.copytree(patient_runs / "best", tmp_path / "runs" / "best")
    monkeypatch.chdir(tmp_path)
    alone, several = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    told: dict = {}
    with redirect_stdout(io.StringIO()) as printed:
        exec(alone, told)
    assert told["decision"].reason in printed.getvalue()
    (decided,) = library.read_log("decisions").decisions.to_dicts()
    assert (decided["id"], decided["took"]) == (told["decision"].id, 2.5)

    exec(several, later := {"l2d": library})
    assert later["decision"].answered_by
    assert library.read_log("answers").steps.height == len(later["decision"].asked)

    rows = pl.read_parquet(patient_runs / "patients.parquet").to_dicts()
    shutil.rmtree("decisions")
    router = library.load_router("runs/best", explore=0.5, seed=0, log="decisions", shadow=patient_runs / "linear")
    for row in rows:
        router.feedback(router.route(row), 0.5)
    router.close()
    router.log.close()
    served: list = []
    monkeypatch.setattr("l2d.rejector.serving.server.serve", lambda run, **options: served.append((run, options)))
    assert [command[0] for command in COMMANDS] == ["serve", "replay", "watch", "recalibrate", "serve", "watch"]
    for command in COMMANDS:
        code, _, err = l2d(*command)
        if "--calibration" in command and command[0] == "watch":  # nothing was decided by it, as serve is not run here
            assert "no decision of that run" in err
            continue
        assert code == 0, err
    assert served[1][1]["calibration"] == Path("calibration.toml")
    run, options = served[0]
    assert (run, options["log"], options["explore"]) == (Path("runs/best"), Path("decisions"), 0.02)
