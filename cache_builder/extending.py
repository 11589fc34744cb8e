"""One more agent for a cache that is there: its entry goes into the recipe, its answers into the cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from l2d.cache_builder.agents._answer_file import AnswerFile
from l2d.cache_builder.library import Built, Progress, Say, run_build
from l2d.cache_builder.recipe import Recipe, load_recipe, parse_recipe
from l2d.data.cache import store
from l2d.data.cache.reader import CostCache
from l2d.data.errors import UsageError, nearest
from l2d.data.toml import toml_text

#: Task -> columns that its answers are looked for in, where none is named.
USUAL = {"cla": ("answer", "cla"), "reg": ("number", "answer", "reg")}


def extend(
    cache: Path | str,
    answers: Path | str,
    *,
    name: str,
    recipe: Path | str | None = None,
    id: str | None = None,
    cla: str | None = None,
    reg: str | None = None,
    paid: str | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
) -> CostCache:
    """Add an agent, whose answers are in a file, to a cache and to its recipe. No other agent is asked.

    Samples that it has not answered are missing: it is unavailable for them. Where anything is wrong, recipe and cache
    are as they were.

    Args:
        cache: its folder.
        answers: a file with a row a sample.
        name: of the agent.
        recipe: that the cache was built from; ``CACHE.toml`` if None.
        id: column of sample ids; ``sample_id`` or the dataset's if None.
        cla, reg, paid: columns with classes, numbers and what each answer was paid; ``answer`` and ``number`` if None.
        say, progress: see :func:`l2d.cache_builder.library.build`.

    Raises:
        UsageError: there is no such recipe, it has an agent of that name, or a column is not there.
        DataError: the answers cannot be used.
        FingerprintMismatch: the cache is not what the recipe says.
    """
    return run_extend(
        cache, answers, name=name, recipe=recipe, id=id, cla=cla, reg=reg, paid=paid, say=say, progress=progress
    ).cache


def run_extend(
    cache: Path | str,
    answers: Path | str,
    *,
    name: str,
    recipe: Path | str | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
    **columns: str | None,
) -> Built:
    """As :func:`extend`, and also what was done."""
    cache, answers = Path(cache), Path(answers)
    path = Path(recipe) if recipe is not None else cache.parent / f"{cache.name}.toml"
    if not path.is_file():
        raise UsageError("there is no recipe here", where=path, hint="name the one of the cache: --recipe FILE")
    before = path.read_bytes()
    loaded = load_recipe(str(path))
    if name in [agent.name for agent in loaded.agents]:
        raise UsageError(
            f"the recipe has an agent {name!r}",
            where=path,
            hint="give another name; or, where its file has grown: l2d build RECIPE --out CACHE --overwrite",
        )
    CostCache(cache)  # is there, and can be read
    text = before.decode("utf-8").rstrip() + "\n\n" + entry(loaded, answers, path.parent, name, columns)
    parse_recipe(text, path)
    store.commit_bytes(path, text.encode(), replace=True)
    try:
        return run_build(path, cache, say=say, progress=progress)
    except BaseException:
        store.commit_bytes(path, before, replace=True)
        raise


def entry(recipe: Recipe, answers: Path, folder: Path, name: str, columns: dict[str, str | None]) -> str:
    """The agent's table in the recipe.

    Raises:
        UsageError: a column is not in the file, or none has the answers of a task.
    """
    file = AnswerFile(answers, ())
    lines = ["[[agents]]", f"name = {toml_text(name)}", 'kind = "table"']
    place = Path(os.path.relpath(answers.absolute(), folder.absolute())).as_posix()
    lines.append(f"file = {toml_text(place)}")
    if columns.get("id") is None and "sample_id" in file.columns:
        columns = {**columns, "id": "sample_id"}
    costs: Any = recipe.costs
    for task in costs.tasks:
        if columns.get(task) is None:
            usual = [one for one in USUAL.get(task, ()) if one in file.columns]
            if not usual:
                raise UsageError(
                    f"no column is named for the task {task}", where=answers, hint=f"name it: --{task} COLUMN"
                )
            columns = {**columns, task: usual[0]}
    for key, column in columns.items():
        if column is not None:
            if column not in file.columns:
                raise UsageError(
                    f"--{key} {column}: there is no such column", where=answers, hint=nearest(column, file.columns)
                )
            lines.append(f"{key} = {toml_text(column)}")
    return "\n".join(lines) + "\n"
