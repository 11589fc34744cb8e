"""A policy as a folder: complete or absent, bound to the run that it was made from.

::

    POLICY/policy.json          the rule, what was asked for, the run and its setting, what it gave
    POLICY/decisions.parquet    a row a sample: who was asked in turn, what was answered, what it cost; its baselines

Reading one takes numpy, not torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from l2d.data.cache import store
from l2d.data.cache.integrity import sha256_of, skeleton_digest
from l2d.data.errors import CorruptPart, DataError, UsageError
from l2d.rejector.decisions.rule import Rule, rule_from_json, rule_to_json
from l2d.rejector.runs.files import DECISIONS_FILE, POLICY_FILE, RUN_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from l2d.rejector.decisions.judged import DecisionReport

FORMAT = "l2d policy 1"


@dataclass(frozen=True)
class SavedPolicy:
    """A policy read back.

    Attributes:
        path: its folder.
        facts: all that ``policy.json`` says.
        rule: what decides.
        run_path: where its run lies.
        setting: query costs, task weights and worth of money that the run's predictions are taken at.
    """

    path: Path
    facts: dict[str, Any]
    rule: Rule
    run_path: Path
    setting: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def cache_path(self) -> str:
        """The cache of its run, wherever both lie now: a path or an address."""
        from l2d.rejector.runs.files import cache_of, read_facts

        return place(cache_of(self.run_path, read_facts(self.run_path)))

    @property
    def agents(self) -> list[str]:
        return self.rule.agents

    def decisions(self) -> pa.Table:
        """The samples' decisions, checksums verified.

        Raises:
            CorruptPart: the file is damaged.
        """
        return store.read_table(self.path / DECISIONS_FILE)


def place(path: Path | str) -> str:
    """A path from the root, or an address as it is."""
    return path if isinstance(path, str) else str(path.resolve())


def is_policy(path: Path) -> bool:
    """Whether a policy's folder, or the ``policy.json`` in it, is here."""
    folder = path.parent if path.name == POLICY_FILE else path
    return (folder / POLICY_FILE).is_file() and (folder / DECISIONS_FILE).is_file()


def save(report: DecisionReport, path: Path, *, overwrite: bool = False) -> None:
    """Write a policy as a folder.

    Raises:
        UsageError: something is there already.
    """
    if path.exists() and not (overwrite and is_policy(path)):
        raise UsageError("this is there already", where=path, hint="give another name, or type --overwrite")
    run = report.made.read.run
    table, predictor = pa.concat_tables(report.tables.values()), report.made.read.predictor
    facts = {
        "format": FORMAT,
        "name": path.name,
        "run": {
            "path": str(run.path.resolve()), "relative_path": os.path.relpath(run.path.resolve(), path.resolve()),
            "run_id": run.point.run_id, "weights": sha256_of(run.path / WEIGHTS_FILE),
        },
        "cache": {"path": place(run.cache_path), "name": report.made.read.cache.record.name},
        "setting": {
            "query_costs": list(run.point.query_costs), "lambda": dict(run.point.weights.by_task),
            "cost": run.point.cost, "paid": run.point.paid,
        },
        "classes": list(report.made.read.cache.record.classes),
        "rule": rule_to_json(report.made.policy),
        "predictor": None if predictor is None else vars(predictor),
        "mean_charges": report.made.read.fit.charges.mean(axis=0).tolist(),
        "result": report.result,
    }  # fmt: skip

    def fill(folder: Path) -> None:
        store.commit_table(folder / DECISIONS_FILE, table, {"policy": path.name})
        digest = skeleton_digest(folder / DECISIONS_FILE)
        store.commit_json(folder / POLICY_FILE, store.plain({**facts, "digests": {DECISIONS_FILE: digest}}))

    store.commit_folder(path, fill, replace=overwrite)


def read_saved(path: Path) -> SavedPolicy:
    """Read a policy back.

    Args:
        path: its folder, or the ``policy.json`` in it.

    Raises:
        UsageError: there is none.
        DataError: it is not one, or of another version.
        CorruptPart: its files do not belong together.
    """
    folder = path.parent if path.name == POLICY_FILE else path
    file = folder / POLICY_FILE
    if not is_policy(folder):
        raise UsageError(
            "there is no policy here", where=path, hint="make one: l2d policy RUN --ask cascade --save FOLDER"
        )
    facts = store.read_json(file)
    try:
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']!r}")
        rule, digest = rule_from_json(facts["rule"]), facts["digests"][DECISIONS_FILE]
        place, setting = facts["run"], facts["setting"]
        relative = (folder / place["relative_path"]).resolve()
        run_path = relative if (relative / RUN_FILE).is_file() else Path(place["path"])
        known = {"run_id", "weights"} <= set(place)
        if not known or not isinstance(facts["result"], dict):
            raise ValueError("it names no run")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"is not a policy of this version: {error}", where=file, hint="make it again: l2d policy … --save"
        ) from error
    if skeleton_digest(folder / DECISIONS_FILE) != digest:
        raise CorruptPart(
            "is not the file that was written", where=folder / DECISIONS_FILE, hint="make the policy again"
        )
    return SavedPolicy(folder, facts, rule, run_path, setting)


def check_run(policy: SavedPolicy, run_path: Path) -> None:
    """Refuse another run than the policy's.

    Raises:
        UsageError: it is another, or was trained again.
    """
    file = run_path / WEIGHTS_FILE
    if not file.is_file():
        raise UsageError(
            "the policy's run is not there any more", where=run_path, hint="move it back, or give the run: --run RUN"
        )
    if sha256_of(file) != policy.facts["run"]["weights"]:
        raise UsageError(
            f"this policy is of run {policy.facts['run']['run_id']}, or of an earlier training of it",
            where=policy.path,
            hint="what it knows means nothing for other predictions: make it again with l2d policy",
        )
