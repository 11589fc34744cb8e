"""Training from an object store against training from a folder: bytes, requests, room on the disk, and the same run.

    python benchmarks/from_store.py [--rows 200000] [--chunk 32768] [--epochs 3]

Needs the extra ``stores``. moto's S3 server runs on loopback and counts every byte of every body that it sends. The
cache has 64 features, three agents and three tasks, and eight kept columns that training does not read. What training
needs are the pages of the columns that it reads; what it gets on top are footers, page heads, records and seals.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
BUCKET = "l2d-benchmark"


class Server:
    """moto's S3 server, which counts what it sends."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        application = DomainDispatcherApplication(create_backend_app)
        self.sent = self.requests = 0
        lock = threading.Lock()

        def counted(environment, start_response):
            blocks = list(application(environment, start_response))
            if environment["REQUEST_METHOD"] == "GET":
                with lock:
                    self.sent += sum(map(len, blocks))
                    self.requests += 1
            return blocks

        class Quiet(WSGIRequestHandler):
            def log(self, *_) -> None:
                pass

        server = make_server("127.0.0.1", 0, counted, threaded=True, request_handler=Quiet)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{server.server_port}"
        import s3fs

        s3fs.S3FileSystem().mkdir(BUCKET)


def needed(cache) -> int:
    """Bytes of the pages that training reads."""
    import pyarrow.parquet as pq

    from l2d.data.cache import schema
    from l2d.data.cache.integrity import leaves_of

    total, costs = 0, [schema.COST_COLUMNS[task] for task in cache.record.tasks]
    for chunk in range(cache.record.num_chunks):
        parts = [(schema.samples_part(cache.path, chunk), ["sample_id", "split", "features"])]
        for agent in cache.agents:
            parts.append((schema.costs_part(cache.path, agent.name, chunk, cache.record.cost_digest), costs))
        for part, columns in parts:
            found = pq.read_metadata(part)
            for group in map(found.row_group, range(found.num_row_groups)):
                total += sum(group.column(leaf).total_compressed_size for leaf in leaves_of(found, columns))
    return total


@contextmanager
def watched(folder: Path) -> Iterator[list[int]]:
    """What is kept in a folder, looked up again and again until the end."""
    from l2d.data.cache.kept import size_of

    sizes, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            sizes.append(size_of(folder))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield sizes
    finally:
        done.set()
        watcher.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--chunk", type=int, default=32_768)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()

    from streaming import make_cache

    import l2d
    from l2d.data.cache import kept, mirror
    from l2d.data.cache.reader import CostCache

    server, url = Server(), f"s3://{BUCKET}/caches/random"
    settings = {"method": "multi-task", "network": "linear", "epochs": given.epochs, "device": "cpu"}
    with tempfile.TemporaryDirectory(prefix="l2d-from-store-") as name:
        folder = Path(name)
        make_cache(folder / "cache", given.rows, given.chunk, train=0.6, kept=8)
        cache = CostCache(folder / "cache")
        whole = sum(part.stat().st_size for part in cache.parts())
        l2d.push(cache, url)
        pages = needed(cache)
        print(f"parts: {whole / 1e6:,.1f} MB; pages that training reads: {pages / 1e6:,.1f} MB\n")
        print("| from | MB read | times what is needed | requests | MB kept at most | same run | seconds |")
        print("| --- | ---: | ---: | ---: | ---: | --- | ---: |")
        begun = time.perf_counter()
        l2d.train(cache, folder / "run", **settings)
        print(f"| the folder | | | | | | {time.perf_counter() - begun:.1f} |", flush=True)
        for label, limit in (
            ("the store", "10GB"),
            ("the store again", "10GB"),
            ("the store, little room", f"{pages // 4}B"),
        ):
            if label != "the store again":
                os.environ["L2D_PARTS_FOLDER"] = str(folder / f"parts {label}")
            os.environ["L2D_PARTS_LIMIT"] = limit
            mirror.forget_mirrors()
            server.sent = server.requests = 0
            begun = time.perf_counter()
            with watched(kept.parts_folder()) as sizes:
                l2d.train(url, folder / label, **settings)
            seconds = time.perf_counter() - begun
            files = ("rejector.safetensors", "allocations.parquet")
            same = all((folder / "run" / file).read_bytes() == (folder / label / file).read_bytes() for file in files)
            print(
                f"| {label} | {server.sent / 1e6:,.1f} | {server.sent / pages:.3f} | {server.requests:,} "
                f"| {max(sizes) / 1e6:,.1f} | {'yes' if same else 'NO'} | {seconds:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
