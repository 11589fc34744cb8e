"""Agents that answer some of several tasks: another's answer counts for the other tasks, or a stated cost does.

A published mortality score says nothing of a length of stay. ``reg_from = "model"`` takes the stay from the model;
``reg_cost = 4.0`` charges a cost for having none.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from l2d.cache_builder.agents import Agent
from l2d.cache_builder.agents._base import PARTS
from l2d.cache_builder.answers import Answers
from l2d.data.cache.schema import NO_ANSWER
from l2d.data.errors import AgentFailure


def own_tasks(agent: Agent, wanted: list[str]) -> list[str]:
    """What an agent has to answer itself, out of what the costs need."""
    return [answer for answer in wanted if answer not in agent.lenders and answer not in agent.charged]


def with_lent(agent: Agent, answers: Answers, needed: dict[str, pa.Table], ids: list[str]) -> Answers:
    """An agent's answers, completed by those of its lenders; without an answer where a lender has none.

    Args:
        answers: its own, checked.
        needed: cached predictions of the lenders on the same samples.
        ids: of these samples.

    Raises:
        AgentFailure: it answers a task that it does not answer by the recipe.
    """
    if not agent.lenders and not agent.charged:
        return answers
    found = {name: values for name, values in vars(answers).items() if values is not None}
    for task in [*agent.lenders, *agent.charged]:
        given = [part for part in PARTS[task] if part in found]
        if given:
            key = f"{task}_from" if task in agent.lenders else f"{task}_cost"
            raise AgentFailure(
                f"agent {agent.config.name!r} answered `{given[0]}`, and its {key} says that it does not",
                where=f"the batch from sample {ids[0]!r}",
                hint=f"remove {key}, or let it not answer",
            )
    return _completed(agent, found, needed, len(answers))


def with_lent_anew(agent: Agent, old: Answers, needed: dict[str, pa.Table]) -> Answers:
    """Cached answers with what was lent replaced by what the lenders answer now."""
    lent = {part for task in agent.lenders for part in PARTS[task]}
    found = {name: values for name, values in vars(old).items() if values is not None and name not in lent}
    return _completed(agent, found, needed, len(old))


def _completed(agent: Agent, found: dict[str, np.ndarray], needed: dict[str, pa.Table], count: int) -> Answers:
    failure = found.pop("failure", np.full(count, None, dtype=object)).copy()
    for task, lender in agent.lenders.items():
        lent = Answers.from_table(needed[lender])
        found |= {part: getattr(lent, part) for part in PARTS[task] if getattr(lent, part) is not None}
        silent = np.array([reason is None for reason in failure], dtype=bool) & lent.is_failure
        failure[silent & lent.is_unavailable] = NO_ANSWER
        failure[silent & ~lent.is_unavailable] = f"{lender!r}, whose {task} counts for it, did not answer"
    answers = Answers()
    for part, values in found.items():
        setattr(answers, part, values)
    if any(reason is not None for reason in failure):
        answers.failure = failure
    return answers
