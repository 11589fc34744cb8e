"""One ``[[agents]]`` entry with ``each``: an agent of every annotator of a file, without a list of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from l2d.cache_builder.agents._answer_file import AnswerFile
from l2d.cache_builder.agents._base import MOST_LETTERS
from l2d.data.errors import UsageError

HOLE = "{}"  # stands for the annotator's name in the names of a wide file's columns
KEPT = ("file", "labels", "missing", "abstains")  # keys whose values have no hole


def expand(entry: dict[str, Any], label: str) -> list[dict[str, Any]]:
    """One entry for each annotator of an entry with ``each``, in the order of their names (long) or as listed (wide).

    The agents are called as the annotators are, or as ``name`` says with ``{}`` in their place.

    Raises:
        UsageError: ``each`` does not fit the file, or two annotators would have one name.
        DataError: the file cannot be read.
    """
    entry = dict(entry)
    each, file = entry.pop("each"), AnswerFile(Path(entry["file"]), entry.get("missing", ()))
    entry.setdefault("name", HOLE)
    if HOLE not in str(entry["name"]):
        raise UsageError(
            f"name = {entry['name']!r} would be that of every annotator",
            where=label,
            hint='say name = "dr {}", or none',
        )
    if isinstance(each, str):
        entry.setdefault("annotator", each)
        names = file.values(file.need(each, "each"))
    else:
        names = [str(one) for one in each]
        if not any(HOLE in str(entry.get(key)) for key in ("cla", "prob", "reg", "text")):
            raise UsageError(
                "every annotator would have the same column", where=label, hint='say cla = "{}", where {} is the name'
            )
    found = []
    for who in names:
        own = {key: _filled(value, who) for key, value in entry.items() if key not in KEPT}
        own |= {key: entry[key] for key in KEPT if key in entry}
        own["name"] = agent_name(own["name"])
        if isinstance(each, str):
            own["who"] = who
        found.append(own)
    taken = [own["name"] for own in found]
    for position, name in enumerate(taken):
        if taken.index(name) != position:
            raise UsageError(
                f"annotators {names[taken.index(name)]!r} and {names[position]!r} would both be called {name!r}",
                where=label,
                hint="rename one in the file",
            )
    return found


def agent_name(text: str) -> str:
    """A name as agents may have it: as it is written, but without blanks around it and what cannot be printed."""
    return "".join(letter if letter.isprintable() else "_" for letter in text).strip()[:MOST_LETTERS].strip() or "_"


def _filled(value: Any, who: str) -> Any:
    """A recipe's value with the annotator's name in the place of ``{}``."""
    if isinstance(value, str):
        return value.replace(HOLE, who)
    if isinstance(value, dict):
        return {_filled(key, who): _filled(one, who) for key, one in value.items()}
    return [_filled(one, who) for one in value] if isinstance(value, list) else value
