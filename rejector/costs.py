"""From raw cached costs to the total cost ``c_j``: task weights ``lambda``, query costs ``beta``, prices, or SQL.

:func:`total_costs` is the one place where a total is formed. What each answer was paid is one more raw cost, and what a
unit of money is worth in loss is its weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from l2d.data.cache.paid import PAID, unpriced
from l2d.data.cache.sql import locked_connection
from l2d.data.errors import UsageError, nearest
from l2d.rejector.methods import METHODS

if TYPE_CHECKING:
    from torch import Tensor

    from l2d.data.cache.reader import AgentRecord, CostCache


@dataclass(frozen=True)
class CostWeights:
    """``lambda``: task -> weight >= 0."""

    by_task: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, values: dict[str, float], tasks: list[str]) -> CostWeights:
        """Check against the tasks of a cache. Tasks that are not named weigh 0; with no values each weighs 1.

        Raises:
            UsageError: an unknown task, a negative or infinite weight, or nothing left.
        """
        values = dict(values) or dict.fromkeys(tasks, 1.0)
        for task, weight in values.items():
            if task not in tasks:
                raise UsageError(f"unknown task {task!r} in --lambda", hint=nearest(task, tasks, "this cache has"))
            if not (math.isfinite(weight) and weight >= 0):
                raise UsageError(f"lambda {task}={weight}", hint="weights are numbers >= 0")
        if not any(values.values()):
            raise UsageError("every task weighs 0, so every agent costs the same", hint="give one task a weight")
        return cls(tuple((task, float(values.get(task, 0.0))) for task in tasks))

    def trained_on(self, method: str) -> CostWeights:
        """The weights that a method trains on.

        Raises:
            UsageError: the method's task is not there, or weighs 0.
        """
        task = METHODS[method].task
        if task is None:
            return self
        if dict(self.by_task).get(task, 0.0) == 0:
            raise UsageError(
                f"method {method!r} needs the task {task!r}, which is not here or weighs 0",
                hint="leave that method out",
            )
        return CostWeights(tuple((name, weight if name == task else 0.0) for name, weight in self.by_task))

    def __str__(self) -> str:
        return ",".join(f"{task}={weight:g}" for task, weight in self.by_task)


def worth_of_money(
    beta: float | dict[str, float], agents: Sequence[str]
) -> tuple[float | None, float | dict[str, float]]:
    """Units of loss for a unit of money, as ``--beta paid=2.0`` says it, and what is left of ``beta``.

    None where prices per sample are not asked for; 0 asks for them and charges nothing. An agent of the name ``paid``
    is that agent.

    Raises:
        UsageError: it is negative or infinite.
    """
    if not isinstance(beta, dict) or PAID not in beta or PAID in agents:
        return None, beta
    worth, rest = float(beta[PAID]), {name: value for name, value in beta.items() if name != PAID}
    if not (math.isfinite(worth) and worth >= 0):
        raise UsageError(f"beta paid={worth}", hint="units of loss for a unit of money, a number >= 0")
    return worth, rest


def require_prices(cache: CostCache) -> None:
    """Refuse a cache of which nothing says what an agent's answers were paid.

    Raises:
        UsageError: names the agents.
    """
    unknown = unpriced(cache)
    if unknown:
        raise UsageError(
            f"--beta paid=…, but nothing says what answers of {', '.join(unknown)} were paid",
            where=cache.address,
            hint="name the column in the recipe (paid = …), or a number for every answer; free = true where it is; "
            "or leave agents out with --only",
        )


class Priced(NamedTuple):
    """An agent's name and price, None where it is not known."""

    name: str
    price: float | None


def query_costs(beta: float | dict[str, float], agents: Sequence[AgentRecord | Priced]) -> np.ndarray:
    """``beta_j`` of each agent, float32 (A,), 0 for a model that is free.

    Args:
        beta: what the dearest expert costs, the others scaled by ``price`` (the paper's ``beta_1 = beta_2 / R_G``);
            or agent name -> query cost, the others being free.
        agents: of the cache, in order.

    Raises:
        UsageError: a negative or infinite cost, an unknown agent, a cost for a model that is free, or a price that is
            not known.
    """
    names = [agent.name for agent in agents]
    if isinstance(beta, dict):
        for name, cost in beta.items():
            if name not in names:
                raise UsageError(f"unknown agent {name!r} in --beta", hint=nearest(name, names[1:], "the experts are"))
            if name == names[0] and cost != 0 and agents[0].price == 0:
                raise UsageError(f"beta of the model ({name!r}) must be 0", hint="the recipe says that it is free")
        values = [float(beta.get(name, 0.0)) for name in names]
    else:
        unknown = [agent.name for agent in agents if agent.price is None]
        if unknown and beta != 0:
            raise UsageError(
                f"beta {beta}, but the price of {', '.join(unknown)} is not known",
                hint="give the `price` in the recipe and build again, or the query costs by name: --beta name=value,…",
            )
        prices = [agent.price or 0.0 for agent in agents]  # of unknown ones only where beta is 0
        dearest = max(prices[1:], default=0.0)
        if dearest == 0 and beta != 0:
            raise UsageError(f"beta {beta}, but every expert's price is 0", hint="give prices, or beta as name=value")
        values = [float(beta) * price / dearest if dearest else 0.0 for price in prices]
    for name, value in zip(names, values, strict=True):
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"beta of {name!r} is {value}", hint="query costs are numbers >= 0")
    return np.array(values, dtype=np.float32)


def total_costs(raw: Tensor, weights: Tensor, beta: Tensor) -> Tensor:
    """``c_j = sum_task lambda_task * cost_task,j + beta_j``.

    Args:
        raw: (..., B, A, T); with prices one more, what was paid.
        weights: ``lambda``, (..., T); leading dimensions are those of a grid. With prices one more, units of loss for a
            unit of money.
        beta: (..., A).

    Returns:
        (..., B, A); NaN where ``raw`` is: the agent is unavailable.
    """
    return (raw * weights[..., None, None, :]).sum(-1) + beta[..., None, :]


def expression_costs(raw: np.ndarray, tasks: list[str], expression: str) -> np.ndarray:
    """Cost of each agent by an SQL expression over ``cost_cla``, ``cost_reg``, ``cost_map``; replaces the weighted sum.

    Args:
        raw: (B, A, T) float32.
        tasks: names of the T tasks.
        expression: such as ``greatest(cost_cla, 0.2 * cost_reg)``.

    Returns:
        (B, A, 1) float32: one cost, to be weighted with 1; NaN where the agent is unavailable.

    Raises:
        UsageError: the expression fails, or gives a missing, negative or infinite cost.
    """
    import duckdb
    import pyarrow as pa

    from l2d.data.cache.schema import COST_COLUMNS

    flat = raw.reshape(-1, raw.shape[2])
    unavailable = np.isnan(flat).any(axis=1)
    flat = np.where(unavailable[:, None], np.float32(0), flat)
    columns = {COST_COLUMNS[task]: flat[:, position] for position, task in enumerate(tasks)}
    connection = locked_connection()

    def evaluate(rows: slice) -> np.ndarray:
        connection.register("raw_costs", pa.table({name: values[rows] for name, values in columns.items()}))
        result = connection.sql(f"SELECT ({expression})::FLOAT AS cost FROM raw_costs")
        values = result.to_arrow_table()["cost"].combine_chunks()
        return values.fill_null(float("nan")).to_numpy(zero_copy_only=False)

    try:
        numbers, half = evaluate(slice(None)), evaluate(slice(len(flat) // 2))
    except (duckdb.Error, AttributeError, KeyError) as error:  # the latter two: not one SELECT of one column
        raise UsageError(
            f"--cost {expression!r}: {str(error).splitlines()[0]}", hint=f"the columns are {', '.join(columns)}"
        ) from error
    finally:
        connection.close()
    if len(numbers) != len(flat) or not np.isfinite(numbers).all() or (numbers < 0).any():
        raise UsageError(f"--cost {expression!r} gives a missing, infinite or negative cost", hint="costs are >= 0")
    if not np.array_equal(numbers[: len(half)], half):
        raise UsageError(f"--cost {expression!r} does not depend on its own row alone", hint="use no aggregates")
    numbers = np.where(unavailable, np.nan, numbers)
    return numbers.astype(np.float32).reshape(*raw.shape[:2], 1)
