"""Prompts from a table to a routed file: import, sweep, route, ONNX and the estimator see the same features."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import refused

import l2d
from l2d.cache_builder.importing.scores import draft_scores
from l2d.cache_builder.importing.source import Source
from l2d.data.errors import CorruptPart, DataError, FingerprintMismatch, IncompleteCache, UsageError
from l2d.data.samples.columns import FREE_TEXT

WORDS = {
    "sums": ["add", "the", "numbers", "seven", "eight", "nine", "total", "sum", "plus", "equals", "how", "much"],
    "code": ["write", "a", "python", "function", "that", "returns", "list", "string", "loop", "def", "test"],
}
MODELS = {"sums": "calculator", "code": "coder"}


def prompts(rows: int = 300) -> pl.DataFrame:
    """Prompts on two subjects, and two models, each right on one of them. A few rows have no prompt."""
    generator = np.random.default_rng(0)
    subjects = [list(WORDS)[row % 2] for row in range(rows)]
    texts = [
        " ".join(generator.choice(WORDS[one], size=generator.integers(4, 15))) + f" {row}"
        for row, one in enumerate(subjects)
    ]
    table = {"id": [f"q{row}" for row in range(rows)], "prompt": texts, "source": ["x", "y", "z"] * (rows // 3)}
    for subject, model in MODELS.items():
        right = np.array([one == subject for one in subjects])
        table[model] = np.where(right, generator.random(rows) < 0.9, generator.random(rows) < 0.3).astype(float)
    frame = pl.DataFrame(table)
    return frame.with_columns(pl.when(pl.col("id").is_in(["q7", "q8"])).then(None).otherwise("prompt").alias("prompt"))


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A folder with ``prompts.parquet``, its ``cache``, and ``runs`` with one run of method best."""
    folder = tmp_path_factory.mktemp("prompts")
    prompts().write_parquet(folder / "prompts.parquet")
    told: list[str] = []
    facts = {"text": ["prompt"], "agents": list(MODELS.values()), "kind": "scores"}
    cache = l2d.import_table(folder / "prompts.parquet", out=folder / "cache", id="id", say=told.append, **facts)
    l2d.sweep(cache, folder / "runs", betas=[0])
    (folder / "told.txt").write_text("\n".join(told))
    return folder


@pytest.fixture
def home(original, tmp_path) -> Path:
    shutil.copytree(original, tmp_path / "home")
    return tmp_path / "home"


def run_of(home: Path) -> Path:
    return next((home / "runs").rglob("run.json")).parent


def text_file(folder: Path) -> Path:
    (file,) = folder.glob("text-*.safetensors")
    return file


def test_the_import_tells_what_is_read_as_text(original):
    told = (original / "told.txt").read_text()
    assert "text, read word by word: prompt" in told
    recipe = tomllib.loads((original / "cache.toml").read_text())
    assert recipe["dataset"]["text"] == ["prompt"]
    assert recipe["dataset"]["features"] == ["source"]
    inputs = l2d.CostCache(original / "cache").record.inputs
    lines = "\n".join([*inputs["table"]["columns"], *inputs["table"]["notes"]])
    assert "text: prompt (" in lines
    assert "components keep" in lines
    assert "no prompt: 2 of 300 samples: q7, q8" in lines


def test_the_words_route(original):
    """Each model is right on one subject, which no column but the text tells."""
    allocated = pl.read_parquet(run_of(original) / "allocations.parquet").filter(pl.col("split") == "test")
    constant = min(allocated["cost_0"].mean(), allocated["cost_1"].mean())
    assert allocated["deferral_cost"].mean() < 0.25 < constant


def test_free_text_is_left_out_with_the_way_named_and_refused_as_a_feature(home):
    told: list[str] = []
    source = Source(home / "prompts.parquet", home / "prompts.parquet", "id", agents=list(MODELS.values()))
    draft_scores(source, home, "c", told.append)
    assert any(FREE_TEXT in line and "--text prompt reads it word by word" in line for line in told)
    source.columns = ["prompt"]
    refused(lambda: draft_scores(source, home, "c", told.append), UsageError, "--features prompt", "--text prompt")
    source.columns, source.text = [], ["prompts"]
    refused(lambda: draft_scores(source, home, "c", told.append), UsageError, "--text prompts", "did you mean 'prompt'")


@pytest.mark.parametrize("form", ["parquet", "csv", "cache"])
def test_routed_rows_go_where_the_run_sent_them(home, form):
    shutil.rmtree(home / "cache") if form != "cache" else None  # a run routes without its cache
    table, source = prompts(), home / "cache"
    if form == "parquet":
        source = home / "prompts.parquet"
    elif form == "csv":
        source = home / "new.csv"
        table.select("prompt", "id", "source").write_csv(source)
    l2d.route(home / "runs", source, home / "routed.parquet")
    allocated = pl.read_parquet(run_of(home) / "allocations.parquet").filter(pl.col("split") == "test")
    found = allocated.select("sample_id").join(pl.read_parquet(home / "routed.parquet"), on="sample_id", how="left")
    assert len(found) > 40
    assert found["agent"].to_list() == allocated["agent"].to_list()
    for score in ("score_0", "score_1"):
        assert found[score].to_list() == allocated[score].to_list()


def test_texts_without_a_known_word_are_told(home):
    new = pl.DataFrame({"id": ["a", "b"], "prompt": ["entirely unheard", None], "source": ["x", "x"]})
    new.write_parquet(home / "new.parquet")
    report = l2d.route(home / "runs", home / "new.parquet", home / "out.csv")
    kinds = {finding["kind"]: finding for finding in report.foreign}
    assert kinds["no known word"] == {"kind": "no known word", "name": "prompt", "inputs": 2}
    assert not any("component" in finding["name"] for finding in report.foreign)


def test_what_was_fitted_lies_in_the_cache_and_in_each_run(home):
    made = l2d.CostCache(home / "cache").record.inputs["features"]
    for folder in (home / "cache", run_of(home)):
        assert text_file(folder).name == f"text-{made['frozen'][:16]}.safetensors"
    assert text_file(home / "cache").read_bytes() == text_file(run_of(home)).read_bytes()
    assert len(json.dumps(made)) < 20_000  # the vocabulary is not in the record


def test_damage_to_it_is_found(home):
    file = text_file(home / "cache")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    refused(lambda: l2d.verify(home / "cache"), CorruptPart, file.name)
    in_run = text_file(run_of(home))
    in_run.unlink()
    in_run.write_bytes(content)
    source = home / "prompts.parquet"
    refused(lambda: l2d.route(home / "runs", source, home / "o.csv"), CorruptPart, in_run.name)


def test_a_build_puts_it_back_and_replaces_what_settings_change(home):
    file, recipe = text_file(home / "cache"), home / "cache.toml"
    content = file.read_bytes()
    file.unlink()
    refused(lambda: l2d.verify(home / "cache"), IncompleteCache, file.name)
    l2d.build(recipe, home / "cache")
    assert file.read_bytes() == content
    l2d.verify(home / "cache")
    words = "[dataset.text.prompt]\ncomponents = 2\nphrases = 2\n\n[costs.reg]"
    lines = [line for line in recipe.read_text().splitlines() if not line.startswith("text =")]
    recipe.write_text("\n".join(lines).replace("[costs.reg]", words))
    refused(lambda: l2d.build(recipe, home / "cache"), FingerprintMismatch, "dataset.text")
    assert file.read_bytes() == content
    l2d.build(recipe, home / "cache", overwrite=True)
    assert text_file(home / "cache") != file
    cache = l2d.CostCache(home / "cache")
    assert [name for name in cache.record.inputs["features"]["names"] if "component" in name][2:] == []
    assert " " in text_file(home / "cache").read_bytes().decode("latin-1")
    l2d.verify(home / "cache")


def test_it_is_pushed_and_fetched(home):
    l2d.push(home / "cache", f"memory://{home}/there")
    l2d.fetch(f"memory://{home}/there", home / "back")
    assert text_file(home / "back").read_bytes() == text_file(home / "cache").read_bytes()
    l2d.sweep(home / "back", home / "runs2", betas=[0])


def test_onnx_takes_the_features_that_the_encoder_makes(home):
    import onnxruntime

    l2d.export(home / "runs", home / "rejector.onnx")
    run = l2d.load_run(run_of(home))
    session = onnxruntime.InferenceSession(str(home / "rejector.onnx"), providers=["CPUExecutionProvider"])
    table = prompts()
    _, agent = session.run(None, {"features": run.input.encoder.transform(table)})
    l2d.route(home / "runs", home / "prompts.parquet", home / "routed.parquet")
    assert agent.tolist() == pl.read_parquet(home / "routed.parquet")["agent_index"].to_list()
    told = json.loads(session.get_modelmeta().custom_metadata_map["input"])
    assert told["encoder"][1]["type"] == "TextFeature"


def test_two_texts_of_one_name_are_refused(home):
    recipe = home / "cache.toml"
    recipe.write_text(recipe.read_text().replace('text = ["prompt"]', 'text = ["prompt", "prompt"]'))
    refused(lambda: l2d.build(recipe, home / "c2"), UsageError, "two texts are called 'prompt'")


def test_a_file_whose_prompts_are_numbers_is_refused(home):
    new = pl.DataFrame({"id": ["a"], "prompt": [7], "source": ["x"]})
    new.write_parquet(home / "new.parquet")
    refused(lambda: l2d.route(home / "runs", home / "new.parquet", home / "out.csv"), DataError, "prompt", "Int64")
    new.write_csv(home / "new.csv")  # where every cell is text
    l2d.route(home / "runs", home / "new.csv", home / "out.csv")
