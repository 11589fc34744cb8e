"""How fast a router decides about one input, and what `l2d serve` holds on loopback: load, kills, reloads.

The run is one of SUPPORT2, trained here. Needs the extra `serve`.

python benchmarks/serving.py
python benchmarks/serving.py --seconds 5 --rate 500 --kills 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import psutil

import l2d
from l2d.data.terminal.render import print_rows
from l2d.rejector.serving.app import make_app
from l2d.rejector.serving.service import Service

CLIENTS = 4


def runs(folder: Path) -> dict[str, Path]:
    """One of the default method, and two networks."""
    cache = l2d.build("support2", folder / "cache")
    for name, options in {"best": {}, "linear": {"network": "linear"}, "mlp": {"network": "mlp"}}.items():
        method = {} if name == "best" else {"method": "multi-task", "epochs": 5}
        l2d.train(cache, folder / name, **method, **options)
    return {name: folder / name for name in ("best", "linear", "mlp")}


def table() -> pl.DataFrame:
    return pl.read_parquet(Path(l2d.__file__).parent / "data" / "support2" / "support2.parquet")


def latencies(found: dict[str, Path], folder: Path) -> list[dict]:
    """Microseconds of processor time a decision, the best of five rounds; and whether bits are those of `l2d route`."""
    frame = table()
    source = folder / "rows.parquet"
    frame.write_parquet(source)
    rows, answers = frame.to_dicts(), []
    for name, run in found.items():
        started = time.perf_counter()
        router = l2d.load_router(run)
        opened = time.perf_counter() - started
        l2d.route(run, source, folder / "out.parquet", overwrite=True)
        expected = pl.read_parquet(folder / "out.parquet").select(pl.col("^score_.*$")).to_numpy()
        decisions = router.route_batch(rows)
        same = np.array_equal(np.stack([one.scores for one in decisions]), expected)
        features = [one.features for one in decisions[:500]]
        kept = {"row": rows[:500], "features": features}
        best = {}
        for what, given in kept.items():
            times = []
            for _ in range(5):
                started = time.process_time()
                for one in given:
                    router.route(one)
                times.append((time.process_time() - started) / len(given))
            best[what] = 1e6 * min(times)
        answers.append(
            {
                "run": name, "opened in s": opened, "µs a row of 29 columns": best["row"],
                "µs from features": best["features"], "rows": len(rows), "bits of route": same,
            }
        )  # fmt: skip
    return answers


class Server:
    """A server in a process of its own."""

    def __init__(self, run: Path, log: Path):
        command = [sys.executable, "-m", "l2d.cli", "serve", run, "--port", "0", "--log", log, "--explore", "0.02"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert self.process.stderr is not None
        self.port = int(re.findall(r"http://[\d.]+:(\d+)", self.process.stderr.readline())[0])

    @property
    def seconds(self) -> float:
        """Of processor time so far, of all its threads."""
        used = psutil.Process(self.process.pid).cpu_times()
        return used.user + used.system

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(60)


class Clients:
    """Four connections of one thread, each of which asks again when it has been answered, together at a rate."""

    def __init__(self, port: int, bodies: list[bytes], rate: float):
        self.requests = [
            b"POST /route HTTP/1.1\r\nHost: l\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body) for body in bodies
        ]
        self.rate, self.ids, self.times, self.wrong = rate, list[str](), list[float](), 0
        self._chooser = selectors.DefaultSelector()
        self._sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(CLIENTS)]
        for place, one in enumerate(self._sockets):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._chooser.register(one, selectors.EVENT_READ, place)

    def run(self, seconds: float, each: Callable[[], None] = lambda: None) -> None:
        """Until the time is over or the server is gone; ``each`` is called after every answer."""
        free, begun, content = list(range(CLIENTS)), [0.0] * CLIENTS, [b""] * CLIENTS
        sent, started = 0, time.perf_counter()
        try:
            while (now := time.perf_counter()) < started + seconds or len(free) < CLIENTS:
                over = now >= started + seconds
                while free and not over and now >= started + sent / self.rate:
                    place = free.pop()
                    begun[place] = time.perf_counter()
                    self._sockets[place].sendall(self.requests[sent % len(self.requests)])
                    sent += 1
                due = max(0.0, started + sent / self.rate - now) if free and not over else 1.0
                for key, _ in self._chooser.select(min(due, 0.05)):
                    more = self._sockets[key.data].recv(65_536)
                    if not more:
                        raise ConnectionResetError
                    content[key.data] += more
                    if self._answered(content[key.data]):
                        self.times.append(time.perf_counter() - begun[key.data])
                        content[key.data] = b""
                        free.append(key.data)
                        each()
        except ConnectionError:
            pass  # a server that was killed: what it has not answered, it has not acknowledged
        finally:
            for one in self._sockets:
                one.close()

    def _answered(self, content: bytes) -> bool:
        head, end, body = content.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.rpartition(b"content-length: ")[2].partition(b"\r")[0]):
            return False
        if head.startswith(b"HTTP/1.1 200"):
            self.ids.append(body[7 : body.index(b'"', 7)].decode())  # {"id":"…"
        else:
            self.wrong += 1
        return True


def loaded(run: Path, folder: Path, rate: float, seconds: float, reloads: int) -> dict:
    """What a server answers at a rate; 0: as many as it can."""
    log = folder / f"log {run.name} {reloads} {rate}"
    server, bodies = Server(run, log), [json.dumps({"input": row}).encode() for row in table().head(1000).to_dicts()]
    Clients(server.port, bodies, rate or 1e9).run(1.0)
    clients, left, every = Clients(server.port, bodies, rate or 1e9), [reloads], seconds / (reloads + 1)
    started, used, own = time.perf_counter(), server.seconds, time.process_time()

    def each() -> None:
        if left[0] and time.perf_counter() > started + every * (reloads + 1 - left[0]):
            left[0] -= 1
            server.process.send_signal(signal.SIGHUP)

    clients.run(seconds, each)
    took = time.perf_counter() - started
    used, own = server.seconds - used, time.process_time() - own
    server.end()
    logged, n = set(l2d.read_log(log).decisions["id"]), max(1, len(clients.times))
    quantiles = 1000 * np.quantile(clients.times, [0.5, 0.99, 1.0])
    return {
        "run": run.name, "reloads": reloads - left[0], "asked for a second": rate or None,
        "answered a second": n / took,
        "median ms": quantiles[0], "p99 ms": quantiles[1], "most ms": quantiles[2],
        "server's processor ms": 1000 * used / n, "clients' processor ms": 1000 * own / n,
        "refused or lost": clients.wrong, "answered and not logged": len(set(clients.ids) - logged),
    }  # fmt: skip


def alone(run: Path, folder: Path) -> dict:
    """Microseconds of processor time a request takes of the application, without a network: the best of ten rounds."""
    log, rows = l2d.DecisionLog(folder / f"alone {run.name}"), table().head(500).to_dicts()
    service = Service(lambda: l2d.load_router(run, log=log, explore=0.02), log=log)
    app, bodies, best = make_app(service), [json.dumps({"input": row}).encode() for row in rows], []
    scope = {"type": "http", "path": "/route", "method": "POST", "headers": [(b"content-length", b"500")]}

    async def send(message: object) -> None:
        pass

    async def rounds() -> None:
        await service.start()
        for _ in range(10):
            started = time.process_time()
            for body in bodies:

                async def receive(body: bytes = body) -> dict:
                    return {"type": "http.request", "body": body, "more_body": False}

                await app(scope, receive, send)
            best.append(1e6 * (time.process_time() - started) / len(bodies))
        await service.stop()

    asyncio.run(rounds())
    return {"run": run.name, "µs a request": min(best)}


def killed(run: Path, folder: Path, kills: int) -> dict:
    """Kill -9 a server under load again and again; every id that was answered has to be in the log."""
    answered: list[str] = []
    bodies = [json.dumps({"input": row}).encode() for row in table().head(200).to_dicts()]
    generator = np.random.default_rng(0)
    for _ in range(kills):
        server = Server(run, folder / "killed")
        clients, left = Clients(server.port, bodies, 1e9), [int(generator.integers(5, 400))]

        def each(server: Server = server, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                server.process.kill()

        clients.run(30, each)
        server.end(signal.SIGKILL)
        answered += clients.ids
    found = l2d.read_log(folder / "killed").decisions["id"].to_list()
    return {
        "kills": kills, "answered": len(answered), "lost": len(set(answered) - set(found)),
        "twice": len(found) - len(set(found)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=2000, help="requests a second, of all clients")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--reloads", type=int, default=10)
    parser.add_argument("--kills", type=int, default=100)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        found = runs(folder)
        one = latencies(found, folder)
        print_rows(one)
        print_rows([alone(found[name], folder) for name in found])
        under = [
            loaded(found[name], folder, asked.rate, asked.seconds, reloads)
            for name in ("linear", "best")
            for reloads in (0, asked.reloads)
        ] + [loaded(found[name], folder, 0, asked.seconds, 0) for name in ("linear", "best")]
        print_rows(under)
        kills = killed(found["linear"], folder, asked.kills)
        print_rows([kills])
    finally:
        shutil.rmtree(folder)
    lost = sum(row["refused or lost"] + row["answered and not logged"] for row in under) + kills["lost"]
    at_rate = [row for row in under if row["asked for a second"]]
    facts = {"rate": asked.rate, "least_answered": min(row["answered a second"] for row in at_rate)}
    print(json.dumps({**facts, "most_p99_ms": max(row["p99 ms"] for row in at_rate), "lost": lost}))


if __name__ == "__main__":
    main()
