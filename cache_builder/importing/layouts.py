"""Layouts of published tables, recognised by their columns, so that nothing but the files has to be named."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from l2d.cache_builder.agents._answer_file import TOGETHER, AnswerFile
from l2d.cache_builder.agents._answer_folders import joined, read_parts
from l2d.cache_builder.importing.source import IDS, Source, holes, need, some
from l2d.data.errors import UsageError
from l2d.data.sources.text_table import TEXT_FORMATS, read_header

Say = Callable[[str], None]
NESTED = "scores.{}"  # LLMRouter's scores by model
EXPERT = re.compile(r".+#\d+$")  # OpenL2D's experts: standard#0, standard#1 …
NAMELESS = ("(column 1)", "__index_level_0__", "Unnamed: 0", "case_id")  # an index of pandas, as files keep it
RESPONSE = "_response"  # RouteLLM's column with what a model said


@dataclass(frozen=True)
class Tables:
    """What a layout is told by.

    Attributes:
        file: of answers.
        features: columns of the table of samples, which may be the same.
    """

    file: AnswerFile
    features: list[str]

    def has(self, *names: str) -> bool:
        """Whether the answers have all these columns."""
        return set(names) <= set(self.file.columns)

    @property
    def truths(self) -> list[str]:
        """Columns of the answers that hold truth values alone, as such or written out."""
        found = []
        for name in self.file.columns:
            column = self.file.table[name]
            words = column.drop_nulls()
            if column.dtype == pl.Boolean or (
                column.dtype == pl.String and len(words) and words.str.to_lowercase().is_in(["true", "false"]).all()
            ):
                found.append(name)
        return found


@dataclass(frozen=True)
class Layout:
    """What a recognised table says of itself: fields of :class:`Source`, used where the user says nothing."""

    name: str
    facts: dict[str, Any] = field(default_factory=dict)


def recognised(kind: str, source: Source, say: Say) -> Source:
    """What the user says of the files, and of the rest what their layout says.

    Without a layout that is known, an id is a column of a usual name that both files have.

    Args:
        kind: ``scores`` or ``predictions``.
        say: told the layout and what follows from it.

    Raises:
        UsageError: no id is named, and none can be told.
    """
    file = AnswerFile(source.answers, source.missing)
    features = file.columns if source.is_one_file else _columns(source.features)
    tables = Tables(file, features)
    layout = (_layout_of_scores if kind == "scores" else _layout_of_predictions)(tables, source)
    if layout is not None:
        new = {name: value for name, value in layout.facts.items() if not getattr(source, name)}
        source = replace(source, **new)
        listed = "; ".join(f"{TITLES[name]}: {_shown(value)}" for name, value in new.items() if name in TITLES)
        say(f"layout: {layout.name}{' - ' if listed else ''}{listed}")
    parts = [part.strip() for part in source.id.split(",")]
    if len(parts) > 1 and source.id not in features:
        for part in parts:
            need(part, features, "--id", source.features)
            need(part, file.columns, "--id", source.answers)
        return replace(source, id=TOGETHER.join(parts), together=parts)
    if source.id:
        return source
    known = [name for name in IDS if name in features and (source.is_one_file or name in file.columns)]
    known = known or ([] if source.is_one_file else [name for name in IDS if name in features])
    if not known:
        what = "which column has the sample ids? The layout is none that is known"
        raise UsageError(what, where=source.features, hint=f"--id one of {some(features, 30)}")
    say(f"the column {known[0]!r} has the sample ids (--id: another)")
    return replace(source, id=known[0])


TITLES = {
    "id": "ids", "answers_id": "ids of the answers", "annotator": "agents", "reg": "scores", "paid": "paid",
    "unit_paid": "in", "text": "text", "agents": "agents", "target": "truth",
}  # fmt: skip


def _shown(value: Any) -> str:
    return some(value) if isinstance(value, list) else str(value)


def _layout_of_scores(tables: Tables, source: Source) -> Layout | None:
    has, columns = tables.has, tables.file.columns
    if has("sample_id", "bench_split", "model", "origin_query", "score"):
        paid = {"paid": "cost", "unit_paid": "USD"} if "cost" in columns else {}
        if source.paid or source.prices:
            paid = {}
        return Layout("LLMRouterBench", {"id": "sample_id", "annotator": "model", "reg": "score", **paid})
    if has("sample_id", "prompt", "eval_name") and any(name.endswith("|total_cost") for name in columns):
        return Layout("RouterBench", {"id": "sample_id"})
    if has("prompt_id", "model_name", "label"):
        return Layout("EmbedLLM", {"id": "prompt_id", "annotator": "model_name", "reg": "label"})
    for index in ("global_index", "global index"):
        if has(index, "llm_selected", "evaluation_result.score"):
            facts = {"id": index, "annotator": "llm_selected", "reg": "evaluation_result.score"}
            if has("evaluation_result.inference_cost") and not source.paid and not source.prices:
                facts |= {"paid": "evaluation_result.inference_cost", "unit_paid": "USD"}
            return Layout("RouterArena", facts)
    if has("q_id", "query", "model", "score"):
        return Layout("LLMRouter, lists by model", {"id": "q_id", "annotator": "model", "reg": "score"})
    models = holes(NESTED, columns)
    if has("question") and models and source.is_one_file and not _an_id(columns):
        return Layout("LLMRouter, nested scores", {"id": "question", "reg": NESTED, **_text(source, "question")})
    truths = tables.truths
    rest = [name for name in columns if name not in truths and not name.endswith(RESPONSE)]
    if rest == ["prompt"] and len(truths) > 1 and source.is_one_file:
        return Layout("RouteLLM", {"id": "prompt", "agents": truths, **_text(source, "prompt")})
    return None


def _layout_of_predictions(tables: Tables, source: Source) -> Layout | None:
    experts = [name for name in tables.file.columns if EXPERT.match(name)]
    if len(experts) < 2:
        return None
    facts: dict[str, Any] = {"agents": experts}
    for key, columns in (("id", tables.features), ("answers_id", tables.file.columns)):
        index = next((name for name in (*NAMELESS, *IDS) if name in columns), None)
        if index is not None:
            facts[key] = index
    if "fraud_bool" in tables.features:
        facts["target"] = "fraud_bool"
    return Layout("OpenL2D", facts)


def _an_id(columns: list[str]) -> bool:
    return any(name in columns for name in IDS)


def _text(source: Source, column: str) -> dict[str, Any]:
    """A text that is all that is known of a sample is its features, unless the user names others."""
    return {} if source.columns or source.text else {"text": [column]}


def _columns(path: Path) -> list[str]:
    """Columns of a table of samples."""
    if path.suffix.lower() == ".parquet" and path.is_file():
        return list(pl.read_parquet_schema(path))
    if path.suffix.lower() in TEXT_FORMATS and path.is_file():
        return list(read_header(path).names)
    return joined(path, read_parts(path)).columns
