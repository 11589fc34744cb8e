"""The learning bound of the deferral loss (Theorem 4.13) and its terms, on the rows a rejector was trained on.

With probability ``1 - delta`` over the ``K`` training rows,

    E(r) <= E_K(r) + 2 R_K(L_def) + B sqrt(log(1 / delta) / (2 K)),

``B`` being the largest cost: the theorem has ``B = 1``, though its own costs are sums and go beyond 1. ``R_K(L_def)``
is made of the Rademacher complexity ``R_K`` of the rejector's class and of what agents get wrong:

* an expert's class errors: ``Omega_j = e_j / 2 exp(-K e_j / 8) + R_{K e_j / 2}``, ``e_j`` being its error rate;
* an expert's other costs: the largest of them times ``R_K``;
* the model's, whose classes are single functions once it is frozen (``R_K(H) = R_K(F) = 0``): the largest cost of each
  task times ``R_K``, which is the theorem's ``2 R_K`` where both are 1.

Each is weighted with ``lambda``; ``beta_j`` adds ``beta_j R_K``. Where the cost is no sum over tasks (``--cost``), or
the class cost is not 0-1, an agent's part is its largest cost times ``R_K`` (Talagrand's contraction).

The class: one agent's score functions whose norm is at most the trained rejector's. As is usual, the complexity of the
scores stands for that of the allocations they decide, which holds for losses taken at a margin of 1. The bound is
loose by nature; its use is which term is large, and how it falls with ``K``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from l2d.rejector.training.network import TrainedNetwork

DRAWS = 200
_SIGNS_AT_ONCE = 1 << 24


@dataclass(frozen=True, kw_only=True)
class ScoreClass:
    """Score functions of bounded norm, seen on some rows.

    Attributes:
        kind: ``linear`` or ``mlp``.
        inputs: standardised features with a constant 1, float64 (n, width + 1).
        norm: of the weights: Euclidean for ``linear``; product of Frobenius norms over layers for ``mlp``.
        depth: weight matrices, 1 for ``linear``.
    """

    kind: str
    inputs: np.ndarray
    norm: float
    depth: int


def score_class(rejector: TrainedNetwork, features: torch.Tensor) -> ScoreClass | None:
    """The class of a trained rejector on rows of raw features (n, width); None for networks without a bound here."""
    state = rejector.state
    standardised = ((features - state["feature_mean"]) / state["feature_std"]).double().numpy()
    inputs = np.column_stack([standardised, np.ones(len(standardised))])
    kind = rejector.config.network
    layers = [module for module in rejector.network().modules() if isinstance(module, torch.nn.Linear)]
    if kind not in ("linear", "mlp"):
        return None
    whole = [np.column_stack([layer.weight.double().numpy(), layer.bias.double().numpy()]) for layer in layers]
    norm = float(np.linalg.norm(whole[-1], axis=1).max())  # of the score with the largest weights
    for matrix in whole[:-1]:  # a further row hands the constant 1 on, so that biases are weights
        norm *= math.sqrt(float((matrix**2).sum()) + 1.0)
    return ScoreClass(kind=kind, inputs=inputs, norm=norm, depth=len(whole))


def linear_rademacher(inputs: np.ndarray, norm: float, *, draws: int = DRAWS, seed: int = 0) -> float:
    """Empirical Rademacher complexity of ``{x -> w x : ||w||_2 <= norm}`` on rows (n, width), by Monte Carlo.

    For signs ``sigma`` the supremum is known: ``sup_w sum_k sigma_k w x_k / n = norm ||sum_k sigma_k x_k||_2 / n``. Its
    mean over ``draws`` of signs is returned; by Jensen it is at most ``norm sqrt(sum ||x_k||^2) / n``.
    """
    count = len(inputs)
    generator = np.random.default_rng(seed)
    at_once = max(1, _SIGNS_AT_ONCE // count)
    lengths: list[np.ndarray] = []
    for start in range(0, draws, at_once):
        signs = 2.0 * generator.integers(0, 2, size=(min(at_once, draws - start), count)) - 1
        lengths.append(np.linalg.norm(signs @ inputs, axis=1))
    return norm * float(np.concatenate(lengths).mean()) / count


def mlp_rademacher(inputs: np.ndarray, norm: float, depth: int) -> float:
    """A bound on the empirical Rademacher complexity of ReLU networks on rows (n, width):

    ``norm (sqrt(2 depth log 2) + 1) sqrt(sum_k ||x_k||^2) / n``, ``norm`` being the product of the layers' Frobenius
    norms (Golowich, Rakhlin and Shamir 2018, *Size-Independent Sample Complexity of Neural Networks*, Theorem 1).
    """
    return norm * (math.sqrt(2 * depth * math.log(2)) + 1) * math.sqrt(float((inputs**2).sum())) / len(inputs)


def rademacher(scores: ScoreClass, rows: int, *, seed: int = 0) -> float:
    """Complexity of a class on ``rows`` samples such as those it was seen on: falls as ``1 / sqrt(rows)``."""
    if scores.kind == "linear":
        value = linear_rademacher(scores.inputs, scores.norm, seed=seed)
    else:
        value = mlp_rademacher(scores.inputs, scores.norm, scores.depth)
    return value * math.sqrt(len(scores.inputs) / rows)


def accuracy_term(error_rate: float, rows: int, complexity_at: Callable[[int], float]) -> float:
    """``Omega = e/2 exp(-K e / 8) + R_{K e / 2}``: what an expert that errs at rate ``e`` adds (Theorem 4.13).

    An expert that never errs adds nothing.

    Args:
        error_rate: ``e`` in [0, 1].
        rows: ``K``.
        complexity_at: sample size -> complexity of the rejector's class.
    """
    if error_rate == 0:
        return 0.0
    wrong = max(1, math.floor(rows * error_rate / 2))
    return 0.5 * error_rate * math.exp(-rows * error_rate / 8) + complexity_at(wrong)


@dataclass(frozen=True, kw_only=True)
class AgentCosts:
    """What the bound needs to know of one agent.

    Attributes:
        error_rate: of its classes under a 0-1 cost; None where the cost is another.
        class_weight: ``lambda`` of that cost.
        largest: of everything else that it costs, weighted; of all that it costs where ``error_rate`` is None.
        query_cost: ``beta_j``.
        is_model: its class errors are weighed with ``R_K`` itself.
    """

    error_rate: float | None
    class_weight: float
    largest: float
    query_cost: float
    is_model: bool


@dataclass(frozen=True, kw_only=True)
class LearningBound:
    """The bound at one sample size ``rows``; all in units of the deferral loss."""

    rows: int
    empirical: float
    complexity: float  # R_K of the score class
    accuracy: float  # 2 x the experts' Omega, weighted
    magnitude: float  # 2 x (largest costs and query costs) x R_K
    confidence: float

    @property
    def bound(self) -> float:
        return self.empirical + self.accuracy + self.magnitude + self.confidence


def learning_bound(
    scores: ScoreClass, agents: list[AgentCosts], empirical: float, largest_cost: float, rows: int, delta: float = 0.05
) -> LearningBound:
    """Theorem 4.13 at ``rows`` samples, the rest being as it is on the rows that ``scores`` has.

    Args:
        agents: the model first.
        empirical: mean deferral loss on the training rows.
        largest_cost: ``B``.
        delta: the bound fails with at most this probability.
    """
    on_all = rademacher(scores, len(scores.inputs))

    def complexity_at(count: int) -> float:
        return on_all * math.sqrt(len(scores.inputs) / count)

    complexity = complexity_at(rows)
    accuracy = magnitude = 0.0
    for agent in agents:
        magnitude += (agent.largest + agent.query_cost) * complexity
        if agent.error_rate is not None:
            if agent.is_model:
                magnitude += agent.class_weight * complexity
            else:
                accuracy += agent.class_weight * accuracy_term(agent.error_rate, rows, complexity_at)
    return LearningBound(
        rows=rows,
        empirical=empirical,
        complexity=complexity,
        accuracy=2 * accuracy,
        magnitude=2 * magnitude,
        confidence=largest_cost * math.sqrt(math.log(1 / delta) / (2 * rows)),
    )


def bound_curve(
    scores: ScoreClass, agents: list[AgentCosts], empirical: float, largest_cost: float, delta: float = 0.05
) -> list[LearningBound]:
    """The bound against sample size: from a hundredth of the rows (at least 10) to a hundred times as many."""
    count = len(scores.inputs)
    sizes = sorted({max(10, round(count * 10**exponent)) for exponent in np.linspace(-2, 2, 9)})
    return [learning_bound(scores, agents, empirical, largest_cost, size, delta) for size in sizes]


def agent_costs(
    raw: np.ndarray,
    costs: np.ndarray,
    query_costs: tuple[float, ...],
    weights: dict[str, float] | None,
    settings: dict,
    tasks: list[str],
    paid: float | None = None,
) -> list[AgentCosts]:
    """What the bound needs, from the training rows.

    Args:
        raw: raw costs (n, A, tasks), NaN where an agent is unavailable; with prices one more column.
        costs: total costs (n, A), not finite there.
        query_costs: ``beta_j`` of each agent.
        weights: ``lambda`` by task; None where another expression is the cost.
        settings: the cache's cost table.
        tasks: of the last dimension of ``raw``.
        paid: units of loss for a unit of money, where answers are charged what they were paid; a cost like another.
    """
    found = []
    for agent, query_cost in enumerate(query_costs):
        rows = np.isfinite(costs[:, agent])
        separate = settings.get("cla", {}).get("kind") == "zero_one" and "cla" in tasks
        class_weight = weights["cla"] if weights is not None and separate else 0.0
        if weights is None or not separate or not rows.any():
            largest = float(costs[rows, agent].max() - query_cost) if rows.any() else 0.0
            error_rate = None
        else:
            others = [(position, weights[task]) for position, task in enumerate(tasks) if task != "cla"]
            largest = sum(weight * float(raw[rows, agent, position].max()) for position, weight in others)
            if paid is not None:
                largest += paid * float(raw[rows, agent, -1].max())
            error_rate = float(raw[rows, agent, tasks.index("cla")].mean())
        found.append(
            AgentCosts(
                error_rate=error_rate,
                class_weight=class_weight,
                largest=largest,
                query_cost=float(query_cost),
                is_model=agent == 0,
            )
        )
    return found
