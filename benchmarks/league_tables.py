"""The league's tables: recipes that ship, and public tables turned into features and raw costs by rules stated here.

A public table becomes two files and a recipe, as a user would write them: ``samples.parquet`` with the features and the
split, ``answers.parquet`` with a row for each answer. Text becomes 16 columns (TF-IDF, then a truncated SVD, both
fitted on the training rows), categories stay text and are one-hot encoded by the build. The cost of a score is its
distance from 1. Agent 0, the model, is the agent of the lowest mean price, or the first one where a table has no
prices; then every other agent's price is 1.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

SPLITS = ("train", "validation", "test")
FOLDS = 5
SVD_WIDTH = 16
RECIPES = Path(__file__).resolve().parents[1] / "cache_builder" / "recipes"
SUPPORT2 = Path(__file__).resolve().parents[1] / "data" / "support2" / "support2.parquet"


@dataclass(frozen=True)
class Outcomes:
    """A public table: what is known of a sample beforehand, and what each agent got on it.

    Attributes:
        ids: (n,) unique texts.
        group: (n,) what is resampled and split as one: samples of one group are never in two splits.
        features: n rows of numbers and text; text columns are categories.
        text: (n,) what TF-IDF reads, or None.
        answers: ``sample, agent, score``, or ``sample, agent, answer`` where ``truth`` is given; a row an answer.
        prices: agent -> mean price, the model first.
        truth: (n,) true classes, or None where ``score`` says how good an answer is.
    """

    ids: list[str]
    group: list[str]
    features: pl.DataFrame
    text: list[str] | None
    answers: pl.DataFrame
    prices: dict[str, float]
    truth: list[str] | None = None

    def costs(self) -> np.ndarray:
        """Raw costs (n, agents) float64, NaN where an agent has no answer: 1 - score, or 1 where the class is wrong."""
        row, column = {name: k for k, name in enumerate(self.ids)}, {name: j for j, name in enumerate(self.prices)}
        found = np.full((len(self.ids), len(column)), np.nan)
        for sample, agent, answer in self.answers.iter_rows():
            wrong = None if self.truth is None else float(answer != self.truth[row[sample]])
            found[row[sample], column[agent]] = abs(float(np.float32(answer)) - 1.0) if wrong is None else wrong
        return found.astype(np.float32).astype(np.float64)


@dataclass(frozen=True)
class Table:
    """A table of the league: ``recipe(folder, split)`` writes what a build needs and returns the recipe's file."""

    name: str
    recipe: Callable[[Path, int], Path]
    outcomes: Outcomes | None = None
    group: str | None = None  # kept column whose values are resampled as one, of a recipe that ships
    digest: str = field(default="")


def fold_of(groups: list[str]) -> np.ndarray:
    """A fold 0..4 for each sample, by SHA-256 of its group: the same on every machine, about equally large."""
    return np.array([int(hashlib.sha256(f"league:{name}".encode()).hexdigest()[:12], 16) % FOLDS for name in groups])


def split_of(groups: list[str], split: int) -> list[str]:
    """Fold ``split`` tests, the next one validates, three train: so each sample is tested once in five splits."""
    fold = fold_of(groups)
    test, validation = fold == split, fold == (split + 1) % FOLDS
    return np.where(test, "test", np.where(validation, "validation", "train")).tolist()


# --- tables that ship -------------------------------------------------------------------------------------------------


def support2() -> Table:
    return Table("SUPPORT2", lambda folder, split: _shipped("support2", folder, split), digest=_digest(SUPPORT2))


def physicians() -> Table:
    recipe = lambda folder, split: _shipped("support2_physicians", folder, split)  # noqa: E731
    return Table("physicians", recipe, digest=_digest(SUPPORT2))


def _shipped(name: str, folder: Path, split: int) -> Path:
    """A recipe over SUPPORT2 with the league's split in place of its own."""
    table = pl.read_parquet(SUPPORT2)
    folds = split_of(table["sno"].cast(pl.String).to_list(), split)
    table.with_columns(pl.Series("league_split", folds)).write_parquet(folder / "support2.parquet")
    text = (RECIPES / f"{name}.toml").read_text(encoding="utf-8")
    text = re.sub(r"\[dataset\.split\]\n(?:.+\n)*", '[dataset.split]\ncolumn = "league_split"\n\n', text)
    text = text.replace("../../data/support2/support2.parquet", "support2.parquet")
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    return folder / "recipe.toml"


def made_up_mimic(patients: int = 6_000) -> Table:
    """The paper's second experiment on made-up visits: other patients for each split, split as the recipe says."""

    def recipe(folder: Path, split: int) -> Path:
        from l2d.data.sources.mimic4.generator import write_mimic4

        write_mimic4(folder / "mimic", patients=patients, seed=split)
        text = (RECIPES / "mimic4.toml").read_text(encoding="utf-8")
        text = re.sub(r"(?m)^negatives = .*\n", "", text)
        text = text.replace('path = "mimic-iv"', 'path = "mimic"')
        text = text.replace(
            'kind = "two_transformers"', 'kind = "two_transformers"\nepochs = 5\nhidden = 16\nlayers = 1'
        )
        (folder / "recipe.toml").write_text(text, encoding="utf-8")
        return folder / "recipe.toml"

    return Table("made-up MIMIC-IV", recipe, digest=str(patients))


# --- public tables ----------------------------------------------------------------------------------------------------


def routerbench(data: Path) -> Table:
    """RouterBench: a prompt's text and benchmark. Ids that stand twice are merged, each model's known score kept."""
    file = data / "routerbench_0shot_subset_wide.parquet"
    wide = pl.read_parquet(file)
    models = [name.removesuffix("|total_cost") for name in wide.columns if name.endswith("|total_cost")]
    paid = [f"{name}|total_cost" for name in models]
    wide = wide.group_by("sample_id", maintain_order=True).agg(
        pl.col("prompt", "eval_name").first(), pl.col(*models, *paid).mean()
    )
    prices = {name: wide[f"{name}|total_cost"].mean() for name in models}
    answers = wide.select("sample_id", *models).unpivot(index="sample_id", variable_name="agent", value_name="score")
    return _public("RouterBench", file, wide["sample_id"], wide.select("eval_name"), wide["prompt"], answers, prices)


def mmlu_pro(data: Path) -> Table:
    """MMLU-Pro: a question's text with its options, category, and how many options. An answer not found is wrong."""
    file = data / "mmlu_pro_answers_long.parquet"
    long = pl.read_parquet(file).with_columns(pl.col("question_id").cast(pl.String))
    asked = pl.read_parquet(data / "mmlu_pro_questions.parquet").with_columns(pl.col("question_id").cast(pl.String))
    options = asked["options"]
    if options.dtype == pl.String:
        texts, counts = options.to_list(), [len(re.findall(r"', '|\", \"", text)) + 1 for text in options]
    else:
        texts, counts = [" ".join(row) for row in options.to_list()], options.list.len().to_list()
    text = pl.Series([f"{question} {option}" for question, option in zip(asked["question"], texts, strict=True)])
    features = asked.select("category").with_columns(pl.Series("options", counts).cast(pl.Float64))
    prices = dict(long.group_by("model", maintain_order=True).agg(pl.col("output_chars").mean()).iter_rows())
    answers = long.select("question_id", "model", pl.col("correct").cast(pl.Float64))
    return _public("MMLU-Pro", file, asked["question_id"], features, text, answers, prices)


def llmrouter(data: Path) -> Table:
    """LLMRouter: a query's text and task; it publishes no prices, so every expert's is 1."""
    file = data / "llmrouter_scores_wide.parquet"
    wide = pl.read_parquet(file)
    models = wide.columns[5:]
    answers = wide.select("sample_id", *models).unpivot(index="sample_id", variable_name="agent", value_name="score")
    features = wide.select(pl.col("task").fill_null("other"))
    return _public(
        "LLMRouter", file, wide["sample_id"], features, wide["question"], answers, dict.fromkeys(models, 1.0)
    )


def routerarena(data: Path) -> Table:
    """RouterArena: the two LLMs that are scored on all questions; text and dataset. A negative METEOR counts as 0."""
    file = data / "routerarena_sub10_long.parquet"
    long = pl.read_parquet(file).filter(pl.col("score").is_not_null())
    asked = pl.read_parquet(data / "routerarena_sub10_questions.parquet")
    often = long.group_by("model", maintain_order=True).agg(pl.len(), pl.col("cost_usd").mean())
    often = often.filter(pl.col("len") > 0.9 * len(asked)).sort("cost_usd")
    prices = dict(often.select("model", "cost_usd").iter_rows())
    long = long.filter(pl.col("model").is_in(list(prices)))
    answers = long.select("global_index", "model", pl.col("score").clip(0, 1))
    return _public(
        "RouterArena", file, asked["global_index"], asked.select("dataset"), asked["question"], answers, prices
    )


def viper(data: Path) -> Table:
    """43 readers of mammograms: a sample is a case as one sub-study showed it; groups are cases. No pixels: nearly
    nothing is known beforehand, and a reader has read one sample in eight."""
    file = data / "viper" / "viperObs.csv"
    sample = pl.concat_str("caseID", "modalityID", "subStudyLabel", separator="/").alias("sample")
    reads = pl.read_csv(file, infer_schema_length=None).with_columns(sample)
    cases = reads.unique("sample", keep="first", maintain_order=True)
    answers = reads.select(
        "sample", "readerID", pl.when(pl.col("recall") == 1).then(pl.lit("1")).otherwise(pl.lit("0"))
    )
    features = cases.select("modalityID", "subStudyLabel", "caseGroup")
    readers = sorted(reads["readerID"].unique())
    truth = cases["cancerStatus365"].cast(pl.String).to_list()
    prices, group = dict.fromkeys(readers, 1.0), cases["caseID"].cast(pl.String)
    return _public("viper readers", file, cases["sample"], features, None, answers, prices, group=group, truth=truth)


def _public(
    name: str,
    file: Path,
    ids: pl.Series,
    features: pl.DataFrame,
    text: pl.Series | None,
    answers: pl.DataFrame,
    prices: dict[str, float],
    *,
    group: pl.Series | None = None,
    truth: list[str] | None = None,
) -> Table:
    value = "score" if truth is None else "answer"
    answers = answers.rename(dict(zip(answers.columns, ("sample", "agent", value), strict=True))).drop_nulls()
    outcomes = Outcomes(
        ids=ids.to_list(),
        group=(ids if group is None else group).to_list(),
        features=features,
        text=None if text is None else text.to_list(),
        answers=answers,
        prices=dict(sorted(prices.items(), key=lambda item: item[1])) if len(set(prices.values())) > 1 else prices,
        truth=truth,
    )
    return Table(name, lambda folder, split: _recipe(outcomes, folder, split), outcomes, digest=_digest(file))


def _recipe(outcomes: Outcomes, folder: Path, split: int) -> Path:
    """Write a public table's two files and its recipe."""
    splits = split_of(outcomes.group, split)
    table = outcomes.features
    if outcomes.text is not None:
        table = table.hstack(_text_columns(outcomes.text, np.array(splits) == "train"))
    names = table.columns
    table = table.with_columns(pl.Series("sample", outcomes.ids), pl.Series("league_split", splits))
    if outcomes.truth is not None:
        table = table.with_columns(pl.Series("truth", outcomes.truth))
    table.write_parquet(folder / "samples.parquet")
    outcomes.answers.write_parquet(folder / "answers.parquet")
    target = ['target_reg = "1.0"'] if outcomes.truth is None else ['target_cla = "truth"', 'classes = ["0", "1"]']
    lines = ["[dataset]", 'kind = "table"', 'path = "samples.parquet"', 'id = "sample"', *target]
    lines += [f"features = [{', '.join(repr(chr(34) + name + chr(34)) for name in names)}]"]
    lines += ['split = { column = "league_split" }', ""]
    lines += ["[costs.reg]", 'kind = "absolute"'] if outcomes.truth is None else ["[costs.cla]", 'kind = "zero_one"']
    answer = 'reg = "score"' if outcomes.truth is None else 'cla = "answer"'
    for position, (name, price) in enumerate(outcomes.prices.items()):
        lines += ["", "[[agents]]", f'name = "{agent_name(name)}"', 'kind = "table"', 'file = "answers.parquet"']
        lines += ['id = "sample"', 'annotator = "agent"', f'who = "{name}"', answer]
        lines += [f"price = {float(price)!r}"] if position else []
    (folder / "recipe.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "recipe.toml"


def agent_name(name: str) -> str:
    """A name that a folder can have."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def _text_columns(texts: list[str], train: np.ndarray) -> pl.DataFrame:
    """16 columns of text: TF-IDF and a truncated SVD, fitted on the training rows."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=3, max_features=20_000)
    svd = TruncatedSVD(SVD_WIDTH, random_state=0)
    texts = np.array(texts, dtype=object)
    svd.fit(vectorizer.fit_transform(texts[train]))
    columns = svd.transform(vectorizer.transform(texts))
    return pl.DataFrame({f"text_{k}": columns[:, k] for k in range(SVD_WIDTH)})


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def tables(data: Path | None) -> dict[str, Callable[[], Table]]:
    """Short name -> loader, of the tables that ship and, where their folder is there, of the public ones."""
    found: dict[str, Callable[[], Table]] = {"support2": support2, "physicians": physicians, "mimic": made_up_mimic}
    if data is not None:
        for name, load in {
            "routerbench": routerbench, "mmlu-pro": mmlu_pro, "llmrouter": llmrouter, "routerarena": routerarena,
            "viper": viper,
        }.items():  # fmt: skip
            found[name] = lambda load=load: load(data)
    return found


def shared_data() -> Path | None:
    """``shared/data`` beside the repository, if it is there."""
    for folder in Path(__file__).resolve().parents[1:]:
        if (folder.parent / "shared" / "data").is_dir():
            return folder.parent / "shared" / "data"
    return None
