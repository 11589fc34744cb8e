"""From tables of scores, as benchmarks of routers publish them, to a recipe: ``l2d import scores``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from l2d.cache_builder.agents._answer_file import ROW, AnswerFile
from l2d.cache_builder.agents.annotators import HOLE, agent_name
from l2d.cache_builder.importing.predictions import (
    ANNOTATORS,
    Source,
    dataset_lines,
    holes,
    need,
    relative,
    some,
    toml_text,
)
from l2d.data.errors import DataError, UsageError
from l2d.data.sources.text_table import read_table

#: Names that a column is known by when the command names none.
SCORES = ("score", "performance", "quality", "correct", "label")
PAID = ("cost", "total_cost", "price")
PIPE = "{}|total_cost"  # RouterBench's column with what a model's answer cost


def recipe_of_scores(source: Source, folder: Path, say: Callable[[str], None]) -> str:
    """A recipe for scores from 0 to 1 that agents got on samples, as benchmarks of routers publish them.

    The cost of a score is one minus it. A row is a score (long: EmbedLLM, LLMRouter, RouterBench raw), or a sample with
    a column an agent (wide: RouterBench, with ``MODEL|total_cost`` for what it cost).

    Raises:
        UsageError: a column that the command names is not there.
        DataError: a file cannot be read, it cannot be told what its columns are, or a score is not from 0 to 1.
    """
    file = AnswerFile(source.answers)
    need(source.id, file.columns, "--id", source.answers)
    annotator = source.annotator or next((name for name in ANNOTATORS if name in file.columns), None)
    if annotator is not None:
        names = file.values(need(annotator, file.columns, "--annotator", file.path))
        score = source.reg or next((name for name in SCORES if name in file.columns), None)
        if score is None:
            raise DataError("which column has the scores?", where=file.path, hint=f"--reg one of {some(file.columns)}")
        paid = source.paid or next((name for name in PAID if name in file.columns), None)
    else:
        score = source.reg or HOLE
        paid = source.paid or next((PIPE for name in file.columns if name.endswith(PIPE.removeprefix(HOLE))), None)
        pattern = paid if source.reg is None and paid is not None else score
        if pattern == HOLE:
            raise DataError(
                "which columns are agents?",
                where=file.path,
                hint='--annotator COLUMN, or for a column each --reg "{}_score"',
            )
        names = holes(pattern, file.columns)
    if not names:
        raise DataError("no column is an agent's", where=file.path, hint=f"it has {some(file.columns, 40)}")
    means = {name: _check_scores(file, name, annotator, score, paid) for name in names}
    model = source.model or min(names, key=lambda name: means[name])
    if model not in names:
        raise UsageError(
            f"--model {model}: there is no such agent", where=source.answers, hint=f"there are {some(names, 20)}"
        )
    if source.model is None:
        say(
            f"the model, agent 0, is {model}, " + ("the cheapest" if paid else "the first") + " (--model NAME: another)"
        )
    say(f"{source.answers}: {len(names)} agents: {some(names)}")
    of_agents = {column.replace(HOLE, name) for name in names for column in (score, paid) if column} | {annotator}
    if annotator is None:
        of_agents |= {column for column in file.columns for name in names if column.startswith(f"{name}|")}
    table, _ = read_table(source.features, text=[source.id])
    need(source.id, table.columns, "--id", source.features)
    lines = dataset_lines(source, table.drop([c for c in table.columns if c in of_agents]), folder, say)
    lines.insert(5, 'target_reg = "1.0"      # the best score; the cost of a score is its distance from it')
    lines += ["", "[costs.reg]", 'kind = "absolute"']
    for name in [model, *(name for name in names if name != model)]:
        lines += ["", "[[agents]]", f"name = {toml_text(agent_name(name))}", 'kind = "table"']
        lines += [f"file = {relative(source.answers, folder)}", f"id = {toml_text(source.id)}"]
        if annotator is not None:
            lines += [f"annotator = {toml_text(annotator)}", f"who = {toml_text(name)}"]
        lines.append(f"reg = {toml_text(score.replace(HOLE, name))}")
        if paid is not None:
            lines += [f"paid = {toml_text(paid.replace(HOLE, name))}", 'price = "paid"         # its mean']
        if source.others != "refuse":
            lines.append(f"others = {toml_text(source.others)}")
    return "\n".join(lines) + "\n"


def _check_scores(file: AnswerFile, name: str, annotator: str | None, score: str, paid: str | None) -> float:
    """Mean price of an agent's answers, 0 where it is not known; its scores have to be from 0 to 1."""
    rows = file.table if annotator is None else file.table.filter(pl.col(annotator) == name)
    column = need(score.replace(HOLE, name), file.columns, "--reg", file.path)
    values = file.numbers(column, rows)
    outside = (values < 0) | (values > 1)
    if outside.any():
        row = rows[ROW][int(outside.argmax())]
        raise DataError(
            f"{column} is {values[outside][0]:g}, not from 0 to 1",
            where=file.where(row),
            hint="divide the scores first",
        )
    if paid is None:
        return 0.0
    costs = file.numbers(need(paid.replace(HOLE, name), file.columns, "--paid", file.path), rows)
    return float(np.nanmean(costs)) if np.isfinite(costs).any() else 0.0
