"""Text beside a category, and the category alone, on real tables of language models; and what routing by text costs.

    python benchmarks/text.py                                   # both parts
    python benchmarks/text.py value --tables llmrouter --splits 1
    python benchmarks/text.py speed --rows 100000 --rounds 3

``value``: the league's tables and splits (``league_tables.py``: every sample is tested once), with ``[dataset] text``
in the recipe and without; all else is the same, the method is the default. Differences are paired by sample and pooled
over the splits, 95 %; they do not cover training.

``speed``: processor seconds of ``l2d route`` on a Parquet file of prompts, within this process, against
``TfidfVectorizer.transform`` and ``TruncatedSVD.transform`` of the same prompts with the same vocabulary and
components, turn by turn; the seconds of all threads count. Prompts are those of the public tables, drawn with
repetition, each with a number of its own at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from league_tables import Outcomes, agent_name, shared_data, split_of, tables

TABLES = ("mmlu-pro", "llmrouter", "routerbench", "routerarena")
BETAS = (0.0, 0.05, 0.2)


def recipe(outcomes: Outcomes, folder: Path, split: int, *, text: bool) -> Path:
    """A table's two files and its recipe, with text or without."""
    samples = outcomes.features.with_columns(
        pl.Series("sample", outcomes.ids),
        pl.Series("league_split", split_of(outcomes.group, split)),
        pl.Series("prompt", outcomes.text),
    )
    samples.write_parquet(folder / "samples.parquet")
    outcomes.answers.write_parquet(folder / "answers.parquet")
    names = ", ".join(repr(f'"{name}"') for name in outcomes.features.columns)
    lines = ["[dataset]", 'path = "samples.parquet"', 'id = "sample"', 'target_reg = "1.0"', f"features = [{names}]"]
    lines += ['text = ["prompt"]'] if text else []
    lines += ['split = { column = "league_split" }', "", "[costs.reg]", 'kind = "absolute"']
    for position, (name, price) in enumerate(outcomes.prices.items()):
        lines += ["", "[[agents]]", f'name = "{agent_name(name)}"', 'kind = "table"', 'file = "answers.parquet"']
        lines += ['id = "sample"', 'annotator = "agent"', f"who = {json.dumps(name)}", 'reg = "score"']
        lines += [f"price = {float(price)!r}"] if position else []
    (folder / "recipe.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "recipe.toml"


def losses(outcomes: Outcomes, split: int, *, text: bool) -> dict[float, pl.DataFrame]:
    """beta -> ``sample_id`` and ``deferral_cost`` of the test samples."""
    import l2d

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = l2d.build(recipe(outcomes, folder, split, text=text), folder / "cache", device="cpu")
        found = {}
        for run in l2d.sweep(cache, folder / "runs", betas=list(BETAS), methods=["best"]):
            rows = pl.read_parquet(run.path / "allocations.parquet").filter(pl.col("split") == "test")
            found[run.point.beta] = rows.select("sample_id", "deferral_cost")
        return found


def value(names: list[str], data: Path, splits: int) -> list[dict]:
    """A row for each table and beta."""
    rows = []
    print("| table | beta | category | category and text | difference |\n| --- | ---: | ---: | ---: | ---: |")
    for name in names:
        table = tables(data)[name]()
        parts: dict[float, list[pl.DataFrame]] = {beta: [] for beta in BETAS}
        for split in range(splits):
            alone, both = (losses(table.outcomes, split, text=text) for text in (False, True))
            for beta in BETAS:
                parts[beta].append(alone[beta].join(both[beta], on="sample_id", suffix="_text", validate="1:1"))
        for beta, found in parts.items():
            pooled = pl.concat(found)
            differences = (pooled["deferral_cost_text"] - pooled["deferral_cost"]).to_numpy()
            half = 1.959964 * differences.std(ddof=1) / len(differences) ** 0.5
            mean = float(differences.mean())
            row = {"table": table.name, "beta": beta, "category": float(pooled["deferral_cost"].mean())}
            row |= {"both": float(pooled["deferral_cost_text"].mean()), "difference": mean}
            rows.append(row | {"low": mean - half, "high": mean + half})
            interval = f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"
            print(f"| {table.name} | {beta:g} | {row['category']:.4f} | {row['both']:.4f} | {interval} |", flush=True)
    return rows


def speed(data: Path, rows: int, rounds: int) -> dict[str, dict[str, float]]:
    """Processor seconds by table: ours, scikit-learn's TF-IDF, and that with its truncated SVD."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    import l2d
    from l2d.data.samples.text import WORD

    found: dict[str, dict[str, float]] = {}
    print("| prompts of | letters each | route, s | TF-IDF, s | TF-IDF and SVD, s | route / TF-IDF | route / both |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in ("llmrouter", "mmlu-pro", "routerbench"):
        outcomes = tables(data)[name]().outcomes
        with tempfile.TemporaryDirectory() as folder_name:
            folder = Path(folder_name)
            cache = l2d.build(recipe(outcomes, folder, 0, text=True), folder / "cache", device="cpu")
            run = l2d.sweep(cache, folder / "runs", betas=[0.0], methods=["best"], guard=0.0)[0]
            drawn = np.random.default_rng(0).integers(len(outcomes.ids), size=rows)
            texts = [f"{outcomes.text[place]} {number}" for number, place in enumerate(drawn.tolist())]
            frame = outcomes.features[drawn.tolist()].with_columns(
                pl.Series("prompt", texts), pl.Series("sample", [f"n{k}" for k in range(rows)])
            )
            frame.write_parquet(folder / "new.parquet")
            feature = run.input.encoder.features[-1]
            vectorizer = TfidfVectorizer(vocabulary=list(feature.vocabulary), token_pattern=WORD, sublinear_tf=True)
            vectorizer.idf_ = feature.weights
            svd = TruncatedSVD(feature.components)
            svd.components_ = feature.directions.T
            seconds: dict[str, list[float]] = {"route": [], "tfidf": [], "both": []}
            for _ in range(rounds):
                start = time.process_time()
                l2d.route(run.path, folder / "new.parquet", folder / "out.parquet", overwrite=True)
                seconds["route"].append(time.process_time() - start)
                start = time.process_time()
                bags = vectorizer.transform(texts)
                seconds["tfidf"].append(time.process_time() - start)
                svd.transform(bags)
                seconds["both"].append(time.process_time() - start)
        ours, tfidf, both = (statistics.median(seconds[key]) for key in ("route", "tfidf", "both"))
        found[name] = {"route_to_tfidf": ours / tfidf, "route_to_tfidf_and_svd": ours / both}
        letters = statistics.mean(map(len, texts))
        print(
            f"| {name} | {letters:.0f} | {ours:.2f} | {tfidf:.2f} | {both:.2f} "
            f"| {ours / tfidf:.2f} | {ours / both:.2f} |",
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("value", "speed"), help="default: both")
    parser.add_argument("--data", type=Path, default=shared_data(), help="folder of the public tables")
    parser.add_argument("--tables", default=",".join(TABLES), help="of `value`, by commas")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.data is None:
        parser.error("the folder of public tables is not beside the repository: --data FOLDER")
    found: dict[str, object] = {"benchmark": "text"}
    if options.part != "speed":
        found["value"] = value(options.tables.split(","), options.data, options.splits)
    if options.part != "value":
        found["speed"] = speed(options.data, options.rows, options.rounds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
