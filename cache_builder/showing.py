"""Features of new photographs, made by the agent that showed them to the rejector when the cache was built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from l2d.cache_builder.agents import Agent, make_agent
from l2d.cache_builder.asking import Asker
from l2d.cache_builder.prepare import wanted_of
from l2d.cache_builder.recipe import Recipe, load_recipe
from l2d.data.cache import schema
from l2d.data.cache.beside import recipes_beside
from l2d.data.cache.integrity import sha256_of
from l2d.data.errors import CorruptPart, FingerprintMismatch, UsageError, nearest
from l2d.data.samples.boxes import Boxes
from l2d.data.samples.dataset import Dataset
from l2d.data.samples.images import image_size
from l2d.data.sources import load_dataset

OF_DATASET = ("dataset.", "column ")  # fields of a fingerprint that tell what else an agent may have read


def shown_features(
    files: list[Path],
    ids: list[str],
    *,
    agent: str,
    fingerprint: dict[str, Any],
    recipe: Path | None,
    cache: Path | None,
    at_once: int,
    device: str,
) -> Iterator[tuple[np.ndarray, list[str | None]]]:
    """Batches of features, float32 (n, width), and why an image has none: a text or None each.

    Args:
        files, ids: photographs and what they are called.
        agent: whose features they are.
        fingerprint: what it has to be, without fields of the dataset.
        recipe: the file that describes it; if None one beside the cache, named as the cache is.
        cache: with what the agent has frozen, if it was fitted by the build.
        at_once: photographs of a batch.
        device: cpu, cuda …

    Raises:
        UsageError: there is no recipe, or it has no such agent, or this kind of agent cannot look at a new photograph.
        FingerprintMismatch: the agent is another than the one that the rejector knows.
        CorruptPart: what it has frozen is not there, or something else.
    """
    place = _recipe_beside(cache, agent) if recipe is None else recipe
    made = load_recipe(str(place))
    config = next((one for one in made.agents if one.name == agent), None)
    if config is None:
        names = [one.name for one in made.agents]
        raise UsageError(
            f"there is no agent {agent!r}, whose features the run looks at",
            where=place,
            hint=nearest(agent, names, "it has"),
        )
    asked = make_agent(config)
    if asked.repeatable or not {"images", "pixels"} & set(asked.reads):
        raise UsageError(
            f"agent {agent!r} is of kind {config.kind!r}, which cannot look at a new photograph",
            where=place,
            hint="give a table with a column `features` of what it would show",
        )
    dataset = photographs(made, files, ids)
    asked.check(dataset, [answer for answer in wanted_of(asked, made) if answer != "features"])
    frozen = _frozen(asked, fingerprint, cache)
    _require_same(asked, dataset, fingerprint, place)
    asked.load(frozen, dataset, device)
    asker = Asker(
        asked,
        dataset,
        wanted_of(asked, made),
        batch_size=made.build.batch_size,
        record_failures=True,
        advance=lambda done: None,
    )
    for start in range(0, len(files), at_once):
        answers = asker.ask(range(start, min(start + at_once, len(files))), {})
        count = min(start + at_once, len(files)) - start
        reasons: list[str | None] = [None] * count if answers.failure is None else answers.failure.tolist()
        features = np.zeros((count, 0), np.float32) if answers.features is None else answers.features
        yield features, reasons


def photographs(recipe: Recipe, files: list[Path], ids: list[str]) -> Dataset:
    """Photographs without truth as a dataset with the recipe's classes, all of it test split."""
    classes = getattr(recipe.dataset, "classes", None)
    if classes is None:
        classes = load_dataset(recipe.dataset, recipe.name).classes
    sizes = [image_size(file) for file in files]
    columns = {
        "width": [width for width, _ in sizes],
        "height": [height for _, height in sizes],
        "file_name": [file.name for file in files],
    }
    return Dataset(
        name=f"{recipe.name}, new photographs",
        ids=ids,
        split=np.full(len(ids), "test"),
        features=None,
        columns=pl.DataFrame(columns),
        target_boxes=Boxes.empty(len(ids)),
        images=tuple(files),
        classes=tuple(classes),
        keep=(),
        inputs={},
        config={},
    )


def _recipe_beside(cache: Path | None, agent: str) -> Path:
    """The recipe that lies where a cache's recipe usually does."""
    tried = [] if cache is None else recipes_beside(cache)
    for file in tried:
        if file.is_file():
            return file
    looked = f"; looked for {', '.join(map(str, tried))}" if tried else ""
    raise UsageError(
        f"the run looks at features of the agent {agent!r}, and no recipe says how to run it{looked}",
        hint="name the recipe that the cache was built by: --recipe FILE",
    )


def _frozen(agent: Agent, fingerprint: dict[str, Any], cache: Path | None) -> dict[str, np.ndarray] | None:
    """What the build fitted, from the cache; None of an agent that comes frozen."""
    if type(agent).freeze is Agent.freeze:
        return None
    from safetensors.numpy import load_file

    name = agent.config.name
    file = None if cache is None else schema.frozen_file(cache, name)
    if file is None or not file.is_file():
        raise CorruptPart(
            f"what the build fitted of agent {name!r} is not there",
            where=cache or name,
            hint="the cache has it: put it back where it lay, or fetch it",
        )
    if (found := sha256_of(file)[:16]) != fingerprint.get("frozen"):
        raise CorruptPart(
            f"is not what the run was trained on (SHA-256 {found})", where=file, hint="fetch the cache again"
        )
    return load_file(file)


def _require_same(agent: Agent, dataset: Dataset, fingerprint: dict[str, Any], place: Path) -> None:
    """Raises FingerprintMismatch unless the agent answers as the one that the rejector knows."""

    def own(fields: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in fields.items() if not name.startswith(OF_DATASET) and name != "frozen"}

    known, now = own(fingerprint), own(agent.fingerprint(dataset))
    changes = {k: (known.get(k), now.get(k)) for k in {**known, **now} if known.get(k) != now.get(k)}
    if changes:
        raise FingerprintMismatch(
            f"agent {agent.config.name!r}, whose features the run looks at,",
            changes,
            where=place,
            hint="features would mean something else: give the recipe that the run's cache was built by, --recipe FILE",
        )
