"""Files of detections: COCO's results, COCO's annotations (what a person has drawn), a table, or a folder of texts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import polars as pl

from l2d.cache_builder.agents._detection_texts import read_folder
from l2d.data.errors import DataError, close_to
from l2d.data.samples.boxes import LARGEST

CORNERS = ("x1", "y1", "x2", "y2")
COLUMNS = ("image", "label", *CORNERS)
FORMATS = (".json", ".parquet", ".csv")
FORMAT_HINT = "see https://cocodataset.org/#format-results"


@dataclass(frozen=True, kw_only=True)
class Found:
    """The entries of a file, m in all, as it has them.

    Attributes:
        image: name of the image of each.
        label: of each; None where the image was looked at and nothing was found.
        xyxy: float64 (m, 4), zeros where nothing was found.
        size: float64 (m, 2): width and height as given, or by the corners.
        score: float64 (m,), None where the file has no scores.
        file_name: of each image, None where an entry has none.
        names: label -> name of its class, where the file says it by itself.
        looked_at: images that the file lists, with detections or without; None where it lists none.
        lines: file and line of each, where it is one of a folder of text files.
    """

    image: list[str | int]
    label: list[str | int | None]
    xyxy: np.ndarray
    size: np.ndarray
    score: np.ndarray | None
    file_name: list[str | None]
    names: dict[str, str]
    looked_at: list[tuple[str | int, str | None]] | None = None
    lines: list[str] | None = None


class DetectionFile:
    """Reads and checks a file.

    Args:
        path: ``.json``, ``.parquet`` or ``.csv``.
        agent: its name, for messages.
        gaps: an entry may say that an image was looked at and nothing was found.
        line: fields of a line, where the path is a folder of text files.
    """

    def __init__(self, path: Path, agent: str, *, gaps: bool, line: str = ""):
        self.path, self.agent, self.gaps, self.line = path, agent, gaps, line
        self._lines: list[str] | None = None

    def read(self) -> Found:
        """The checked entries.

        Raises:
            DataError: names the file and the position of the entry.
        """
        if self.path.is_dir():
            found = self._read_texts()
        else:
            found = self._read_json() if self.path.suffix.lower() == ".json" else self._read_table()
        self._lines = found.lines
        rules = [
            (np.isfinite(found.xyxy).all(axis=1), found.xyxy, "box", "is not finite"),
            ((np.abs(found.xyxy) <= LARGEST).all(axis=1), found.xyxy, "box", "is out of range"),
            ((found.size >= 0).all(axis=1), found.xyxy, "box", "has its corners the wrong way round"),
        ]
        if found.score is not None:
            rules.append(((found.score >= 0) & (found.score <= 1), found.score, "score", "is not from 0 to 1"))
        for good, values, name, what in rules:
            if not good.all():
                row = int(good.argmin())
                self.refuse(f"{name} {values[row].tolist()} {what}", row, "correct it, or leave it out")
        return found

    def refuse(self, what: str, row: int, hint: str) -> NoReturn:
        """Raise the error for an entry."""
        where = f"{self.path}, detection at position {row}" if self._lines is None else self._lines[row]
        raise DataError(f"agent {self.agent!r}: {what}", where=where, hint=hint)

    # --- text files ---------------------------------------------------------------------------------------------------

    def _read_texts(self) -> Found:
        entries, files = read_folder(self.path, self.line, self.agent)
        scores = [entry["score"] for entry in entries if entry["score"] is not None]
        return Found(
            image=[entry["image"] for entry in entries],
            label=[entry["label"] for entry in entries],
            xyxy=np.array([entry["xyxy"] for entry in entries]).reshape(-1, 4),
            size=np.array([entry["size"] for entry in entries]).reshape(-1, 2),
            score=np.array(scores) if scores else None,
            file_name=[None] * len(entries),
            names={},
            looked_at=[(file.stem, None) for file in files],
            lines=[entry["where"] for entry in entries],
        )

    # --- JSON ---------------------------------------------------------------------------------------------------------

    def _read_json(self) -> Found:
        try:
            content = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"is not JSON: {error}", where=self.path, hint="restore the file") from error
        if isinstance(content, dict) and isinstance(content.get("annotations"), list):
            return self._of_annotations(content)
        if not isinstance(content, list):
            raise DataError("is not a list of detections", where=self.path, hint=FORMAT_HINT)
        return self._of_entries(content, {}, {}, None)

    def _of_annotations(self, content: dict) -> Found:
        """COCO's annotations: the file lists its images and names its categories."""
        parts = {}
        for part, key, kinds in (("images", "file_name", (str,)), ("categories", "name", (str,))):
            rows = content.get(part)
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise DataError(f"has no list of objects {part!r}", where=self.path, hint=FORMAT_HINT)
            for row in rows:
                if type(row.get("id")) not in (int, str) or type(row.get(key)) not in kinds:
                    raise DataError(f"{part}: {row!r:.60} has no id and {key}", where=self.path, hint=FORMAT_HINT)
            parts[part] = {row["id"]: row[key] for row in rows}
        names = {str(number): name for number, name in parts["categories"].items()}
        return self._of_entries(content["annotations"], parts["images"], names, list(parts["images"].items()))

    def _of_entries(
        self, content: list, files: dict, names: dict[str, str], looked_at: list[tuple[str | int, str | None]] | None
    ) -> Found:
        corner, size, scores = (np.zeros((len(content), width)) for width in (2, 2, 1))
        scored = bool(content) and any(isinstance(entry, dict) and "score" in entry for entry in content)
        labels: list[str | int | None] = []
        for row, entry in enumerate(content):
            if not isinstance(entry, dict):
                self.refuse(f"is {entry!r:.60}, not an object", row, FORMAT_HINT)
            self._need(entry, "image_id", (int, str), row)
            if self.gaps and entry.get("bbox") is None and entry.get("category_id") is None:
                labels.append(None)
                continue
            self._need(entry, "category_id", (int,), row)
            if scored:
                self._need(entry, "score", (int, float), row)
            labels.append(entry["category_id"])
            bbox = entry.get("bbox")
            if not isinstance(bbox, list) or len(bbox) != 4 or not all(type(value) in (int, float) for value in bbox):
                self.refuse(f"bbox is {bbox!r:.60}, not four numbers", row, FORMAT_HINT)
            try:
                corner[row], size[row], scores[row] = bbox[:2], bbox[2:], entry.get("score", 1.0)
            except OverflowError:  # an integer of hundreds of digits
                self.refuse("has a number that is out of range", row, "correct it, or leave it out")
        file_name = [entry.get("file_name", files.get(entry["image_id"])) for entry in content]
        with np.errstate(over="ignore"):
            xyxy = np.hstack([corner, corner + size])
        return Found(
            image=[entry["image_id"] for entry in content],
            label=labels,
            xyxy=xyxy,
            size=size,
            score=scores[:, 0] if scored else None,
            file_name=[name if isinstance(name, str) else None for name in file_name],
            names=names,
            looked_at=looked_at,
        )

    def _need(self, entry: dict, key: str, kinds: tuple[type, ...], row: int) -> None:
        if type(entry.get(key)) not in kinds:  # True is an int, but not an id
            shown = f"{entry[key]!r:.60}" if key in entry else "missing"
            self.refuse(f"{key!r} is {shown}", row, FORMAT_HINT)

    # --- tables -------------------------------------------------------------------------------------------------------

    def _read_table(self) -> Found:
        table = self._table()
        for name in COLUMNS:
            if name not in table.columns:
                near = close_to(name, table.columns)
                hint = f"is it {near!r}? " if near else ""
                raise DataError(f"has no column {name!r}", where=self.path, hint=f"{hint}it needs {', '.join(COLUMNS)}")
        scored = "score" in table.columns
        columns = [*CORNERS, *(["score"] if scored else [])]
        try:
            text = table.select(pl.col("image", "label").cast(pl.String))
            numbers = table.select(pl.col(columns).cast(pl.Float64, strict=False))
        except pl.exceptions.PolarsError as error:  # a list, say
            reason = str(error).splitlines()[0]
            raise DataError(
                f"has columns of other types: {reason}", where=self.path, hint="texts and numbers"
            ) from error
        nothing = np.zeros(len(table), bool)
        if self.gaps:
            nothing = table.select(pl.all_horizontal(pl.col("label", *CORNERS).is_null())).to_series().to_numpy()
        for name in ("image", "label", *columns):
            missing = (text if name in text.columns else numbers)[name].is_null().to_numpy()
            missing = missing if name == "image" else missing & ~nothing
            if missing.any():
                row = int(missing.argmax())
                self.refuse(f"{name} is {table[name][row]!r}", row, "correct it, or leave it out")
        values: Any = numbers.fill_null(0).to_numpy().astype(np.float64)
        with np.errstate(invalid="ignore"):
            size = values[:, 2:4] - values[:, :2]
        return Found(
            image=text["image"].to_list(),
            label=text["label"].to_list(),
            xyxy=values[:, :4],
            size=size,
            score=values[:, 4] if scored else None,
            file_name=[None] * len(table),
            names={},
        )

    def _table(self) -> pl.DataFrame:
        try:
            csv = self.path.suffix.lower() == ".csv"
            return pl.read_csv(self.path, infer_schema=False) if csv else pl.read_parquet(self.path)
        except Exception as error:  # whatever polars makes of damaged bytes
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"cannot be read: {reason}", where=self.path, hint="restore the file") from error
