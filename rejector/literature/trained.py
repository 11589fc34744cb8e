"""A trained method: scores of agents and, where it has a classifier of its own, class probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from l2d.data.errors import UsageError
from l2d.rejector.grid import GridPoint
from l2d.rejector.literature import factors, on_agents, one_stage
from l2d.rejector.literature.fitting import network_of
from l2d.rejector.literature.without_network import WITHOUT_NETWORK
from l2d.rejector.methods import METHODS, Method
from l2d.rejector.rows.table import CostTable
from l2d.rejector.trained import Rejector

ROWS_AT_ONCE = 65_536  # when scoring, to bound memory
RULES = on_agents.RULES | factors.RULES | one_stage.RULES


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries of a state whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


@dataclass(frozen=True, kw_only=True)
class TrainedMethod(Rejector):
    """One of :data:`l2d.rejector.methods.LITERATURE`, trained.

    Attributes:
        state: ``feature_mean`` and ``feature_std``, the number of classes as ``num_classes``, and what the method has
            learnt: parameters ``network.*``, those of a classifier beside it ``classifier.*``, and for some its own
            (``memory_x``, ``memory_costs`` and ``neighbours``; ``threshold`` and ``expert``).
    """

    arrays: ClassVar[Literal["numpy", "torch"]] = "torch"

    state: Mapping[str, Tensor]

    @property
    def method(self) -> Method:
        return METHODS[self.point.method]

    @property
    def has_classifier(self) -> bool:
        """Whether its classes come from a classifier of its own, so that agent 0's cached answers are not used."""
        return self.method.trains_classifier(self.config.classifier)

    @property
    def needs_probabilities(self) -> bool:
        """Whether scores need the cached model's class probabilities."""
        return self.method.classifier == "given" and not self.has_classifier

    @property
    def num_classes(self) -> int:
        return int(self.state["num_classes"])

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Score of each agent, float32 (n, agents), from raw features (n, width).

        Raises:
            UsageError: scores need the model's class probabilities.
        """
        self.check_routable()
        return self._all_scores(torch.from_numpy(features), None).numpy()

    def _all_scores(self, features: Tensor, probabilities: Tensor | None) -> Tensor:
        """``probabilities``: of the cached model's classes, (n, K), where :attr:`needs_probabilities`."""
        found = []
        for at in range(0, len(features), ROWS_AT_ONCE):
            rows = slice(at, at + ROWS_AT_ONCE)
            x, given = self._standardised(features[rows]), None if probabilities is None else probabilities[rows]
            with torch.inference_mode():
                if self.has_classifier and self.method.classifier != "own":
                    given = self._probabilities(x)
                found.append(self._scores(x, given))
        return torch.cat(found) if found else torch.zeros(0, len(self.point.query_costs))

    def probabilities(self, features: np.ndarray) -> np.ndarray | None:
        if not self.has_classifier:
            return None
        with torch.inference_mode():
            parts = torch.from_numpy(features).split(ROWS_AT_ONCE)
            return torch.cat([self._probabilities(self._standardised(rows)) for rows in parts]).numpy()

    def scores_on(self, table: CostTable) -> np.ndarray:
        """:meth:`scores` of a table that has been read with predictions."""
        given = model_probabilities(table) if self.needs_probabilities else None
        return self._all_scores(table.features, given).numpy()

    def system_table(self, table: CostTable, tasks: list[str]) -> CostTable:
        """The table with the classifier of its own in agent 0's place: its answers, its 0-1 cost, never missing.

        Other tasks of agent 0 weigh nothing (see :func:`l2d.rejector.methods.check_method`) and become 0.
        """
        chances = self.probabilities(table.features.numpy())
        if chances is None:
            return table
        model = next(iter(table.predictions))
        classes = chances.argmax(axis=1)
        raw = table.raw.clone()
        raw[:, 0] = 0.0
        raw[:, 0, tasks.index("cla")] = torch.from_numpy((classes != table.targets["target_cla"]).astype(np.float32))
        failed = None if table.failed is None else table.failed.copy()
        if failed is not None:
            failed[:, 0] = False
        answers = {**table.predictions, model: {"pred_cla": classes, "pred_prob": chances}}
        return replace(table, raw=raw, failed=failed, predictions=answers)

    def check(self) -> None:
        """Apply it once, which fails where parameters do not fit."""
        chances = torch.full((1, self.num_classes), 1 / max(1, self.num_classes))
        self._all_scores(torch.zeros(1, self.width), chances if self.needs_probabilities else None)
        self.probabilities(np.zeros((1, self.width), np.float32))

    def check_routable(self) -> None:
        """Refuse inputs alone where scores need more.

        Raises:
            UsageError: that.
        """
        if self.needs_probabilities:
            raise UsageError(
                f"method {self.point.method!r} looks at the model's class probabilities, which inputs do not have",
                hint="train it with --classifier own: then it needs the input alone",
            )

    # --- inside -------------------------------------------------------------------------------------------------------

    @cached_property
    def _network(self) -> Callable[[Tensor], Tensor]:
        rule, classes = RULES[self.point.method], self.num_classes
        width = self.width + (classes if rule.sees_probabilities else 0)
        outputs = rule.outputs(classes, len(self.point.query_costs))
        return network_of(part(self.state, "network."), self.config, width, outputs, rule.network)

    @cached_property
    def _classifier(self) -> Callable[[Tensor], Tensor]:
        return network_of(part(self.state, "classifier."), self.config, self.width, self.num_classes)

    @property
    def _query_costs(self) -> Tensor:
        in_errors = self.method.classes_only or self.has_classifier
        return known_query_costs(self.method, self.point, in_errors=in_errors)

    def _standardised(self, features: Tensor) -> Tensor:
        return (features - self.state["feature_mean"]) / self.state["feature_std"]

    def _probabilities(self, x: Tensor) -> Tensor:
        rule = RULES.get(self.point.method)
        if rule is not None and rule.probabilities is not None:
            return rule.probabilities(self._network(x), len(self.point.query_costs))
        return self._classifier(x).softmax(dim=1)

    def _scores(self, x: Tensor, probabilities: Tensor | None) -> Tensor:
        num_agents = len(self.point.query_costs)
        plain = WITHOUT_NETWORK.get(self.point.method)
        if plain is not None:
            return plain.scores(self.state, x, probabilities, num_agents)
        rule = RULES[self.point.method]
        seen = torch.cat([x, probabilities], dim=1) if rule.sees_probabilities and probabilities is not None else x
        return rule.scores(self._network(seen), probabilities, self._query_costs)


def known_query_costs(method: Method, point: GridPoint, *, in_errors: bool) -> Tensor:
    """Query costs that a method reckons with, (agents,); in errors: divided by the weight of the class."""
    costs = torch.tensor(point.query_costs, dtype=torch.float32)
    if not method.pays_queries:
        return torch.zeros_like(costs)
    return costs / dict(point.weights.by_task)["cla"] if in_errors else costs


def model_probabilities(table: CostTable) -> Tensor:
    """The cached model's class probabilities, float32 (n, K), 0 where it has no answer.

    Raises:
        UsageError: it gives none.
    """
    model = next(iter(table.predictions))
    if "pred_prob" not in table.predictions[model]:
        raise UsageError(
            f"agent {model!r} gives no class probabilities", hint="--classifier own, or a method that needs none"
        )
    chances = torch.from_numpy(np.asarray(table.predictions[model]["pred_prob"], dtype=np.float32))
    answered = torch.ones(len(table), dtype=torch.bool)
    if table.failed is not None:
        answered = torch.from_numpy(~table.failed[:, 0])
    return chances.masked_fill(~answered[:, None], 0.0)


def expert_classes(table: CostTable) -> Tensor:
    """Each expert's class, int64 (n, J), -1 of experts that answer no class, of a table read with predictions."""
    names = list(table.predictions)[1 : table.raw.shape[1]]  # references come behind the agents
    found = torch.full((len(table), len(names)), -1, dtype=torch.int64)
    for expert, name in enumerate(names):
        if "pred_cla" in table.predictions[name]:
            found[:, expert] = torch.from_numpy(np.asarray(table.predictions[name]["pred_cla"], dtype=np.int64))
    return found
