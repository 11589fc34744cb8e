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
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

import l2d
from l2d.data.terminal.render import print_rows

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

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(60)


async def client(port: int, bodies: list[bytes], rate: float, until: float, ids: list[str], times: list[float]) -> int:
    """Requests one after another on one connection, so many a second; returns how many were refused or lost."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    wrong, number, started = 0, 0, time.perf_counter()
    try:
        while (now := time.perf_counter()) < until:
            due = started + number / rate
            if due > now:
                await asyncio.sleep(due - now)
            body = bodies[number % len(bodies)]
            begun = time.perf_counter()
            writer.write(b"POST /route HTTP/1.1\r\nHost: l\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.findall(rb"content-length: (\d+)", head.lower())[0])
            answer = await reader.readexactly(length)
            times.append(time.perf_counter() - begun)
            if head.startswith(b"HTTP/1.1 200"):
                ids.append(json.loads(answer)["id"])
            else:
                wrong += 1
            number += 1
    except (OSError, asyncio.IncompleteReadError):
        wrong += 1  # of a server that was killed
    finally:
        writer.close()
    return wrong


def load(
    server: Server, bodies: list[bytes], rate: float, seconds: float, reloads: int = 0
) -> tuple[list[str], list[float], int]:
    """Ids answered, seconds of each request, and how many were refused or lost."""
    ids: list[str] = []
    times: list[float] = []

    async def all_of_them() -> int:
        until = time.perf_counter() + seconds
        tasks = [
            asyncio.create_task(client(server.port, bodies[k:], rate / CLIENTS, until, ids, times))
            for k in range(CLIENTS)
        ]
        for _ in range(reloads):
            await asyncio.sleep(seconds / (reloads + 1))
            server.process.send_signal(signal.SIGHUP)
        return sum(await asyncio.gather(*tasks))

    return ids, times, asyncio.run(all_of_them())


def loaded(run: Path, folder: Path, rate: float, seconds: float, reloads: int) -> dict:
    server = Server(run, folder / f"log {run.name} {reloads}")
    bodies = [json.dumps({"input": row}).encode() for row in table().head(1000).to_dicts()]
    load(server, bodies, rate, 1.0)
    ids, times, wrong = load(server, bodies, rate, seconds, reloads)
    server.end()
    logged = set(l2d.read_log(folder / f"log {run.name} {reloads}").decisions["id"])
    quantiles = 1000 * np.quantile(times, [0.5, 0.99, 1.0])
    return {
        "run": run.name, "reloads": reloads, "asked for a second": rate, "answered a second": len(ids) / seconds,
        "median ms": quantiles[0], "p99 ms": quantiles[1], "most ms": quantiles[2], "refused or lost": wrong,
        "answered and not logged": len(set(ids) - logged),
    }  # fmt: skip


def killed(run: Path, folder: Path, kills: int) -> dict:
    """Kill -9 a server under load again and again; every id that was answered has to be in the log."""
    answered: list[str] = []
    bodies = [json.dumps({"input": row}).encode() for row in table().head(200).to_dicts()]
    generator = np.random.default_rng(0)
    for _ in range(kills):
        server = Server(run, folder / "killed")

        async def until_killed(server: Server = server) -> None:
            until = time.perf_counter() + 30
            tasks = [
                asyncio.create_task(client(server.port, bodies[k:], 1000.0, until, answered, []))
                for k in range(CLIENTS)
            ]
            await asyncio.sleep(float(generator.uniform(0.05, 0.4)))
            server.process.kill()
            await asyncio.gather(*tasks)

        asyncio.run(until_killed())
        server.process.wait()
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
        under = [
            loaded(found[name], folder, asked.rate, asked.seconds, reloads)
            for name in ("linear", "best")
            for reloads in (0, asked.reloads)
        ]
        print_rows(under)
        kills = killed(found["linear"], folder, asked.kills)
        print_rows([kills])
    finally:
        shutil.rmtree(folder)
    lost = sum(row["refused or lost"] + row["answered and not logged"] for row in under) + kills["lost"]
    facts = {"rate": asked.rate, "least_answered": min(row["answered a second"] for row in under)}
    print(json.dumps({**facts, "most_p99_ms": max(row["p99 ms"] for row in under), "lost": lost}))


if __name__ == "__main__":
    main()
