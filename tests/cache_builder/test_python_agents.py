"""Agents in Python: files with others beside them, and factories by import path."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from conftest import refused
from recipes import RECIPE, agent, changed

from l2d.data.errors import AgentFailure, FingerprintMismatch, UsageError

FILE = agent("mine", "python", file="deep/mine.py")
FACTORY = agent("made", "python", factory="pack.agents:Threshold", options={"at": 0.5})
MINE = """
import numpy as np
from helper import VALUE

def ask(batch):
    from late import CLASS  # found when it is asked, too
    return {"cla": np.full(len(batch.ids), CLASS), "reg": np.full(len(batch.ids), VALUE)}
"""
PACK = """
from .scale import SCALE

class Threshold:
    made = 0

    def __init__(self, at):
        self.at = at
        Threshold.made += 1
        assert Threshold.made == 1, "made once, asked often"

    def __call__(self, batch):
        x1 = batch.columns["x1"].to_numpy()
        return {"cla": (x1 > self.at).astype(int), "reg": SCALE * x1 ** 2}
"""


@pytest.fixture
def modules(workshop):
    """A file with two others beside it, and a package beside the recipe."""
    for folder in ("deep", "pack"):
        (workshop.folder / folder).mkdir()
    for name, text in {
        "deep/mine.py": MINE,
        "deep/helper.py": "VALUE = 7.0\n",
        "deep/late.py": "CLASS = 1\n",
        "pack/__init__.py": "",
        "pack/agents.py": PACK,
        "pack/scale.py": "SCALE = 2.0\n",
        "helper.py": "VALUE = -1.0\n",  # beside the recipe, not beside the file
    }.items():
        (workshop.folder / name).write_text(text)
    return workshop


@pytest.mark.slow
def test_a_file_finds_what_lies_beside_it_and_a_factory_what_lies_beside_the_recipe(modules):
    path = list(sys.path)
    report = modules.build(RECIPE.plus(FILE, FACTORY))
    assert sys.path == path
    assert report.asked["made"] == report.asked["mine"] == 120
    assert set(modules.predictions("mine")["pred_reg"]) == {7.0}
    x1 = modules.table["x1"].to_numpy()
    np.testing.assert_array_equal(modules.predictions("made")["pred_cla"], x1 > 0.5)
    np.testing.assert_allclose(modules.predictions("made")["pred_reg"], 2 * x1**2, rtol=1e-6)
    assert modules.cache().agent("made").seconds > 0  # its latency is on record


@pytest.mark.parametrize(
    ("name", "text", "whose"),
    [("deep/late.py", "CLASS = 0\n", "mine"), ("pack/scale.py", "SCALE = 3.0\n", "made")],
)
@pytest.mark.slow
def test_what_an_agent_imports_is_part_of_it(modules, name, text, whose):
    modules.build(RECIPE.plus(FILE, FACTORY))
    (modules.folder / "unrelated.py").write_text("1 / 0")
    assert set(modules.build(RECIPE.plus(FILE, FACTORY)).asked.values()) == {0}
    (modules.folder / name).write_text(text)
    with pytest.raises(FingerprintMismatch, match=f"agent '{whose}'"):
        modules.build(RECIPE.plus(FILE, FACTORY))
    report = modules.build(
        RECIPE.plus(FILE, FACTORY), overwrite=True
    )  # asks this one alone, with the module as it is now
    assert {who for who, samples in report.asked.items() if samples} == {whose}
    if whose == "mine":
        assert set(modules.predictions("mine")["pred_cla"]) == {0}
    else:
        np.testing.assert_allclose(
            modules.predictions("made")["pred_reg"], 3 * modules.table["x1"].to_numpy() ** 2, rtol=1e-6
        )


@pytest.mark.slow
def test_a_version_speaks_for_what_is_imported(modules):
    text = RECIPE.plus({**FACTORY, "version": "1"})
    modules.build(text)
    (modules.folder / "pack/scale.py").write_text("SCALE = 3.0\n")
    assert modules.build(text).asked["made"] == 0


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"factory": "no_such_package:Threshold"}, UsageError, ["no_such_package", "'made'"]),
        ({"factory": "pack.agents:Nothing"}, AgentFailure, ["'made'", "Nothing"]),
        ({"options": {"height": 1}}, AgentFailure, ["'made'", "height"]),
        ({"factory": "pack.scale:SCALE.__class__", "options": None}, UsageError, ["float", "cannot be called"]),
        ({"file": "deep/mine.py"}, UsageError, ["`file`, or `factory`"]),
        ({"factory": "pack.agents"}, UsageError, ["factory"]),
    ],
)
def test_a_factory_that_does_not_work_is_named(modules, changes, kind, words):
    refused(lambda: modules.build(RECIPE.plus(changed(FACTORY, changes))), kind, *words)


@pytest.mark.slow
def test_prices_and_seconds_that_an_agent_reports_are_kept_and_may_be_its_price(modules):
    (modules.folder / "paid.py").write_text(
        "def ask(batch):\n    x1 = batch.columns['x1'].to_numpy()\n"
        "    return {'cla': (x1 > 0).astype(int), 'reg': x1, 'paid': abs(x1), 'seconds': [None] * len(x1)}\n"
    )
    recipe = RECIPE.plus(agent("api", "python", file="paid.py", price="paid"))
    modules.build(recipe)
    record = modules.cache().agent("api")
    paid = abs(modules.table["x1"].to_numpy())
    assert record.price == record.paid == pytest.approx(paid.mean())
    assert record.seconds > 0  # measured, since it does not say
    np.testing.assert_array_equal(modules.column("predictions", "paid", "api"), paid)
    assert modules.build(recipe.but({"agents.api.price": "seconds"})).asked["api"] == 0
    assert modules.cache().agent("api").price == record.seconds
    refused(lambda: modules.build(RECIPE.plus({**FACTORY, "price": "paid"})), UsageError, "'made'", "price = 'paid'")


def test_bytecode_that_python_keeps_is_not_taken_for_a_changed_module(modules, monkeypatch):
    """Python knows bytecode by size and second of the file: both stay here."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = modules.folder / "deep/late.py"
    old = file.stat()
    modules.build(RECIPE.plus(FILE))
    text = file.read_text()
    file.write_text(text.replace("1", "0"))
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
    modules.build(RECIPE.plus(FILE), overwrite=True)
    assert text != file.read_text()
    assert set(modules.predictions("mine")["pred_cla"]) == {0}
