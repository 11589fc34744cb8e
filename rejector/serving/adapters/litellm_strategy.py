"""litellm: a router that chooses among the deployments of a model group by a run of l2d (package ``litellm``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from litellm.types.router import CustomRoutingStrategyBase

from l2d.data.errors import UsageError
from l2d.rejector.serving.router import Router, Row

Messages = list[dict[str, Any]]


class Strategy(CustomRoutingStrategyBase):
    """Sends each request to the deployment of the agent that a run chooses.

    A deployment is an agent's if its ``model_info.id`` is the agent's name, else if its ``litellm_params.model`` is.

    Args:
        deployments: of litellm's router.
        router: of l2d, see :func:`l2d.load_router`.
        row: messages and the request's other arguments -> an input of the run. Default: the text of the last message.
        told: is given each decision, and may keep its id for feedback.

    Raises:
        UsageError: no deployment is an agent's.
    """

    def __init__(
        self,
        deployments: list[dict[str, Any]],
        router: Router,
        *,
        row: Callable[[Messages, dict[str, Any]], Row] | None = None,
        told: Callable[[Any], None] = lambda decision: None,
    ):
        self.router, self._row, self._told = router, row or last_text, told
        self._by_group: dict[str, dict[str, dict[str, Any]]] = {}
        for one in deployments:
            agent = next((name for name in _names(one) if name in router.agents), None)
            if agent is not None:
                self._by_group.setdefault(one["model_name"], {})[agent] = one
        if not self._by_group:
            raise UsageError(
                "no deployment is one of the run's agents", hint=f"set model_info.id to {', '.join(router.agents)}"
            )

    def get_available_deployment(  # type: ignore[override]  # litellm says None, and documents a deployment
        self,
        model: str,
        messages: Messages | None = None,
        input: Any = None,
        specific_deployment: bool | None = False,
        request_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The deployment for a request."""
        there = self._by_group.get(model)
        if not there:
            raise UsageError(
                f"no deployment of {model!r} is an agent", hint=f"ask for one of {', '.join(self._by_group)}"
            )
        decision = self.router.route(self._row(messages or [], request_kwargs or {}), available=list(there))
        self._told(decision)
        assert decision.agent is not None
        return there[decision.agent]

    async def async_get_available_deployment(  # type: ignore[override]
        self,
        model: str,
        messages: Messages | None = None,
        input: Any = None,
        specific_deployment: bool | None = False,
        request_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The same; a decision takes microseconds, so nothing is waited for."""
        return self.get_available_deployment(model, messages, input, specific_deployment, request_kwargs)


def use_in(litellm_router: Any, router: Router, **options: Any) -> Strategy:
    """Have a ``litellm.Router`` choose deployments by a run; ``options`` of :class:`Strategy`."""
    strategy = Strategy(litellm_router.model_list, router, **options)
    register = getattr(litellm_router, "register_plugin", None) or litellm_router.set_custom_routing_strategy
    register(strategy)
    return strategy


def last_text(messages: Messages, request: dict[str, Any]) -> str:
    """The text of the last message."""
    content = messages[-1].get("content") if messages else ""
    if isinstance(content, list):
        return "\n".join(part.get("text", "") for part in content if part.get("type") == "text")
    return content or ""


def _names(deployment: dict[str, Any]) -> list[str]:
    names = [(deployment.get("model_info") or {}).get("id"), deployment["litellm_params"]["model"]]
    return [str(name) for name in names if name]
