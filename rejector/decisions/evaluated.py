"""Saved policies judged on a split, from their decisions: rows for people, with paired intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from l2d.data.errors import DataError
from l2d.data.results import Shown
from l2d.rejector.decisions.judged import BASELINES
from l2d.rejector.decisions.saved import SavedPolicy, read_saved
from l2d.rejector.evaluation.intervals import paired_intervals


@dataclass(frozen=True)
class PolicyEvaluations(Shown):
    """Saved policies on one split, a JSON object each."""

    results: list[dict[str, Any]]

    def rows(self) -> list[dict[str, Any]]:
        found = []
        for result in self.results:
            gaps = {
                f"against {name}": f"{gap['value']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]"
                for name, gap in result["regret"].items()
            }
            found.append(
                {
                    "policy": result["policy"],
                    "kind": result["kind"],
                    "deferral loss": result["deferral_loss"],
                    **gaps,
                    "wrong %": None if result["error"] is None else round(100 * result["error"], 2),
                    "price": result["price"],
                    "asked": result["asked"],
                    "no answer %": round(100 * result["abstained"], 2),
                }
            )
        return found

    def to_json(self) -> list[dict[str, Any]]:
        return self.results

    def table(self) -> str:
        from l2d.data.terminal.layout import table_text

        split, count = self.results[0]["split"], self.results[0]["num_samples"]
        return table_text(self.rows(), title=f"{count:,} {split} samples")


def evaluate_policies(paths: Sequence[Path], split: str = "test") -> PolicyEvaluations:
    """Judge saved policies on a split that their decisions cover.

    Raises:
        DataError: a policy was not judged on that split.
    """
    return PolicyEvaluations([evaluate_policy(read_saved(path), split) for path in paths])


def evaluate_policy(policy: SavedPolicy, split: str) -> dict[str, Any]:
    """One policy: ``deferral_loss``, ``regret`` against its baselines with 95 % intervals, shares, price."""
    table = split_of(policy, split)
    loss = _numbers(table, "loss")
    result = policy.facts["result"]
    given = table["answered_by"].is_valid().to_numpy()
    wrong = table["wrong"].fill_null(False).to_numpy()
    known = np.isfinite(loss)
    others = {name: _numbers(table, column) for column, name in BASELINES.items()}
    gaps = {}
    if known.all() and len(loss):
        found = paired_intervals([loss - values for values in others.values()])
        gaps = {name: gap.to_json(test=name != "hindsight") for name, gap in zip(others, found, strict=True)}
    price = _numbers(table, "price")
    names = [*policy.agents, *sorted({*table["answered_by"].drop_null().to_pylist()} - {*policy.agents})]
    shares = {name: float(pc.sum(pc.equal(table["answered_by"], name)).as_py() or 0) / len(table) for name in names}
    return {
        "policy": policy.name, "path": str(policy.path), "run_id": policy.facts["run"]["run_id"], "split": split,
        "kind": result["kind"], "num_samples": len(table),
        "deferral_loss": float(loss[known].mean()) if known.any() else None,
        "oracle_loss": float(others["hindsight"].mean()), "regret": gaps,
        "error": float(wrong[given].mean()) if given.any() and table["wrong"].null_count < len(table) else None,
        "price": float(price.mean()) if np.isfinite(price).all() else None, "unit": result["unit"],
        "asked": float(np.mean(table["num_asked"].to_numpy())), "abstained": float((~given).mean()),
        "allocation": shares, "risks": result["risks"], "confidence": result["confidence"],
    }  # fmt: skip


def split_of(policy: SavedPolicy, split: str) -> pa.Table:
    """The decisions on a split.

    Raises:
        DataError: there are none.
    """
    table = policy.decisions()
    found = table.filter(pc.equal(table["split"], split))
    if not len(found):
        there = ", ".join(sorted(set(table["split"].to_pylist())))
        raise DataError(
            f"this policy was not judged on {split}", where=policy.path, hint=f"it was on {there}; make it with --split"
        )
    return found


def _numbers(table: pa.Table, column: str) -> np.ndarray:
    return table[column].fill_null(np.nan).to_numpy().astype(np.float64)
