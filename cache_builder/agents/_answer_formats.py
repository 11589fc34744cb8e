"""How answers are written down: CSV, Parquet, JSON, JSONL, folders of these, Label Studio's export; all as tables."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from l2d.data.errors import DataError
from l2d.data.sources.text_table import read_text

FORMATS = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".json")


def read_answers(path: Path) -> pl.DataFrame:
    """A file, or all files of a folder one after another, as written: cells of a CSV are text, nested values dotted.

    ``{"scores": {"a": 1}}`` becomes the column ``scores.a``. A file with a list of ``records`` beside other values
    (LLMRouterBench) is a row for each record, the other values repeated.

    Raises:
        DataError: it is of another kind, or cannot be read.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in FORMATS and file.is_file())
        if not files:
            raise DataError("no file in this folder is a table of answers", where=path, hint=f"they end in {_kinds()}")
        frames = [read_answers(file) for file in files]
        try:
            return pl.concat(frames, how="diagonal_relaxed")
        except pl.exceptions.PolarsError as error:
            raise DataError(f"its files do not fit together: {_first_line(error)}", where=path) from error
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise DataError("is not a table of answers", where=path, hint=f"such files end in {_kinds()}")
    try:
        if kind in (".csv", ".tsv"):
            return read_text(path)[0]
        if kind == ".parquet":
            return _unnested(pl.read_parquet(path))
        if kind == ".json":
            with open(path, "rb") as file:
                return _of_json(json.load(file))
        return _unnested(pl.read_ndjson(path, infer_schema_length=None))
    except DataError as error:
        raise DataError(error.what, where=error.where or path, hint=error.hint) from error
    except Exception as error:  # whatever polars makes of damaged bytes
        reason = _first_line(error)
        raise DataError(f"cannot be read: {reason}", where=path, hint="is it a whole file of that format?") from error


def _kinds() -> str:
    return ", ".join(FORMATS)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _unnested(table: pl.DataFrame) -> pl.DataFrame:
    """Structs as columns with dotted names."""
    while structs := {name: kind for name, kind in table.schema.items() if isinstance(kind, pl.Struct)}:
        for name, kind in structs.items():
            fields = [field.name for field in kind.fields]
            table = table.with_columns(pl.col(name).struct.rename_fields([f"{name}.{field}" for field in fields]))
        table = table.unnest(*structs)
    return table


def _of_json(value: Any) -> pl.DataFrame:
    """A list of objects, or an object that has one."""
    shared: dict[str, Any] = {}
    if isinstance(value, dict):
        lists = {name: one for name, one in value.items() if _is_rows(one)}
        if len(lists) != 1:
            found = f"has lists of objects at {', '.join(lists)}" if lists else "has no list of objects"
            raise DataError(f"this JSON {found}", hint="answers are a list of objects, [{…}, {…}], or one `records`")
        (key, rows) = next(iter(lists.items()))
        shared = {name: one for name, one in value.items() if name != key and not isinstance(one, dict | list)}
    else:
        rows = value
    if not _is_rows(rows):
        raise DataError("this JSON is not a list of objects", hint="write [{…}, {…}], an object for each row")
    if any("annotations" in row or "predictions" in row for row in rows) and all("data" in row for row in rows):
        rows = list(_of_label_studio(rows))
    flat = [shared | dict(_flattened(row)) for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    return pl.DataFrame([_column(name, [row.get(name) for row in flat]) for name in names])


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
