"""Pushes and fetches against a real S3 server on loopback: killed, and damaged on the store. Prints what was seen.

``python tests/reliability/stores.py [SCALE]`` starts moto's server; ``--endpoint http://127.0.0.1:9000`` takes another
one, which may hold nothing of worth. Needs s3fs, and moto[server] for its own server. SCALE multiplies the counts:
100 kills of a push and of a fetch, 20 of one of two builders, 1,000 changes of a byte, 100 deletions.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

from processes import fork, kill_group
from small import Outcome, World, contents, reference, same, scratch, truth

BUCKET = "l2d-reliability"
URL = f"s3://{BUCKET}/here/copy"
CLIENT = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1"}


class Server:
    """moto's server, with every upload that it has taken whole counted by name; or another one, uncounted."""

    def __init__(self, endpoint: str | None):
        self.puts: Counter[str] | None = None
        if endpoint is None:
            endpoint = self._start()
        for name, value in CLIENT.items():
            os.environ.setdefault(name, value)
        os.environ["AWS_ENDPOINT_URL"] = endpoint
        import s3fs

        self.files = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        if not self.files.exists(BUCKET):
            self.files.mkdir(BUCKET)
        self.clear()

    def _start(self) -> str:
        from threading import Thread

        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        application, self.puts = DomainDispatcherApplication(create_backend_app), Counter()

        def counted(environment, start_response):
            def started(status, headers, *more):
                if environment["REQUEST_METHOD"] == "PUT" and status.startswith("200"):
                    self.puts[environment["PATH_INFO"]] += 1
                return start_response(status, headers, *more)

            return application(environment, started)

        class Quiet(WSGIRequestHandler):
            def log(self, *_) -> None:
                pass

        server = make_server("127.0.0.1", 0, counted, threaded=True, request_handler=Quiet)
        Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    def clear(self) -> None:
        for name in self.files.find(f"{BUCKET}/here"):
            self.files.rm_file(name)
        if self.puts is not None:
            self.puts.clear()

    def held(self) -> dict[str, bytes]:
        start = len(f"{BUCKET}/here/copy/")
        names = (name for name in self.files.find(f"{BUCKET}/here/copy") if not name.endswith("croissant.json"))
        return {name[start:]: self.files.cat_file(name) for name in names}


def local(folder: Path) -> dict[str, bytes]:
    """Files that have their final name."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def pushed(cache: str) -> None:
    from l2d.data.library import push

    push(cache, URL)


def fetched(out: str) -> None:
    from l2d.data.library import fetch

    fetch(URL, out)


def kill_pushes(server: Server, cache: Path, kills: int, generator: random.Random) -> Outcome:
    """Kill a push again and again until it is through, then begin anew; look at the store after each kill."""
    outcome, whole, sent_twice, since = Outcome(), local(cache), 0, 0
    server.clear()
    while outcome.cases < kills:
        process = fork(pushed, str(cache))
        process.join(0.3 + generator.random() * 2.5)
        if process.is_alive():
            kill_group(process)
            process.join()
            outcome.cases, since = outcome.cases + 1, since + 1
        held = server.held()
        for name, content in held.items():
            outcome.expect(content == whole.get(name), f"{name} is half there")
        outcome.expect("cache.json" not in held or held == whole, "cache.json is there before the rest")
        if process.exitcode == 0:
            outcome.expect(held == whole, "a push that ended well left something out")
            if server.puts is not None:
                twice = sum(count - 1 for count in server.puts.values())
                outcome.expect(twice <= since, f"{twice} uploads again after {since} kills")
                sent_twice += twice
            server.clear()
            since = 0
    outcome.note = f"{sent_twice} uploads again" if server.puts is not None else ""
    return outcome


def kill_fetches(server: Server, cache: Path, kills: int, generator: random.Random) -> Outcome:
    """The same of a fetch, looking at the local folder."""
    outcome, whole = Outcome(), local(cache)
    server.clear()
    pushed(str(cache))
    with scratch() as folder:
        out = folder / "copy"
        while outcome.cases < kills:
            process = fork(fetched, str(out))
            process.join(0.3 + generator.random() * 2.5)
            if process.is_alive():
                kill_group(process)
                process.join()
                outcome.cases += 1
            held = local(out)
            for name, content in held.items():
                outcome.expect(content == whole.get(name), f"{name} is half there")
            outcome.expect("cache.json" not in held or held == whole, "cache.json is there before the rest")
            if process.exitcode == 0:
                outcome.expect(held == whole, "a fetch that ended well left something out")
                outcome.expect(not list(folder.rglob("*.tmp")), "temporary files are left")
                shutil.rmtree(out)
    return outcome


def built_together(recipe: str, out: str, shard: str) -> None:
    from l2d.cache_builder.library import run_build

    run_build(recipe, out, device="cpu", shard=shard, share=URL)


def kill_builders(server: Server, kills: int, generator: random.Random) -> Outcome:
    """Two builders that share nothing but the store, one of them killed: the cache has to be that of one builder."""
    from l2d.data.library import fetch

    outcome, expected, rounds = Outcome(), truth(reference()), 0
    while outcome.cases < kills:
        server.clear()
        with scratch() as folder:
            world = World(folder / "world", pause=0.05)
            folders = {f"{k}/2": str(folder / f"builder {k}") for k in (1, 2)}

            def begin(shard: str, recipe: str = str(world.recipe_file), folders: dict[str, str] = folders):
                return fork(built_together, recipe, folders[shard], shard)

            running = {shard: begin(shard) for shard in folders}
            victim = generator.choice(sorted(running))
            running[victim].join(0.5 + generator.random() * 4)
            if running[victim].is_alive():
                kill_group(running[victim])
                running[victim].join()
                outcome.cases += 1
                running[victim] = begin(victim)
            for shard, process in running.items():
                process.join()
                outcome.expect(process.exitcode == 0, f"builder {shard} ended with {process.exitcode}")
            last = begin("1/2")  # both may have ended before they saw all of each other
            last.join()
            held = server.held()
            outcome.expect("cache.json" in held, "the cache is not finished")
            outcome.expect(not [name for name in held if "building" in name], "what builders needed is left")
            if "cache.json" in held:
                fetch(URL, folder / "copy").verify()
                found = contents(folder / "copy")
                wrong = [name for name in expected if not same(found.get(name), expected[name])]
                outcome.expect(not wrong and found.keys() == expected.keys(), f"another cache: {wrong[:3]}")
            rounds += 1
    outcome.note = f"{rounds} caches"
    return outcome


def damage(server: Server, cache: Path, changes: int, deletions: int, generator: random.Random) -> Outcome:
    """Change a byte of an object, or delete it: a fetch must notice, and one push repair it."""
    from l2d.data.errors import L2DError
    from l2d.data.library import fetch, push

    outcome, whole = Outcome(), local(cache)
    server.clear()
    push(cache, URL)
    with scratch() as folder:
        for case in range(changes + deletions):
            name = generator.choice(sorted(whole))
            where = f"{BUCKET}/here/copy/{name}"
            if case < changes:
                content = bytearray(whole[name])
                content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
                server.files.pipe_file(where, bytes(content))
            else:
                server.files.rm_file(where)
            outcome.cases += 1
            try:
                fetch(URL, folder / "copy")
                outcome.problems.append(f"{name}: a fetch noticed nothing")
            except L2DError:
                pass
            shutil.rmtree(folder / "copy", ignore_errors=True)
            copied = push(cache, URL)
            outcome.expect(copied == 1 and server.files.cat_file(where) == whole[name], f"{name}: not repaired")
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scale", nargs="?", type=float, default=1.0)
    parser.add_argument("--endpoint", help="of another S3 server on loopback")
    parser.add_argument("--only", default="", help="checks whose name has this in it")
    arguments = parser.parse_args()

    def times(count: int) -> int:
        return max(2, round(count * arguments.scale))

    generator, server, bad = random.Random(0), Server(arguments.endpoint), 0
    with scratch() as folder:
        world = World(folder / "world", asked=False)
        world.build()
        checks = {
            "kill -9 of a push": lambda: kill_pushes(server, world.out, times(100), generator),
            "kill -9 of a fetch": lambda: kill_fetches(server, world.out, times(100), generator),
            "kill -9 of one of two builders": lambda: kill_builders(server, times(20), generator),
            "a byte changed, or an object deleted": lambda: damage(
                server, world.out, times(1000), times(100), generator
            ),
        }
        digest = hashlib.sha256(repr(sorted(local(world.out).items())).encode()).hexdigest()
        print("| on the store | cases | problems | | seconds |\n| --- | ---: | ---: | --- | ---: |")
        for name, check in ((name, check) for name, check in checks.items() if arguments.only in name):
            begun = time.monotonic()
            outcome = check()
            seconds = time.monotonic() - begun
            print(
                f"| {name} | {outcome.cases:,} | {len(outcome.problems)} | {outcome.note} | {seconds:.0f} |", flush=True
            )
            bad += len(outcome.problems)
            if outcome.problems:
                print(outcome.shown(), file=sys.stderr)
        if hashlib.sha256(repr(sorted(local(world.out).items())).encode()).hexdigest() != digest:
            print("the cache itself has changed", file=sys.stderr)
            bad += 1
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
