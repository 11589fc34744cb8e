"""Which methods of a sweep a cache allows: those that do not fit are left out by name, with the reason."""

from __future__ import annotations

from collections.abc import Callable

from l2d.data.cache.reader import CostCache
from l2d.data.errors import UsageError
from l2d.rejector.costs import CostWeights
from l2d.rejector.methods import METHODS, check_method
from l2d.rejector.settings import TrainConfig


def eligible_methods(
    methods: list[str],
    cache: CostCache,
    weights: list[dict[str, float]],
    cost: str | None,
    config: TrainConfig,
    tell: Callable[[str], None],
) -> list[str]:
    """Of several methods those that are defined for this cache; a single one is left for the sweep to refuse.

    Args:
        methods: names; unknown ones are kept, for :func:`l2d.rejector.grid.make_grid` to refuse.
        weights: ``lambda`` of each setting; none: the recipe's.
        cost: an SQL expression in place of the weighted sum, or None.
        tell: told of each method that is left out, and why.

    Raises:
        UsageError: none of them is; the first one's reason.
    """
    if len(methods) < 2:
        return methods
    weights = weights or [cache.record.defaults.get("lambda", {})]
    settings = [CostWeights.parse(each, cache.record.tasks) for each in weights]
    refused: dict[str, UsageError] = {}
    for method in methods:
        try:
            for each in settings:
                _check(method, cache, each, cost, config)
        except UsageError as error:
            refused[method] = error
    if len(refused) == len(methods):
        raise next(iter(refused.values()))
    for method, reason in refused.items():
        tell(f"left out {method}: {str(reason).splitlines()[0]}")
    return [method for method in methods if method not in refused]


def _check(method: str, cache: CostCache, weights: CostWeights, cost: str | None, config: TrainConfig) -> None:
    if method in METHODS:
        check_method(method, cache, dict(weights.by_task), cost, config.classifier)
        weights.trained_on(method)
