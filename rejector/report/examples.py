"""Examples of an agent's samples: of those it was sent, where it gained most and where the system lost most.

For tables what is known of the sample and what everybody answered; for detection the image with everybody's boxes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from l2d.data.cache import schema
from l2d.data.errors import UsageError
from l2d.data.samples.images import find_images, read_image
from l2d.rejector.evaluation.evaluation import Evaluation
from l2d.rejector.report.allocations import Decisions

EACH = 2  # examples of a gain, and of a loss, for each agent
LEAST_SCORE = 0.3  # boxes that a detector believes in less are not drawn
LONG_SIDE = 640  # pixels of the pictures in the page: nearly twice as wide as they are shown, for sharp screens
MOST_COLUMNS = 8  # of a table
MOST_AGENTS = 6  # pictures of one example: of the others only those it is about
SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sample that was sent to an agent.

    Attributes:
        row: its position in the decisions.
        kind: ``gain``: the agent is cheaper than all others by ``by``; ``loss``: dearer than the cheapest by that.
        chosen: index of the agent.
        facts: column -> value, what is known of it.
        answers: agent -> column of the predictions -> value; ``target`` -> the truth.
        image: a picture as a ``data:`` URL, or empty.
        size: width and height that boxes refer to, in pixels.
    """

    sample_id: str
    row: int
    kind: str
    by: float
    chosen: int
    costs: dict[str, float]
    facts: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    image: str = ""
    size: tuple[float, float] = (0, 0)

    @property
    def cheapest(self) -> str:
        """The agent with the lowest cost."""
        return min(self.costs, key=self.costs.__getitem__)


def choose(decisions: Decisions, each: int = EACH) -> list[Example]:
    """Of each agent's samples (of the first seed) those with the largest gain and the largest loss, by agent in order.

    The gain is what the cheapest *other* agent would have cost more; the loss what the cheapest one costs less. Samples
    without either are no examples. Ties go to the first samples.
    """
    chosen, costs = decisions.chosen[0], decisions.costs
    rows = np.arange(len(chosen))
    paid = costs[rows, chosen]
    others = costs.copy()
    others[rows, chosen] = np.inf
    change = others.min(axis=1) - paid  # above 0 a gain, below a loss
    found = []
    for agent in range(len(decisions.agents)):
        for kind, value in (("gain", change), ("loss", -change)):
            usable = np.where((chosen == agent) & np.isfinite(value), value, -np.inf)
            for row in np.argsort(-usable, kind="stable")[:each]:
                if usable[row] > 1e-9:
                    prices = dict(zip(decisions.agents, costs[row].tolist(), strict=True))
                    found.append(
                        Example(
                            sample_id=decisions.ids[row],
                            row=int(row),
                            kind=kind,
                            by=float(usable[row]),
                            chosen=agent,
                            costs=prices,
                        )
                    )
    return found


def with_answers(
    examples: list[Example], members: list[Evaluation], columns: pa.Table, images: Path | None = None
) -> list[Example]:
    """Examples with what is known of them and what everybody answered.

    Args:
        members: evaluations of the setting the examples are of.
        columns: of :func:`l2d.rejector.report.allocations.sample_columns`, in the rows of the decisions.
        images: a folder beneath which the image files lie, named as the samples; without it the small ones of the cache
            are used, if it has them.

    Raises:
        UsageError: ``images`` is no folder, or has none of the images.
        DataError: an image is damaged.
    """
    if not examples:
        return []
    cache = members[0].cache
    answers = _answers(members, [example.sample_id for example in examples])
    detection = any("target_boxes" in answers[example.sample_id]["target"] for example in examples)
    shown = [] if detection else _columns_to_show(cache.record.keep, columns.column_names)
    pictures = _pictures([e.sample_id for e in examples], columns, examples, images, answers) if detection else {}
    full = []
    for example in examples:
        facts = {name: columns[name][example.row].as_py() for name in shown}
        size = (0.0, 0.0)
        if detection:
            size = (columns["width"][example.row].as_py(), columns["height"][example.row].as_py())
        found = {**answers[example.sample_id]}
        found["target"] = {name: value for name, value in found["target"].items() if name.startswith("target_")}
        full.append(
            Example(
                **{
                    **vars(example),
                    "facts": facts,
                    "answers": found,
                    "image": pictures.get(example.sample_id, ""),
                    "size": size,
                }
            )
        )
    return full


def _columns_to_show(kept: list[str], names: Iterable[str]) -> list[str]:
    """Kept columns first, then features."""
    plain = [n for n in names if n != "sample_id" and not n.startswith("target_") and " = " not in n]
    plain = [n for n in plain if not n.endswith(" is missing")]
    return sorted(plain, key=lambda name: (name not in kept, plain.index(name)))[:MOST_COLUMNS]


def _answers(members: list[Evaluation], ids: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Sample id -> agent, or ``target`` -> column -> value."""
    cache = members[0].cache
    wanted = pa.array(ids)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for chunk in range(cache.record.num_chunks):
        samples = cache.samples(chunk)
        keep = pc.is_in(samples["sample_id"], value_set=wanted)
        names = [n for n in samples.column_names if n in (*schema.TARGET_TYPES, "sample_id", "image")]
        if not pc.any(keep).as_py():
            continue
        for row in samples.select(names).filter(keep).to_pylist():
            found[row.pop("sample_id")] = {"target": row}
        for agent in cache.all_agents:
            predicted = cache.predictions(agent.name, chunk)
            names = [name for name in predicted.column_names if name != "features"]
            for row in predicted.select(names).filter(keep).to_pylist():
                found[row.pop("sample_id")][agent.name] = row
    return found


def _pictures(
    ids: list[str], columns: pa.Table, examples: list[Example], folder: Path | None, answers: dict
) -> dict[str, str]:
    """Sample id -> picture as a ``data:`` URL."""
    if folder is None:
        small = {sample: answers[sample]["target"].get("image") for sample in ids}
        return {
            sample: "data:image/png;base64," + base64.b64encode(image).decode()
            for sample, image in small.items()
            if image
        }
    if not folder.is_dir():
        raise UsageError("there is no such folder of images", where=folder, hint="the folder the dataset lies in")
    named = {sample: sample for sample in ids}
    if "file_name" in columns.column_names:
        named = {e.sample_id: columns["file_name"][e.row].as_py() for e in examples}
    files = find_images(folder, set(named.values()))
    if not files:
        raise UsageError(f"none of the images is here, such as {next(iter(named.values()))!r}", where=folder,
                         hint="give the folder the dataset lies in")  # fmt: skip
    return {sample: _picture(files[name]) for sample, name in named.items() if name in files}


def _picture(path: Path) -> str:
    from PIL import Image

    image = Image.fromarray(read_image(path).permute(1, 2, 0).numpy())
    image.thumbnail((LONG_SIDE, LONG_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def agents_to_show(example: Example) -> list[str]:
    """Agents whose answers are drawn: all, or, of many, the one that was asked, the cheapest, and the first ones."""
    names = list(example.costs)
    if len(names) <= MOST_AGENTS:
        return names
    wanted = {names[example.chosen], example.cheapest, *names[: MOST_AGENTS - 2]}
    return [name for name in names if name in wanted]
