"""The router over HTTP: requests in, decisions out, and errors that say what is wrong, where, and what to do next."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response

from l2d.data.errors import UsageError, nearest
from l2d.rejector.serving import messages
from l2d.rejector.serving.asgi import TEXT, Answer, Endpoint, Front, Refused, found, read_json
from l2d.rejector.serving.outcomes import number
from l2d.rejector.serving.service import Service

DOCS = Path(__file__).with_name("docs.html")
OWN = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def make_app(service: Service, *, key: str | None = None, max_body: int = 1 << 20, max_batch: int = 1000) -> Front:
    """The application: decisions, and behind them FastAPI's pages about them.

    Args:
        service: what decides.
        key: clients have to send it, as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``; None: no key.
        max_body: bytes of a request.
        max_batch: inputs of one.
    """

    async def route(body: bytes) -> Answer:
        asked = _asked(body, ("input", "id", "available", "cap", "reason"), ("input",))
        reason, name = _flag(asked, "reason"), _text(asked, "id")
        decisions = await service.decide([asked["input"]], name=name, **_limits(asked))
        return found(decisions[0].to_json(reason=reason))

    async def route_batch(body: bytes) -> Answer:
        asked = _asked(body, ("inputs", "available", "cap", "reason"), ("inputs",))
        rows = asked["inputs"]
        if not isinstance(rows, list) or not 1 <= len(rows) <= max_batch:
            raise Refused(422, "`inputs` is a list of inputs", where="inputs", hint=f"give 1 to {max_batch:,} of them")
        reason = _flag(asked, "reason")
        decisions = await service.decide(rows, **_limits(asked))
        return found({"decisions": [decision.to_json(reason=reason) for decision in decisions]})

    async def go_on(body: bytes) -> Answer:
        asked = _asked(body, ("id", "answer", "agent", "sure", "paid", "reason"), ("id", "answer"))
        if not isinstance(asked["id"], str):
            raise Refused(422, "`id` is a text", where="id", hint="give the id that a decision came with")
        said = {name: number(asked.get(name), name) for name in ("sure", "paid")}
        if said["sure"] is not None and said["sure"] > 1:
            raise UsageError(f"sure is {said['sure']:g}", where="sure", hint="from 0 to 1")
        reason, agent = _flag(asked, "reason"), _text(asked, "agent")
        decision = service.next(asked["id"], asked["answer"], agent, **said)
        return found(decision.to_json(reason=reason))

    async def feedback(body: bytes) -> Answer:
        asked = _asked(body, ("id", "cost", "paid", "seconds"), ("id",))
        if not isinstance(asked["id"], str):
            raise Refused(422, "`id` is a text", where="id", hint="give the id that a decision came with")
        if all(asked.get(name) is None for name in ("cost", "paid", "seconds")):
            raise Refused(422, "nothing is said of the outcome", where="cost", hint="give `cost`, `paid` or `seconds`")
        service.router.feedback(asked["id"], asked.get("cost"), paid=asked.get("paid"), seconds=asked.get("seconds"))
        service.metrics.feedback.inc()
        return found({"id": asked["id"]})

    async def health(body: bytes) -> Answer:
        router = service.router
        return found(
            {
                "status": "ok",
                "run": router.run.run_id,
                "digest": router.run.digest,
                "agents": router.agents,
                "columns": router.columns,
                "calibration": router.calibration,
                "guard": None if router.guard is None else router.guard.to_json(),
                "waiting": service.waiting,
                "seconds": round(time.time() - service.started, 3),
            }
        )

    async def metrics(body: bytes) -> Answer:
        text = service.metrics.text(service.waiting, service.router.guard)
        return Answer(text, kind=TEXT)

    async def reload(body: bytes) -> Answer:
        router = await service.reload()
        return found({"run": router.run.run_id, "digest": router.run.digest})

    endpoints = {
        "/route": Endpoint("POST", route),
        "/route/batch": Endpoint("POST", route_batch),
        "/next": Endpoint("POST", go_on),
        "/feedback": Endpoint("POST", feedback),
        "/reload": Endpoint("POST", reload),
        "/health": Endpoint("GET", health, open_to_all=True),
        "/metrics": Endpoint("GET", metrics),
    }
    return Front(endpoints, _pages(service, endpoints), metrics=service.metrics, key=key, max_body=max_body)


def _pages(service: Service, endpoints: dict[str, Endpoint]) -> FastAPI:
    """``/docs`` and ``/openapi.json``; what the server does when it starts and ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    pages = FastAPI(
        title="l2d",
        summary="Which agent to ask about an input.",
        lifespan=lifespan,
        version="1",
        docs_url=None,  # FastAPI's page fetches its script from elsewhere: without the internet it is empty
        redoc_url=None,
    )
    pages.add_api_route("/docs", _docs, include_in_schema=False, response_class=Response, response_model=None)

    def described() -> dict[str, Any]:
        if not pages.openapi_schema:
            schema = get_openapi(title=pages.title, version=pages.version, summary=pages.summary, routes=pages.routes)
            schema["paths"] = {
                path: {one.method.lower(): {"summary": shown["summary"], "operationId": path[1:].replace("/", "_"),
                                            **shown["openapi"]}}
                for path, one in endpoints.items()
                for shown in (messages.SHOWN[path],)
            }  # fmt: skip
            pages.openapi_schema = schema
        return pages.openapi_schema

    pages.openapi = described  # type: ignore[method-assign]
    return pages


async def _docs() -> Response:
    return Response(DOCS.read_bytes(), media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": OWN})


def _asked(body: bytes, known: tuple[str, ...], needed: tuple[str, ...]) -> dict[str, Any]:
    """The object that a request's body is."""
    asked = read_json(body)
    if not isinstance(asked, dict):
        raise Refused(422, "is not a JSON object", where="body", hint=f"send one with {', '.join(needed)}")
    for name in asked:
        if name not in known:
            raise Refused(422, f"there is no {str(name)[:80]!r} here", where="body", hint=nearest(name, known))
    for name in needed:
        if name not in asked:
            raise Refused(422, f"there is no {name!r}", where="body", hint=f"send an object with {', '.join(known)}")
    return asked


def _limits(asked: dict[str, Any]) -> dict[str, Any]:
    available, cap = asked.get("available"), asked.get("cap")
    if available is not None and not (isinstance(available, list) and all(isinstance(n, str) for n in available)):
        raise UsageError("`available` is a list of agents", where="available", hint="leave it out where all are there")
    return {"available": available, "cap": cap}


def _flag(asked: dict[str, Any], name: str) -> bool:
    if not isinstance(asked.get(name, False), bool):
        raise UsageError(f"`{name}` is true or false", where=name, hint="leave it out for false")
    return asked.get(name, False)


def _text(asked: dict[str, Any], name: str) -> str | None:
    if not isinstance(asked.get(name), str | None):
        raise UsageError(f"`{name}` is a text", where=name, hint="leave it out, or send a text")
    return asked.get(name)
