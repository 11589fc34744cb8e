"""From tables of scores, as benchmarks of routers publish them, to a recipe: ``l2d import scores``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from l2d.cache_builder.agents._answer_file import ROW, AnswerFile, as_text
from l2d.cache_builder.agents.annotators import HOLE
from l2d.cache_builder.importing.draft import Draft
from l2d.cache_builder.importing.entries import Answers, fill, unknown_agent
from l2d.cache_builder.importing.paid import PIPE, Paid, mean_paid, paid_of
from l2d.cache_builder.importing.samples import AFTERWARDS, TRUTHS, Say, dataset_lines, known_afterwards, read_samples
from l2d.cache_builder.importing.source import Source, holes, need, some
from l2d.cache_builder.importing.stated import compared
from l2d.data.errors import DataError, UsageError
from l2d.data.samples.column_file import Table, held

#: Names that a column is known by when the command names none; of ``evaluation_result.score`` the last part counts.
SCORES = ("score", "performance", "quality", "correct", "label", "acc", "accuracy")
PAID = ("cost", "total_cost", "cost_usd", "price", "inference_cost", "paid")
NESTED = "scores.{}"  # LLMRouter's scores by model


@dataclass(frozen=True)
class Found:
    """What a file of scores holds: its agents, and patterns of the columns of their scores and of what was paid."""

    names: list[str]
    score: str
    paid: str | None


def draft_scores(source: Source, folder: Path, out: str, say: Say) -> Draft:
    """A recipe for scores that agents got on samples, as benchmarks of routers publish them.

    The cost of a score is the best one minus it. A row is a score (long: EmbedLLM, RouterArena, LLMRouterBench), or a
    sample with a column an agent (wide: RouterBench, LLMRouter).

    Args:
        folder: where the recipe will lie; paths are relative to it.
        out: name of the cache, which a table that has to be made is called by.
        say: told what was found out, and each agent's mean.

    Raises:
        UsageError: a column that the command names is not there.
        DataError: a file cannot be read, it cannot be told what its columns are, or a score is outside the scale.
    """
    answers = Answers(source, say)
    long = answers.annotator is not None
    found = _long(source, answers) if long else _wide(source, answers, say)
    if not found.names:
        raise DataError("no column is an agent's", where=answers.file.path, hint=f"it has {some(answers.file.columns)}")
    if source.paid is not None and HOLE in source.paid:
        priced = [source.paid.replace(HOLE, name) for name in found.names]
        if not any(column in answers.file.columns for column in priced):
            what = f"--paid {source.paid}: there is no such column of any agent, such as {priced[0]}"
            raise UsageError(what, where=answers.file.path, hint=f"it has {some(answers.file.columns, 20)}")
    paid = paid_of(source, found.paid, answers.file, found.names, long=long)
    of_agents = _columns_of_agents(answers, found) | paid.columns
    table, made = read_samples(
        source, say, long=source.is_one_file and long, of_agents=of_agents if source.is_one_file else ()
    )
    low, high = source.scale
    facts = {name: _facts(answers, found, paid, name, source.scale) for name in found.names}
    first = source.model or found.names[0]
    if first not in found.names:
        raise unknown_agent(first, "--model", found.names, source.answers)
    say(f"{source.answers}: {len(found.names)} agents, scores in {_column(found.score, answers)}")
    for name, (mean, price, count) in facts.items():
        cost = "" if not paid.known else ", price not known" if price is None else f", {mean_paid(price, paid.unit)}"
        say(f"  {name}: mean score {mean:.4f} of {count:,}{cost}")
    for line in [*paid.lines(_column(found.paid or "", answers)), *compared(answers, found.score, paid)]:
        say(line)
    if source.model is not None:
        say(f"the model, agent 0, is {first}; asking it is free, as you say (free = false: it has its price)")
    else:
        say(f"no agent is the model: {first}, the first, is agent 0 and is not free (--model NAME: yours, which is)")
    samples_file = folder / f"{out}.samples.parquet" if made else None
    lines = dataset_lines(
        source,
        table,
        samples_file or source.features,
        folder,
        say,
        of_answers=_of_answers(source, answers, found, table, of_agents),
        unit_paid=paid.unit,
        target_reg=f'"{high!r}"      # the best score; the cost of a score is its distance from it',
    )
    lines += ["", "[costs.reg]", 'kind = "absolute"']
    if high - low != 1:
        lines += [
            "",
            "[defaults]",
            f"lambda = {{ reg = {1 / (high - low)!r} }}      # from the best to the worst score is 1",
        ]
    common = answers.common_lines(folder, answers.id_rule(as_text(table[source.id]), say))
    blocks = []
    for name in sorted(found.names, key=lambda name: name != first):
        price = ['price = "unknown"      # no answer says what it cost']
        if facts[name][1] is not None:
            price = [paid.key(name), 'price = "paid"         # its mean, for a `beta` that is one number']
        free = []
        if name == first:
            free = ["free = false          # it is one of several, not yours"]
            if source.model is not None:
                free = ["free = true           # it is yours: asking it costs nothing"]
        lines_of_one = answers.one_lines(name, {"reg": found.score})
        blocks.append([lines_of_one[0], *common, *lines_of_one[1:], *price, *free])
    return Draft("\n".join(fill(lines, blocks)) + "\n", held(table) if made else None, samples_file)


def _column(pattern: str, answers: Answers) -> str:
    if answers.annotator is None and HOLE in pattern:
        return "a column each" + ("" if pattern == HOLE else f", {pattern.replace(HOLE, 'NAME')!r}")
    return f"the column {pattern!r}"


def _long(source: Source, answers: Answers) -> Found:
    file = answers.file
    score = need(source.reg, file.columns, "--reg", file.path) or _known(SCORES, file.columns)
    if score is None:
        raise DataError("which column has the scores?", where=file.path, hint=f"--reg one of {some(file.columns, 40)}")
    paid = need(source.paid, file.columns, "--paid", file.path)
    if paid is None and source.prices is None:
        paid = _known(PAID, file.columns)
    return Found(file.values(answers.annotator), score, paid)


def _known(names: tuple[str, ...], columns: list[str]) -> str | None:
    """The first of these names that is a column, or the last part of a nested one."""
    parts = {column.rpartition(".")[2]: column for column in reversed(columns)}
    return next((parts[name] for name in names if name in parts), None)


def _wide(source: Source, answers: Answers, say: Say) -> Found:
    """Agents of a wide table: those named, those with a price, and columns beside them that are scores as well."""
    file = answers.file
    piped = next((PIPE for name in file.columns if name.endswith(PIPE.removeprefix(HOLE))), None)
    paid = source.paid or piped
    score = source.reg or (NESTED if holes(NESTED, file.columns) else HOLE)
    for option, pattern, example in (("--reg", score, "{}_score"), ("--paid", source.paid, "{}_cost")):
        if pattern is None:
            continue
        if pattern.count(HOLE) != 1:
            what = f"{option} {pattern}: `{{}}` has to stand for an agent's name, since each has a column of its own"
            raise UsageError(what, where=file.path, hint=f'{option} "{example}"; or --annotator COLUMN of a long table')
        if option == "--reg" and pattern != HOLE and not holes(pattern, file.columns):
            what = f"{option} {pattern}: there is no such column, whatever stands for {{}}"
            raise UsageError(what, where=file.path, hint=f"it has {some(file.columns, 20)}")
    skipped = {source.id, answers.id, "split", *source.columns, *source.text}
    free = [name for name in file.columns if name not in skipped]
    if source.agents:
        missing = [name for name in source.agents if score.replace(HOLE, name) not in file.columns]
        if missing:
            raise unknown_agent(missing[0], "--agents", holes(score, free), file.path)
        return Found(source.agents, score, paid)
    if score != HOLE:
        return Found(holes(score, free), score, paid)
    if source.is_one_file:
        return Found(_columns_of_scores(source, file, free, paid, say), score, paid)
    return Found([name for name in free if paid is None or not holes(paid, [name])], score, paid)


def _columns_of_scores(source: Source, file: AnswerFile, free: list[str], paid: str | None, say: Say) -> list[str]:
    """Which columns of a table that has features too are agents.

    With prices (RouterBench) they are agents that have one, and other columns of scores from 0 to 1, which is said.
    Without, each column of numbers has to be a score, or be named as a feature.
    """
    priced = [name for name in holes(paid, free) if name in free] if paid is not None else []
    beside = [name for name in free if "|" not in name and name not in priced]
    numbers = [name for name in beside if _is_number(file, name)]
    scores = [name for name in numbers if _is_score(file, name, source.scale)]
    if paid is not None:
        if scores:
            say(
                f"agents of unknown price, since their columns are scores and no {paid.replace(HOLE, 'NAME')} has what "
                f"they cost: {some(scores, 20)} (--features takes a column for a feature)"
            )
        return [name for name in free if name in {*priced, *scores}]
    strange = [name for name in numbers if name not in scores]
    if strange or not scores:
        low, high = source.scale
        what = f"{some(strange)} go beyond {low:g} to {high:g}" if strange else "none has scores"
        raise DataError(
            f"which columns are agents? {what}",
            where=file.path,
            hint="--features name,… for what is not an agent, --agents name,…, or --annotator COLUMN of a long table",
        )
    return scores


def _is_number(file: AnswerFile, column: str) -> bool:
    """Whether a column holds numbers or truth values."""
    try:
        return bool(np.isfinite(file.numbers(column, file.table)).any())
    except DataError:
        return False


def _is_score(file: AnswerFile, column: str, scale: tuple[float, float]) -> bool:
    values = file.numbers(column, file.table)
    values = values[~np.isnan(values)]
    return bool(((values >= scale[0]) & (values <= scale[1])).all())


def _columns_of_agents(answers: Answers, found: Found) -> set[str]:
    """Columns of the file of answers that are agents': scores, prices, and others that begin with a name and a bar."""
    columns = {column.replace(HOLE, name) for name in found.names for column in (found.score, found.paid) if column}
    if answers.annotator is not None:
        columns |= {answers.annotator}
    return columns | {c for c in answers.file.columns for name in found.names if c.startswith(f"{name}|")}


def _of_answers(source: Source, answers: Answers, found: Found, table: Table, of_agents: set[str]) -> dict[str, str]:
    """Columns of the samples that are known only once agents have answered -> why."""
    after = dict.fromkeys(of_agents, "of the agents")
    if not source.is_one_file:
        why = f"since {source.answers.name} has answers of that name"
        after |= {name: why for name in answers.file.columns if name in table.columns}
    truths = [name for name in table.columns if name.rpartition(".")[2].lower() in TRUTHS]
    after |= dict.fromkeys(truths, "since their names say that they are the truth")
    later = [name for name in table.columns if name.rpartition(".")[2].lower() in AFTERWARDS]
    after |= dict.fromkeys(later, "since their names say that they are known only afterwards")
    oracles = known_afterwards(table, found.names, {source.id})
    return after | dict.fromkeys(oracles, "since it names agents, which is known only afterwards")


def _facts(
    answers: Answers, found: Found, paid: Paid, name: str, scale: tuple[float, float]
) -> tuple[float, float | None, int]:
    """Mean score of an agent, mean price of its answers (None where it is not known), and how many scores it has."""
    file, (low, high) = answers.file, scale
    rows = file.table if answers.annotator is None else file.table.filter(file.text(answers.annotator) == name)
    column = need(found.score.replace(HOLE, name), file.columns, "--reg", file.path)
    values = file.numbers(column, rows)
    outside = (values < low) | (values > high)
    if outside.any():
        row = rows[ROW][int(outside.argmax())]
        raise DataError(
            f"{column} is {values[outside][0]:g}, not from {low:g} to {high:g}; {name} has {int(outside.sum()):,} such",
            where=file.where(row),
            hint="say the scale, from the worst score to the best: --scale 0,100, or --scale=-1,1",
        )
    known = values[~np.isnan(values)]
    mean = float(known.mean()) if len(known) else float("nan")
    costs = paid.of(name, file, rows)
    if costs is None:
        return mean, None, len(known)
    costs = costs[~np.isnan(values)]
    return mean, float(np.nanmean(costs)) if np.isfinite(costs).any() else None, len(known)
