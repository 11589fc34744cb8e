"""`l2d import` of published layouts: recognised from their columns, on made-up data of the same form."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import refused
from typer.testing import CliRunner

from l2d.cache_builder.importing.source import Source
from l2d.cache_builder.library import draft_of, import_table
from l2d.cli import app
from l2d.data.errors import DataError, UsageError

MODELS = ("acme/small", "big")
ROWS = 40


def drafted(source: Source, folder: Path, kind: str = "scores") -> tuple[dict, str]:
    """The recipe, and what was said; nothing is written."""
    told: list[str] = []
    before = set(folder.rglob("*"))
    recipe = tomllib.loads(draft_of(kind, source, folder / "c", told.append).recipe)
    assert set(folder.rglob("*")) == before
    return recipe, "\n".join(told)


def costs(cache, name: str) -> dict[str, float | None]:
    parts = [pl.from_arrow(cache.costs(name, k)) for k in range(cache.record.num_chunks)]
    return dict(pl.concat(parts).select("sample_id", "cost_reg").iter_rows())


def outcomes(seed: int = 0) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    table = {"number": range(ROWS), "kind": [("maths", "law")[k % 2] for k in range(ROWS)]}
    table |= {name: generator.integers(0, 2, ROWS).astype(float) for name in MODELS}
    return pl.DataFrame(table | {"text": [f"Question {k} about {'sums' if k % 2 else 'courts'}?" for k in range(ROWS)]})


def bench(folder: Path, *, performance: float | None = None, missing: int = 0) -> pl.DataFrame:
    """LLMRouterBench's folder: an old and a new file of a model, and a trial run."""
    table = outcomes()
    for kind in ("maths", "law"):
        for model in MODELS:
            rows = table.filter(kind=kind)
            records = [
                {
                    "index": row["number"], "origin_query": row["text"], "prompt": row["text"], "prediction": "x",
                    "ground_truth": "y", "score": None if k < missing else row[model], "prompt_tokens": 100 + k,
                    "completion_tokens": 10 * k, "cost": 0.001 * (k + 1), "raw_output": "z" * 50,
                }
                for k, row in enumerate(rows.iter_rows(named=True))
            ]  # fmt: skip
            scores = [r["score"] for r in records if r["score"] is not None]
            totals = {
                "performance": float(np.mean(scores)) if performance is None else performance, "time_taken": 12.5,
                "prompt_tokens": 5000, "completion_tokens": 2000, "cost": sum(r["cost"] for r in records),
                "counts": len(records), "model_name": model, "dataset_name": kind, "split": "test", "demo": False,
            }  # fmt: skip
            place = folder / kind / "test" / model.replace("/", "_")
            place.mkdir(parents=True)
            stem = f"{kind}-test-{model.replace('/', '_')}"
            (place / f"{stem}-20260101_101010.json").write_text(json.dumps(totals | {"records": records}))
            wrong = [r | {"score": 0.5, "cost": 9.0} for r in records]
            (place / f"{stem}-20250101_101010.json").write_text(json.dumps(totals | {"records": wrong}))
            demo = totals | {"demo": True, "records": wrong}
            (place / f"{stem}-20270101_101010.json").write_text(json.dumps(demo))
    return table


def test_llmrouterbench_as_its_folder_lies_there(tmp_path):
    table = bench(tmp_path / "bench")
    told: list[str] = []
    cache = import_table(tmp_path / "bench", out=tmp_path / "c", kind="scores", say=told.append)
    said = "\n".join(told)
    assert "layout: LLMRouterBench" in said
    assert "ids: sample_id; agents: model; scores: score; paid: cost; in: USD" in said
    assert (
        "the totals that the files state are those of their rows (mean score of 4, cost of 4, count of 4 files)" in said
    )
    for name in MODELS:
        wanted = {f"{r['kind']}/test/{r['number']}": 1 - r[name] for r in table.iter_rows(named=True)}
        assert costs(cache, name) == wanted
        assert cache.agent(name).price == pytest.approx(0.001 * 10.5, rel=1e-12)
        assert f"  {name}: mean score {table[name].mean():.4f} of {ROWS}" in said
    recipe = tomllib.loads((tmp_path / "c.toml").read_text())
    assert recipe["dataset"]["features"] == ["origin_query", "prompt_tokens", "dataset"]
    assert recipe["unit_paid"] == "USD"


def test_a_headline_that_its_rows_do_not_have_is_told(tmp_path):
    bench(tmp_path / "a", performance=0.528)
    _, said = drafted(Source(tmp_path / "a", tmp_path / "a"), tmp_path)
    assert "its performance is 0.528, the mean of its 20 scores" in said
    table = outcomes()
    mean = table.filter(kind="law")["big"][4:].sum() / 20
    bench(tmp_path / "b", performance=mean, missing=4)
    _, said = drafted(Source(tmp_path / "b", tmp_path / "b"), tmp_path)
    line = next(line for line in said.splitlines() if "law-test-big" in line)
    assert "4 rows have no score, which it counts as 0; here they are missing" in line
    assert "of 32" in said  # two data sets, four scores missing in each


def test_two_files_of_one_time_are_refused_and_a_contradiction_names_both_rows(tmp_path):
    bench(tmp_path / "bench")
    place = tmp_path / "bench" / "law" / "test" / "big"
    (new,) = place.glob("*20260101*")
    value = json.loads(new.read_text())
    (place / "other-20260101_101010.json").write_text(new.read_text())
    refused(lambda: drafted(Source(*[tmp_path / "bench"] * 2), tmp_path), DataError, "two files of law, test, big")
    (place / "other-20260101_101010.json").unlink()
    value["records"].append(value["records"][2] | {"score": 1 - value["records"][2]["score"]})
    new.write_text(json.dumps(value))
    error = refused(
        lambda: import_table(tmp_path / "bench", out=tmp_path / "c", kind="scores"), DataError, "row 3", "differ"
    )
    assert error.where.endswith(f"{new.name}, row 21")


def test_embedllm_in_a_folder_whose_files_name_the_split(tmp_path):
    table = outcomes()
    long = pl.concat(
        table.select(
            prompt_id="number", model_id=pl.lit(k), category_id=pl.lit(0), label=pl.col(name).cast(int), prompt="text",
            model_name=pl.lit(name), category="kind",
        )
        for k, name in enumerate(MODELS)
    )  # fmt: skip
    (tmp_path / "e").mkdir()
    for name, low, high in (("train", 0, 24), ("val", 24, 32), ("test", 32, 40)):
        part = long.filter(pl.col("prompt_id").is_between(low, high, closed="left"))
        part.write_csv(tmp_path / "e" / f"{name}.csv")
    told: list[str] = []
    cache = import_table(tmp_path / "e", out=tmp_path / "c", kind="scores", say=told.append)
    assert "layout: EmbedLLM - ids: prompt_id; agents: model_name; scores: label" in told
    splits = dict(pl.from_arrow(cache.samples(0)).select("sample_id", "split").iter_rows())
    assert [splits[str(k)] for k in (0, 24, 32)] == ["train", "validation", "test"]
    for name in MODELS:
        assert costs(cache, name) == {str(r["number"]): 1 - r[name] for r in table.iter_rows(named=True)}


@pytest.mark.parametrize("responses", [False, True])
def test_routellm_knows_a_prompt_by_itself(tmp_path, responses):
    table = outcomes()
    wide = table.select(prompt="text", **{name: pl.col(name).cast(pl.Boolean) for name in MODELS})
    if responses:
        wide = wide.with_columns(pl.lit("said so").alias(f"{name}_response") for name in MODELS)
    path = tmp_path / "r.csv"
    pl.concat([wide, wide[:2]]).write_csv(path)  # the same twice is one
    told: list[str] = []
    cache = import_table(path, out=tmp_path / "c", kind="scores", say=told.append)
    assert "layout: RouteLLM - ids: prompt; agents: acme/small, big; text: prompt" in told
    assert cache.record.num_samples == ROWS
    for name in MODELS:
        assert costs(cache, name) == dict(table.select("text", 1 - pl.col(name)).iter_rows())
    recipe = tomllib.loads((tmp_path / "c.toml").read_text())
    assert recipe["dataset"]["text"] == ["prompt"]
    assert "features" not in recipe["dataset"]
    pl.concat([wide, wide[:1].with_columns(big=~pl.col("big"))]).write_csv(path)
    source = Source(path, path)
    error = refused(lambda: import_table(path, out=tmp_path / "d", kind="scores"), DataError, "row 2", "differ")
    assert "row 42" in error.where
    assert drafted(source, tmp_path)[0]["agents"][0]["name"] == "acme/small"


def test_routerarena_cached_results(tmp_path):
    table = outcomes()
    (tmp_path / "cached").mkdir()
    for name in MODELS:
        rows = [
            {
                "global_index": f"q_{r['number']}", "question": r["text"], "llm_selected": name,
                "token_usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 40}, "success": True,
                "evaluation_result": {"score": r[name] - 0.03, "metric": "m", "inference_cost": 0.002}
                if r["number"] % 4 else None,
            }
            for r in table.iter_rows(named=True)
        ]  # fmt: skip
        lines = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / "cached" / f"{name.replace('/', '_')}.jsonl").write_text(lines)
    source = Source(tmp_path / "cached", tmp_path / "cached", text=["question"])
    error = refused(lambda: drafted(source, tmp_path), DataError, "-0.03", "--scale")
    assert ".jsonl, row " in error.where
    cache = import_table(tmp_path / "cached", out=tmp_path / "c", kind="scores", text=["question"], scale=(-1.0, 1.0))
    for name in MODELS:
        found = costs(cache, name)
        for r in table.iter_rows(named=True):
            wanted = None if r["number"] % 4 == 0 else 1 - (r[name] - 0.03)
            assert found[f"q_{r['number']}"] == (None if wanted is None else pytest.approx(wanted, abs=1e-7))


@pytest.mark.parametrize("form", ["nested", "lists", "lists by line"])
def test_llmrouter_in_its_two_forms(tmp_path, form):
    table = outcomes()
    if form == "nested":
        rows = [
            {"question": r["text"], "scores": {name: r[name] for name in MODELS}, "cluster_id": r["number"] % 3}
            for r in table.iter_rows(named=True)
        ]
        words = "LLMRouter, nested scores - ids: question; scores: scores.{}; text: question"
    else:
        rows = [
            {
                "q_id": r["number"], "query": r["text"], "llm_name_list": list(MODELS), "cost_list": [0.1, 0.2],
                "perf_list": [r[name] for name in MODELS], "response_list": ["a", "b"],
            }
            for r in table.iter_rows(named=True)
        ]  # fmt: skip
        words = "LLMRouter, lists by model - ids: q_id; agents: model; scores: score"
    path = tmp_path / ("t.jsonl" if form == "lists by line" else "t.json")
    path.write_text("\n".join(map(json.dumps, rows)) if form == "lists by line" else json.dumps(rows))
    told: list[str] = []
    facts = {} if form == "nested" else {"text": ["query"]}
    cache = import_table(path, out=tmp_path / "c", kind="scores", say=told.append, **facts)
    assert f"layout: {words}" in told
    key = "text" if form == "nested" else "number"
    for name in MODELS:
        assert costs(cache, name) == {str(r[key]): 1 - r[name] for r in table.iter_rows(named=True)}
    if form == "lists":
        rows[5]["cost_list"] = [0.1]
        path.write_text(json.dumps(rows))
        refused(lambda: drafted(Source(path, path), tmp_path), DataError, "row 6", "cost_list 1", "perf_list 2")


def test_openl2d_experts_by_an_index_without_a_name(tmp_path):
    generator = np.random.default_rng(3)
    cases = pl.DataFrame(
        {"": range(ROWS), "fraud_bool": generator.integers(0, 2, ROWS), "income": generator.random(ROWS)}
    )
    cases.write_csv(tmp_path / "alerts.csv")
    experts = cases.select("", *(pl.Series(f"standard#{k}", generator.integers(0, 2, ROWS)) for k in range(3)))
    experts.write_csv(tmp_path / "experts.csv")
    told: list[str] = []
    cache = import_table(
        tmp_path / "alerts.csv", tmp_path / "experts.csv", out=tmp_path / "c", model="standard#0", say=told.append
    )
    assert any(line.startswith("layout: OpenL2D - agents: standard#0, standard#1, standard#2") for line in told)
    assert [agent.name for agent in cache.agents] == ["standard#0", "standard#1", "standard#2"]
    for k in range(3):
        wrong = dict(
            zip(map(str, range(ROWS)), (cases["fraud_bool"] != experts[f"standard#{k}"]).cast(float), strict=True)
        )
        parts = pl.from_arrow(cache.costs(f"standard#{k}", 0))
        assert dict(parts.select("sample_id", "cost_cla").iter_rows()) == wrong


def test_several_columns_make_an_id_together(tmp_path):
    """As viper has them: a reader reads a case in two modalities, and nothing else tells the two reads apart."""
    generator = np.random.default_rng(5)
    reads = pl.DataFrame(
        [
            {"case": f"c{case}", "modality": modality, "reader": reader, "cancer": int(case % 3 == 0)}
            for case in range(30) for modality in ("film", "digital") for reader in ("r1", "r2")
        ]
    ).with_columns(recall=pl.Series(generator.integers(1, 3, 120)))  # fmt: skip
    path = tmp_path / "reads.csv"
    reads.sample(fraction=1, shuffle=True, seed=0).write_csv(path)
    facts = {"annotator": "reader", "target": "cancer", "cla": "recall", "labels": {"1": "1", "2": "0"}}
    facts |= {"columns": ["modality"], "model": "r1"}
    refused(lambda: drafted(Source(path, path, "case, mode", **facts), tmp_path, "predictions"), UsageError, "mode")
    refused(lambda: import_table(path, out=tmp_path / "d", id="case", **facts), DataError, "stands twice", "modality")
    cache = import_table(path, out=tmp_path / "c", id="case,modality", **facts)
    assert tomllib.loads((tmp_path / "c.toml").read_text())["agents"][0]["id"] == ["case", "modality"]
    for name in ("r1", "r2"):
        own = reads.filter(reader=name)
        wrong = (own["recall"] == 1) != (own["cancer"] == 1)
        ids = own.select(pl.concat_str("case", "modality", separator="/")).to_series()
        found = pl.from_arrow(cache.costs(name, 0)).select("sample_id", "cost_cla")
        assert dict(found.iter_rows()) == dict(zip(ids, wrong.cast(float), strict=True))


def test_frames_of_polars_and_pandas(tmp_path):
    table = outcomes()
    wide = table.select(pl.format("q{}", "number").alias("id"), "kind", *MODELS)
    caches = [
        import_table(frame, out=tmp_path / name, kind="scores", agents=list(MODELS))
        for name, frame in (("polars", wide), ("pandas", wide.to_pandas()), ("lazy", wide.lazy()))
    ]
    for cache in caches:
        assert costs(cache, "big") == dict(wide.select("id", 1 - pl.col("big")).iter_rows())


# --- prices of counts -------------------------------------------------------------------------------------------------


def priced(folder: Path) -> tuple[Path, pl.DataFrame]:
    """A long table with tokens."""
    table, generator = outcomes(), np.random.default_rng(1)
    long = pl.concat(
        table.select(id="number", kind="kind", model=pl.lit(name), score=pl.col(name)) for name in MODELS
    ).with_columns(input_tokens=pl.Series(generator.integers(50, 900, 2 * ROWS)),
                   output_tokens=pl.Series(generator.integers(1, 400, 2 * ROWS)))  # fmt: skip
    long.write_csv(folder / "a.csv")
    return folder / "a.csv", long


PRICES = {"acme/small": (0.15, 0.6), "big": (5.0, 15.0)}


@pytest.mark.parametrize("form", ["csv", "json"])
def test_prices_for_a_million_tokens_are_what_plain_polars_makes_of_them(tmp_path, form):
    path, long = priced(tmp_path)
    rows = [{"name": name, "input_price": low, "output_price": high} for name, (low, high) in PRICES.items()]
    list_of_prices = tmp_path / f"prices.{form}"
    if form == "csv":
        pl.DataFrame(rows).write_csv(list_of_prices)
    else:
        list_of_prices.write_text(json.dumps(rows))
    told: list[str] = []
    source = {"prices": list_of_prices, "per": 1e6, "unit_paid": "USD"}
    cache = import_table(path, out=tmp_path / "c", kind="scores", say=told.append, **source)
    said = "\n".join(told)
    assert "as acme/small: 0.15 USD for 1,000,000 input_tokens, 0.6 USD for 1,000,000 output_tokens" in said
    for name, (low, high) in PRICES.items():
        own = long.filter(model=name)
        wanted = dict(
            own.select(pl.col("id").cast(str), (low * pl.col("input_tokens") + high * pl.col("output_tokens")) / 1e6)
            .iter_rows()
        )  # fmt: skip
        found = dict(pl.from_arrow(cache.predictions(name, 0)).select("sample_id", "paid").iter_rows())
        assert found == pytest.approx(wanted, rel=1e-12)
        assert cache.agent(name).price == pytest.approx(np.mean(list(wanted.values())), rel=1e-12)
        assert f"{1000 * np.mean(list(wanted.values())):.4g} USD a thousand answers" in said


def test_a_wide_table_has_its_counts_by_agent_and_a_column_may_be_for_a_thousand_answers(tmp_path):
    _, long = priced(tmp_path)
    wide = long.pivot("model", index=["id", "kind"], values=["score", "output_tokens"])
    wide = wide.rename({f"output_tokens_{name}": f"{name}|output_tokens" for name in MODELS})
    wide = wide.rename({f"score_{name}": name for name in MODELS})
    wide.write_parquet(tmp_path / "w.parquet")
    pl.DataFrame({"model": list(PRICES), "output_tokens": [0.6, 15.0]}).write_csv(tmp_path / "p.csv")
    path = tmp_path / "w.parquet"
    facts = {"prices": tmp_path / "p.csv", "per": 1000.0, "agents": list(MODELS)}
    recipe, _ = drafted(Source(path, path, columns=["kind"], **facts), tmp_path)
    assert recipe["agents"][1]["paid"] == {"prices": {"big|output_tokens": 15.0}, "per": 1000}
    long.with_columns(micro=pl.col("output_tokens") * 2.0).write_csv(tmp_path / "m.csv")
    cache = import_table(tmp_path / "m.csv", out=tmp_path / "c", kind="scores", paid="micro", per=1e6)
    mean = long.filter(model="big")["output_tokens"].mean() * 2e-6
    assert cache.agent("big").price == pytest.approx(mean, rel=1e-12)


def test_what_prices_are_for_is_never_guessed_and_no_price_is_left_out_in_silence(tmp_path):
    path, long = priced(tmp_path)
    prices = tmp_path / "p.csv"
    pl.DataFrame({"name": list(PRICES), "input_price": [1.0, 2.0]}).write_csv(prices)
    for keys, error, words in (
        ({"prices": prices}, UsageError, ("for how many", "--per 1000000")),
        ({"per": 1000.0}, UsageError, ("of what?",)),
        ({"prices": prices, "per": 1e6, "paid": "input_tokens"}, UsageError, ("--prices and --paid",)),
    ):
        refused(lambda keys=keys: drafted(Source(path, path, **keys), tmp_path), error, *words)
    long.drop("input_tokens").write_csv(path)
    source = Source(path, path, prices=prices, per=1e6)
    refused(lambda: drafted(source, tmp_path), DataError, "input_price is the price of what?")
    pl.DataFrame({"name": ["other"], "output_price": [1.0]}).write_csv(prices)
    refused(lambda: drafted(source, tmp_path), UsageError, "no column has the agents' names")
    pl.DataFrame({"name": ["big", "big"], "output_price": [1.0, 2.0]}).write_csv(prices)
    refused(lambda: drafted(source, tmp_path), DataError, "big stands twice")


def test_the_command_shows_the_mapping_and_writes_nothing(tmp_path, monkeypatch):
    bench(tmp_path / "bench")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["import", "scores", "bench", "--out", "c", "--dry-run"])
    assert result.exit_code == 0, result.stderr
    assert "layout: LLMRouterBench" in result.stderr
    assert tomllib.loads(result.stdout)["dataset"]["path"] == "c.samples.parquet"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench"]
    nothing = tmp_path / "t.csv"
    pl.DataFrame({"a": [1], "b": [0.5]}).write_csv(nothing)
    result = CliRunner().invoke(app, ["import", "scores", "t.csv", "--out", "c"])
    assert isinstance(result.exception, UsageError)
    assert "--id one of a, b" in result.exception.hint
