"""How answers are written down: CSV, Parquet, JSON, JSONL, folders of these, Label Studio's export; all as tables."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from l2d.data.errors import DataError
from l2d.data.sources.text_table import read_text

FORMATS = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".json")


#: Totals that a file may state beside its rows, as benchmarks call them. They say nothing about any one row.
TOTALS = ("performance", "accuracy", "acc", "score", "mean_score", "average_score", "cost", "total_cost", "counts",
          "count", "num_samples", "time_taken", "prompt_tokens", "completion_tokens", "total_tokens")  # fmt: skip
#: LLMRouter's older form: lists that are parallel, with an entry for each model -> what the entries are called.
PARALLEL = {
    "llm_name_list": "model", "perf_list": "score", "cost_list": "cost", "response_list": "response",
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A file of answers.

    Attributes:
        file: where its rows come from.
        table: its rows, as written: cells of a CSV are text, nested values have dotted names.
        stated: numbers of :data:`TOTALS` that the file states beside its rows.
    """

    file: Path
    table: pl.DataFrame
    stated: dict[str, float] = field(default_factory=dict)


def read_file(path: Path) -> Part:
    """A file of :data:`FORMATS`.

    ``{"scores": {"a": 1}}`` becomes the column ``scores.a``. A file with a list of ``records`` beside other values
    (LLMRouterBench) is a row for each record, the other values repeated, except totals. A row with parallel lists, of
    models and of their scores, becomes a row for each model.

    Raises:
        DataError: it is of another kind, or cannot be read.
    """
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise DataError("is not a table of answers", where=path, hint=f"such files end in {kinds()}")
    try:
        if kind in (".csv", ".tsv"):
            return Part(path, read_text(path)[0])
        if kind == ".parquet":
            return Part(path, _unnested(pl.read_parquet(path)))
        if kind == ".json":
            with open(path, "rb") as file:
                return of_json(json.load(file), path)
        return Part(path, _one_row_a_model(_unnested(pl.read_ndjson(path, infer_schema_length=None))))
    except DataError as error:
        raise DataError(error.what, where=error.where or path, hint=error.hint) from error
    except Exception as error:  # whatever polars makes of damaged bytes
        reason = first_line(error)
        raise DataError(f"cannot be read: {reason}", where=path, hint="is it a whole file of that format?") from error


def kinds() -> str:
    """The suffixes of files of answers, for messages."""
    return ", ".join(FORMATS)


def first_line(error: Exception) -> str:
    """What an error says, in a line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _unnested(table: pl.DataFrame) -> pl.DataFrame:
    """Structs as columns with dotted names."""
    while structs := {name: kind for name, kind in table.schema.items() if isinstance(kind, pl.Struct)}:
        for name, kind in structs.items():
            fields = [field.name for field in kind.fields]
            table = table.with_columns(pl.col(name).struct.rename_fields([f"{name}.{field}" for field in fields]))
        table = table.unnest(*structs)
    return table


def of_json(value: Any, path: Path) -> Part:
    """A list of objects, or an object that has one."""
    shared: dict[str, Any] = {}
    stated: dict[str, float] = {}
    if isinstance(value, dict):
        lists = {name: one for name, one in value.items() if _is_rows(one)}
        if len(lists) != 1:
            found = f"has lists of objects at {', '.join(lists)}" if lists else "has no list of objects"
            raise DataError(f"this JSON {found}", hint="answers are a list of objects, [{…}, {…}], or one `records`")
        (key, rows) = next(iter(lists.items()))
        shared = {name: one for name, one in value.items() if name != key and not isinstance(one, dict | list)}
        stated = {n: float(v) for n, v in shared.items() if n in TOTALS and type(v) in (int, float)}
        shared = {name: one for name, one in shared.items() if name not in TOTALS}
    else:
        rows = value
    if not _is_rows(rows):
        raise DataError("this JSON is not a list of objects", hint="write [{…}, {…}], an object for each row")
    if any("annotations" in row or "predictions" in row for row in rows) and all("data" in row for row in rows):
        rows = list(_of_label_studio(rows))
    if any("llm_name_list" in row for row in rows):
        rows = list(_of_parallel(rows))
    flat = [shared | dict(_flattened(row)) for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    return Part(path, pl.DataFrame([_column(name, [row.get(name) for row in flat]) for name in names]), stated)


def _of_parallel(rows: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """A row for each model of rows with lists of :data:`PARALLEL`.

    Raises:
        DataError: the lists of a row are of different lengths.
    """
    for number, row in enumerate(rows):
        lists = {name: row[name] for name in PARALLEL if isinstance(row.get(name), list)}
        if len({len(one) for one in lists.values()}) > 1:
            lengths = ", ".join(f"{name} {len(one)}" for name, one in lists.items())
            raise DataError(
                f"row {number + 1} has lists of different lengths: {lengths}", hint="an entry for each model"
            )
        rest = {name: one for name, one in row.items() if name not in PARALLEL}
        for entries in zip(*lists.values(), strict=True):
            yield rest | {PARALLEL[name]: one for name, one in zip(lists, entries, strict=True)}


def _one_row_a_model(table: pl.DataFrame) -> pl.DataFrame:
    """:func:`_of_parallel` of a table."""
    if "llm_name_list" not in table.columns:
        return table
    rows = list(_of_parallel(table.to_dicts()))
    return pl.DataFrame(rows, infer_schema_length=None)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _flattened(row: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _column(name: str, values: list[Any]) -> pl.Series:
    """Numbers, truth values, or else text."""
    kinds = {type(value) for value in values} - {type(None)}
    if kinds == {bool}:
        return pl.Series(name, values, dtype=pl.Boolean)
    if kinds and kinds <= {int, float}:
        try:
            return pl.Series(name, values, dtype=pl.Int64 if kinds == {int} else pl.Float64)
        except (OverflowError, TypeError):
            pass
    texts = [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
    return pl.Series(name, texts, dtype=pl.String)


def _of_label_studio(tasks: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """A row for each annotation and each prediction of a task: ``id``, its data, ``annotator``, what was answered.

    An answer's column is called as the labelling interface calls it (``from_name``). Skipped tasks give no answer. The
    format: https://labelstud.io/guide/task_format.
    """
    for task in tasks:
        facts = {"id": task.get("id"), **{k: v for k, v in task["data"].items() if k != "id"}}
        if "id" in task["data"]:
            facts["data.id"] = task["data"]["id"]
        for annotation in task.get("annotations") or []:
            if annotation.get("was_cancelled"):
                continue
            by = annotation.get("completed_by")
            by = by.get("email") or by.get("id") if isinstance(by, dict) else by
            row = {"annotator": None if by is None else str(by), "seconds": annotation.get("lead_time")}
            yield facts | row | _label_studio_values(annotation)
        for prediction in task.get("predictions") or []:
            if isinstance(prediction, dict):
                row = {"annotator": prediction.get("model_version") or "prediction", "score": prediction.get("score")}
                yield facts | row | _label_studio_values(prediction)


def _label_studio_values(annotation: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for result in annotation.get("result") or []:
        value = result.get("value") or {}
        answer = value.get(result.get("type"), next(iter(value.values()), None))
        if isinstance(answer, list) and len(answer) == 1:
            answer = answer[0]
        found[result.get("from_name", "answer")] = answer
    return found
