"""From tables that people already have to a recipe: ``l2d import``. What it guesses it writes down, to be edited."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from l2d.cache_builder.agents._answer_file import AnswerFile
from l2d.cache_builder.agents.annotators import HOLE, agent_name
from l2d.data.cache import schema, store
from l2d.data.errors import DataError, UsageError, nearest
from l2d.data.samples.columns import why_not
from l2d.data.samples.expressions import columns_of
from l2d.data.sources.text_table import read_table

#: First line of a recipe that an import has written; what follows is the digest of the other lines.
SIGNATURE = "# Written by l2d import. Edit it as you like, then: l2d build THIS_FILE --out CACHE. "
#: Names that a column is known by when the command names none.
ANNOTATORS = ("annotator", "rater", "agent", "reader", "expert", "model", "model_name", "annotator_id", "agent_id")
LABELS = ("label", "answer", "prediction", "cla", "class", "pred", "vote")
VALUES = ("value", "estimate", "reg", "answer", "prediction")
SPLIT_NAMES = {"train", "validation", "test"}


@dataclass
class Source:
    """What the user says of the files; None is found out.

    Attributes:
        features: a table with a row a sample: ids, targets, features.
        answers: of the agents: a row an answer (long), or a column an agent (wide).
        target, target_reg: columns of ``features`` with the truth.
        annotator: column of a long file of answers that says whose they are.
        cla, prob, reg: columns of ``answers``; of a wide file with ``{}`` for the agent's name.
        paid: column of ``answers`` with what an answer cost.
        model: the agent that is asked first and for nothing, agent 0; a network is trained if there is none.
        columns: the rejector's features, SQL or columns; every usable column of ``features`` if empty.
        labels: a label as written -> a class.
        others: what to do about answers on other samples, ``refuse`` or ``drop``.
    """

    features: Path
    answers: Path
    id: str
    target: str | None = None
    target_reg: str | None = None
    annotator: str | None = None
    cla: str | None = None
    prob: str | None = None
    reg: str | None = None
    paid: str | None = None
    model: str | None = None
    columns: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    others: str = "refuse"


def recipe_of_predictions(source: Source, folder: Path, say: Callable[[str], None]) -> str:
    """A recipe for answers of several agents to a classification or regression task, or to both.

    Args:
        folder: where the recipe will lie; paths are relative to it.
        say: told what was found out.

    Raises:
        UsageError: a column that the command names is not there.
        DataError: a file cannot be read, or it cannot be told what its columns are.
    """
    if source.target is None and source.target_reg is None:
        raise UsageError(
            "what is the truth?",
            where=source.features,
            hint="--target COLUMN (a class), --target-reg COLUMN (a number), or both",
        )
    table, _ = read_table(source.features, text=[source.id])
    for option, column in (("--id", source.id), ("--target", source.target), ("--target-reg", source.target_reg)):
        need(column, table.columns, option, source.features)
    if source.target is not None and table[source.target].dtype.is_float():
        values = table[source.target].drop_nulls()
        if (values != values.round(0)).any():
            raise UsageError(
                f"--target {source.target} is a number, not a class",
                where=source.features,
                hint=f"--target-reg {source.target}",
            )
    lines = dataset_lines(source, table, folder, say)
    if source.target is not None:
        lines += [
            "",
            "[costs.cla]",
            'kind = "zero_one"        # or "brier", "absolute" where agents give probabilities',
        ]
    if source.target_reg is not None:
        lines += ["", "[costs.reg]", 'kind = "smooth_l1"       # or "absolute", "squared"']
    answers = _agent_lines(source, folder, say)
    if source.model is None:
        say("the model, agent 0, is a small network that is trained on the training split (--model NAME: one of yours)")
        lines += ["", "[[agents]]", 'name = "model"', 'kind = "two_head"       # trained on the training split, once']
    return "\n".join([*lines, *answers]) + "\n"


def dataset_lines(source: Source, table: pl.DataFrame, folder: Path, say: Callable[[str], None]) -> list[str]:
    """The ``[dataset]`` of a recipe; what is left out of its features is told."""
    features, left = usable_features(table, {source.id, source.target, source.target_reg, "split"})
    if source.answers != source.features:  # what annotators are asked is a target, not something known before
        for name in AnswerFile(source.answers).columns:
            if quoted(name) in features:
                features.remove(quoted(name))
                left[name] = f"since {source.answers.name} has answers of that name"
    if source.columns:
        features, left = [quoted(column) if column in table.columns else column for column in source.columns], {}
    for reason in dict.fromkeys(left.values()):
        say(f"left out of the features ({reason}): {', '.join(name for name, why in left.items() if why == reason)}")
    if not features:
        raise DataError("no column is left for the rejector to look at", where=source.features, hint="give --features")
    names = " and ".join(dict.fromkeys([source.features.name, source.answers.name]))
    lines = [f"description = {toml_text(f'Imported from {names}')}", ""]
    lines += ["[dataset]", f"path = {relative(source.features, folder)}", f"id = {toml_text(quoted(source.id))}"]
    if source.target is not None:
        lines.append(f"target_cla = {toml_text(quoted(source.target))}")
    if source.target_reg is not None:
        lines.append(f"target_reg = {toml_text(quoted(source.target_reg))}")
    lines += ["features = [", *(f"  {toml_text(feature)}," for feature in features), "]"]
    if "split" in table.columns and set(table["split"].unique().to_list()) == SPLIT_NAMES:
        say("the column `split` says which split a sample is in")
        lines.append('split = { column = "split" }')
    elif source.target is not None:
        lines.append(f"split = {{ stratify = [{toml_text(quoted(source.target))}] }}")
    return lines


def _agent_lines(source: Source, folder: Path, say: Callable[[str], None]) -> list[str]:
    """The ``[[agents]]`` whose answers the file has; with a model, that one first."""
    file = AnswerFile(source.answers)
    if source.id not in file.columns:
        need(source.id, file.columns, "--id", source.answers)
    annotator = source.annotator or next((name for name in ANNOTATORS if name in file.columns), None)
    if annotator is not None:
        need(annotator, file.columns, "--annotator", source.answers)
        columns, names = _long_columns(source, file, annotator), file.values(annotator)
        each = f"each = {toml_text(annotator)}"
        say(f"{source.answers}: {len(names)} agents in the column {annotator!r}: {some(names)}")
    else:
        columns, names = _wide_columns(source, file)
        each = f"each = [{', '.join(toml_text(name) for name in names)}]"
        say(f"{source.answers}: {len(names)} agents, a column each: {some(names)}")
    if source.model is not None and source.model not in names:
        raise UsageError(
            f"--model {source.model}: there is no such agent",
            where=source.answers,
            hint=nearest(source.model, names, "the agents are", most=20),
        )
    common = ['kind = "table"', f"file = {relative(source.answers, folder)}", f"id = {toml_text(source.id)}"]
    if source.labels:
        pairs = ", ".join(f"{toml_text(label)} = {toml_text(name)}" for label, name in source.labels.items())
        common.append(f"labels = {{ {pairs} }}")
    if source.others != "refuse":
        common.append(f"others = {toml_text(source.others)}")
    keys = [f"{key} = {toml_text(column)}" for key, column in columns.items()]
    if source.paid is not None:
        keys.append(f"paid = {toml_text(source.paid)}")
    price = (
        ['price = "paid"'] if source.paid is not None else ["price = 1.0             # relative: what asking one costs"]
    )
    if source.model is None:
        return ["", "[[agents]]", *common, f"{each}   # an agent for each", *keys, *price]
    lines: list[str] = []
    for name in [source.model, *(name for name in names if name != source.model)]:
        one = (
            [f"each = [{toml_text(name)}]"]
            if annotator is None
            else [f"annotator = {toml_text(annotator)}", f"who = {toml_text(name)}"]
        )
        called = [] if annotator is None else [f"name = {toml_text(agent_name(name))}"]
        lines += ["", "[[agents]]", *called, *common, *one, *keys, *price]
    return lines


def _long_columns(source: Source, file: AnswerFile, annotator: str) -> dict[str, str]:
    """Which column of a long file has which answer: as the command says, by name, or the only one left."""
    rest = [name for name in file.columns if name not in (source.id, annotator, source.paid)]
    found: dict[str, str] = {}
    for key, target, known in (("cla", source.target, LABELS), ("reg", source.target_reg, VALUES)):
        given = getattr(source, key) or (source.prob if key == "cla" else None)
        if target is None:
            continue
        if given is not None:
            name = "prob" if getattr(source, key) is None else key
            found[name] = need(given, rest, f"--{name}", file.path)
            continue
        guesses = [name for name in (target, *known) if name in rest and name not in found.values()]
        free = [name for name in rest if name not in found.values()]
        if guesses or len(free) == 1:
            found[key] = (guesses or free)[0]
            continue
        raise DataError(
            f"which column has the answers about {target!r}?",
            where=file.path,
            hint=f"--{key} one of {', '.join(rest)}",
        )
    return found


def _wide_columns(source: Source, file: AnswerFile) -> tuple[dict[str, str], list[str]]:
    """Patterns of a wide file's columns, and the agents' names in the file's order."""
    patterns = {key: getattr(source, key) for key in ("cla", "prob", "reg") if getattr(source, key) is not None}
    if not patterns:
        if source.target is not None and source.target_reg is not None:
            raise DataError(
                "whose answers are they? There is no column of annotators",
                where=file.path,
                hint='--annotator COLUMN, or for a column an agent and task: --cla "{}_class" --reg "{}_days"',
            )
        patterns = {"cla" if source.target is not None else "reg": "{}"}
    for key, pattern in patterns.items():
        if pattern.count("{}") != 1:
            raise UsageError(
                f"--{key} {pattern}: no column of annotators, so `{{}}` has to stand for an agent's name",
                where=file.path,
                hint=f'--{key} "{{}}_{pattern}", or --annotator COLUMN',
            )
    skipped = {source.id, source.target, source.target_reg, source.paid}
    names: list[str] | None = None
    for pattern in patterns.values():
        matching = holes(pattern, [name for name in file.columns if name not in skipped])
        names = matching if names is None else [name for name in names if name in matching]
    if not names:
        raise DataError("no column is an agent's", where=file.path, hint=f"it has {', '.join(file.columns)}")
    return patterns, names


def usable_features(table: pl.DataFrame, taken: set[str | None]) -> tuple[list[str], dict[str, str]]:
    """Columns that a rejector can look at as SQL, and why the others are left out: column -> reason."""
    features, left = [], {}
    for name in table.columns:
        if name in taken:
            continue
        why = why_not(table[name])
        if why is None:
            features.append(quoted(name))
        else:
            left[name] = why
    return features, left


def holes(pattern: str, columns: list[str]) -> list[str]:
    """What stands in the place of ``{}`` in the columns that are like the pattern."""
    before, _, after = pattern.partition(HOLE)
    shortest = len(before) + len(after)
    fitting = [name for name in columns if name.startswith(before) and name.endswith(after) and len(name) > shortest]
    return [name[len(before) : len(name) - len(after)] for name in fitting]


def write_recipe(text: str, path: Path, *, overwrite: bool = False) -> None:
    """Write the recipe. One that an import wrote and nobody has edited may be replaced.

    Raises:
        UsageError: another recipe is there and ``overwrite`` is False.
    """
    content = f"{SIGNATURE}{schema.digest(text)}\n{text}".encode()
    try:
        before = path.read_bytes()
    except FileNotFoundError:
        store.commit_bytes(path, content)
        return
    if before == content:
        return
    signature, _, rest = before.decode(errors="replace").partition("\n")
    if signature != SIGNATURE + schema.digest(rest) and not overwrite:
        raise UsageError(
            "there is a recipe of that name, which has been edited",
            where=path,
            hint=f"build that one: l2d build {path} --out …; or --overwrite to write it anew",
        )
    store.commit_bytes(path, content, replace=True)


def need(column: str | None, columns: list[str], option: str, path: Path) -> str | None:
    """A column's name, if there is one of it; otherwise a :class:`UsageError` that names the option."""
    if column is not None and column not in columns:
        raise UsageError(
            f"{option} {column}: there is no such column", where=path, hint=nearest(column, columns, "it has")
        )
    return column


def some(names: list[str], most: int = 8) -> str:
    """The first names of a list, and how many there are."""
    return ", ".join(names[:most]) + (f", … ({len(names)})" if len(names) > most else "")


def relative(path: Path, folder: Path) -> str:
    """A path as seen from a folder, as a TOML string."""
    return toml_text(Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix())


def toml_text(value: str) -> str:
    """A TOML string."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def quoted(column: str) -> str:
    """A column's name in SQL."""
    return column if columns_of(column) == [column] else '"' + column.replace('"', '""') + '"'
