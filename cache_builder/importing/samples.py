"""The samples of an import: one row each, whatever file they lie in, and which columns a rejector may look at."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import polars as pl

from l2d.cache_builder.agents._answer_file import as_text, together
from l2d.cache_builder.agents._answer_folders import joined, read_parts
from l2d.cache_builder.importing.source import Source, need, relative, some
from l2d.cache_builder.recipe import BuildConfig
from l2d.data.errors import DataError, UsageError
from l2d.data.samples.cells import first_true
from l2d.data.samples.column_file import GLANCE, ColumnFile, Table, held
from l2d.data.samples.columns import FREE_TEXT, INDEX_NAMES, stray_texts, why_left
from l2d.data.samples.expressions import columns_of, name_of, quoted
from l2d.data.samples.features import MOST_CATEGORIES
from l2d.data.samples.splits import split_column
from l2d.data.samples.texts import any_twice
from l2d.data.sources.text_table import FORMATS as TABLES
from l2d.data.sources.text_table import TEXT_FORMATS as TEXTS
from l2d.data.sources.text_table import open_table
from l2d.data.toml import toml_list, toml_text

Say = Callable[[str], None]
CHUNK_BY_DEFAULT, LARGE_CHUNK = BuildConfig().chunk_size, 65_536
#: Names of columns with the truth, and of those that say which agent was best, in tables of scores.
TRUTHS = ("answer", "answer_index", "ground_truth", "groundtruth", "gold", "gold_answer", "truth", "correct_answer",
          "reference", "reference_answer", "expected", "solution")  # fmt: skip
#: Names of columns with what an agent said, or with what saying it took.
AFTERWARDS = ("prediction", "pred", "response", "raw_output", "generated_answer", "generated_text", "model_output",
              "model_outputs", "completion_tokens", "output_tokens", "total_tokens", "latency", "time_taken", "success",
              "error")  # fmt: skip
ORACLES = ("oracle", "best_model", "best_agent", "winner")
NAMED_BY = 0.9  # share of a column's values that are names of agents, from which on it is made of the answers


def read_samples(source: Source, say: Say, *, long: bool, of_agents: Iterable[str] = ()) -> tuple[Table, bool]:
    """The table of samples, and whether it had to be made: of a JSON file, or of several rows about one sample.

    Args:
        source: what the user says.
        say: told what was made of several rows.
        long: whether the file is a long one of answers, whose other columns differ between the rows of a sample.
        of_agents: columns that are agents': not part of a sample where rows have to be merged.

    Raises:
        UsageError: there is no such column.
        DataError: the file cannot be read, or two rows about one sample contradict each other.
    """
    path = source.features
    made = path.suffix.lower() not in TABLES
    as_text = [source.id, source.target_text or "", *source.text]  # as the build reads it, or it would read it anew
    table: Table = joined(path, read_parts(path)) if made else open_table(path, text=as_text)[0]
    if source.together:
        table, made = held(table).with_columns(together(table.select(source.together))), True
    need(source.id, table.columns, "--id", path)
    ids = table[source.id]
    if ids.null_count():
        raise DataError(f"row {first_true(ids.is_null())} has no {source.id}", where=path, hint="give it an id")
    if not any_twice(ids):
        return table, made
    kept = [name for name in table.columns if name not in set(of_agents) and not INDEX_NAMES.match(name)]
    return _one_row_each(table.select(kept), source, say, long=long), True


def _one_row_each(table: pl.DataFrame, source: Source, say: Say, *, long: bool) -> pl.DataFrame:
    """Rows of one id made one: what one lacks, the other has."""
    id_column, path = source.id, source.features
    names = [name for name in table.columns if name != id_column]
    row = "__row__"
    table = table.with_row_index(row)
    comparable = [name for name in names if not isinstance(table.schema[name], pl.Object)]
    groups = table.group_by(id_column, maintain_order=True)
    differs = groups.agg(pl.col(comparable).drop_nulls().n_unique() > 1)
    several = int(table[id_column].is_duplicated().sum())
    say(f"{path}: {several:,} of {len(table):,} rows share their {id_column} with another: merged to {len(differs):,}")
    varying = [name for name in comparable if differs[name].any()]
    wanted = {*source.targets.values(), *source.columns}
    read = {name for expression in source.text for name in [expression, *columns_of(expression)]}
    if long:
        left = [name for name in varying if name not in wanted | read]
        say(f"columns that differ between the rows of one sample belong to the answers: {some(left, 20)}")
        names, varying = [n for n in names if n not in left], [n for n in varying if n in wanted | read]
    texts = [name for name in varying if table.schema[name] == pl.String and name not in wanted]
    free = [name for name in texts if name in read or table[name].n_unique() > MOST_CATEGORIES]
    for name in texts:
        count = f"{name}: {int(differs[name].sum()):,} samples have two different texts"
        say(f"{count}, of which the first is kept" if name in free else f"{count}, so it is left out")
    names = [name for name in names if name not in texts or name in free]
    clashing = next((name for name in varying if name not in texts), None)
    if clashing is not None:
        sample = differs.filter(pl.col(clashing))[id_column][0]
        rows = table.filter((pl.col(id_column) == sample) & pl.col(clashing).is_not_null())
        first, second = rows.row(0, named=True), rows.filter(pl.col(clashing) != rows[clashing][0]).row(0, named=True)
        raise DataError(
            f"sample {sample!r} stands twice with different {clashing}: {first[clashing]!r} in row {first[row]} of the "
            f"table, {second[clashing]!r} in row {second[row]} ({int(differs[clashing].sum())} samples do)",
            where=path,
            hint="correct one of them, or name another column with --id",
        )
    return groups.agg(pl.col(names).drop_nulls().first()).select(id_column, *names)


def usable_features(table: Table, taken: set[str | None]) -> tuple[list[str], dict[str, str]]:
    """Columns that a rejector can look at as SQL, and why the others are left out: column -> reason."""
    features, left = [], {}
    for name in table.columns:
        if name in taken:
            continue
        why = why_left(table, name)
        if why is None:
            features.append(quoted(name))
        else:
            left[name] = why
    return features, left


def quoted_if_column(expression: str, table: Table) -> str:
    """A column's name in SQL; what is no column is SQL already."""
    return quoted(expression) if expression in table.columns else expression


def known_afterwards(table: Table, agents: list[str], taken: set[str | None]) -> list[str]:
    """Columns that name agents: which is right or best is known only once all have answered."""
    found = []
    for name in table.columns:
        if name in taken or table.schema[name] != pl.String:
            continue
        values = table[name].drop_nulls()
        named = values.is_in(agents)
        if name.lower().startswith(ORACLES) or (values.n_unique() > 1 and named.mean() >= NAMED_BY):
            found.append(name)
    return found


def made_of_classes(table: Table, target: str | None, taken: set[str | None]) -> list[str]:
    """Columns of exactly the target's values, three or more: an answer, or the truth once more."""
    if target is None:
        return []
    classes = set(as_text(table[target]).drop_nulls().unique().to_list())
    names = [n for n in table.columns if n not in taken and n != target and not table.schema[n].is_nested()]
    if len(classes) < 3:
        return []
    return [
        name
        for name in names
        if _may_be_of(classes, table.first[name] if isinstance(table, ColumnFile) else table[name].head(GLANCE))
        and set(as_text(table[name]).drop_nulls().unique().to_list()) == classes
    ]


def _may_be_of(classes: set[str], first: pl.Series) -> bool:
    """Whether a column that begins so may be of these classes alone; whole numbers may be followed by others."""
    texts = as_text(first)
    if first.dtype.is_float() and not texts.str.contains(".", literal=True).any():
        return True
    return set(texts.drop_nulls().to_list()) <= classes


def dataset_lines(
    source: Source,
    table: Table,
    path: Path,
    folder: Path,
    say: Say,
    *,
    of_answers: dict[str, str],
    target_reg: str | None = None,
    unit_paid: str = "",
) -> list[str]:
    """The ``[dataset]`` of a recipe; what is left out of its features is told.

    Args:
        table: of samples, in the file ``path``.
        folder: where the recipe will lie.
        of_answers: columns that are known only afterwards -> why.
        target_reg: SQL, in place of the column that the source names.
        unit_paid: what answers were paid in.
    """
    split = split_column(table)
    taken = {source.id, *source.targets.values(), split}
    texts = [quoted_if_column(expression, table) for expression in source.text]
    read = {name for expression in texts for name in columns_of(expression)}
    for name in read:
        need(name, table.columns, "--text", source.features)
    features, left = usable_features(table, taken | set(of_answers) | read)
    gaps = {name: found for name in left if path.suffix.lower() in TEXTS and (found := stray_texts(table[name]))}
    for name, strays in gaps.items():
        del left[name]
        features.append(quoted(name))
        say(f"{name} is a number where it is not {' or '.join(map(repr, strays))}: that is read as missing")
    left |= {name: why for name, why in of_answers.items() if name in table.columns and name not in taken | read}
    if source.columns:
        features, left = [quoted_if_column(column, table) for column in source.columns], {}
        for name in source.columns:
            if name in table.columns and (why := why_left(table, name) or "").startswith(FREE_TEXT):
                raise UsageError(f"--features {name}: {why}", where=path, hint=f"--text {name} reads it word by word")
    told = [name for name in [*source.columns, *source.text] if name in of_answers]
    if told:
        say(f"{some(told)}: taken as you say, though left out otherwise {of_answers[told[0]]}")
    for reason in dict.fromkeys(left.values()):
        names = [name for name, why in left.items() if why == reason]
        how = f"; --text {names[0]} reads it word by word" if reason.startswith(FREE_TEXT) else ""
        say(f"left out of the features ({reason}): {some(names, 20)}{how}")
    if source.embed is not None and not texts:
        raise UsageError("--embed reads a text: which?", where=source.features, hint="--text COLUMN names it")
    if not features and not source.text:
        raise DataError(
            "no column is left for the rejector to look at", where=source.features, hint="give --features, or --text"
        )
    if features:
        say(f"features: {some(features, 20)}")
    if texts:
        how = "read word by word" if source.embed is None else f"by the embeddings of {source.embed}"
        say(f"text, {how}: {some(texts, 20)}")
    names = " and ".join(dict.fromkeys([source.features.name, source.answers.name]))
    lines = [f"description = {toml_text(f'Imported from {names}')}", ""]
    if unit_paid:
        lines.insert(1, f"unit_paid = {toml_text(unit_paid)}      # what answers were paid in")
    lines += ["[dataset]", f"path = {relative(path, folder)}", f"id = {toml_text(quoted(source.id))}"]
    if gaps and not source.columns:
        listed = (f"{toml_text(name)} = [{', '.join(map(toml_text, strays))}]" for name, strays in gaps.items())
        lines.append(f"missing = {{ {', '.join(listed)} }}")
    if source.target is not None:
        lines.append(f"target_cla = {toml_text(quoted(source.target))}")
    if target_reg is not None:
        lines.append(f"target_reg = {target_reg}")
    elif source.target_reg is not None:
        lines.append(f"target_reg = {toml_text(quoted(source.target_reg))}")
    if source.target_text is not None:
        lines.append(f"target_text = {toml_text(quoted(source.target_text))}")
    if features:
        lines += ["features = [", *(f"  {toml_text(feature)}," for feature in features), "]"]
    if texts:
        listed = toml_list(texts)
        if source.embed is not None:
            where = source.embed
            if not where.startswith("package:"):
                where = Path(os.path.relpath(Path(where).absolute(), folder.absolute())).as_posix()
            each = (
                f"{toml_text(name_of(text))} = {{ column = {toml_text(text)}, embed = {toml_text(where)} }}"
                for text in texts
            )
            listed = f"{{ {', '.join(each)} }}"
        lines.append(f"text = {listed}      # words and lengths; [dataset.text.NAME] has settings")
    shown = [text for text in source.text if text in table.columns][:1] if source.target_text is not None else []
    if shown:
        say(f"{shown[0]} is kept in the cache, as the answers are: reports and SQL show it")
        lines.append(f"keep = {toml_list(shown)}      # copied into the cache, for reports and SQL")
    if split is not None:
        say(f"the column {split!r} says which split a sample is in")
        lines.append(f"split = {{ column = {toml_text(quoted(split))} }}")
    elif source.target is not None:
        lines.append(f"split = {{ stratify = [{toml_text(quoted(source.target))}] }}")
    if len(table) > CHUNK_BY_DEFAULT:  # answers that lie in files are soon asked again: few large parts
        lines += ["", "[build]", f"chunk_size = {LARGE_CHUNK}", f"batch_size = {LARGE_CHUNK}"]
    return lines
