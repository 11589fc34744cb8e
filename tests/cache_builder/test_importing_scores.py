"""`l2d import scores`: tables as benchmarks of routers publish them, and what must not get into the features."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import refused

from l2d.cache_builder.builder import build
from l2d.cache_builder.importing.scores import draft_scores
from l2d.cache_builder.importing.source import Source
from l2d.cache_builder.recipe import load_recipe
from l2d.data.cache.reader import CostCache
from l2d.data.errors import DataError, UsageError
from l2d.data.library import status
from l2d.rejector.costs import query_costs

ROWS = 240
MODELS = {"meta/small": (0.5, 0.0005), "mid": (0.7, 0.004), "big": (0.9, None)}


def wide(seed: int = 0) -> pl.DataFrame:
    """A question a row: its length and kind, three models' scores."""
    generator = np.random.default_rng(seed)
    table = {"id": [f"q{row}" for row in range(ROWS)], "length": generator.integers(2, 400, ROWS)}
    table |= {"kind": [f"k{row % 3}" for row in range(ROWS)]}
    return pl.DataFrame(
        table | {name: (generator.random(ROWS) < right).astype(float) for name, (right, _) in MODELS.items()}
    )


def imported(folder: Path, source: Source, told: list[str] | None = None) -> tuple[CostCache, dict]:
    """The cache of an import, and its recipe."""
    told = [] if told is None else told
    draft = draft_scores(source, folder, "c", told.append)
    draft.write(folder / "c.toml", overwrite=True)
    build(load_recipe(str(folder / "c.toml")), folder / "c", device="cpu", overwrite=True)
    return CostCache(folder / "c"), tomllib.loads(draft.recipe)


def costs(cache: CostCache, name: str) -> dict[str, float | None]:
    parts = [pl.from_arrow(cache.costs(name, k)) for k in range(cache.record.num_chunks)]
    return dict(pl.concat(parts).select("sample_id", "cost_reg").iter_rows())


def expect(cache: CostCache, table: pl.DataFrame) -> None:
    """Every model's costs are one minus its scores, sample by sample."""
    assert {agent.name for agent in cache.agents} == set(MODELS)
    for name in MODELS:
        assert costs(cache, name) == {row["id"]: 1 - row[name] for row in table.iter_rows(named=True)}


@pytest.mark.parametrize("form", ["no cost column", "blank costs"])
def test_a_model_of_unknown_price_is_an_agent_and_not_a_feature(tmp_path, form):
    table = wide().with_columns(
        pl.lit(price).alias(f"{name}|total_cost") for name, (_, price) in MODELS.items() if price is not None
    )
    if form == "blank costs":
        table = table.with_columns(pl.lit(None, pl.Float64).alias("big|total_cost"))
    table = table.with_columns(oracle_model_to_route_to=pl.Series(["mid", "big", "no_model_correct"] * (ROWS // 3)))
    table.write_csv(tmp_path / "t.csv")
    told: list[str] = []
    cache, recipe = imported(tmp_path, Source(tmp_path / "t.csv", tmp_path / "t.csv", "id"), told)
    expect(cache, table)
    assert recipe["dataset"]["features"] == ["length", "kind"]
    assert [(agent.name, agent.price) for agent in cache.agents] == [
        ("meta/small", pytest.approx(0.0005)), ("mid", pytest.approx(0.004)), ("big", None),
    ]  # fmt: skip
    said = "\n".join(told)
    assert "big: mean score" in said and "price not known" in said  # noqa: PT018
    assert "oracle_model_to_route_to" in said
    with pytest.raises(UsageError, match="the price of big is not known"):
        query_costs(0.1, cache.agents)


def test_the_cheapest_has_its_price_and_a_named_model_is_free(tmp_path):
    prices = {"meta/small": 0.0005, "mid": 0.004, "big": 0.01}
    table = wide().with_columns(pl.lit(price).alias(f"{name}|total_cost") for name, price in prices.items())
    table.write_parquet(tmp_path / "t.parquet")
    path = tmp_path / "t.parquet"
    cache, _ = imported(tmp_path, Source(path, path, "id"))
    assert query_costs(0.01, cache.agents).tolist() == pytest.approx([0.0005, 0.004, 0.01])
    assert [row["role"] for row in status(cache).rows()] == ["agent"] * 3
    cache, _ = imported(tmp_path, Source(path, path, "id", model="mid"))
    assert cache.agents[0].name == "mid"
    assert query_costs(0.01, cache.agents).tolist() == pytest.approx([0.0, 0.0005, 0.01])
    assert [row["role"] for row in status(cache).rows()] == ["model", "agent", "agent"]


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"paid": "cost"}, ("--paid cost", "{}")),
        ({"paid": "{}_cost"}, ("--paid {}_cost", "no such column")),
        ({"reg": "{}_score"}, ("--reg {}_score", "no such column")),
        ({"reg": "score"}, ("--reg score", "{}")),
        ({"model": "bog"}, ("--model bog", "'big'")),
    ],
)
def test_a_mapping_that_fits_no_column_names_it(tmp_path, mapping, words):
    path = tmp_path / "t.csv"
    wide().with_columns(pl.lit(0.1).alias(f"{name}|total_cost") for name in MODELS).write_csv(path)
    refused(lambda: imported(tmp_path, Source(path, path, "id", **mapping)), UsageError, *words)
    assert not (tmp_path / "c.toml").exists()


def test_halves_of_a_row_are_one_sample_and_contradictions_are_refused(tmp_path):
    """As RouterBench has them: a model's score in one row, the others' in the other, prices of answers in both."""
    table = wide().with_columns(pl.lit(0.1 * (k + 1)).alias(f"{name}|total_cost") for k, name in enumerate(MODELS))
    table = table.with_columns(prompt=pl.format("what is {}?", "id"))
    first = table[:5].with_columns(pl.lit(None, pl.Float64).alias("mid"), prompt=pl.format("What is {}?", "id"))
    second = table[:5].with_columns(
        pl.lit(None, pl.Float64).alias(name) for name in ("meta/small", "big")
    ).with_columns(pl.lit(7.0).alias("big|total_cost"))  # fmt: skip
    path = tmp_path / "t.parquet"
    pl.concat([first, table[5:], second]).with_row_index("__index_level_0__").write_parquet(path)
    told: list[str] = []
    cache, recipe = imported(tmp_path, Source(path, path, "id"), told)
    expect(cache, table)
    assert recipe["dataset"]["path"] == "c.samples.parquet"
    assert recipe["dataset"]["features"] == ["length", "kind"]
    assert cache.agent("big").price == pytest.approx(0.3)  # of answers, not of rows that have none
    assert any("10 of 245 rows" in line for line in told)
    clash = second.with_columns(pl.lit(1.0).alias("big"), pl.lit(0.0).alias("mid"))
    clash = clash.with_columns(big=1 - table["big"][:5])
    pl.concat([first, table[5:], clash]).write_parquet(path)
    error = refused(lambda: imported(tmp_path, Source(path, path, "id")), DataError, "'q0'", "'big'", "row 1", "differ")
    assert "row 241" in str(error.where)
    pl.concat([first, table[5:], second.with_columns(length=pl.lit(1, pl.Int64))]).write_parquet(path)
    refused(lambda: imported(tmp_path, Source(path, path, "id")), DataError, "different length", "row 0", "row 240")


@pytest.mark.parametrize("written", ["numbers", "true and false", "truth values"])
def test_a_plain_wide_table(tmp_path, written):
    table = wide()
    scores = table.select("id", *MODELS)
    if written != "numbers":
        scores = scores.with_columns(pl.col(list(MODELS)).cast(pl.Boolean))
    path = tmp_path / ("t.parquet" if written == "truth values" else "t.csv")
    if written == "true and false":
        scores = scores.with_columns(
            pl.when(pl.col(n)).then(pl.lit("True")).otherwise(pl.lit("False")).alias(n) for n in MODELS
        )
    (scores.write_parquet if written == "truth values" else scores.write_csv)(path)
    table.select("id", "length", "kind").write_csv(tmp_path / "f.csv")
    cache, recipe = imported(tmp_path, Source(tmp_path / "f.csv", path, "id"))
    expect(cache, table)
    assert recipe["dataset"]["features"] == ["length", "kind"]
    assert [agent.price for agent in cache.agents] == [None, None, None]


def test_in_one_plain_table_what_is_an_agent_is_asked_where_it_is_not_plain(tmp_path):
    table = wide()
    path = tmp_path / "t.csv"
    table.write_csv(path)
    source = Source(path, path, "id")
    refused(
        lambda: imported(tmp_path, source), DataError, "which columns are agents?", "length go beyond", "--features"
    )
    for source in (Source(path, path, "id", columns=["length", "kind"]), Source(path, path, "id", agents=list(MODELS))):
        cache, recipe = imported(tmp_path, source)
        expect(cache, table)
        assert recipe["dataset"]["features"] == ["length", "kind"]
    strange = Source(path, path, "id", agents=["big", "bog"])
    refused(lambda: imported(tmp_path, strange), UsageError, "--agents bog", "did you mean 'big'")
    table.with_columns(big=85 * pl.col("big")).write_csv(path)
    source = Source(path, path, "id", columns=["length", "kind"])
    refused(lambda: imported(tmp_path, source), DataError, "big go beyond 0 to 1")


def test_another_scale_is_stated_and_its_range_weighs_one(tmp_path):
    table = wide().with_columns(pl.col(list(MODELS)) * 60 + 30)
    path = tmp_path / "t.csv"
    table.write_csv(path)
    source = Source(path, path, "id", agents=list(MODELS))
    refused(lambda: imported(tmp_path, source), DataError, "not from 0 to 1", "--scale")
    source.scale = (30.0, 90.0)
    cache, _ = imported(tmp_path, source)
    assert set(costs(cache, "big").values()) == {0.0, 60.0}
    assert cache.record.defaults["lambda"] == {"reg": 1 / 60}


def test_one_long_file_as_embedllm_has_it(tmp_path):
    """prompt_id, model_id, category_id, label, prompt, model_name, category: a row for each score."""
    table = wide()
    long = pl.concat(
        table.select(
            prompt_id="id", model_id=pl.lit(k), category_id=pl.col("kind").str.slice(1).cast(int),
            label=pl.col(name).cast(int), prompt=pl.format("what is {}?", "id"), model_name=pl.lit(name),
            category="kind",
        )
        for k, name in enumerate(MODELS)
    )  # fmt: skip
    path = tmp_path / "t.csv"
    long.sample(fraction=1, shuffle=True, seed=0).write_csv(path)
    told: list[str] = []
    cache, recipe = imported(tmp_path, Source(path, path, "prompt_id"), told)
    expect(cache, table)
    assert recipe["dataset"]["features"] == ["category_id", "category"]
    assert any("belong to the answers: model_id" in line for line in told)
    for name in MODELS:
        assert any(line.startswith(f"  {name}: mean score {table[name].mean():.4f} of {ROWS}") for line in told)


def test_crowd_kit_calls_them_task_worker_label(tmp_path):
    table = wide()
    long = table.unpivot(on=list(MODELS), index="id", variable_name="worker", value_name="label")
    long.rename({"id": "task"}).write_csv(tmp_path / "answers.csv")
    table.select("id", "length").write_csv(tmp_path / "f.csv")
    told: list[str] = []
    cache, _ = imported(tmp_path, Source(tmp_path / "f.csv", tmp_path / "answers.csv", "id"), told)
    expect(cache, table)
    assert any("the column 'task' has the sample ids" in line for line in told)


def test_json_with_nested_scores(tmp_path):
    table = wide()
    rows = [
        {"id": row["id"], "kind": row["kind"], "scores": {name: row[name] for name in MODELS}}
        for row in table.iter_rows(named=True)
    ]
    path = tmp_path / "t.json"
    path.write_text(json.dumps(rows))
    cache, recipe = imported(tmp_path, Source(path, path, "id"))
    expect(cache, table)
    assert recipe["dataset"]["features"] == ["kind"]


def test_ids_are_compared_as_numbers_where_only_that_fits(tmp_path):
    table = wide().with_columns(id=pl.int_range(ROWS))
    table.select(pl.format("{}", pl.col("id").cast(pl.String).str.zfill(4)).alias("id"), "kind").write_csv(
        tmp_path / "f.csv"
    )
    table.select(pl.col("id").cast(pl.Float64), *MODELS).write_csv(tmp_path / "s.csv")
    told: list[str] = []
    cache, recipe = imported(tmp_path, Source(tmp_path / "f.csv", tmp_path / "s.csv", "id"), told)
    assert all(agent["ids"] == "number" for agent in recipe["agents"])
    assert any("ids are compared as numbers: '0.0'" in line and "'0000'" in line for line in told)
    assert list(costs(cache, "big").values()) == (1 - table["big"]).to_list()


# --- tables as they were published; used in place, see where they lie -------------------------------------------------

PUBLISHED = next(
    (folder / "shared/data" for folder in Path(__file__).resolve().parents if (folder / "shared/data").is_dir()), None
)
needs_tables = pytest.mark.skipif(PUBLISHED is None, reason="published tables are not here")


@needs_tables
def test_routerbench_as_published(tmp_path):
    path = PUBLISHED / "routerbench_0shot_subset_wide.parquet"
    told: list[str] = []
    cache, recipe = imported(tmp_path, Source(path, path, "sample_id"), told)
    table = pl.read_parquet(path)
    assert cache.record.num_samples == table["sample_id"].n_unique()
    assert recipe["dataset"]["features"] == ["eval_name"]
    models = [name.removesuffix("|total_cost") for name in table.columns if name.endswith("|total_cost")]
    assert {agent.name for agent in cache.agents} == set(models)
    for name in models:
        scored = table.filter(pl.col(name).is_not_null())
        assert costs(cache, name) == dict(scored.select("sample_id", 1 - pl.col(name)).iter_rows())
        assert cache.agent(name).price == pytest.approx(scored[f"{name}|total_cost"].mean(), rel=1e-12)


@needs_tables
def test_mmlu_pro_as_published(tmp_path):
    answers, questions = (PUBLISHED / f"mmlu_pro_{name}.parquet" for name in ("answers_long", "questions"))
    source = Source(questions, answers, "question_id")
    draft = draft_scores(source, tmp_path, "c", lambda line: None)
    recipe = tomllib.loads(draft.recipe)
    assert recipe["dataset"]["features"] == ["category", "src"]  # `answer` is the truth
    recipe_file = tmp_path / "c.toml"
    kept = ("gemini-1.5-pro-002", "DeepSeek-Coder-V2")
    blocks = draft.recipe.split("[[agents]]")
    some = [block for block in blocks[1:] if any(f'"{name}"' in block for name in kept)]
    recipe_file.write_text("[[agents]]".join([blocks[0], *some]))
    build(load_recipe(str(recipe_file)), tmp_path / "c", device="cpu")
    table = pl.read_parquet(answers)
    for name in kept:
        said = dict(
            table.filter(pl.col("model") == name).select(pl.col("question_id").cast(str), "correct").iter_rows()
        )
        found = costs(CostCache(tmp_path / "c"), name)
        assert {key: cost for key, cost in found.items() if cost is not None} == {k: 1.0 - v for k, v in said.items()}


@needs_tables
@pytest.mark.parametrize(
    ("name", "id_column", "keys", "agents"),
    [
        ("llmrouter_scores_wide", "sample_id", {"columns": ["task", "cluster_id"]}, 9),
        ("routerarena_sub10", "global_index", {"scale": (-1.0, 1.0)}, 4),
    ],
)
def test_other_tables_as_published(tmp_path, name, id_column, keys, agents):
    files = [PUBLISHED / f"{name}.parquet"] * 2
    if name == "routerarena_sub10":
        files = [PUBLISHED / f"{name}_{part}.parquet" for part in ("questions", "long")]
        refused(lambda: imported(tmp_path, Source(*files, id_column)), DataError, "-0.033", "--scale")
    cache, _ = imported(tmp_path, Source(*files, id_column, **keys))
    assert len(cache.agents) == agents
    table = pl.read_parquet(files[1])
    if "model" in table.columns:
        table = table.pivot("model", index=id_column, values="score")
    for agent in cache.agents:
        said = dict(table.select(id_column, agent.name).iter_rows())
        for sample, cost in costs(cache, agent.name).items():
            score = said.get(sample)
            assert (cost is None) == (score is None)
            assert cost is None or cost == pytest.approx(1 - score, abs=1e-7)  # costs are stored in 32 bits
