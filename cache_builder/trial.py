"""Every model tried out before any agent is asked: it loads, answers the same twice, and as its own library did.

A model exported in training mode drops inputs at random or takes means of whatever batch it is asked with. Its answers
pass every other check, so a few samples are asked about in a batch and again in a smaller one. A model that another
library has converted may differ from what it was made of: ``expected`` names a few answers of the original.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from l2d.cache_builder.agents import Agent, make_agent
from l2d.cache_builder.answers import Answers
from l2d.cache_builder.asking import Asker
from l2d.cache_builder.expected import compare_expected
from l2d.cache_builder.lending import own_tasks
from l2d.cache_builder.prepare import wanted_of
from l2d.cache_builder.prices import known_gflops, require_price
from l2d.cache_builder.recipe import Recipe
from l2d.data.cache import schema
from l2d.data.errors import AgentFailure, UsageError
from l2d.data.samples.dataset import Dataset

SAMPLES = 64  # asked about, where samples are rows of a table
IMAGES = 8
CLOSE = 5e-3  # probabilities that differ by less may differ by rounding in a batch of another size


def try_agents(
    recipe: Recipe,
    dataset: Dataset,
    agents: list[Agent],
    out: Path,
    device: str,
    *,
    num_chunks: int,
    again: bool = False,
) -> None:
    """See that each agent that has something to answer works, and that what it costs can be known.

    Args:
        again: also those with nothing to answer, since their answers are to be discarded.

    Raises:
        UsageError, DataError, AgentFailure: see :func:`try_agent` and :func:`require_price`.
    """
    for agent in agents:
        if not (agent is agents[0] if agent.config.free is None else agent.config.free):
            require_price(agent, out, 0 if again else num_chunks)
        parts = [schema.predictions_part(out, agent.config.name, chunk) for chunk in range(num_chunks)]
        if again or not all(part.is_file() for part in parts):
            try_agent(agent, recipe, dataset, device)


def try_agent(agent: Agent, recipe: Recipe, dataset: Dataset, device: str) -> None:
    """Load a model and ask it about a few samples, in an instance of its own that is thrown away.

    An agent that is still to be fitted, or whose answers cost something (``python``), is not asked unless it has
    ``expected`` answers.

    Raises:
        UsageError, DataError: it cannot be loaded, or its price cannot be told.
        AgentFailure: it answers otherwise when it is asked again, or not as expected.
    """
    expected = getattr(agent.config, "expected", None)
    if type(agent).freeze is not Agent.freeze:
        if expected:
            raise UsageError("expected: this agent is fitted by the build", where=f"agent {agent.config.name!r}")
        return
    if not (agent.repeats or expected):
        return
    trial = make_agent(agent.config)
    trial.lenders, trial.charged = {}, {}  # what it answers itself, and nothing else
    trial.check(dataset, own_tasks(agent, recipe.costs.wanted))
    trial.load(None, dataset, device)
    if agent.config.price == "gflops":
        known_gflops(trial, dataset)
    wanted = wanted_of(agent, recipe)
    asker = Asker(trial, dataset, wanted, batch_size=SAMPLES, record_failures=False, advance=lambda done: None)
    if agent.repeats:
        _ask_twice(asker, dataset)
    if expected:
        compare_expected(asker, dataset, expected)


def _ask_twice(asker: Asker, dataset: Dataset) -> None:
    rows = range(min(len(dataset), SAMPLES if dataset.images is None and dataset.pixels is None else IMAGES))
    fewer = range(max(1, len(rows) // 3))
    try:
        first, second = asker.ask(rows, {}), asker.ask(fewer, {})
    except AgentFailure:  # the build meets it too, and knows whether to stop or to record it
        return
    row, shown = difference(first.rows(slice(0, len(fewer))), second)
    if row is not None:
        raise AgentFailure(
            f"agent {asker.agent.config.name!r} answered {shown[0]}, and {shown[1]} when it was asked again",
            where=f"sample {dataset.ids[row]!r}",
            hint="a model exported in training mode does that (dropout, batch norm): export it after model.eval()",
        )


def difference(one: Answers, other: Answers) -> tuple[int | None, tuple[str, str]]:
    """The first sample that two answers differ on by more than rounding, and both; None where they agree."""
    for name, values, again in _comparable(one, other):
        near = CLOSE * np.maximum(1.0, np.abs(values)) if name != "cla" else np.zeros(values.shape)
        wrong = (np.abs(values - again) > near).reshape(len(values), -1).any(axis=1)
        wrong &= ~one.is_failure & ~other.is_failure
        if wrong.any():
            row = int(wrong.argmax())
            return row, (f"{name} = {_short(values[row])}", _short(again[row]))
    return None, ("", "")


def _comparable(one: Answers, other: Answers) -> list[tuple[str, np.ndarray, np.ndarray]]:
    found = []
    for name in ("prob", "reg", "features") + (("cla",) if one.prob is None else ()):
        if getattr(one, name) is not None:
            found.append((name, *(np.asarray(getattr(part, name), dtype=np.float64) for part in (one, other))))
    if one.boxes is not None:  # the sum of scores: a box at the lowest score may come and go by rounding
        sums = [np.bincount(part.boxes.image, part.boxes.score, minlength=len(part.boxes)) for part in (one, other)]
        counts = [part.boxes.counts for part in (one, other)]
        moved = np.where(counts[0] == counts[1], 0.0, 0.1)
        found.append(("sum of scores", sums[0], np.where(np.abs(sums[0] - sums[1]) <= moved, sums[0], sums[1])))
    return found


def _short(value: np.ndarray) -> str:
    return np.array2string(np.asarray(value), precision=4, separator=", ", threshold=6)
