"""`evaluate` and `report`: how they grow with agents and rows, beside a plain numpy program on the same files.

    python benchmarks/evaluating.py [--agents 50,500] [--samples 5000] [--long 2000000]
    python benchmarks/evaluating.py --long 0          # agents alone

The plain program reads the same cost parts with pyarrow, scores the features with numpy, and compares the rejector with
each agent by means of per-sample differences and 95 % intervals: a bootstrap of 10,000 resamples (multinomial counts,
then a matrix product), normal from 200,000 samples on, as in l2d. It checks no checksum, groups nothing and corrects
nothing. Each step in a process of its own, after its imports; the two have to agree on every mean. CPU seconds are of
all threads; ratios are taken within a round, and the table shows medians.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from targets import print_targets

WIDTH, RESAMPLES, NORMAL_FROM = 8, 10_000, 200_000
BETAS = (0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
SWEPT = (12_000, 29)  # rows and agents of a table on which a sweep's training is set against the rest of it


def make(folder: Path, samples: int, agents: int) -> None:
    """Tables of scores, their cache, and two runs trained on few rows."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(samples, WIDTH)).astype(np.float32)
    ids = pl.Series("id", [f"s{row:08d}" for row in range(samples)])
    columns = {f"x{column}": x[:, column] for column in range(WIDTH)}
    site = generator.choice(["north", "south", "east", "west"], samples)
    pl.DataFrame({"id": ids, "site": site, **columns}).write_parquet(folder / "features.parquet")
    answers = {}
    for agent in range(agents):
        mean = generator.uniform(0.3, 0.9) + x @ generator.normal(size=WIDTH).astype(np.float32) * 0.05
        noise = 0.1 * generator.normal(size=samples)
        answers[f"agent_{agent}_score"] = (mean + noise).clip(0, 1).astype(np.float32)
    pl.DataFrame({"id": ids, **answers}).write_parquet(folder / "answers.parquet")
    commands = (
        ["import", "scores", "features.parquet", "answers.parquet", "--id", "id", "--reg", "{}_score"],
        ["sweep", "cache", "--method", "multi-task", "--rejector", "linear", "--epochs", "1", "--seeds", "2",
         "--train-rows", "1000", "--format", "json"],
    )  # fmt: skip
    for words, out in zip(commands, ("cache", "runs"), strict=True):
        command = [sys.executable, "-m", "l2d.cli", *words, "--out", out]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def with_l2d(folder: Path) -> dict[str, float]:
    """Mean differences to every agent of the first run."""
    from l2d.rejector.evaluation.evaluate import evaluate_runs
    from l2d.rejector.runs.files import find_runs

    evaluations = evaluate_runs(find_runs(folder / "runs")[:1])
    agents = evaluations[0].result["over_seeds"]["agents"]
    return {name: found["value"] for name, found in agents.items()}


def plainly(folder: Path) -> dict[str, float]:
    """The same by pyarrow and numpy."""
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file

    cache = folder / "cache"
    record = json.loads((cache / "cache.json").read_text())
    names = record["agents"]
    samples = [
        pq.read_table(part, columns=["split", "features"]) for part in sorted((cache / "samples").glob("*.parquet"))
    ]
    here = [np.asarray(part["split"].to_pylist()) == "test" for part in samples]
    width = record["inputs"]["features"]["width"]
    features = np.concatenate(
        [
            part["features"].combine_chunks().flatten().to_numpy().reshape(-1, width)[rows]
            for part, rows in zip(samples, here, strict=True)
        ]
    )
    rows = np.concatenate(here)
    costs = np.empty((len(features), len(names)), np.float32)
    for position, name in enumerate(names):
        parts = sorted((cache / "agents" / name).glob("costs-*/*.parquet"))
        column = np.concatenate([pq.read_table(part, columns=["cost_reg"])["cost_reg"].to_numpy() for part in parts])
        costs[:, position] = column[rows]
    run = sorted(path for path in (folder / "runs").iterdir() if (path / "run.json").is_file())[0]
    state = load_file(run / "rejector.safetensors")
    scores = (features - state["feature_mean"]) / state["feature_std"] @ state["weight"].T + state["bias"]
    chosen = costs[np.arange(len(costs)), scores.argmax(axis=1)].astype(np.float64)
    differences = chosen[:, None] - costs
    means, count = differences.mean(axis=0), len(differences)
    if count >= NORMAL_FROM:
        errors = 1.96 * differences.std(axis=0, ddof=1) / math.sqrt(count)
        intervals = np.stack([means - errors, means + errors])
    else:
        generator, found = np.random.default_rng(0), []
        columns = np.ascontiguousarray(differences - means, dtype=np.float32)
        for start in range(0, RESAMPLES, 50):
            block = range(start, min(start + 50, RESAMPLES))
            counts = np.stack([np.bincount(generator.integers(0, count, count), minlength=count) for _ in block])
            found.append(counts.astype(np.float32) @ columns / count)
        intervals = means + np.quantile(np.concatenate(found), [0.025, 0.975], axis=0)
    assert (intervals[0] <= means).all()
    return dict(zip(names, means.tolist(), strict=True))


def report(folder: Path) -> dict[str, float]:
    """The page of both runs; its size in MB."""
    from l2d.rejector.evaluation.evaluate import evaluate_runs
    from l2d.rejector.report.page import write_report
    from l2d.rejector.runs.files import find_runs

    write_report(evaluate_runs(find_runs(folder / "runs")), folder / "report.html")
    return {"page_mb": (folder / "report.html").stat().st_size / 1e6}


def swept(folder: Path) -> dict[str, float]:
    """Seven betas by the default method, and the table that a sweep ends with: seconds of training, and of the rest."""
    from l2d import evaluate, sweep

    betas = [{f"agent_{agent}": beta for agent in range(1, SWEPT[1])} for beta in BETAS]  # the table prices nothing
    begun = time.perf_counter()
    runs = sweep(folder / "cache", folder / "best", betas=betas)
    evaluate(runs)
    return {"training": runs.seconds, "rest": time.perf_counter() - begun - runs.seconds}


STEPS = {"evaluate": with_l2d, "plain": plainly, "report": report, "sweep": swept}


def alone(step: str, folder: Path) -> dict:
    """One step, in this process: what it found, CPU and wall seconds after imports, peak memory."""
    import altair  # noqa: F401
    import duckdb  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch  # noqa: F401

    import l2d.rejector.report.page  # noqa: F401

    before, start = time.process_time(), time.perf_counter()
    found = STEPS[step](folder)
    times = {"cpu": time.process_time() - before, "wall": time.perf_counter() - start}
    return {"found": found, **times, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure(step: str, folder: Path) -> dict:
    """:func:`alone` in a process of its own."""
    command = [sys.executable, __file__, "--alone", step, str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", default="50,500")
    parser.add_argument("--samples", type=int, default=25_000, help="Rows of the table; a fifth is evaluated.")
    parser.add_argument("--long", type=int, default=2_000_000, help="Rows of the long table of 4 agents; 0: none.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", nargs=2, metavar=("STEP", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(alone(options.alone[0], Path(options.alone[1]))))
        return
    from l2d.data.terminal.render import print_rows

    sizes = [(options.samples, int(agents)) for agents in options.agents.split(",")]
    sizes += [(options.long, 4)] if options.long else []
    rows, ratios, cpu, report_mib = [], {}, {}, 0.0
    for samples, agents in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            make(folder, samples, agents)
            steps = ["evaluate", "plain", *(["report"] if samples == options.long else [])]
            rounds = [{step: measure(step, folder) for step in steps} for _ in range(options.rounds)]
        for found in rounds:
            ours, theirs = (found[step]["found"] for step in ("evaluate", "plain"))
            assert all(math.isclose(ours[name], theirs[name], abs_tol=2e-6) for name in theirs)
        for step in steps:
            middle = {key: statistics.median(found[step][key] for found in rounds) for key in ("cpu", "wall", "mib")}
            ratio = statistics.median(found[step]["cpu"] / found["plain"]["cpu"] for found in rounds)
            cpu[step, samples, agents] = middle["cpu"]
            report_mib = middle["mib"] if step == "report" else report_mib
            ratios[f"{step}, {samples} x {agents}, CPU by plain's"] = round(ratio, 2)
            rows.append(
                {"step": step, "rows": f"{samples:,}", "agents": str(agents), "CPU s": f"{middle['cpu']:.1f}",
                 "wall s": f"{middle['wall']:.1f}", "peak MiB": f"{middle['mib']:,.0f}", "x plain": f"{ratio:.2f}"}
            )  # fmt: skip
        if "report" in steps:
            ratios["page, MB"] = round(rounds[0]["report"]["found"]["page_mb"], 2)
    counts = [int(agents) for agents in options.agents.split(",")]
    for step in ("evaluate", "plain"):
        growth = cpu[step, options.samples, counts[-1]] / cpu[step, options.samples, counts[0]]
        ratios[f"{step}, growth for {counts[-1] / counts[0]:g}x the agents"] = round(growth, 2)
    print_rows(rows, title="Evaluating")
    rests = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            make(Path(scratch), *SWEPT)
            found = measure("sweep", Path(scratch))["found"]
            rests.append(found["rest"] / found["training"])
            print(
                f"sweep of 7 betas, {SWEPT[1]} agents: {found['training']:.1f} s training, {found['rest']:.1f} s else"
            )
    grown = ratios[f"evaluate, growth for {counts[-1] / counts[0]:g}x the agents"]
    of_many = cpu["evaluate", options.samples, counts[-1]]
    lines = [
        (
            f"evaluate, {counts[0]} -> {counts[-1]} agents",
            "processor, times",
            grown,
            "<=",
            1.1 * counts[-1] / counts[0],
        ),
        (f"evaluate, {counts[-1]} agents", "processor, s", of_many, "<=", 4.0),
        (f"sweep, {SWEPT[1]} agents x {SWEPT[0]:,} rows", "all but training / it", statistics.median(rests), "<=", 0.5),
    ]
    if options.long:
        lines += [
            (f"evaluate, {options.long:,} rows", "processor, s", cpu["evaluate", options.long, 4], "<=", 10.0),
            (f"report, {options.long:,} rows, 2 runs", "processor, s", cpu["report", options.long, 4], "<=", 20.0),
            (f"report, {options.long:,} rows, 2 runs", "MiB", report_mib, "<=", 1024.0),
            ("report, its page", "MB", ratios["page, MB"], "<=", 1.5),
        ]
    print_targets(lines)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
