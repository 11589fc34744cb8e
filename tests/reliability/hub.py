"""A cache read from `hf://`: huggingface_hub's own file system against a stand-in of the hub on loopback.

``python tests/reliability/hub.py`` serves a pushed cache as a data set of the hub would (repository, tree, paths and
files with ranges), fetches it, and trains from it where it lies. Needs huggingface_hub. It checks how we use the file
system; that the hub behaves as the stand-in does is what huggingface_hub's own tests are for. Writing is not checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

from small import World, contents, same, scratch

REPO, COMMIT = "somebody/caches", "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """What of the hub's interface a reader asks for. ``root`` is the repository's content."""

    root: Path
    protocol_version = "HTTP/1.1"
    sent = 0

    def log_message(self, *_) -> None:
        pass

    def _entry(self, path: Path) -> dict:
        name = path.relative_to(self.root).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest()}
        content = path.read_bytes()
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(content)), "Content-Type": "application/json"} | (headers or {})
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _missing(self, code: str = "EntryNotFound") -> None:
        self._answer(404, b"{}", {"X-Error-Code": code})

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        if path == f"/api/datasets/{REPO}" or path.startswith(f"/api/datasets/{REPO}/revision/"):
            facts = {"id": REPO, "sha": COMMIT, "siblings": [], "tags": [], "private": False}
            self._answer(200, json.dumps(facts).encode())
        elif path.startswith(f"/api/datasets/{REPO}/tree/"):
            folder = self.root / path.removeprefix(f"/api/datasets/{REPO}/tree/").partition("/")[2]
            if not folder.is_dir():
                self._missing()
                return
            self._answer(200, json.dumps([self._entry(one) for one in sorted(folder.iterdir())]).encode())
        elif f"/datasets/{REPO}/resolve/" in path:
            file = self.root / path.partition("/resolve/")[2].partition("/")[2]
            if not file.is_file():
                self._missing()
                return
            content, status, headers = file.read_bytes(), 200, {}
            if "Range" in self.headers:
                first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
                stop = min(int(last) + 1 if last else len(content), len(content))
                headers = {"Content-Range": f"bytes {first}-{stop - 1}/{len(content)}"}
                content, status = content[int(first) : stop], 206
            Hub.sent += len(content)
            headers |= {"ETag": '"x"', "X-Repo-Commit": COMMIT, "Content-Type": "application/octet-stream"}
            self._answer(status, content, headers)
        else:
            self._missing("RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = unquote(urlparse(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if not path.startswith(f"/api/datasets/{REPO}/paths-info/"):
            self._missing("RepoNotFound")
            return
        if self.headers.get("Content-Type", "").startswith("application/json"):
            asked = json.loads(body)["paths"]
        else:
            asked = [unquote(pair.partition("=")[2]) for pair in body.split("&") if pair.startswith("paths=")]
        asked = [asked] if isinstance(asked, str) else asked
        found = [self.root / name for name in asked]
        self._answer(200, json.dumps([self._entry(one) for one in found if one.exists()]).encode())


def main() -> int:
    with scratch() as folder:
        Hub.root = folder / "repository"
        Hub.root.mkdir()
        server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
        os.environ["HF_HOME"], os.environ["L2D_PARTS_FOLDER"] = str(folder / "hf"), str(folder / "parts")
        import l2d

        world, url = World(folder / "world", rows=400, asked=False), f"hf://datasets/{REPO}/one"
        world.build()
        l2d.push(world.out, str(Hub.root / "one"))
        fetched = l2d.fetch(url, folder / "copy")
        found, expected = contents(fetched.path), contents(world.out)
        good = found.keys() == expected.keys() and all(same(found[name], expected[name]) for name in expected)
        print(f"fetched from {url}: {'the same' if good else 'ANOTHER CACHE'}")
        settings = {"method": "multi-task", "network": "linear", "epochs": 2}
        for name, cache in (("here", world.out), ("there", url)):
            l2d.train(cache, folder / name, **settings)
        weights = [(folder / name / "rejector.safetensors").read_bytes() for name in ("here", "there")]
        print(f"trained where it lies: {'the same run' if weights[0] == weights[1] else 'ANOTHER RUN'}")
        return not (good and weights[0] == weights[1])


if __name__ == "__main__":
    sys.exit(main())
