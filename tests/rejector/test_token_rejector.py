"""From token lists in a table to a rejector that reads them: build, train, route, export."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from conftest import refused
from safetensors.torch import load_file
from test_training import point as grid_point
from torch import nn

from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import load_recipe
from l2d.data.cache.reader import CostCache
from l2d.data.errors import DataError, FingerprintMismatch, UsageError
from l2d.data.networks.tokens import TokenNetwork
from l2d.data.samples.tokens import Tokens, fit_vocabulary, token_inputs
from l2d.rejector.grid import make_grid
from l2d.rejector.losses import allocate
from l2d.rejector.networks import make_network
from l2d.rejector.route import route
from l2d.rejector.rows.stream import open_streams
from l2d.rejector.rows.table import load_tables
from l2d.rejector.rows.unlabelled import InputRecord, open_inputs
from l2d.rejector.runs.run import load_run
from l2d.rejector.settings import TrainConfig
from l2d.rejector.sql.query import QuerySession
from l2d.rejector.sweep import sweep
from l2d.rejector.training.stack import TOKEN_ROWS_AT_ONCE, AutogradStack, Stack

RECIPE = """
[dataset]
path = "stays.csv"
id = "id"
target_cla = "died"
classes = ["no", "yes"]
features = ["age"]
split = { stratify = ["died"] }

[dataset.tokens]
diagnoses = { column = "diagnoses", separator = ";", min_count = 3, max_length = 6 }
words = { column = "lower(note)", max_length = 8 }

[costs.cla]
kind = "zero_one"

[build]
chunk_size = 60
batch_size = 25

[[agents]]
name = "model"
kind = "column"
cla = "model"

[[agents]]
name = "expert"
kind = "column"
cla = "expert"
"""

CONFIG = {"network": "transformer", "hidden": 16, "layers": 2, "epochs": 12, "batch_size": 32, "lr": 0.01}


def stays(rows: int = 300, seed: int = 0) -> pl.DataFrame:
    """The expert is right where either ``d7`` is among the diagnoses or ``pain`` in the note, else the model is."""
    generator = np.random.default_rng(seed)
    diagnoses = [
        [f"d{code}" for code in generator.choice(12, size=count, replace=False)]
        for count in generator.integers(0, 6, size=rows)
    ]
    words = [generator.choice(["Pain", "fever", "well", "none"], size=3).tolist() for _ in range(rows)]
    hard = [("d7" in codes) != ("Pain" in note) for codes, note in zip(diagnoses, words, strict=True)]
    died = generator.integers(0, 2, size=rows)
    name = np.array(["no", "yes"])
    return pl.DataFrame(
        {
            "id": [f"s{row:03d}" for row in range(rows)],
            "age": generator.normal(size=rows),
            "diagnoses": [";".join(codes) or None for codes in diagnoses],
            "note": [" ".join(note) for note in words],
            "died": name[died],
            "model": name[np.where(hard, 1 - died, died)],
            "expert": name[np.where(hard, died, 1 - died)],
        }
    )


def grid(cache: CostCache, betas=(0.0, 0.1), seeds=(0, 1)):
    return make_grid(cache, methods=["multi-task"], weights=[], betas=list(betas), nus=[1.0], seeds=list(seeds))


def train(cache: CostCache, out: Path, points=None, **changes) -> dict[str, dict]:
    """Weights by run."""
    points = points or grid(cache)
    folders = [out / point.run_id for point in points]
    sweep(cache, points, folders, TrainConfig(**{**CONFIG, **changes}))
    return {folder.name: load_file(folder / "rejector.safetensors") for folder in folders}


def assert_same(one: dict[str, dict], other: dict[str, dict], rtol: float = 1e-3, atol: float = 2e-4) -> None:
    assert one.keys() == other.keys()
    for run, state in one.items():
        assert state.keys() == other[run].keys()
        for name, value in state.items():
            torch.testing.assert_close(other[run][name], value, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with stays.csv, recipe.toml, the cache, and the runs of a grid of four."""
    folder = tmp_path_factory.mktemp("tokens")
    stays().write_csv(folder / "stays.csv")
    (folder / "recipe.toml").write_text(RECIPE)
    build(load_recipe(str(folder / "recipe.toml")), folder / "cache", device="cpu")
    train(CostCache(folder / "cache"), folder / "runs")
    return folder


@pytest.fixture(scope="module")
def cache(home) -> CostCache:
    return CostCache(home / "cache")


@pytest.fixture(scope="module")
def run(home, cache) -> Path:
    return home / "runs" / grid(cache)[0].run_id


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_cache_holds_the_codes_of_the_table(home, cache):
    table = pl.read_csv(home / "stays.csv").select("id", "diagnoses", "note")
    rows = {row["id"]: row for row in table.iter_rows(named=True)}
    made, samples = cache.record.inputs["tokens"], [cache.samples(k) for k in range(cache.record.num_chunks)]
    frame = pl.concat([pl.from_arrow(part.select(["sample_id", "split"])) for part in samples])
    train_ids = frame.filter(pl.col("split") == "train")["sample_id"].to_list()
    counts: dict[str, int] = {}
    for sample in train_ids:
        for code in (rows[sample]["diagnoses"] or "").split(";"):
            counts[code] = counts.get(code, 0) + (code != "")
    known = {code for code, count in counts.items() if count >= 3}
    assert set(made["fields"]["diagnoses"]["vocabulary"]) == known | {"<pad>", "<unk>"}
    for part in samples:
        for name, source, cut in (("diagnoses", "diagnoses", ";"), ("words", "note", " ")):
            vocabulary = made["fields"][name]["vocabulary"]
            for sample, indices in zip(part["sample_id"].to_pylist(), part[f"tokens_{name}"].to_pylist(), strict=True):
                codes = [code for code in (rows[sample][source] or "").lower().split(cut) if code]
                expected = [code if code in vocabulary else "<unk>" for code in codes]
                assert [vocabulary[index] for index in indices] == expected


def test_sql_sees_every_code_at_its_place(home, cache):
    fields = cache.record.inputs["tokens"]["fields"]
    expected = []
    for row in pl.read_csv(home / "stays.csv").iter_rows(named=True):
        for field, source, cut in (("diagnoses", "diagnoses", ";"), ("words", "note", " ")):
            codes = [code for code in (row[source] or "").lower().split(cut) if code]
            for place, code in enumerate(codes, start=1):
                expected.append((row["id"], field, place, code if code in fields[field]["vocabulary"] else "<unk>"))
    with QuerySession([home]) as session:
        found = session.run("SELECT sample_id, field, position, code FROM tokens").table().to_pylist()
        listed = session.run("FROM vocabularies ORDER BY field, code_index").table().to_pylist()
    assert sorted(tuple(row.values()) for row in found) == sorted(expected)
    codes = {field: [row["code"] for row in listed if row["field"] == field] for field in fields}
    assert codes == {field: made["vocabulary"] for field, made in fields.items()}


def test_stage_two_reads_padded_rows_held_and_streamed_alike(cache):
    table = load_tables(cache, ("train",), column="tokens")["train"]
    stream = open_streams(cache, ("train",), column="tokens")["train"]
    sizes = [len(field["vocabulary"]) for field in cache.record.inputs["tokens"]["fields"].values()]
    assert table.sizes == stream.sizes == ((sizes[0], 6), (sizes[1], 8))
    assert stream.width == 14
    rows = torch.cat([features for features, _ in stream.in_order(17)])
    assert torch.equal(rows, table.features)
    expected = {}
    for chunk in range(cache.record.num_chunks):
        part = cache.samples(chunk).to_pydict()
        for sample, *lists in zip(part["sample_id"], part["tokens_diagnoses"], part["tokens_words"], strict=True):
            padded = [codes[:length] + [0] * (length - len(codes)) for codes, length in zip(lists, (6, 8), strict=True)]
            expected[sample] = padded[0] + padded[1]
    assert rows.tolist() == [expected[sample] for sample in table.ids]


def test_other_tokens_are_another_dataset(home, tmp_path):
    recipe = RECIPE.replace("stays.csv", str(home / "stays.csv"))
    (tmp_path / "recipe.toml").write_text(recipe)
    build(load_recipe(str(tmp_path / "recipe.toml")), tmp_path / "cache", device="cpu")
    for old, new, field in (
        ("min_count = 3", "min_count = 1", "tokens"),
        ('separator = ";"', 'separator = " "', "tokens"),
        ("max_length = 8", "max_length = 9", "dataset.tokens"),
    ):
        (tmp_path / "recipe.toml").write_text(recipe.replace(old, new))
        with pytest.raises(FingerprintMismatch, match=field):
            build(load_recipe(str(tmp_path / "recipe.toml")), tmp_path / "cache", device="cpu")


WRONG = {
    "no such column": ('column = "diagnoses"', 'column = "diagnosis"', "diagnosis"),
    "numbers": ('column = "diagnoses"', 'column = "age"', "Float64"),
    "nothing frequent": ("min_count = 3", "min_count = 9999", "9999 times"),
    "rows before": ('"lower(note)"', '"first(note)"', "more than its own row"),
    "kept": ('id = "id"', 'id = "id"\nkeep = ["tokens_words"]', "tokens_words"),
}


@pytest.mark.parametrize("name", WRONG)
def test_columns_that_are_no_lists_are_refused(home, tmp_path, name):
    old, new, words = WRONG[name]
    table = pl.read_csv(home / "stays.csv").with_columns(tokens_words=pl.lit(1))
    table.write_csv(tmp_path / "stays.csv")
    (tmp_path / "recipe.toml").write_text(RECIPE.replace(old, new))
    recipe = load_recipe(str(tmp_path / "recipe.toml"))
    refused(lambda: build(recipe, tmp_path / "cache", device="cpu"), DataError, words)
    assert not (tmp_path / "cache").exists()


def test_a_recipe_needs_something_to_look_at(tmp_path):
    head = RECIPE.partition("[dataset.tokens]")
    (tmp_path / "recipe.toml").write_text(RECIPE.replace('features = ["age"]\n', ""))
    load_recipe(str(tmp_path / "recipe.toml"))
    without = head[0].replace('features = ["age"]\n', "") + "[costs.cla]" + RECIPE.partition("[costs.cla]")[2]
    (tmp_path / "recipe.toml").write_text(without)
    with pytest.raises(UsageError, match="`features`, `text`, `tokens` or an `image`"):
        load_recipe(str(tmp_path / "recipe.toml"))


# --- the network ------------------------------------------------------------------------------------------------------


def random_network(seed: int = 0, layers: int = 2) -> TokenNetwork:
    torch.manual_seed(seed)
    network = TokenNetwork([(20, 7), (11, 4)], 3, 16, layers).double()
    for parameter in network.parameters():  # biases and gains begin at 0 and 1
        nn.init.normal_(parameter, std=0.5)
    return network


def random_rows(rows: int = 30) -> torch.Tensor:
    """Lists of every length from none to all."""
    fields = []
    for codes, length in ((20, 7), (11, 4)):
        lists = torch.randint(1, codes, (rows, length))
        fields.append(torch.where(torch.arange(length) < torch.arange(rows)[:, None] % (length + 1), lists, 0))
    return torch.cat(fields, dim=1)


class Textbook(nn.Module):
    """A TokenNetwork with PyTorch's own encoder layers in it, and with its parameters."""

    NAMES = {
        "self_attn.in_proj_": "to_qkv.",
        "self_attn.out_proj.": "from_heads.",
        "linear1.": "mlp.0.",
        "linear2.": "mlp.2.",
        "norm1.": "norm_attention.",
        "norm2.": "norm_mlp.",
    }

    def __init__(self, network: TokenNetwork, layers: int):
        super().__init__()
        self.lengths, self.head = network.lengths, copy.deepcopy(network.head)
        self.embeddings = nn.ParameterList(encoder.embedding.detach().clone() for encoder in network.encoders)
        self.summaries = nn.ParameterList(encoder.summary.detach().clone() for encoder in network.encoders)
        self.stacks = nn.ModuleList()
        for encoder in network.encoders:
            layer = nn.TransformerEncoderLayer(16, 4, 64, 0.0, "gelu", norm_first=True, batch_first=True)
            stack = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(16), enable_nested_tensor=False).double()
            ours = encoder.state_dict()
            stack.load_state_dict({name: ours[self.our_name(name)] for name in stack.state_dict()})
            self.stacks.append(stack)

    def our_name(self, name: str) -> str:
        if name.startswith("norm."):
            return name
        _, place, rest = name.split(".", 2)
        old = next(key for key in self.NAMES if rest.startswith(key))
        return f"blocks.{place}.{rest.replace(old, self.NAMES[old])}"

    def alone(self, row: torch.Tensor) -> torch.Tensor:
        """One row, each list as long as it is: there is no padding and no mask."""
        seen = []
        parts = zip(self.embeddings, self.summaries, self.stacks, row.split(self.lengths), strict=True)
        for embedding, summary, stack, part in parts:
            seen.append(stack(torch.cat([summary[None], embedding[part[part != 0]]])[None])[0, 0])
        return self.head(torch.cat(seen))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows together, with the mask that PyTorch's layers take."""
        seen = []
        parts = zip(self.embeddings, self.summaries, self.stacks, rows.split(self.lengths, dim=1), strict=True)
        for embedding, summary, stack, part in parts:
            tokens = torch.cat([summary.expand(len(part), 1, -1), embedding[part]], dim=1)
            padding = torch.cat([torch.zeros(len(part), 1, dtype=torch.bool), part == 0], dim=1)
            seen.append(stack(tokens, src_key_padding_mask=padding)[:, 0])
        return self.head(torch.cat(seen, dim=1))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_network_is_pytorchs_own_on_lists_without_padding(layers):
    """One row at a time, so that neither padding nor neighbours can matter; gradients too."""
    network, rows = random_network(layers=layers), random_rows()
    textbook = Textbook(network, layers)
    found, expected = network(rows), torch.stack([textbook.alone(row) for row in rows])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    by = torch.randn(len(rows), 3, dtype=torch.float64)
    ours = [value for encoder in network.encoders for value in (encoder.embedding, encoder.summary)]
    theirs = [value for pair in zip(textbook.embeddings, textbook.summaries, strict=True) for value in pair]
    gradients = torch.autograd.grad(found, ours, by), torch.autograd.grad(expected, theirs, by)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@pytest.mark.slow
def test_a_grid_in_float64_is_trained_as_pytorchs_own_one_after_another(monkeypatch):
    """30 steps of AdamW on masked batches of two seeds, the surrogate written out; ours some rows at a time."""
    monkeypatch.setitem(TOKEN_ROWS_AT_ONCE, "cpu", 10)
    points = [grid_point(seed=seed, beta=(0.0, beta, 0.0)) for seed, beta in ((3, 0.1), (3, 0.0), (5, 0.2))]
    generator = torch.Generator().manual_seed(0)
    given = []
    for _ in range(30):
        torch.manual_seed(len(given))
        rows = torch.stack([random_rows(24), random_rows(24)])
        given.append((rows.double(), torch.rand(2, 24, 3, 1, generator=generator, dtype=torch.float64)))
    shape = {"network": "token_transformer", "width": 11, "num_agents": 3, "hidden": 16, "layers": 2}
    stack = AutogradStack(
        points, torch.ones(3, 1), **shape, sizes=((20, 7), (11, 4)), weight_decay=0.05, dtype=torch.float64
    )
    losses = torch.stack([stack.step(rows, raw, 1e-2) for rows, raw in given])
    for position, one in enumerate(points):
        torch.manual_seed(one.seed)
        network = Textbook(make_network(*shape.values(), ((20, 7), (11, 4))).double(), 2)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.05)
        for step, (rows, raw) in enumerate(given):
            place = [3, 5].index(one.seed)
            costs = raw[place, :, :, 0] + torch.tensor(one.query_costs, dtype=torch.float64)
            tau = costs.sum(dim=1, keepdim=True) - costs
            loss = -(tau * network(rows[place].long()).log_softmax(dim=1)).sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert losses[step, position].item() == pytest.approx(loss.item(), abs=1e-9)
        expected = [*network.embeddings, *network.head.parameters()]
        names = [f"encoders.{k}.embedding" for k in range(2)] + [
            f"head.{k}.{n}" for k in (0, 2) for n in ("weight", "bias")
        ]
        for name, value in zip(names, expected, strict=True):
            torch.testing.assert_close(stack.parameters[name][position], value.detach(), rtol=0, atol=1e-8)


def test_neither_width_nor_neighbours_nor_order_matter():
    network, rows = random_network(), random_rows()
    alone = torch.cat([network(row[None]) for row in rows])
    torch.testing.assert_close(network(rows), alone, rtol=0, atol=1e-12)
    short, lengths = network.trimmed(rows[:4])
    assert lengths == (3, 3)
    assert short.shape == (4, 6)
    torch.testing.assert_close(network(short, lengths), alone[:4], rtol=0, atol=1e-12)
    wide = torch.cat([rows[:, :7], torch.zeros(30, 5).long(), rows[:, 7:], torch.zeros(30, 2).long()], dim=1)
    torch.testing.assert_close(network(wide, (12, 6)), alone, rtol=0, atol=1e-12)
    turned = torch.cat([rows[:, :7].flip(1), rows[:, 7:].flip(1)], dim=1)  # padding comes first then
    torch.testing.assert_close(network(turned), alone, rtol=0, atol=1e-12)
    empty, lengths = network.trimmed(torch.zeros(2, 3, 11))
    assert lengths == (1, 1)
    assert torch.isfinite(network(empty[0], lengths)).all()


def test_multiply_adds_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    network = TokenNetwork([(20, 7), (11, 4)], 3, 16, 3)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.randint(1, 11, (1, 11)))
    assert network.multiply_adds((7, 4)) == pytest.approx(counter.get_total_flops() / 2, rel=0.02)


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_rule_in_two_fields_is_learnt(cache, run):
    """Who is right depends on a code's presence in either list; no constant agent does better than about a half."""
    table = load_tables(cache, ("test",), column="tokens")["test"]
    chosen = allocate(torch.from_numpy(load_run(run).rejector.scores_on(table)))
    cost = table.raw[torch.arange(len(table)), chosen, 0].mean()
    assert table.raw[..., 0].mean(dim=0).min() > 0.3
    assert cost < 0.1


def test_the_run_says_what_it_is(cache, run):
    facts = json.loads((run / "run.json").read_text())
    assert facts["training"]["network"] == "token_transformer"
    assert facts["input"]["made"] == cache.record.inputs["tokens"]


@pytest.mark.slow
def test_a_point_in_a_grid_is_trained_as_it_is_alone(home, cache, tmp_path):
    together = {path.name: load_file(path / "rejector.safetensors") for path in (home / "runs").iterdir()}
    for point in grid(cache)[1:3]:
        assert_same(train(cache, tmp_path, [point]), {point.run_id: together[point.run_id]})


@pytest.mark.slow
def test_with_dropout_too_and_it_is_for_training_alone(cache, tmp_path, monkeypatch):
    settings = {"dropout": 0.2, "epochs": 2, "layers": 1}
    together = train(cache, tmp_path / "together", **settings)
    monkeypatch.setitem(TOKEN_ROWS_AT_ONCE, "cpu", 9)  # also however many rows are worked on at once
    for point in grid(cache)[1:3]:
        assert_same(train(cache, tmp_path / "alone", [point], **settings), {point.run_id: together[point.run_id]})
    without = train(cache, tmp_path / "without", grid(cache)[:1], **{**settings, "dropout": 0.0})
    assert all((state["head.0.weight"] != together[run]["head.0.weight"]).any() for run, state in without.items())
    facts = json.loads((tmp_path / "alone" / grid(cache)[1].run_id / "run.json").read_text())
    rejector = load_run(tmp_path / "alone" / grid(cache)[1].run_id).rejector
    table = load_tables(cache, ("validation",), column="tokens")["validation"]
    risk = table.raw[torch.arange(len(table)), torch.from_numpy(rejector.scores_on(table)).argmax(dim=1), 0].mean()
    assert facts["validation_risk"] == pytest.approx(float(risk), abs=0.1 + 1e-6)  # beta is 0.1 or 0


@pytest.mark.parametrize("network", ["feature_transformer", "mlp"])
def test_features_can_still_be_looked_at(cache, tmp_path, network):
    states = train(cache, tmp_path, grid(cache)[:1], network=network, epochs=1)
    assert all(len(state["feature_mean"]) == 1 for state in states.values())


def test_where_there_are_no_tokens_a_transformer_reads_features(make_cache, tmp_path):
    cache = make_cache(tmp_path)
    config = TrainConfig(network="transformer")
    assert config.on(cache.record.inputs).network == "transformer"
    assert config.on({"tokens": {}, "features": {}}).network == "token_transformer"
    for settings in ({"layers": 3}, {"dropout": 0.1}):
        with pytest.raises(UsageError, match="one block"):
            TrainConfig(network="transformer", **settings).on(cache.record.inputs)
    with pytest.raises(UsageError, match="has none"):
        TrainConfig(network="mlp", dropout=0.1)
    with pytest.raises(UsageError, match="has no tokens"):
        sweep(cache, grid(cache)[:1], [tmp_path / "run"], TrainConfig(network="token_transformer", layers=3))


# --- at work ----------------------------------------------------------------------------------------------------------


def routed(run: Path, source: Path, out: Path) -> pl.DataFrame:
    route(run, source, out, overwrite=True)
    return pl.read_parquet(out).sort("sample_id")


@pytest.mark.parametrize("form", ["csv", "parquet", "cache"])
def test_rows_go_where_they_went_in_the_run(home, run, tmp_path, form):
    table = stays().drop("died", "model", "expert", "age").sample(fraction=1, shuffle=True, seed=1)
    source = home / "cache" if form == "cache" else tmp_path / f"new.{form}"
    if form == "csv":
        table.write_csv(source)
    elif form == "parquet":
        table.write_parquet(source)
    expected = pl.read_parquet(run / "allocations.parquet").sort("sample_id")
    found = routed(run, source, tmp_path / "out.parquet")
    assert found["sample_id"].to_list() == expected["sample_id"].to_list()
    assert found["agent"].to_list() == expected["agent"].to_list()
    assert found["agent"].n_unique() == 2
    scores = pl.col("^score_.*$")
    np.testing.assert_allclose(found.select(scores), expected.select(scores), rtol=1e-4, atol=1e-5)


def test_codes_that_training_has_not_seen_are_unknown(run, tmp_path):
    rows = [("d1;d7", "Pain well"), ("never;d7", "seen well"), ("xx;d7", "zz well"), (None, None)]
    table = {"diagnoses": [row[0] for row in rows], "note": [row[1] for row in rows]}
    pl.DataFrame(table).write_parquet(tmp_path / "new.parquet")
    found = routed(run, tmp_path / "new.parquet", tmp_path / "out.parquet").select("^score_.*$").to_numpy()
    np.testing.assert_allclose(found[1], found[2], rtol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert np.isfinite(found).all()


def test_lists_that_a_dataset_has_made_itself_are_read_from_columns_of_their_names(tmp_path):
    """Its record has vocabularies and lengths alone; codes come as lists."""
    tokens = {"diagnoses": Tokens.encode([["a", "b"]], fit_vocabulary([["b", "a", "b"]]))}
    record = InputRecord(column="tokens", made=token_inputs(tokens, {"diagnoses": 3}))
    lists = [["b", "a"], [], None, ["new", "b", "a", "a"], ["", "a"]]
    pl.DataFrame({"diagnoses": pl.Series(lists, dtype=pl.List(pl.String))}).write_parquet(tmp_path / "new.parquet")
    inputs = open_inputs(tmp_path / "new.parquet", record, 3, rows_at_once=2)
    rows = np.concatenate([features for _, features, _ in inputs.batches])
    assert rows.tolist() == [[2, 3, 0], [0, 0, 0], [0, 0, 0], [1, 2, 3], [3, 0, 0]]
    pl.DataFrame({"diagnoses": ["b a"]}).write_parquet(tmp_path / "text.parquet")
    refused(
        lambda: list(open_inputs(tmp_path / "text.parquet", record, 3, rows_at_once=2).batches),
        DataError,
        "give lists of codes",
    )


def test_files_without_the_lists_are_refused(run, tmp_path):
    pl.DataFrame({"diagnoses": ["d1"], "x": [1]}).write_parquet(tmp_path / "new.parquet")
    refused(lambda: routed(run, tmp_path / "new.parquet", tmp_path / "out.parquet"), DataError, "note", "new.parquet")
    pl.DataFrame({"diagnoses": [["d1"]], "note": ["x"]}).write_parquet(tmp_path / "new.parquet")
    refused(lambda: routed(run, tmp_path / "new.parquet", tmp_path / "out.parquet"), DataError, "List", "String")
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.slow
def test_an_exported_rejector_allocates_every_row_alike(cache, run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from l2d.rejector.export import export_run

    report = export_run(run, tmp_path / "rejector.onnx")
    assert (report.input, report.shape) == ("tokens", ["batch", 14])
    session = onnxruntime.InferenceSession(str(tmp_path / "rejector.onnx"), providers=["CPUExecutionProvider"])
    fields = json.loads(session.get_modelmeta().custom_metadata_map["input"])["fields"]
    assert [len(field["vocabulary"]) for field in fields.values()] == [n for n, _ in load_run(run).rejector.sizes]
    for table in load_tables(cache, ("train", "validation", "test"), column="tokens").values():
        rows = table.features.long()
        scores, agent = session.run(None, {"tokens": rows.numpy()})
        expected = torch.from_numpy(load_run(run).rejector.scores_on(table))
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
        assert agent.tolist() == allocate(expected).tolist()


# --- interruptions, windows, processes --------------------------------------------------------------------------------


SMALL = 22_000  # bytes, which hold some parts of the training split, and batches of four for two seeds


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("memory", "batch_size", "after"), [(None, 16, 20), (SMALL, 4, 70)])
@pytest.mark.slow
def test_training_that_was_killed_goes_on_to_the_same_weights(cache, tmp_path, monkeypatch, memory, batch_size, after):
    settings = {"epochs": 2, "batch_size": batch_size, "memory": memory, "layers": 1}
    whole = train(cache, tmp_path / "whole", **settings)
    monkeypatch.setattr("l2d.rejector.training.loop.BATCHES_AT_ONCE", 2)
    monkeypatch.setattr("l2d.rejector.training.checkpoint.Checkpoint.is_due", True)
    step, left = Stack.step, after

    def stop(stack, *args, **kwargs):
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return step(stack, *args, **kwargs)

    monkeypatch.setattr(Stack, "step", stop)
    with pytest.raises(Killed):
        train(cache, tmp_path / "killed", **settings)
    assert len(list((tmp_path / "killed").glob(".training-*"))) == 1
    left = 10_000
    assert_same(train(cache, tmp_path / "killed", **settings), whole)
    steps = 2 * -(-len(open_streams(cache, ("train",), column="tokens")["train"]) // batch_size)
    assert 10_000 - left <= steps - after + 4  # not from the beginning


def test_a_window_is_other_batches_of_the_same_rows(cache, tmp_path):
    """What is held of the split is bounded, and a bound that holds all of it changes nothing."""
    from l2d.rejector.rows.shuffled import Shuffled

    stream = open_streams(cache, ("train",), column="tokens")["train"]
    windows = Shuffled(stream, 4, [0], memory=SMALL)
    assert windows.window_rows < len(stream)
    rows = torch.cat([features[0] for _, (features, _) in windows.epoch(0)])
    assert sorted(rows.tolist()) == sorted(torch.cat([f for f, _ in stream.in_order(50)]).tolist())
    point, settings = grid(cache)[:1], {"epochs": 1, "batch_size": 4, "layers": 1}
    everything = train(cache, tmp_path / "everything", point, memory=10**9, **settings)
    assert_same(train(cache, tmp_path / "unbound", point, **settings), everything)
    some = train(cache, tmp_path / "some", point, memory=SMALL, **settings)
    name = "head.0.weight"
    assert all(not torch.allclose(some[run][name], everything[run][name], atol=1e-4) for run in some)


PROCESS = """
import os, signal, sys
from l2d import cli
from l2d.rejector.training.checkpoint import Checkpoint
from l2d.rejector.networks import make_network
from l2d.rejector.training.stack import TOKEN_ROWS_AT_ONCE, AutogradStack, Stack

kill_after, log = int(sys.argv.pop(1)), sys.argv.pop(1)
save, step, saves = Checkpoint.save, Stack.step, []
Checkpoint.is_due = property(lambda checkpoint: checkpoint.group.rank == 0)

def save_and_die(checkpoint, progress):
    save(checkpoint, progress)
    saves.append(progress)
    if len(saves) == kill_after:
        os.kill(os.getpid(), signal.SIGKILL)

def counted(*args, **kwargs):
    if os.environ["RANK"] == "1":
        print("step", file=open(log, "a"))
    return step(*args, **kwargs)

Checkpoint.save, Stack.step = save_and_die, counted
cli.main()
"""


@pytest.mark.slow
def test_two_processes_that_were_killed_go_on_to_what_one_process_trains(cache, tmp_path):
    (tmp_path / "process.py").write_text(PROCESS)
    log, out = tmp_path / "steps", tmp_path / "two"

    def launch(kill_after: int) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
        command += [
            str(tmp_path / "process.py"),
            str(kill_after),
            str(log),
            "sweep",
            str(cache.path),
            "--out",
            str(out),
        ]
        command += [
            "--rejector",
            "transformer",
            "--hidden",
            "16",
            "--epochs",
            "4",
            "--batch-size",
            "32",
            "--lr",
            "0.01",
        ]
        command += ["--seeds", "2", "--device", "cpu", "--format", "json"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=150)

    killed = launch(2)
    assert killed.returncode != 0
    assert len(list(out.glob(".training-*"))) == 1, killed.stderr[-2000:]
    before = len(log.read_text().split())
    done = launch(0)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(json.loads(done.stdout)) == 2
    steps = 4 * -(-len(open_streams(cache, ("train",), column="tokens")["train"]) // 32)
    assert 0 < len(log.read_text().split()) - before <= steps / 2  # the first two epochs are not trained again
    assert not list(out.glob(".training-*"))
    one = train(cache, tmp_path / "one", grid(cache, betas=(0.0,)), epochs=4)
    assert_same({run: load_file(out / run / "rejector.safetensors") for run in one}, one)
