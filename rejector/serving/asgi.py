"""Requests and answers without a framework between: what `/route` takes per request is a few microseconds.

Handlers take the body's bytes and give back JSON; errors that they raise become answers that say what is wrong, where,
and what to do next. Everything that is not in the table goes to the application behind.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, NoReturn

from l2d.data.errors import DataError, L2DError
from l2d.rejector.serving.metrics import Metrics
from l2d.rejector.serving.open_decisions import OutOfTurn
from l2d.rejector.serving.outcomes import UnknownDecision
from l2d.rejector.serving.service import Busy

BODY_SECONDS = 10.0  # that a client has to send a body
STATUS: dict[type[L2DError], int] = {UnknownDecision: 404, OutOfTurn: 409, DataError: 422}  # others: 400
JSON, TEXT = b"application/json", b"text/plain; version=0.0.4; charset=utf-8"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Answer:
    """Of a request."""

    content: bytes
    status: int = 200
    kind: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, what: str, *, where: str, hint: str, headers: Iterable[tuple[bytes, bytes]] = ()):
        super().__init__(what)
        self.status, self.headers = status, tuple(headers)
        self.error = {"what": what, "where": where, "next": hint}


@dataclass(frozen=True)
class Endpoint:
    """What answers one path.

    Attributes:
        method: GET or POST.
        answer: the body's bytes -> the answer; of a GET the body is not read.
        open_to_all: whether it takes no key.
    """

    method: str
    answer: Callable[[bytes], Awaitable[Answer]]
    open_to_all: bool = False


class Front:
    """An ASGI application that answers some paths itself.

    Args:
        endpoints: path -> what answers it.
        behind: answers the others, and is told when the server starts and ends.
        metrics: where requests are counted.
        key: clients have to send it; None: no key.
        max_body: bytes of a request.
    """

    def __init__(
        self,
        endpoints: dict[str, Endpoint],
        behind: Application,
        *,
        metrics: Metrics,
        key: str | None,
        max_body: int,
    ):
        self._endpoints, self._behind, self._metrics, self._max_body = endpoints, behind, metrics, max_body
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get(scope["path"]) if scope["type"] == "http" else None
        if endpoint is None:
            await self._behind(scope, receive, send)
            return
        started = time.perf_counter()
        path: str = scope["path"]
        answer = await self._answer(endpoint, scope, path, receive)
        headers = [(b"content-type", answer.kind), (b"content-length", b"%d" % len(answer.content)), *answer.headers]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.content})
        self._metrics.answered(path, answer.status, time.perf_counter() - started)

    async def _answer(self, endpoint: Endpoint, scope: Message, path: str, receive: Receive) -> Answer:
        try:
            if scope["method"] != endpoint.method:
                allow = (b"allow", endpoint.method.encode())
                raise Refused(
                    405, f"{scope['method']} is not understood here", where=path, hint=f"send {endpoint.method}",
                    headers=[allow],
                )  # fmt: skip
            if self._key is not None and not endpoint.open_to_all:
                self._check_key(scope["headers"], self._key)
            body = await self._body(scope["headers"], receive) if endpoint.method == "POST" else b""
            return await endpoint.answer(body)
        except Refused as refused:
            return _error(refused.status, refused.error, refused.headers)
        except Busy as busy:
            error = {"what": str(busy), "where": path, "next": "try again in a second"}
            return _error(503, error, ((b"retry-after", b"1"),))
        except L2DError as found:
            status = next((code for kind, code in STATUS.items() if isinstance(found, kind)), 400)
            return _error(status, {"what": found.what, "where": str(found.where or path), "next": found.hint or ""})

    @staticmethod
    def _check_key(headers: Iterable[tuple[bytes, bytes]], key: bytes) -> None:
        sent = dict(headers)
        given = sent.get(b"x-api-key") or sent.get(b"authorization", b"").removeprefix(b"Bearer ")
        if not hmac.compare_digest(given, key):
            raise Refused(401, "no key, or another one", where="header", hint="send Authorization: Bearer KEY")

    async def _body(self, headers: Iterable[tuple[bytes, bytes]], receive: Receive) -> bytes:
        for name, value in headers:
            if name == b"content-length" and value.isdigit() and int(value) > self._max_body:
                raise self._too_large()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                message = await receive()
                content = message.get("body", b"")
                while message.get("more_body") and len(content) <= self._max_body:
                    message = await receive()
                    content += message.get("body", b"")
        except TimeoutError:
            raise Refused(408, "the body did not come", where="body", hint="send it at once") from None
        if len(content) > self._max_body:
            raise self._too_large()
        return content

    def _too_large(self) -> Refused:
        return Refused(
            413, f"a body of more than {self._max_body:,} bytes", where="body", hint="send fewer inputs at a time"
        )


def _error(status: int, error: dict[str, str], headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    return Answer(json.dumps({"error": error}, ensure_ascii=True).encode(), status, headers=headers)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number; what is missing is null")


_decoded = json.JSONDecoder(parse_constant=_no_number).decode
_encoded = json.JSONEncoder(separators=(",", ":")).encode


def read_json(body: bytes) -> Any:
    """What a body says.

    Raises:
        Refused: it is not JSON.
    """
    try:
        return _decoded(body.decode())
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"is not JSON: {error}", where="body", hint="send one JSON object") from None


def found(content: Any) -> Answer:
    """An answer in JSON."""
    return Answer(_encoded(content).encode())
