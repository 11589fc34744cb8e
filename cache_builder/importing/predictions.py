"""From answers that agents have given to a recipe: ``l2d import predictions``. What it guesses it writes down."""

from __future__ import annotations

from pathlib import Path

from l2d.cache_builder.agents._answer_file import as_text
from l2d.cache_builder.agents.annotators import HOLE
from l2d.cache_builder.importing.draft import Draft
from l2d.cache_builder.importing.entries import Answers, fill, key_lines, unknown_agent
from l2d.cache_builder.importing.paid import paid_of
from l2d.cache_builder.importing.samples import Say, dataset_lines, known_afterwards, made_of_classes, read_samples
from l2d.cache_builder.importing.source import Source, holes, need, some
from l2d.data.errors import DataError, UsageError
from l2d.data.samples.column_file import Table, held
from l2d.data.samples.expressions import columns_of
from l2d.data.toml import toml_list, toml_text

#: Names that a column is known by when the command names none.
LABELS = ("label", "answer", "prediction", "cla", "class", "pred", "vote")
VALUES = ("value", "estimate", "reg", "answer", "prediction")
TEXTS = ("answer", "prediction", "text", "response", "output", "prediction_text", "generated_answer", "generated_text")
KNOWN = {"cla": LABELS, "reg": VALUES, "text": TEXTS}
OPTIONS = {"cla": "--target", "reg": "--target-reg", "text": "--target-text"}
ASKED = {"cla": "--cla", "prob": "--prob", "reg": "--reg", "text": "--answer"}


def draft_predictions(source: Source, folder: Path, out: str, say: Say) -> Draft:
    """A recipe for answers of several agents to a task of classes, of numbers or of texts, or to several of these.

    Args:
        folder: where the recipe will lie; paths are relative to it.
        out: name of the cache, which a table that has to be made is called by.
        say: told what was found out.

    Raises:
        UsageError: a column that the command names is not there.
        DataError: a file cannot be read, or it cannot be told what its columns are.
    """
    if not source.targets:
        raise UsageError(
            "where is the truth?",
            where=source.features,
            hint="--target COLUMN (a class), --target-reg COLUMN (a number), --target-text COLUMN (texts), or several",
        )
    answers = Answers(source, say)
    table, made = read_samples(source, say, long=source.is_one_file and answers.annotator is not None)
    for task, column in source.targets.items():
        need(column, table.columns, OPTIONS[task], source.features)
    if source.target is not None and table[source.target].dtype.is_float():
        values = table[source.target].drop_nulls()
        if (values != values.round(0)).any():
            raise UsageError(
                f"--target {source.target} is a number, not a class",
                where=source.features,
                hint=f"--target-reg {source.target}",
            )
    classes = [] if source.target is None else sorted(as_text(table[source.target]).drop_nulls().unique().to_list())
    if answers.annotator is not None:
        names = answers.file.values(answers.annotator)
        columns = _long_columns(source, answers, classes, say)
        say(f"{source.answers}: {len(names)} agents in the column {answers.annotator!r}: {some(names)}")
    else:
        columns, names = _wide_columns(source, answers)
        say(f"{source.answers}: {len(names)} agents, a column each: {some(names)}")
    say("their answers: " + ", ".join(f"{key} in {_shown(value)}" for key, value in columns.items()))
    samples_file = folder / f"{out}.samples.parquet" if made else None
    lines = dataset_lines(
        source,
        table,
        samples_file or source.features,
        folder,
        say,
        of_answers=_of_answers(source, answers, names, table),
        unit_paid=source.unit_paid or "",
    )
    if source.target is not None:
        lines += [
            "",
            "[costs.cla]",
            'kind = "zero_one"        # or "brier", "absolute" where agents give probabilities',
        ]
    if source.target_reg is not None:
        lines += ["", "[costs.reg]", 'kind = "smooth_l1"       # or "absolute", "squared"']
    if source.target_text is not None:
        lines += ["", "[costs.text]", 'kind = "f1"              # or "exact_match", both as SQuAD has them']
    blocks = _agent_blocks(
        source, answers, columns, names, folder, answers.id_rule(as_text(table[source.id]), say), say
    )
    if source.model is None:
        say("the model, agent 0, is a small network that is trained on the training split (--model NAME: one of yours)")
        blocks.insert(0, ['name = "model"', 'kind = "two_head"       # trained on the training split, once'])
    return Draft("\n".join(fill(lines, blocks)) + "\n", held(table) if made else None, samples_file)


def _of_answers(source: Source, answers: Answers, names: list[str], table: Table) -> dict[str, str]:
    """Columns of the samples that are known only once agents have answered -> why."""
    taken: set[str | None] = {source.id, *source.targets.values()}
    reason = "since it names agents, which is known only afterwards"
    found = dict.fromkeys(known_afterwards(table, names, taken), reason)
    name = source.answers.name
    reason = "of the agents" if source.is_one_file else f"since {name} has answers of that name"
    beside = answers.file.columns
    if source.is_one_file and answers.annotator is None:
        patterns = [p for p in source.answered.values() if isinstance(p, str)] or [HOLE]
        patterns = [
            *patterns,
            *(source.prob if isinstance(source.prob, list) else []),
            *([source.paid] if source.paid else []),
        ]
        beside = [pattern.replace(HOLE, name) for pattern in patterns for name in names]
    elif source.is_one_file:
        beside = [column for column in beside if column not in table.columns]
    found |= dict.fromkeys(beside, reason)
    reason = "since they have the target's values, so may be answers"
    return dict.fromkeys(made_of_classes(table, source.target, taken), reason) | found


def _agent_blocks(
    source: Source, answers: Answers, columns: dict, names: list[str], folder: Path, rule: str, say: Say
) -> list[list[str]]:
    """Lines of the agents whose answers the file has; with a model, that one first."""
    if source.model is not None and source.model not in names:
        raise unknown_agent(source.model, "--model", names, source.answers)
    common = answers.common_lines(folder, rule)
    keys = dict(columns)
    paid = paid_of(source, source.paid, answers.file, names, long=answers.annotator is not None)
    for line in paid.lines(repr(source.paid)):
        say(line)
    alike = (
        [paid.key(HOLE), 'price = "paid"']
        if paid.column
        else ["price = 1.0             # relative: what asking one costs"]
    )
    tasks = list(source.targets)
    lacking = {name: _unanswered(answers, columns, name, tasks) for name in names}
    if source.model is None and paid.tariffs is None and not any(lacking.values()):
        each = toml_text(answers.annotator) if answers.annotator is not None else toml_list(names)
        return [[*common, f"each = {each}   # an agent for each", *key_lines(keys), *alike]]
    blocks = []
    for name in sorted(names, key=lambda name: name != source.model):
        mine = ["free = true             # it is yours: asking it costs nothing"] if name == source.model else []
        own = {key: value for key, value in keys.items() if TASK_OF.get(key, key) not in lacking[name]}
        priced = [paid.key(name), 'price = "paid"'] if name in (paid.tariffs or {}) else alike
        stand_ins = [line for task in lacking[name] for line in answers.stand_in(name, task)]
        blocks.append(
            [*answers.one_lines(name, own)[:1], *common, *answers.one_lines(name, own)[1:], *stand_ins, *priced, *mine]
        )
    return blocks


TASK_OF = {"prob": "cla"}


def _unanswered(answers: Answers, columns: dict, name: str, tasks: list[str]) -> list[str]:
    """Tasks that an agent answers on no sample."""
    found = []
    for task in tasks:
        keys = [key for key in columns if TASK_OF.get(key, key) == task]
        used = [one for key in keys for one in ([columns[key]] if isinstance(columns[key], str) else columns[key])]
        if not used or answers.silent_about(name, used):
            found.append(task)
    return found


def _shown(value: str | list[str]) -> str:
    return repr(value) if isinstance(value, str) else some([repr(one) for one in value])


def _long_columns(source: Source, answers: Answers, classes: list[str], say: Say) -> dict[str, str | list[str]]:
    """Which column of a long file has which answer: as the command says, by name, or the only one left."""
    file = answers.file
    rest = [name for name in file.columns if name not in (answers.id, answers.annotator, source.paid)]
    if source.is_one_file:
        rest = [name for name in rest if name not in (*source.targets.values(), *inputs_of(source))]
    found: dict[str, str | list[str]] = {}
    for key, target in source.targets.items():
        if key == "cla" and source.prob is not None and source.cla is None:
            found["prob"] = source.prob
            for column in [source.prob] if isinstance(source.prob, str) else source.prob:
                need(column, rest, "--prob", file.path)
            continue
        given = source.answered.get(key)
        if isinstance(given, str):
            found[key] = need(given, rest, ASKED[key], file.path)
            continue
        guesses = [name for name in (target, *KNOWN[key]) if name in rest and name not in found.values()]
        free = [name for name in rest if name not in found.values()]
        chances = class_columns(rest, classes) if key == "cla" and not guesses else None
        if chances is not None:
            found["prob"] = chances
        elif guesses or (len(free) == 1 and key not in {**source.lent, **source.charged}):
            found[key] = (guesses or free)[0]
        elif key not in {**source.lent, **source.charged}:
            raise DataError(
                f"which column has the answers about {target!r}?",
                where=file.path,
                hint=f"{ASKED[key]} one of {some(rest, 40)}"
                + (f", or where no agent answers it: --{key}-from AGENT" if len(source.targets) > 1 else ""),
            )
    return found


def inputs_of(source: Source) -> set[str]:
    """Columns that the command names as the rejector's input, which no agent has answered."""
    return {*source.columns, *(name for text in source.text for name in (text, *columns_of(text)))}


def class_columns(columns: list[str], classes: list[str]) -> list[str] | None:
    """Columns of which each is called as a class and something before or after it: ``p_yes``, ``p_no``.

    Returns:
        One a class, in their order; None where it cannot be told.
    """
    if len(classes) < 2:
        return None
    found = []
    for column in columns:
        for pattern in {column.replace(classes[0], HOLE, 1)} if classes[0] in column else ():
            if pattern != HOLE and all(pattern.replace(HOLE, name) in columns for name in classes):
                found.append([pattern.replace(HOLE, name) for name in classes])
    if not found and all(name in columns for name in classes):
        found.append(list(classes))
    return found[0] if len(found) == 1 else None


def _wide_columns(source: Source, answers: Answers) -> tuple[dict[str, str | list[str]], list[str]]:
    """Patterns of a wide file's columns, and the agents' names in the file's order."""
    file = answers.file
    patterns = source.answered
    if not patterns:
        if len(source.targets) > 1 and not {**source.lent, **source.charged}:
            raise DataError(
                "which column has whose answers? None has the annotators",
                where=file.path,
                hint='--annotator COLUMN, or for a column an agent and task: --cla "{}_class" --reg "{}_days"',
            )
        stood_in = {**source.lent, **source.charged}
        patterns = {next((task for task in source.targets if task not in stood_in), "reg"): HOLE}
    flat = [(key, one) for key, value in patterns.items() for one in ([value] if isinstance(value, str) else value)]
    for key, pattern in flat:
        if pattern.count(HOLE) != 1:
            raise UsageError(
                f"{ASKED[key]} {pattern}: no column of annotators, so `{{}}` has to stand for an agent's name",
                where=file.path,
                hint=f'{ASKED[key]} "{{}}_{pattern}", or --annotator COLUMN',
            )
    skipped = {source.id, answers.id, *source.targets.values(), source.paid, "split"}
    if source.is_one_file:
        skipped |= inputs_of(source)
    free = [name for name in file.columns if name not in skipped]
    stood_in = {**source.lent, **source.charged}
    names: list[str] | None = None
    for key, pattern in flat:
        matching = holes(pattern, free)
        if names is None:
            names = matching
        elif TASK_OF.get(key, key) in stood_in:
            names = names + [name for name in matching if name not in names]
        else:
            names = [name for name in names if name in matching]
    for name in source.agents:
        if name not in (names or []):
            raise unknown_agent(name, "--agents", names or [], file.path)
    names = source.agents or names
    if not names:
        raise DataError("no column is an agent's", where=file.path, hint=f"it has {some(file.columns, 40)}")
    return patterns, names
