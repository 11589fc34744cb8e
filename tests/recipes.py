"""Recipes for tests, made of values: a test says what it changes, and a change that changes nothing is an error.

RECIPE.but({"costs.reg.clamp": 4.0, "agents.expert.reg": "stay", "dataset.keep": None})  # None: without that key
RECIPE.plus(agent("ann", "table", file="votes.csv", cla="vote"))
RECIPE.only("model", "expert")
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

Values = dict[str, Any]


def agent(name: str, kind: str, **keys: Any) -> Values:
    """An entry of ``[[agents]]``."""
    return {"name": name, "kind": kind, **keys}


def changed(values: Values, changes: Values) -> Values:
    """A copy with other values; None takes a key away.

    Raises:
        AssertionError: a change that would change nothing.
    """
    found = dict(values)
    for key, value in changes.items():
        assert found.get(key) != value, f"{key} is {value!r} already"
        if value is None:
            del found[key]
        else:
            found[key] = value
    return found


class Recipe(str):
    """A recipe: text to write to a file, made of values that can be changed."""

    values: Values

    def __new__(cls, values: Values) -> Recipe:
        made = super().__new__(cls, _toml(values))
        made.values = copy.deepcopy(values)
        return made

    def but(self, changes: Values) -> Recipe:
        """Other values, by dotted keys; agents go by name: ``agents.expert.price``. None takes a key away.

        Raises:
            AssertionError: a change that would change nothing.
        """
        values = copy.deepcopy(self.values)
        for place, value in changes.items():
            *path, key = place.split(".")
            table: Any = values
            for step in path:
                named = isinstance(table, list)
                table = next(one for one in table if one["name"] == step) if named else table.setdefault(step, {})
            assert table.get(key) != value, f"{place} is {value!r} already"
            if value is None:
                del table[key]
            else:
                table[key] = value
        return Recipe(values)

    def plus(self, *agents: Values) -> Recipe:
        """With more agents at the end."""
        return Recipe({**self.values, "agents": [*self.values.get("agents", []), *agents]})

    def only(self, *names: str) -> Recipe:
        """With these agents alone, in this order; without any if none is named."""
        by_name = {one["name"]: one for one in self.values["agents"]}
        return Recipe({**self.values, "agents": [by_name[name] for name in names]})

    def without(self, *names: str) -> Recipe:
        """Without these agents."""
        return self.only(*(one["name"] for one in self.values["agents"] if one["name"] not in names))


def _toml(values: Values) -> str:
    """Tables of a recipe as TOML: costs have headings of their own, tables further inside are written inline."""
    blocks = [_lines({key: value for key, value in values.items() if not isinstance(value, dict | list)})]
    for name, table in values.items():
        if name == "costs":
            blocks += [f"[costs.{task}]\n{_lines(cost)}" for task, cost in table.items()]
        elif isinstance(table, dict):
            blocks.append(f"[{name}]\n{_lines(table)}")
    blocks += [f"[[agents]]\n{_lines(one)}" for one in values.get("agents", [])]
    return "\n".join(blocks)


def _lines(table: Values) -> str:
    return "".join(f"{_key(key)} = {_value(value)}\n" for key, value in table.items())


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isascii() and key.isidentifier() else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


#: The small table of ``conftest.write_table`` or ``conftest.patients``.
PATIENTS: dict[str, Any] = {
    "kind": "table",
    "path": "patients.parquet",
    "id": "id",
    "target_cla": "died",
    "classes": ["no", "yes"],
    "target_reg": "stay",
    "features": ["x1", "x2", "ward"],
    "keep": ["ward"],
}

#: Three column agents over it.
RECIPE = Recipe(
    {
        "dataset": {
            **PATIENTS,
            "split": {"stratify": ["died"]},
        },
        "costs": {"cla": {"kind": "zero_one"}, "reg": {"kind": "smooth_l1", "clamp": 5.0}},
        "defaults": {"lambda": {"cla": 1.0, "reg": 0.2}},
        "build": {"chunk_size": 50, "batch_size": 20},
        "agents": [
            agent("model", "column", prob="risk_bad", reg="stay_bad"),
            agent("expert", "column", prob="risk_good", reg="stay_good", price=2.0),
            agent("cheap", "column", cla="CASE WHEN x1 > 0 THEN 'yes' ELSE 'no' END", reg="stay_bad", price=1.0),
        ],
    }
)

#: The same with classes alone.
ONE_TASK = RECIPE.but(
    {
        "dataset.target_reg": None,
        "costs.reg": None,
        "defaults": None,
        **{f"agents.{name}.reg": None for name in ("model", "expert", "cheap")},
    }
)

#: The same with an agent that is a program, and an average to compare with.
STAGE_TWO_RECIPE = RECIPE.plus(
    agent("asked", "python", file="asked.py", price=4.0),
    agent("everyone", "average", of=["expert", "cheap"], reference=True),
)

#: A recipe without agents, and one agent of every kind to put into it.
HEAD = Recipe(
    {
        "dataset": {
            **PATIENTS,
            "clusters": {"features": ["x1", "x2"], "count": 4},
        },
        "costs": {"cla": {"kind": "brier"}, "reg": {"kind": "smooth_l1", "beta": 0.5, "clamp": 5.0}},
        "build": {"chunk_size": 50, "batch_size": 20},
    }
)
MODEL = agent("model", "two_head", hidden=[8], epochs=2)
COLUMN = agent("column", "column", prob="risk_bad", reg="stay_bad")
HARD = agent("hard", "column", cla="CASE WHEN x1 > 0 THEN 'yes' ELSE 'no' END", reg="x1")
CLUSTER = agent("sim", "cluster_expert", right_cla=[1, 3], right_reg=[2])
AVERAGE = agent("all", "average", of=["model", "called", "hard"], reference=True)
