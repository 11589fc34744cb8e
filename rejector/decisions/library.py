"""What programs do with policies of the engine: make, save, judge and route."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from l2d.data.cache import store
from l2d.data.errors import UsageError
from l2d.rejector.decisions import making
from l2d.rejector.decisions.judged import DecisionReport, report_of
from l2d.rejector.decisions.reading import read_worlds
from l2d.rejector.decisions.saved import save as save_policy
from l2d.rejector.decisions.wanted import KINDS, Wanted
from l2d.rejector.runs.run import Run


def decide(
    run: Run,
    *,
    wanted: Wanted,
    split: str = "test",
    group: str | None = None,
    kinds: Sequence[str] = tuple(KINDS),
    out: Path | None = None,
    queue: Path | None = None,
    save: Path | None = None,
    overwrite: bool = False,
) -> DecisionReport:
    """Make a policy from a run, and judge it.

    Args:
        run: at the setting wanted.
        wanted: what is asked for.
        split: that it is judged on.
        group: a kept column: promises hold in each of its groups, and intervals resample whole groups.
        kinds: classes of rules that it is compared with.
        out: a Parquet file for the decisions on that split.
        queue: a .parquet or .csv file for the inputs that get no answer, the one to look at first on top.
        save: a folder for the policy.
        overwrite: replace what is there.

    Raises:
        UsageError: an option is wrong, a limit or promise cannot be met (says what could), or a file exists.
    """
    for file in (out, queue):
        if file is not None and file.exists() and not overwrite:
            raise UsageError("this file exists already", where=file, hint="give another name, or type --overwrite")
    if queue is not None and queue.suffix.lower() not in (".parquet", ".csv"):
        raise UsageError("the queue is written as .parquet or .csv", where=queue, hint="give --queue such a name")
    if save is not None and save.exists() and not overwrite:
        raise UsageError("this is there already", where=save, hint="give another name, or type --overwrite")
    made = making.make(read_worlds(run, (split,), group=group), wanted, kinds=kinds)
    report = report_of(made, split)
    if out is not None:
        store.commit_table(out, report.tables[split], {"run_id": run.point.run_id}, replace=overwrite)
    if queue is not None:
        write_queue(report.tables[split], queue, overwrite=overwrite)
    if save is not None:
        save_policy(report, save, overwrite=overwrite)
    return report


def write_queue(table: pa.Table, path: Path, *, overwrite: bool = False) -> int:
    """Write the inputs without an answer in the order in which people should see them. Returns how many."""
    rows = (
        table.filter(table["rank"].is_valid()).sort_by("rank").select(["rank", "sample_id", "expected_cost", "asked"])
    )
    asked = pa.array([" > ".join(path) for path in rows["asked"].to_pylist()], pa.string())
    rows = rows.set_column(3, "asked", asked)
    store.commit_batches(path, rows.schema, iter(rows.to_batches()), {}, replace=overwrite)
    return len(rows)


def policies_among(paths: Any) -> tuple[list[Path], list[Any]]:
    """Folders of policies among some paths, and the rest."""
    from l2d.rejector.decisions.saved import is_policy

    given = [paths] if isinstance(paths, str | Path) else list(paths) if isinstance(paths, list | tuple) else [paths]
    policies = [Path(path) for path in given if isinstance(path, str | Path) and is_policy(Path(path))]
    return policies, [path for path in given if not (isinstance(path, str | Path) and is_policy(Path(path)))]


def runs_or_their(policies: list[Path], runs: list[Any]) -> list[Any]:
    """The runs; where none is given those of the policies, each once."""
    from l2d.rejector.decisions.saved import read_saved

    return runs or list(dict.fromkeys(read_saved(policy).run_path for policy in policies))
