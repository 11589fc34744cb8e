"""RouterArena: a run as one of its routers. Its own package is not on PyPI; its class comes in as an argument."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l2d.data.errors import UsageError
from l2d.rejector.serving.router import Router


def arena_router(base: type, router: Router, *, models: Mapping[str, str] | None = None) -> type:
    """A class that RouterArena can instantiate by its router's name.

    Args:
        base: RouterArena's ``router_inference.router.base_router.BaseRouter``, which reads the names of the models from
            its configuration and asks ``_get_prediction(query)`` for one.
        router: of l2d, of a run that looks at a text alone.
        models: agent -> RouterArena's name of the model, where they differ.
    """
    names = {agent: agent for agent in router.agents} | dict(models or {})

    class L2DRouter(base):  # type: ignore[misc, valid-type]
        """Chooses a model for each query by a run of l2d."""

        def __init__(self, router_name: str):
            super().__init__(router_name)
            self.there = [agent for agent in router.agents if names[agent] in self.models]
            if not self.there:
                raise UsageError(
                    "RouterArena's configuration names no model that is an agent of the run",
                    hint=f"the run has {', '.join(names.values())}",
                )

        def _get_prediction(self, query: str) -> Any:
            decision = router.route(query, available=self.there)
            assert decision.agent is not None
            return names[decision.agent]

    return L2DRouter
