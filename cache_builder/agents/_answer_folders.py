"""Folders of answers: all files of a folder one after another, and folders that a benchmark has arranged."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl

from l2d.cache_builder.agents._answer_formats import FORMATS, Part, first_line, kinds, of_json, read_file
from l2d.data.errors import DataError
from l2d.data.samples.splits import SPELLINGS

TIME = re.compile(r"\d{8}[_-]?\d{6}")  # of a run, in the name of its file
#: LLMRouterBench's records, as they are kept: what was said, which is most of the bytes, is not.
SAID = ("raw_output", "prediction", "prompt", "extra_fields")


def read_parts(path: Path) -> list[Part]:
    """A file, or the files of a folder in the order of their names.

    A folder ``DATASET/SPLIT/MODEL/TIME.json`` (LLMRouterBench) gets columns ``sample_id`` (``DATASET/SPLIT/INDEX``),
    ``dataset``, ``bench_split`` and ``model``; of a model's several files the newest counts, and none that is marked
    ``demo``. Where the names of all files begin with that of a split (``train-00000-of-00001.parquet``, ``test.csv``),
    a column ``split`` says which.

    Raises:
        DataError: there is no such file, or it cannot be read; two files of one model have no time in their names.
    """
    if not path.is_dir():
        return [read_file(path)]
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in FORMATS and file.is_file())
    if not files:
        raise DataError("no file in this folder is a table of answers", where=path, hint=f"they end in {kinds()}")
    if _is_bench(files):
        return _bench(files)
    parts = [read_file(file) for file in files]
    splits = [_split_of(file) for file in files]
    if all(splits) and not any("split" in part.table.columns for part in parts):
        for k, split in enumerate(splits):
            parts[k] = Part(parts[k].file, parts[k].table.with_columns(split=pl.lit(split)), parts[k].stated)
    return parts


def joined(path: Path, parts: list[Part]) -> pl.DataFrame:
    """The rows of all parts, one after another.

    Raises:
        DataError: they do not fit together.
    """
    if len(parts) == 1:
        return parts[0].table
    try:
        return pl.concat([part.table for part in parts], how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        raise DataError(f"its files do not fit together: {first_line(error)}", where=path) from error


def _split_of(file: Path) -> str | None:
    """The split that a file is called by."""
    word = re.split(r"[-_.]", file.stem.lower())[0]
    return SPELLINGS.get(word)


# --- LLMRouterBench ---------------------------------------------------------------------------------------------------


def _json(file: Path) -> Any:
    try:
        with open(file, "rb") as content:
            return json.load(content)
    except (ValueError, OSError) as error:
        reason = first_line(error)
        raise DataError(f"cannot be read: {reason}", where=file, hint="is it a whole file of that format?") from error


def _is_bench(files: list[Path]) -> bool:
    """Whether the files are LLMRouterBench's, from the first one."""
    if any(file.suffix.lower() != ".json" for file in files):
        return False
    value = _json(files[0])
    rows = value.get("records") if isinstance(value, dict) else None
    return isinstance(rows, list) and bool(rows) and {"index", "score"} <= set(rows[0]) and "origin_query" in rows[0]


def _bench(files: list[Path]) -> list[Part]:
    """The newest file of each data set, split and model."""
    newest: dict[tuple[str, ...], tuple[str, Path, dict]] = {}
    for file in files:
        value = _json(file)
        if not isinstance(value, dict) or "records" not in value:
            raise DataError("has no `records`, which the other files of this folder have", where=file)
        if value.get("demo"):
            continue
        folders = [part.name for part in (file.parents[2], file.parents[1], file.parents[0])]
        names = ("dataset_name", "split", "model_name")
        key = tuple(str(value.get(name) or folder) for name, folder in zip(names, folders, strict=True))
        found = TIME.search(file.stem)
        time = re.sub(r"\D", "", found[0]) if found else ""
        if key in newest and newest[key][0] == time:
            what = f"there are two files of {', '.join(key)}: this one and {newest[key][1].name}"
            raise DataError(what, where=file, hint="which is newer? Put the time in the names, as 20260131_235959")
        if key not in newest or time > newest[key][0]:
            newest[key] = (time, file, value)
    parts = []
    for (dataset, split, model), (_, file, value) in sorted(newest.items()):
        kept = [{name: one for name, one in row.items() if name not in SAID} for row in value["records"]]
        part = of_json({**value, "records": kept}, file) if kept else None
        if part is None:
            continue
        index = pl.col("index").cast(pl.String)
        added = {"dataset": dataset, "bench_split": split, "model": model}
        table = part.table.drop("dataset_name", "split", "model_name", "demo", "data_fingerprint", strict=False)
        table = table.with_columns(
            pl.concat_str(pl.lit(f"{dataset}/{split}/"), index).alias("sample_id"),
            *(pl.lit(text).alias(name) for name, text in added.items()),
        )
        parts.append(Part(file, table.select("sample_id", pl.exclude("sample_id")), part.stated))
    return parts
