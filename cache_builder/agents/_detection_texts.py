"""Folders of detections: a text file an image, a detection a line, as evaluation tools and YOLO write them."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import numpy as np

from l2d.data.errors import DataError

#: What a line may hold -> the fields that a box can be told by; corners, or one corner or the centre and both sides.
FIELDS = ("label", "score", "x1", "y1", "x2", "y2", "x", "y", "cx", "cy", "width", "height")
FORMS = (("x1", "y1", "x2", "y2"), ("x", "y", "width", "height"), ("cx", "cy", "width", "height"))


def form_of(line: str) -> tuple[list[str], tuple[str, ...]]:
    """The fields of a line in order, and the four of them that tell the box.

    Raises:
        ValueError: it names an unknown field, one twice, or not the four of one form and the label.
    """
    fields = line.split()
    unknown = [name for name in fields if name not in FIELDS]
    if unknown or len(set(fields)) < len(fields):
        raise ValueError(f"a line holds {', '.join(FIELDS)}, each at most once; not {(unknown or fields)[0]!r}")
    form = next((form for form in FORMS if set(fields) - {"label", "score"} == set(form)), None)
    if form is None or "label" not in fields:
        forms = " or ".join(" ".join(form) for form in FORMS)
        raise ValueError(f"a line needs label and {forms}")
    return fields, form


def read_folder(folder: Path, line: str, agent: str) -> tuple[list[dict], list[Path]]:
    """Detections of the text files of a folder, in the order of file names and lines.

    Args:
        folder: with files IMAGE.txt.
        line: the fields of a line, see :func:`form_of`.
        agent: its name, for messages.

    Returns:
        A dict for each detection: ``image``, ``label``, ``xyxy`` and ``size`` (float64), ``score`` (None without one),
        ``where`` (file and line); and all files, those without a line too.

    Raises:
        DataError: a line is not as said; names the file and the line.
    """
    fields, form = form_of(line)
    files = sorted(folder.glob("*.txt"))
    if not files:
        below = sorted({file.parent for file in folder.rglob("*.txt")})
        hint = "one for each image, named as the image"
        if below:
            hint = f"give the folder that has them: {below[0]}" + (f", or another of {len(below)}" if below[1:] else "")
        raise DataError("there are no .txt files here", where=folder, hint=hint)
    found = []
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot be read: {error}", where=file, hint="restore the file") from error
        for number, text in enumerate(lines, start=1):
            if text.strip():
                found.append({"image": file.stem, **_detection(text, fields, form, f"{file}, line {number}", agent)})
    return found, files


def _detection(text: str, fields: list[str], form: tuple[str, ...], where: str, agent: str) -> dict:
    parts = text.replace(",", " ").split()

    def refuse(what: str) -> NoReturn:
        raise DataError(f"agent {agent!r}: {what}", where=where, hint=f"a line is {' '.join(fields)}: set `line`")

    if len(parts) != len(fields):
        refuse(f"the line has {len(parts)} values, not {len(fields)}")
    values = dict(zip(fields, parts, strict=True))
    try:
        first, second, third, fourth = (float(values[name]) for name in form)
        score = float(values["score"]) if "score" in values else None
    except ValueError:
        refuse(f"{text.strip()!r:.60} is not {' '.join(name for name in fields if name != 'label')} as numbers")
    if form[0] == "x1":
        xyxy, size = (first, second, third, fourth), (third - first, fourth - second)
    else:
        left, top = (first, second) if form[0] == "x" else (first - third / 2, second - fourth / 2)
        xyxy, size = (left, top, left + third, top + fourth), (third, fourth)
    return {
        "label": values["label"],
        "xyxy": np.array(xyxy, dtype=np.float64),
        "size": np.array(size, dtype=np.float64),
        "score": score,
        "where": where,
    }
