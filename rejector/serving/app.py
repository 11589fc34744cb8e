"""The router over HTTP: requests in, decisions out, and errors that say what is wrong, where, and what to do next."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

from fastapi import FastAPI, Request
from fastapi.responses import Response

from l2d.data.errors import DataError, L2DError, UsageError, nearest
from l2d.rejector.serving import messages
from l2d.rejector.serving.open_decisions import OutOfTurn
from l2d.rejector.serving.outcomes import UnknownDecision, number
from l2d.rejector.serving.service import Busy, Service

BODY_SECONDS = 10.0  # that a client has to send a body
STATUS: dict[type[L2DError], int] = {UnknownDecision: 404, OutOfTurn: 409, DataError: 422}  # others: 400

DOCS = Path(__file__).with_name("docs.html")
OWN = "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

Handler = Callable[[Request], Awaitable[Response]]


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, what: str, *, where: str, hint: str):
        super().__init__(what)
        self.status, self.error = status, {"what": what, "where": where, "next": hint}


def make_app(service: Service, *, key: str | None = None, max_body: int = 1 << 20, max_batch: int = 1000) -> FastAPI:
    """The application.

    Args:
        service: what decides.
        key: clients have to send it, as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``; None: no key.
        max_body: bytes of a request.
        max_batch: inputs of one.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="l2d",
        summary="Which agent to ask about an input.",
        lifespan=lifespan,
        version="1",
        docs_url=None,  # FastAPI's page fetches its script from elsewhere: without the internet it is empty
        redoc_url=None,
    )
    app.add_api_route("/docs", _docs, include_in_schema=False, response_class=Response, response_model=None)

    def answering(path: str, handler: Handler, *, open_to_all: bool = False) -> Handler:
        """A handler whose errors are answers, and which is counted."""

        async def answer(request: Request) -> Response:
            started = time.perf_counter()
            try:
                if key is not None and not open_to_all and not _has_key(request, key):
                    raise Refused(401, "no key, or another one", where="header", hint="send Authorization: Bearer KEY")
                response = await handler(request)
            except Refused as refused:
                response = _error(refused.status, refused.error)
            except Busy as busy:
                error = {"what": str(busy), "where": path, "next": "try again in a second"}
                response = _error(503, error, {"Retry-After": "1"})
            except L2DError as error:
                status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 400)
                response = _error(
                    status, {"what": error.what, "where": str(error.where or path), "next": error.hint or ""}
                )
            service.metrics.answered(path, response.status_code, time.perf_counter() - started)
            return response

        return answer

    async def route(request: Request) -> Response:
        asked = await _json(request, max_body, ("input", "id", "available", "cap", "reason"), ("input",))
        reason, name = _flag(asked, "reason"), _text(asked, "id")
        decisions = await service.decide([asked["input"]], name=name, **_limits(asked))
        return _found(decisions[0].to_json(reason=reason))

    async def route_batch(request: Request) -> Response:
        asked = await _json(request, max_body, ("inputs", "available", "cap", "reason"), ("inputs",))
        rows = asked["inputs"]
        if not isinstance(rows, list) or not 1 <= len(rows) <= max_batch:
            raise Refused(422, "`inputs` is a list of inputs", where="inputs", hint=f"give 1 to {max_batch:,} of them")
        reason = _flag(asked, "reason")
        decisions = await service.decide(rows, **_limits(asked))
        return _found({"decisions": [decision.to_json(reason=reason) for decision in decisions]})

    async def go_on(request: Request) -> Response:
        asked = await _json(request, max_body, ("id", "answer", "agent", "sure", "paid", "reason"), ("id", "answer"))
        if not isinstance(asked["id"], str):
            raise Refused(422, "`id` is a text", where="id", hint="give the id that a decision came with")
        said = {name: number(asked.get(name), name) for name in ("sure", "paid")}
        if said["sure"] is not None and said["sure"] > 1:
            raise UsageError(f"sure is {said['sure']:g}", where="sure", hint="from 0 to 1")
        reason, agent = _flag(asked, "reason"), _text(asked, "agent")
        decision = service.next(asked["id"], asked["answer"], agent, **said)
        return _found(decision.to_json(reason=reason))

    async def feedback(request: Request) -> Response:
        asked = await _json(request, max_body, ("id", "cost", "paid", "seconds"), ("id",))
        if not isinstance(asked["id"], str):
            raise Refused(422, "`id` is a text", where="id", hint="give the id that a decision came with")
        if all(asked.get(name) is None for name in ("cost", "paid", "seconds")):
            raise Refused(422, "nothing is said of the outcome", where="cost", hint="give `cost`, `paid` or `seconds`")
        service.router.feedback(asked["id"], asked.get("cost"), paid=asked.get("paid"), seconds=asked.get("seconds"))
        service.metrics.feedback.inc()
        return _found({"id": asked["id"]})

    async def health(request: Request) -> Response:
        router = service.router
        return _found(
            {
                "status": "ok",
                "run": router.run.run_id,
                "digest": router.run.digest,
                "agents": router.agents,
                "columns": router.columns,
                "calibration": router.calibration,
                "waiting": service.waiting,
                "seconds": round(time.time() - service.started, 3),
            }
        )

    async def metrics(request: Request) -> Response:
        text = service.metrics.text(service.waiting)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def reload(request: Request) -> Response:
        router = await service.reload()
        return _found({"run": router.run.run_id, "digest": router.run.digest})

    for path, handler, methods, shown in (
        ("/route", route, ["POST"], messages.ROUTE),
        ("/route/batch", route_batch, ["POST"], messages.BATCH),
        ("/next", go_on, ["POST"], messages.NEXT),
        ("/feedback", feedback, ["POST"], messages.FEEDBACK),
        ("/health", health, ["GET"], messages.HEALTH),
        ("/metrics", metrics, ["GET"], messages.METRICS),
        ("/reload", reload, ["POST"], messages.RELOAD),
    ):
        app.add_api_route(
            path,
            _as_endpoint(answering(path, handler, open_to_all=path == "/health")),
            methods=methods,
            response_class=Response,
            response_model=None,
            name=path,
            summary=shown["summary"],
            openapi_extra=shown["openapi"],
        )
    return app


async def _docs() -> Response:
    return Response(DOCS.read_bytes(), media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": OWN})


def _as_endpoint(handler: Handler) -> Callable[..., Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await handler(request)

    endpoint.__annotations__ = {"request": Request, "return": Response}
    return endpoint


def _has_key(request: Request, key: str) -> bool:
    sent = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
    return hmac.compare_digest(sent.encode(), key.encode())


async def _json(request: Request, most: int, known: tuple[str, ...], needed: tuple[str, ...]) -> dict[str, Any]:
    """The object that a request's body is."""
    too_large = Refused(413, f"a body of more than {most:,} bytes", where="body", hint="send fewer inputs at a time")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > most:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > most:
                    raise too_large
    except TimeoutError:
        raise Refused(408, "the body did not come", where="body", hint="send it at once") from None
    try:
        asked = json.loads(content, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"is not JSON: {error}", where="body", hint="send one JSON object") from None
    if not isinstance(asked, dict):
        raise Refused(422, "is not a JSON object", where="body", hint=f"send one with {', '.join(needed)}")
    for name in asked:
        if name not in known:
            raise Refused(422, f"there is no {str(name)[:80]!r} here", where="body", hint=nearest(name, known))
    for name in needed:
        if name not in asked:
            raise Refused(422, f"there is no {name!r}", where="body", hint=f"send an object with {', '.join(known)}")
    return asked


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number; what is missing is null")


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


def _found(content: Any) -> Response:
    return Response(json.dumps(content, separators=(",", ":")), media_type="application/json")


def _error(status: int, error: dict[str, str], headers: dict[str, str] | None = None) -> Response:
    text = json.dumps({"error": error}, ensure_ascii=True)
    return Response(text, status_code=status, media_type="application/json", headers=headers)
