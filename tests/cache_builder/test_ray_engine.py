"""Stage one on a local Ray cluster of two workers: the bytes of a local build, with a worker killed on the way too."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from recipes import RECIPE

pytestmark = pytest.mark.slow

pytest.importorskip("ray")

AGENT = """
import os
import time
from pathlib import Path

import numpy as np


def ask(batch, folder, seconds):
    with open(Path(folder, "asked"), "a") as file:
        file.writelines(f"{os.getpid()} {sample}\\n" for sample in batch.ids)
    time.sleep(seconds)
    if Path(folder, "fail").is_file() and "p0070" in batch.ids:
        raise ConnectionError("overloaded")
    risk = batch.columns["risk_good"].to_numpy()
    return {"prob": np.stack([1 - risk, risk], axis=1), "reg": batch.columns["stay_good"].to_numpy()}
"""
# Builds on a cluster of two workers, and kills one that has been asked about some samples if it is told to.
SCRIPT = """
import json, os, signal, sys, threading, time
from pathlib import Path

from l2d.cache_builder.builder import build
from l2d.cache_builder.engines.ray import ray_engine
from l2d.cache_builder.recipe import load_recipe
from l2d.data.errors import L2DError
import ray

folder, kill = Path(sys.argv[1]), sys.argv[2] == "kill"
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
killed = []


def kill_one():
    while not killed:
        time.sleep(0.05)
        asked = Path(folder, "asked").read_text().split("\\n") if Path(folder, "asked").is_file() else []
        if len(asked) > 30:
            killed.append(int(asked[0].split()[0]))
            os.kill(killed[0], signal.SIGKILL)


if kill:
    threading.Thread(target=kill_one, daemon=True).start()
try:
    recipe, engine = load_recipe(str(folder / "recipe.toml")), ray_engine(workers=2)
    report = build(recipe, folder / "spread", device="cpu", engine=engine)
    print(json.dumps({"asked": report.asked, "failed": report.failed, "killed": killed}))
except L2DError as error:
    print(json.dumps({"error": type(error).__name__, "what": error.what}))
"""


@pytest.fixture
def spread(workshop):
    """Builds on a cluster in a process of its own; returns what that says."""
    (workshop.folder / "agent.py").write_text(AGENT)
    entries = f"""
[[agents]]
name = "slow"
kind = "python"
file = "agent.py"
options = {{ folder = "{workshop.folder}", seconds = 0.1 }}

[[agents]]
name = "both"
kind = "average"
of = ["expert", "slow"]
reference = true
"""
    workshop.text = RECIPE.replace("chunk_size = 50", "chunk_size = 10") + entries

    def run(mode: str) -> dict:
        (workshop.folder / "asked").unlink(missing_ok=True)
        workshop.recipe(workshop.text)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        command = [sys.executable, "-c", SCRIPT, str(workshop.folder), mode]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))

    return run


def contents(workshop, out: str) -> dict[str, object]:
    """Every file, but for the seconds that an answer took."""
    found = {name: content for name, (_, content) in workshop.files(out).items()}
    for name in found:
        if name.endswith("agent.json"):
            record = json.loads(found[name])
            found[name] = {key: value for key, value in record.items() if key not in ("seconds", "sha256_of_the_above")}
    return found


def test_a_worker_that_is_killed_costs_no_row_and_doubles_none(workshop, spread):
    workshop.build(workshop.text, "whole")
    (workshop.folder / "asked").unlink()
    said = spread("kill")
    assert said["killed"]
    pids = {line.split()[0] for line in (workshop.folder / "asked").read_text().splitlines()}
    assert len(pids) == 3  # two workers, and the one that took a dead one's place
    assert contents(workshop, "whole") == contents(workshop, "spread")
    workshop.cache("spread").verify()
    assert workshop.column("predictions", "sample_id", "slow", "spread").tolist() == workshop.table["id"].to_list()


def test_an_agent_that_fails_stops_the_build_and_what_is_finished_is_kept(workshop, spread):
    workshop.build(workshop.text, "whole")
    (workshop.folder / "fail").touch()
    said = spread("run")
    assert said["error"] == "AgentFailure"
    assert "overloaded" in said["what"]
    (workshop.folder / "fail").unlink()
    report = workshop.build(workshop.text, "spread")  # this process goes on where the cluster stopped
    assert 0 < report.asked["slow"] < 120
    assert contents(workshop, "whole") == contents(workshop, "spread")
