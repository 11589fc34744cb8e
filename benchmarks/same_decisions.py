"""Whether a router decides as `l2d route` does on every row of real tables: the bits of all scores, and the agent.

The tables lie in `shared/data` beside the repository, imported as docs/routers.md shows; a run of the default method on
each. Rows go to the router as programs have them, through JSON where JSON has their types; `l2d route` reads the file.

python benchmarks/same_decisions.py
python benchmarks/same_decisions.py --only viper
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from league_tables import shared_data

import l2d
from l2d.data.terminal.render import print_rows


@dataclass(frozen=True)
class Table:
    """A table: the file and what follows `l2d import`, as docs/routers.md has it, and what tells its inputs apart."""

    file: str
    kind: str
    options: str
    ids: list[str]


LABELS = "--annotator readerID --target cancerStatus365 --cla recall --label 1=1 --label 2=0 --model reader01"
TABLES = {
    "routerbench": Table("routerbench_0shot_subset_wide.parquet", "scores", "--id sample_id", ["sample_id"]),
    "llmrouter": Table(
        "llmrouter_scores_wide.parquet", "scores", "--id sample_id --features task,cluster_id", ["sample_id"]
    ),
    "viper": Table(
        "viper/viperObs.csv", "predictions",
        f"--id caseID,modalityID,subStudyLabel {LABELS} --features modalityID,subStudyLabel",
        ["caseID", "modalityID", "subStudyLabel"],
    ),
}  # fmt: skip


def compared(name: str, data: Path, folder: Path) -> dict:
    """One table: rows, and in how many of them anything differs."""
    one, cache = TABLES[name], folder / f"{name}.cache"
    command = [sys.executable, "-m", "l2d.cli", "import", one.kind, data / one.file, *one.options.split()]
    subprocess.run([*command, "--out", cache], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    file = data / one.file
    table = pl.read_parquet(file) if file.suffix == ".parquet" else pl.read_csv(file, infer_schema_length=None)
    table = table.unique(one.ids, keep="first", maintain_order=True)  # a row an input, not an answer
    l2d.train(cache, folder / name, guard=0.0)
    source, out = folder / f"{name}.parquet", folder / f"{name}.out.parquet"
    table.write_parquet(source)
    l2d.route(folder / name, source, out, overwrite=True)
    routed, router = pl.read_parquet(out), l2d.load_router(folder / name)
    rows = table.select(router.columns).to_dicts()
    started = time.process_time()
    decisions = [router.route(json.loads(json.dumps(row))) for row in rows]
    took = time.process_time() - started
    scores = routed.select(pl.col("^score_.*$")).to_numpy()
    other = [(one.scores != score).any() for one, score in zip(decisions, scores, strict=True)]
    agents = [one.agent != agent for one, agent in zip(decisions, routed["agent"], strict=True)]
    return {
        "table": name, "rows": len(rows), "agents": len(router.agents), "agents chosen": routed["agent"].n_unique(),
        "rows with other bits": int(np.sum(other)), "rows with another agent": int(np.sum(agents)),
        "processor ms a row": 1000 * took / len(rows),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=TABLES, action="append", help="repeatable; default: all")
    asked, data = parser.parse_args(), shared_data()
    if data is None:
        sys.exit("there is no shared/data beside the repository")
    folder = Path(tempfile.mkdtemp())
    try:
        rows = [compared(name, data, folder) for name in asked.only or TABLES]
    finally:
        shutil.rmtree(folder)
    print_rows(rows)
    different = sum(row["rows with other bits"] + row["rows with another agent"] for row in rows)
    print(json.dumps({"rows": sum(row["rows"] for row in rows), "different": different}))


if __name__ == "__main__":
    main()
