"""Check 14: a server under load that is killed, or opens its run again: nothing that it answered is lost.

Servers are forked from a process that has imported all that they need, so that a hundred kills take minutes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from small import Outcome, reference, scratch

CLIENTS = 4
WARM = ["l2d.rejector.serving.server", "l2d.rejector.serving.app", "l2d.rejector.serving.opening", "uvicorn", "uvloop",
        "httptools", "safetensors.numpy", "fastapi.openapi.utils", "l2d.rejector.scoring"]  # fmt: skip


@cache
def served_run() -> Path:
    """A small run."""
    import l2d

    folder = reference(rows=60) / "served"
    if not folder.exists():
        l2d.train(reference(rows=60) / "cache", folder, method="multi-task", network="linear", epochs=2, seed=0)
    return folder


def run_server(run: Path, log: Path, told: Any, sabotage: str | None) -> None:
    """A server in this process, which says its port. ``late``: records are written after they are acknowledged.
    ``deaf``: while the run is opened again, there is no router."""
    from l2d.data.cache.journal import Journal
    from l2d.rejector.serving.server import serve
    from l2d.rejector.serving.service import Service

    if sabotage == "late":
        append, waiting = Journal.append, []

        def late(self: Journal, line: bytes) -> None:
            waiting.append(line)
            if len(waiting) >= 20:
                append(self, b"\n".join(waiting))
                waiting.clear()

        Journal.append = late  # type: ignore[method-assign]
    if sabotage == "deaf":
        again = Service.reload

        async def deaf(self: Service) -> Any:
            there, self.router = self.router, None  # type: ignore[assignment]
            try:
                return await again(self)
            except AttributeError:  # of the router that is not there, which was to be closed
                self.router = self.router or there
                return self.router

        Service.reload = deaf  # type: ignore[method-assign]
    serve(run, port=0, log=log, say=told.send)


class Server:
    """A server of its own process, forked from one that is warm."""

    def __init__(self, log: Path, sabotage: str | None = None):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(WARM)
        hear, told = context.Pipe(duplex=False)
        self.process = context.Process(target=run_server, args=(served_run(), log, told, sabotage))
        self.process.start()
        told.close()
        if not hear.poll(60):
            raise RuntimeError("the server has not begun")
        self.port, self.hear = int(hear.recv().split(":")[2].split(" ")[0]), hear

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        with suppress(ProcessLookupError):
            self.send(number)
        self.process.join(60)
        self.hear.close()


@dataclass
class Answered:
    """What a server has acknowledged: ids of decisions, and of outcomes; and answers that were not 200."""

    decisions: list[str] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass
class _Client:
    socket: socket.socket
    content: bytes = b""
    outcome_of: str | None = None


def drive(port: int, until: float, each: Callable[[], None] = lambda: None) -> Answered:
    """Four clients that ask and tell outcomes as fast as they are answered, until a time or the server's end.

    ``each`` is called after every answer.
    """
    found, chooser = Answered(), selectors.DefaultSelector()
    clients = [_Client(socket.create_connection(("127.0.0.1", port), 30)) for _ in range(CLIENTS)]
    asked = 0
    try:
        for client in clients:
            client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            chooser.register(client.socket, selectors.EVENT_READ, client)
            asked = _ask(client, asked)
        waiting = len(clients)
        while waiting and time.monotonic() < until + 30:
            for key, _ in chooser.select(1):
                client = key.data
                answer = _answer(client)
                if answer is None:
                    continue
                status, content = answer
                if status != 200:
                    found.wrong.append(f"{status}: {content[:200]!r}")
                    client.outcome_of = None
                elif client.outcome_of is not None:
                    found.outcomes.append(client.outcome_of)
                    client.outcome_of = None
                else:
                    found.decisions.append(json.loads(content)["id"])
                    client.outcome_of = found.decisions[-1] if len(found.decisions) % 3 == 0 else None
                each()
                if time.monotonic() < until:
                    asked = _ask(client, asked)
                else:
                    waiting -= 1
    except (ConnectionError, TimeoutError):
        pass  # it has been killed
    finally:
        for client in clients:
            client.socket.close()
        chooser.close()
    return found


def _ask(client: _Client, asked: int) -> int:
    body: dict[str, Any] = {"input": {"x": asked % 97 / 97}}
    if client.outcome_of is not None:
        body = {"id": client.outcome_of, "cost": 0.5}
    path, content = "/route" if client.outcome_of is None else "/feedback", json.dumps(body).encode()
    client.socket.sendall(b"POST %s HTTP/1.1\r\nHost: l\r\nContent-Length: %d\r\n\r\n%s"
                          % (path.encode(), len(content), content))  # fmt: skip
    return asked + 1


def _answer(client: _Client) -> tuple[int, bytes] | None:
    more = client.socket.recv(65_536)
    if not more:
        raise ConnectionResetError
    client.content += more
    head, end, content = client.content.partition(b"\r\n\r\n")
    if not end:
        return None
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    if len(content) < length:
        return None
    client.content = b""
    return int(head.split(b" ")[1]), content


def _compare(outcome: Outcome, log: Path, answered: Answered) -> None:
    import l2d

    found = l2d.read_log(log).decisions
    ids, told = found["id"].to_list(), set(found.drop_nulls("cost")["id"])
    lost = set(answered.decisions) - set(ids)
    outcome.problems += [f"decision {one} was answered and is not in the log" for one in sorted(lost)]
    lost = set(answered.outcomes) - told
    outcome.problems += [f"the outcome of {one} was acknowledged and is not in the log" for one in sorted(lost)]
    outcome.expect(len(ids) == len(set(ids)), "a decision is in the log twice")
    outcome.problems += answered.wrong


def kill_servers(kills: int, *, sabotage: str | None = None, seed: int = 0) -> Outcome:
    """SIGKILL servers under load that write one log after another; all that was acknowledged has to be in it."""
    outcome, generator, all_of_them = Outcome(), np.random.default_rng(seed), Answered()
    with scratch() as folder:
        for _ in range(kills):
            server = Server(folder / "log", sabotage)
            after = int(generator.integers(3, 150))  # answers, after which it is killed

            def each(server: Server = server, left: list[int] = [after]) -> None:  # noqa: B006
                left[0] -= 1
                if left[0] == 0:
                    server.send(signal.SIGKILL)

            answered = drive(server.port, time.monotonic() + 60, each)
            server.end(signal.SIGKILL)
            for name in ("decisions", "outcomes", "wrong"):
                getattr(all_of_them, name).extend(getattr(answered, name))
            outcome.cases += 1
        _compare(outcome, folder / "log", all_of_them)
    outcome.note = f"{len(all_of_them.decisions):,} decisions and {len(all_of_them.outcomes):,} outcomes acknowledged"
    return outcome


def reload_servers(reloads: int, *, sabotage: str | None = None, every: int = 60) -> Outcome:
    """A server that opens its run again and again under load; no request may be dropped, and nothing be lost."""
    outcome, opened = Outcome(), [0]
    with scratch() as folder:
        server = Server(folder / "log", sabotage)
        left = [every]

        def each() -> None:
            left[0] -= 1
            if left[0] == 0:
                server.send(signal.SIGHUP)
                left[0] = -1
            if left[0] < 0 and server.hear.poll():  # it has been opened
                outcome.expect(server.hear.recv().startswith("opened again"), "it was not opened again")
                opened[0] += 1
                left[0] = every if opened[0] < reloads else 10**9

        started = time.monotonic()
        answered = Answered()
        while opened[0] < reloads and time.monotonic() < started + 20 * reloads:
            some = drive(server.port, time.monotonic() + 0.5, each)
            for name in ("decisions", "outcomes", "wrong"):
                getattr(answered, name).extend(getattr(some, name))
            if some.wrong and sabotage:
                break
        server.end()
        outcome.cases = opened[0] or len(answered.wrong)
        outcome.expect(opened[0] == reloads or sabotage, f"opened {opened[0]} times of {reloads}")
        _compare(outcome, folder / "log", answered)
    outcome.note = f"{len(answered.decisions):,} decisions answered meanwhile"
    return outcome
