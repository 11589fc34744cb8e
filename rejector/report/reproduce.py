"""The commands that make runs and their report again."""

from __future__ import annotations

import itertools
import shlex
import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from l2d.data.cache.beside import recipes_beside
from l2d.data.cache.reader import CostCache
from l2d.data.options import as_typed
from l2d.rejector.evaluation.evaluation import Evaluation
from l2d.rejector.grid import GridPoint
from l2d.rejector.settings import TrainConfig


def commands(
    evaluations: list[Evaluation],
    out: Path,
    options: Sequence[str] = (),
    policies: Sequence[Path] = (),
    images: Path | None = None,
) -> list[str]:
    """Shell commands: every cache, every sweep (or single run) that the evaluations are of, then the report.

    Args:
        out: the page.
        options: further ones of the report.
        policies: saved ones, which the report shows beside the runs.
        images: the folder of images that the report shows.
    """
    made: dict[tuple, list[Evaluation]] = {}
    for evaluation in evaluations:
        run = evaluation.run
        key = (run.cache_path, run.path.parent, run.rejector.config, run.point.cost, tuple(run.agents))
        made.setdefault(key, []).append(evaluation)
    caches = {evaluation.cache.path: evaluation.cache for evaluation in evaluations}
    lines, told = [build_command(cache, images) for cache in caches.values() if cache.mirror is None], []
    for (cache, folder, config, _, agents), members in made.items():
        only = [] if [agent.name for agent in CostCache(cache).agents] == list(agents) else ["--only", ",".join(agents)]
        points = [member.run.point for member in members]
        whole = all(member.run.path.name == member.run.point.run_id for member in members)
        if whole and _is_product(points):
            lines.append(_sweep(cache, folder, config, points, only))
            told.append(folder)
            continue
        for member in members:
            lines.append(_train(cache, member.run.path, config, member.run.point, only))
            told.append(member.run.path)
    folders = list(dict.fromkeys(told))
    split = evaluations[0].result["split"]
    report = ["l2d", "report", *map(str, [*folders, *policies]), "--out", str(out)]
    return [*lines, shlex.join(report + ([] if split == "test" else ["--split", split]) + [*options])]


def build_command(cache: CostCache, images: Path | None = None) -> str:
    """The command that builds a cache: its recipe is one that ships, or the file that gave the cache its name.

    A cache does not know where its recipe and its data lay. They are looked for beside it: where `l2d demo` and `l2d
    data` lay them, and where `l2d route` looks for a recipe.

    Args:
        images: where the report has images from, if they are of this cache.
    """
    name, beside = cache.record.name, cache.path.parent
    out = ["--out", str(cache.path)]
    ships = files("l2d") / "cache_builder" / "recipes" / f"{name}.toml"
    if not ships.is_file():
        found = next((place for place in recipes_beside(cache.path, name) if place.is_file()), f"{name}.toml")
        return shlex.join(["l2d", "build", str(found), *out])
    data = tomllib.loads(ships.read_text(encoding="utf-8"))["dataset"].get("path")
    if data is None or (Path(str(ships)).parent / data).exists():
        return shlex.join(["l2d", "build", name, *out])
    place = beside / data if (beside / data).exists() else images or data
    return shlex.join(["l2d", "build", name, "--data", str(place), *out])


def _axes(points: list[GridPoint]) -> dict[str, list]:
    names = ("method", "weights", "beta", "nu", "seed")
    return {name: list(dict.fromkeys(getattr(point, name) for point in points)) for name in names}


def _is_product(points: list[GridPoint]) -> bool:
    """Whether points are all combinations of what occurs in them, with seeds 0, 1, …"""
    axes = _axes(points)
    have = {tuple(getattr(point, name) for name in axes) for point in points}
    return sorted(axes["seed"]) == list(range(len(axes["seed"]))) and have == set(itertools.product(*axes.values()))


def _sweep(cache: Path | str, folder: Path, config: TrainConfig, points: list[GridPoint], only: list[str]) -> str:
    axes = _axes(points)
    words = ["l2d", "sweep", str(cache), "--out", str(folder), "--method", ",".join(axes["method"])]
    plain = [point.beta_text for point in _first_of(points, "beta") if not isinstance(point.beta, tuple)]
    words += ["--beta", ",".join(plain)] if plain else []
    for point in _first_of(points, "beta"):
        words += ["--beta", point.beta_text] if isinstance(point.beta, tuple) else []
    if points[0].cost is None:
        for weights in axes["weights"]:
            words += ["--lambda", str(weights)]
    words += ["--nu", ",".join(f"{nu:g}" for nu in axes["nu"]), "--seeds", str(len(axes["seed"]))]
    return shlex.join(words + only + _settings(config, points[0].cost))


def _train(cache: Path | str, folder: Path, config: TrainConfig, point: GridPoint, only: list[str]) -> str:
    words = ["l2d", "train", str(cache), "--out", str(folder), "--method", point.method, "--beta", point.beta_text]
    words += [] if point.cost is not None else ["--lambda", str(point.weights)]
    words += ["--nu", f"{point.nu:g}", "--seed", str(point.seed)]
    return shlex.join(words + only + _settings(config, point.cost))


def _first_of(points: list[GridPoint], name: str) -> list[GridPoint]:
    return list({getattr(point, name): point for point in reversed(points)}.values())[::-1]


def _settings(config: TrainConfig, cost: str | None) -> list[str]:
    """Options that differ from what they are if left out."""
    return as_typed(config) + (["--cost", cost] if cost is not None else [])
