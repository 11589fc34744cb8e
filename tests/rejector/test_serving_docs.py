"""The server's page `/docs`, as a browser shows it: what it understands, to be tried, with nothing from elsewhere."""

from __future__ import annotations

import json
import threading
import time

import chromium
import pytest
import uvicorn

import l2d
from l2d.rejector.serving.app import DOCS, make_app
from l2d.rejector.serving.service import Service

READY = "document.body.dataset.ready"


@pytest.fixture
def address(patient_runs):
    """Of a server in a thread of this process."""
    app = make_app(Service(lambda: l2d.load_router(patient_runs / "best")))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_the_page_names_no_other_place():
    text = DOCS.read_text(encoding="utf-8")
    assert "//" not in text.replace("</", "")
    assert "innerHTML" not in text  # what a server says is text


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.skipif(chromium.BROWSER is None, reason="no Chromium here")
def test_a_decision_can_be_asked_for_in_a_browser(address, tmp_path):
    browser = chromium.Chromium(tmp_path / "profile")
    try:
        browser.open(f"{address}/docs", width=1000, scheme="light", ready=READY)
        assert {url.removeprefix(address) for url in browser.requests()} <= {
            "/docs", "/openapi.json", "/health", "/favicon.ico"
        }  # fmt: skip
        shown = browser.ask("[...document.querySelectorAll('summary code')].map(one => one.textContent)")
        assert shown[:4] == ["/route", "/route/batch", "/next", "/feedback"]
        asked = json.loads(browser.ask("document.querySelector('textarea').value"))
        assert asked["input"] == {"x1": None, "x2": None, "ward": None}
        browser.ask("document.querySelector('button').click()")
        deadline = time.monotonic() + 30
        while not (text := browser.ask("document.querySelector('pre').textContent")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first, _, answer = text.partition("\n")
        assert first.startswith("200")
        assert json.loads(answer)["agent"] in json.loads(answer)["ranked"]
        assert [one for one in browser.complaints() if "favicon" not in one] == []
    finally:
        browser.close()
