"""A calibration as a file: TOML that says what it does, what it rests on, and until when it holds."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from l2d.data.toml import toml_text
from l2d.rejector.calibration import VERSION

if TYPE_CHECKING:
    from l2d.rejector.recalibration.recalibrating import Agent, Recalibration

HEAD = """\
# Corrections of predicted costs, written by `l2d recalibrate`. This file does nothing by itself: review it, edit it,
# and give it to l2d route, serve or watch as --calibration FILE, or to l2d.load_router.
"""
AGENTS = """\
# corrected = intercept + slope * predicted, of an agent's total cost (its query cost included). An agent without an
# entry is left alone. `squared_error` is of the later outcomes; a difference below 0 is better.
"""


def text_of(found: Recalibration) -> str:
    """The file of :func:`l2d.rejector.calibration.read_calibration`, and the evidence for people."""
    one, times = found.calibration, found.times
    lines = [
        HEAD,
        f"version = {VERSION}",
        f"improves = {_value(one.improves)}",
        f"advice = {toml_text(one.advice)}",
        f"valid_from = {_value(one.valid_from)}",
        f"valid_until = {_value(one.valid_until)}",
        "",
        "[run]",
        f"id = {toml_text(one.run_id)}",
        f"digest = {toml_text(one.run)}",
        "",
        "[log]",
        f"path = {toml_text(found.log)}",
        f"digest = {toml_text(found.digest)} # of the ids of its decisions",
        f"fitted = {_value({'from': times[0], 'until': times[1]})}",
        f"judged = {_value({'from': times[2], 'until': times[3]})}",
        "",
        "# What decisions by it would have cost, against those in force, on the later decisions.",
        "[decisions]",
        *(f"{key} = {_value(value)}" for key, value in found.deciding_facts().items()),
        "",
        AGENTS.rstrip(),
    ]
    for agent in found.agents:
        lines += ["", *_entry(found, agent)]
    return "\n".join(lines) + "\n"


def _entry(found: Recalibration, agent: Agent) -> list[str]:
    if agent.correction is None or agent.judged is None:
        return [f"# {agent.name}: {agent.earlier} + {agent.later} outcomes, left alone: {agent.reason}"]
    facts = found.judged_facts(agent.judged)
    lines = [
        "[[agents]]",
        f"name = {toml_text(agent.name)}",
        f"intercept = {_value(agent.correction.intercept)}",
        f"slope = {_value(agent.correction.slope)}",
        f"outcomes = {_value({'fitted': agent.earlier, 'judged': agent.later})}",
        *(f"{key} = {_value(facts[key])}" for key in ("predicted", "paid", "corrected", "squared_error", "shown")),
    ]
    if agent.correction.residual is not None:
        names = ("outcomes", "mean", "error")
        lines.append(f"residual = {_value(dict(zip(names, agent.correction.residual, strict=True)))} # for l2d watch")
    return lines


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds").replace("+00:00", "Z")
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_value(one)}' for key, one in value.items())} }}"
    return str(value) if isinstance(value, int) else toml_text(value)
