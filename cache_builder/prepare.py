"""From a recipe to everything a build needs, checked, with nothing written yet."""

from __future__ import annotations

from pathlib import Path

from l2d.cache_builder.agents import Agent, make_agent
from l2d.cache_builder.agents._answer_file import let_go_of_files
from l2d.cache_builder.lending import own_tasks
from l2d.cache_builder.plan import make_record
from l2d.cache_builder.recipe import Recipe
from l2d.data.cache.reader import CacheRecord
from l2d.data.errors import UsageError
from l2d.data.samples.dataset import Dataset
from l2d.data.sources import load_dataset
from l2d.data.sources.text_table import let_go_of_table


def prepare(
    recipe: Recipe, out: Path, dataset: Dataset | None = None
) -> tuple[Dataset, list[Agent], dict[str, dict], CacheRecord]:
    """Load and check everything a build needs, writing nothing.

    Args:
        dataset: the recipe's, where it has been loaded already.

    Returns:
        The dataset, the agents in order, each one's fingerprint by name, and what ``cache.json`` would say.

    Raises:
        UsageError, DataError, AgentFailure: the recipe, its data or its agents cannot work; ``out`` is a file.
    """
    if out.exists() and not out.is_dir():
        raise UsageError("this is a file", where=out, hint="give a folder as --out")
    dataset = load_dataset(recipe.dataset, recipe.name) if dataset is None else dataset
    for task in recipe.costs.tasks:
        if task != "map" and "boxes" not in recipe.costs.wanted and getattr(dataset, f"target_{task}") is None:
            raise UsageError(
                f"[costs.{task}]: a dataset of kind {recipe.dataset.kind!r} has no target_{task}",
                where=recipe.name,
                hint=f"remove [costs.{task}]",
            )
    agents = [make_agent(config) for config in recipe.agents]
    for agent in agents:
        _require_fitting(agent, dataset, recipe)
        agent.check(dataset, own_tasks(agent, recipe.costs.wanted))
        agent.partial |= any(other.partial for other in agents if other.config.name in agent.needs)
    given = (dataset.features, dataset.tokens, dataset.image_size)
    if all(value is None for value in given) and not recipe.agents[0].features:
        raise UsageError(
            "the rejector has nothing to look at",
            where=recipe.name,
            hint="give the model `features` (of its own forward pass), or [dataset] image_size",
        )
    let_go_of_files()
    if not any(agent.sees_columns for agent in agents):
        dataset = dataset.with_kept_columns()
        let_go_of_table()
    fingerprints = {agent.config.name: agent.fingerprint(dataset) for agent in agents}
    return dataset, agents, fingerprints, make_record(recipe, dataset)


def wanted_of(agent: Agent, recipe: Recipe) -> list[str]:
    """What this agent has to answer: what the costs need, and the rejector's input where it gives it."""
    return own_tasks(agent, recipe.costs.wanted) + (["features"] if agent.config.features else [])


def _require_fitting(agent: Agent, dataset: Dataset, recipe: Recipe) -> None:
    """Raises :class:`UsageError` if this kind of agent cannot answer what the costs of this dataset need."""
    config = agent.config
    lacking = [answer for answer in own_tasks(agent, recipe.costs.wanted) if answer not in agent.can_answer]
    if lacking:
        raise UsageError(
            f"agents of kind {config.kind!r} answer {', '.join(agent.can_answer)}; the costs need {', '.join(lacking)}",
            where=f"agent {config.name!r}",
            hint="docs/keys.md lists the kinds of agents",
        )
    if agent.can_answer == ("boxes",) and "images" in agent.reads and dataset.images is None:
        raise UsageError(
            f"agents of kind {config.kind!r} look at images, and the dataset names no folder of them",
            where=f"agent {config.name!r}",
            hint="give each of [dataset.sets] `images`",
        )
    unknown = [name for name in config.features if name not in agent.can_show]
    if unknown:
        shown = ", ".join(agent.can_show) or "none"
        raise UsageError(
            f"features {unknown}: agents of kind {config.kind!r} have {shown}", where=f"agent {config.name!r}"
        )
    if config.features and dataset.features is not None:
        raise UsageError(
            "the dataset has features of its own",
            where=f"agent {config.name!r}",
            hint="remove `features` here or in [dataset]",
        )
