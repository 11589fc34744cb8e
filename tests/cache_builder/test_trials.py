"""What is found out about agents before any is asked: models that answer at random, other than expected, or at no
known price; and what may be corrected without a word while no answer exists."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from l2d.cache_builder.builder import build
from l2d.cache_builder.dry_run import dry_run
from l2d.cache_builder.plan import is_asked
from l2d.cache_builder.recipe import load_recipe
from l2d.data.cache.reader import CostCache
from l2d.data.errors import AgentFailure, DataError, UsageError

HEAD = """
[dataset]
path = "t.csv"
id = "id"
target_cla = "y"
features = ["a", "b"]
[costs.cla]
kind = "zero_one"
[build]
chunk_size = 64
"""
COUNTING = """
import pathlib
def ask(batch):
    with open(pathlib.Path(__file__).with_name("asked.txt"), "a") as log:
        log.write("x" * len(batch.ids))
    return {"cla": [0] * len(batch.ids)}
"""
ROWS = 200


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    values = generator.normal(size=(ROWS, 2)).round(4)
    table = pl.DataFrame({"id": np.arange(ROWS), "a": values[:, 0], "b": values[:, 1]})
    table.with_columns(y=pl.when(pl.col("a") > 0).then(pl.lit("yes")).otherwise(pl.lit("no"))).write_csv(
        tmp_path / "t.csv"
    )
    (tmp_path / "counting.py").write_text(COUNTING)
    return tmp_path


def recipe(folder, *agents: str):
    (folder / "r.toml").write_text(HEAD + "".join(f"[[agents]]\n{agent}\n" for agent in agents))
    return load_recipe(str(folder / "r.toml"))


COUNTED = 'name = "counted"\nkind = "python"\nfile = "counting.py"'


def asked(folder) -> int:
    log = folder / "asked.txt"
    return len(log.read_text()) if log.exists() else 0


class Net(torch.nn.Module):
    """Logits (-3a, 3a), after dropout or batch norm."""

    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.layer, self.out = layer, torch.nn.Linear(2, 2)
        with torch.no_grad():
            self.out.weight.copy_(torch.tensor([[-3.0, 0], [3.0, 0]]))
            self.out.bias.zero_()

    def forward(self, x):
        return self.out(self.layer(x))


def program(folder, name: str, layer: torch.nn.Module, *, training: bool) -> str:
    net = Net(layer).train(training)
    rows = {0: torch.export.Dim("n", min=2)}
    torch.export.save(torch.export.export(net, (torch.zeros(8, 2),), dynamic_shapes=(rows,)), folder / f"{name}.pt2")
    return f'name = "{name}"\nkind = "torch"\nfile = "{name}.pt2"\noutputs = ["logits"]'


@pytest.mark.parametrize("layer", [torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(2)], ids=["dropout", "batch norm"])
def test_a_program_exported_in_training_mode_is_refused(folder, layer):
    right = program(folder, "right", layer, training=False)
    wrong = program(folder, "wrong", layer, training=True)
    with pytest.raises(AgentFailure, match=r"(?s)'wrong' answered prob.*when it was asked again.*model\.eval"):
        build(recipe(folder, COUNTED, wrong), folder / "cache")
    assert asked(folder) == 0
    with pytest.raises(AgentFailure, match="when it was asked again"):
        dry_run(recipe(folder, COUNTED, wrong), folder / "cache")
    build(recipe(folder, COUNTED, right), folder / "cache")
    assert asked(folder) == ROWS


# --- prices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("price", ["gflops", "paid"])
def test_a_price_that_cannot_be_known_is_refused_before_anything_is_asked(folder, price):
    (folder / "one.csv").write_text("id,cla\n" + "".join(f"{k},yes\n" for k in range(ROWS)))
    other = f'name = "other"\nkind = "table"\nfile = "one.csv"\nid = "id"\ncla = "cla"\nprice = "{price}"'
    for run in (build, dry_run):
        with pytest.raises(UsageError, match=f"price = .{price}., which agents of kind .table. do not know"):
            run(recipe(folder, COUNTED, other), folder / "cache")
    assert asked(folder) == 0
    assert not (folder / "cache").exists()


def test_a_measured_price_put_on_a_finished_cache_is_measured_or_refused(folder):
    net = program(folder, "net", torch.nn.Identity(), training=False)
    build(recipe(folder, COUNTED, net), folder / "cache")
    build(recipe(folder, COUNTED, net + '\nprice = "gflops"'), folder / "cache")
    assert CostCache(folder / "cache").agents[1].price == pytest.approx(4e-9)  # 2 x 2 multiply-adds
    for price in ("gflops", "paid"):
        with pytest.raises(UsageError, match=f"price = '{price}'"):
            build(recipe(folder, net, COUNTED + f'\nprice = "{price}"'), folder / "cache")
    assert CostCache(folder / "cache").agents[1].price == pytest.approx(4e-9)


# --- corrections ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_an_error_advises_can_be_done_and_the_same_command_goes_on(folder):
    (folder / "broken.py").write_text("def ask(batch):\n    return {'clas': [0] * len(batch.ids)}\n")
    broken = 'name = "broken"\nkind = "python"\nfile = "broken.py"'
    with pytest.raises(AgentFailure):
        build(recipe(folder, COUNTED, broken), folder / "cache")
    assert not is_asked(folder / "cache", "broken")
    (folder / "broken.py").write_text("def ask(batch):\n    return {'cla': [1] * len(batch.ids)}\n")
    build(recipe(folder, COUNTED, broken), folder / "cache")
    assert asked(folder) == ROWS
    # with answers a change is another agent, as ever
    (folder / "broken.py").write_text("def ask(batch):\n    return {'cla': [0] * len(batch.ids)}\n")
    with pytest.raises(DataError, match="'broken' is not what it was"):
        build(recipe(folder, COUNTED, broken), folder / "cache")


@pytest.mark.slow
def test_the_dataset_may_be_corrected_while_no_agent_has_answered(folder):
    (folder / "broken.py").write_text("def ask(batch):\n    return {'clas': [0] * len(batch.ids)}\n")
    broken = 'name = "broken"\nkind = "python"\nfile = "broken.py"'
    with pytest.raises(AgentFailure):
        build(recipe(folder, broken, COUNTED), folder / "cache")
    changed = recipe(folder, COUNTED, COUNTED.replace("counted", "again", 1))
    (folder / "r.toml").write_text((folder / "r.toml").read_text().replace('features = ["a", "b"]', 'features = ["a"]'))
    changed = load_recipe(str(folder / "r.toml"))
    build(changed, folder / "cache")
    assert CostCache(folder / "cache").record.inputs["features"]["width"] == 1


def test_a_function_that_is_not_defined_is_refused_before_others_are_asked(folder):
    (folder / "empty.py").write_text("def answer(batch): ...\n")
    with pytest.raises(UsageError, match="there is no function 'ask'"):
        build(recipe(folder, COUNTED, 'name = "e"\nkind = "python"\nfile = "empty.py"'), folder / "cache")
    assert asked(folder) == 0


@pytest.mark.slow
def test_paths_in_options_are_relative_to_the_recipe(folder, monkeypatch):
    (folder / "made.py").write_text(
        "import json, pathlib\n"
        "def make(weights, log):\n"
        "    table = json.loads(pathlib.Path(weights).read_text())\n"
        "    return lambda batch: {'cla': [table['answer']] * len(batch.ids)}\n"
    )
    made = 'name = "made"\nkind = "python"\nfactory = "made:make"\noptions = { weights = "w.json", log = "./log.txt" }'
    monkeypatch.chdir("/")
    with pytest.raises(UsageError, match=r"(?s)options\.weights: there is no such file.*w\.json"):
        build(recipe(folder, COUNTED, made), folder / "cache")
    assert asked(folder) == 0
    (folder / "w.json").write_text('{"answer": 1}')
    build(recipe(folder, COUNTED, made), folder / "cache")
    (folder / "w.json").write_text('{"answer": 0}')
    with pytest.raises(DataError, match="'made' is not what it was"):
        build(recipe(folder, COUNTED, made), folder / "cache")
    broken = made.replace("weights = ", "log_file = ")
    (folder / "made.py").write_text("def make(log_file, log):\n    return open('nowhere/' + log_file)\n")
    with pytest.raises(AgentFailure, match=r"FileNotFoundError: .*nowhere/"):
        build(recipe(folder, COUNTED, broken), folder / "other")


# --- expected answers -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_expected_answers_are_compared_before_anything_is_asked(folder):
    net = program(folder, "net", torch.nn.Identity(), training=False) + '\nexpected = "answers.csv"'
    rows = pl.read_csv(folder / "t.csv").head(5)
    right = 1 / (1 + np.exp(-6 * rows["a"].to_numpy()))
    for column, values in (("prob", right), ("prob_no", 1 - right), ("cla", np.where(right > 0.5, "yes", "no"))):
        rows.select("id").with_columns(pl.Series(column, values)).write_csv(folder / "answers.csv")
        build(recipe(folder, COUNTED, net), folder / f"cache {column}")
    before = asked(folder)
    wrong = right.copy()
    wrong[3] += 0.01
    rows.select("id").with_columns(prob=pl.Series(wrong)).write_csv(folder / "answers.csv")
    with pytest.raises(AgentFailure, match=rf"(?s)answered prob = {right[3]:.4f}\d*, expected {wrong[3]:.4f}.*'3'"):
        build(recipe(folder, COUNTED, net), folder / "cache")
    rows.select("id").with_columns(cla=pl.lit("yes")).write_csv(folder / "answers.csv")
    with pytest.raises(AgentFailure, match="answered cla = no, expected yes"):
        dry_run(recipe(folder, COUNTED, net), folder / "cache")
    assert asked(folder) == before
    for content, said in (("id,prob\n9999,0.5\n", "'9999', which is not a sample"), ("id,p\n1,0.5\n", "no expected")):
        (folder / "answers.csv").write_text(content)
        with pytest.raises(DataError, match=said):
            build(recipe(folder, COUNTED, net), folder / "cache")
    fixed = COUNTED + '\nexpected = "answers.csv"'
    (folder / "answers.csv").write_text("id,cla\n0,no\n")
    build(recipe(folder, fixed), folder / "python")
