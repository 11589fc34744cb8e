"""Policies and what agents are worth, as SQL sees them: ``policies``, ``decisions``, ``agent_values``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from l2d.data.cache import store
from l2d.data.errors import CorruptPart
from l2d.rejector.runs.files import DECISIONS_FILE, WORTH_FILE
from l2d.rejector.sql.files import Part

_TEXT, _NUMBER = pa.string(), pa.float64()
_CONSTANT = pa.dictionary(pa.int32(), pa.string())

POLICY_VIEWS: dict[str, dict[str, pa.DataType]] = {
    "policies": {"policy": _TEXT, "run_id": _TEXT, "cache": _TEXT, "kind": _TEXT, "depth": pa.int64(), "combine": _TEXT,
                 "abstain": _NUMBER, "budget": _NUMBER, "unit": _TEXT, "risks": _TEXT, "confidence": _NUMBER,
                 "threshold": _NUMBER, "split": _TEXT, "deferral_loss": _NUMBER, "against_router": _NUMBER,
                 "against_router_low": _NUMBER, "against_router_high": _NUMBER, "error": _NUMBER, "price": _NUMBER,
                 "asked": _NUMBER, "abstained": _NUMBER, "path": _TEXT},
    "decisions": {"policy": _CONSTANT, "run_id": _CONSTANT, "sample_id": _TEXT, "split": _TEXT,
                  "asked": pa.list_(_TEXT), "answered_by": _TEXT, "loss": _NUMBER},
    "agent_values": {
        "run_id": _TEXT, "policy": _TEXT, "cache": _TEXT, "split": _TEXT, "agent": _TEXT, "alone": _NUMBER,
        "share": _NUMBER,
        "charge": _NUMBER, "without": _NUMBER, "without_low": _NUMBER, "without_high": _NUMBER, "shapley": _NUMBER,
        "shapley_low": _NUMBER, "shapley_high": _NUMBER, "break_even": _NUMBER, "break_even_low": _NUMBER,
        "break_even_high": _NUMBER,
        "break_even_money": _NUMBER, "verdict": _TEXT,
    },
}  # fmt: skip


def policy_of(folder: Path, name: str) -> tuple[dict[str, Any], Part]:
    """The row of a saved policy, and the file of its decisions."""
    from l2d.rejector.decisions.saved import read_saved  # here, since most folders have no policy

    saved = read_saved(folder)
    result = saved.facts["result"]
    own = next(way for way in result["ways"] if way["way"].startswith("policy"))
    gap = own["against_router"] or {}
    row = {
        "policy": name, "run_id": saved.facts["run"]["run_id"], "cache": saved.facts["cache"]["name"],
        "kind": result["kind"], "depth": result["depth"], "combine": result["combine"], "abstain": result["abstain"],
        "budget": result["budget"], "unit": result["unit"], "risks": ", ".join(result["risks"]) or None,
        "confidence": result["confidence"], "threshold": saved.rule.above, "split": result["split"],
        "deferral_loss": own["loss"], "against_router": gap.get("value"), "against_router_low": gap.get("low"),
        "against_router_high": gap.get("high"), "error": own["error"], "price": own["price"], "asked": own["asked"],
        "abstained": own["abstained"], "path": str(folder),
    }  # fmt: skip
    file = folder / DECISIONS_FILE
    columns = pq.read_schema(file).remove_metadata()
    constants: dict[str, str | int] = {"policy": name, "run_id": row["run_id"]}
    return row, Part(file, columns, constants, saved.facts["digests"][DECISIONS_FILE])


def worth_rows(folder: Path) -> list[dict[str, Any]]:
    """A row an agent of what ``l2d worth --save`` wrote.

    Raises:
        CorruptPart: the file is not one.
    """
    found = store.read_json(folder / WORTH_FILE)
    try:
        rows = []
        for agent in found["agents"]:
            row = {
                "run_id": found["run_id"],
                "policy": found.get("policy"),
                "cache": found["cache"],
                "split": found["split"],
            }
            row |= {name: agent[name] for name in ("agent", "alone", "share", "charge", "break_even", "verdict")}
            for name in ("without", "shapley"):
                interval = agent[name] or {}
                row |= {
                    name: interval.get("value"),
                    f"{name}_low": interval.get("low"),
                    f"{name}_high": interval.get("high"),
                }
            row |= {name: agent.get(name) for name in ("break_even_low", "break_even_high")}
            worth = found["worth_of_money"]
            row["break_even_money"] = row["break_even"] / worth if worth else None
            rows.append(row)
        return rows
    except (KeyError, TypeError) as error:
        raise CorruptPart(
            f"is not what l2d worth wrote: {error}", where=folder / WORTH_FILE, hint="make it again"
        ) from error
