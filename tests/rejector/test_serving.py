"""The router over HTTP: the decisions of the router itself, and errors that say what, where and what next."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import polars as pl
import pytest

import l2d
from l2d.data.errors import UsageError

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("httpx2")

from fastapi.testclient import TestClient

from l2d.rejector.serving.app import make_app
from l2d.rejector.serving.log import DecisionLog
from l2d.rejector.serving.server import serve
from l2d.rejector.serving.service import Busy, Service

ROW = {"x1": 1.0, "x2": None, "ward": "a"}


@pytest.fixture
def client(patient_runs, tmp_path):
    """A client of a server of the linear run, with a log at ``tmp_path / "log"``."""
    log = DecisionLog(tmp_path / "log")
    service = Service(lambda: l2d.load_router(patient_runs / "linear", log=log), log=log)
    with TestClient(make_app(service, max_body=20_000, max_batch=50)) as client:
        yield client


def test_decisions_are_those_of_the_router(client, patient_runs, tmp_path):
    rows = pl.read_parquet(patient_runs / "patients.parquet").select("x1", "x2", "ward").to_dicts()[:40]
    router = l2d.load_router(patient_runs / "linear")
    expected = [router.route(row) for row in rows]
    for row, one in zip(rows[:5], expected, strict=False):
        answer = client.post("/route", json={"input": row, "id": "mine", "reason": True}).json()
        assert answer.pop("id")
        assert answer == one.to_json(reason=True)
    together = client.post("/route/batch", json={"inputs": rows, "available": router.agents[:2]}).json()["decisions"]
    for answer, row in zip(together, rows, strict=True):
        assert answer.pop("id")
        assert answer == router.route(row, available=router.agents[:2]).to_json()
    assert client.post("/route", json={"input": ROW, "cap": 0.0}).json()["price"] == 0.0


def test_feedback_is_logged(client, tmp_path):
    answer = client.post("/route", json={"input": ROW, "id": "mine"}).json()
    done = client.post("/feedback", json={"id": answer["id"], "cost": {"cla": 1.0}, "paid": 0.5, "seconds": 2})
    assert (done.status_code, done.json()) == (200, {"id": answer["id"]})
    (found,) = l2d.read_log(tmp_path / "log").decisions.to_dicts()
    assert (found["id"], found["input"], found["cost"], found["paid"], found["took"]) == (
        answer["id"], "mine", 1.0, 0.5, 2.0,
    )  # fmt: skip


REFUSED = [
    ("/route", b"{", 400, "not JSON"),
    ("/route", b'{"input": {"x1": NaN, "x2": 1, "ward": "a"}}', 400, "NaN is no number; what is missing is null"),
    ("/route", b"\xff\xfe", 400, "not JSON"),
    ("/route", b"[" * 10_000, 400, "not JSON"),
    ("/route", b"[1]", 422, "not a JSON object"),
    ("/route", b"{}", 422, "there is no 'input'"),
    ("/route", {"input": ROW, "capp": 1}, 422, "capp"),
    ("/route", {"input": {"x1": 1.0, "ward": "a"}}, 422, "there is no column 'x2'"),
    ("/route", {"input": {**ROW, "x1": "high"}}, 422, "'x1' is 'high', it was a number"),
    ("/route", {"input": {**ROW, "ward": ["a"]}}, 422, "ward"),
    ("/route", {"input": {**ROW, "x1": 1e308}}, 422, "32-bit"),
    ("/route", b'{"input": {"x1": 1' + b"0" * 5000 + b', "x2": 1, "ward": "a"}}', 400, "not JSON"),
    ("/route", {"input": "words"}, 400, "a text alone"),
    ("/route", {"input": 3}, 422, "not int"),
    ("/route", {"input": ROW, "available": ["nobody"]}, 400, "no agent 'nobody'"),
    ("/route", {"input": ROW, "available": "model"}, 400, "list of agents"),
    ("/route", {"input": ROW, "cap": "much"}, 400, "cap"),
    ("/route", {"input": ROW, "id": 3}, 400, "`id` is a text"),
    ("/route", {"input": ROW, "reason": 1}, 400, "`reason`"),
    ("/route", b'{"input": "' + b"x" * 30_000 + b'"}', 413, "more than 20,000 bytes"),
    ("/route/batch", {"inputs": []}, 422, "`inputs`"),
    ("/route/batch", {"inputs": [ROW] * 51}, 422, "`inputs`"),
    ("/route/batch", {"inputs": [ROW, {**ROW, "x1": "high"}]}, 422, "'x1' is 'high'"),
    ("/feedback", {"id": "nonsense", "cost": 1}, 404, "there is no decision 'nonsense'"),
    ("/feedback", {"id": 3, "cost": 1}, 422, "`id`"),
    ("/feedback", {"id": "nonsense"}, 422, "nothing is said"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "said"), REFUSED, ids=range(len(REFUSED)))
def test_bad_input_is_told_what_where_and_what_next(client, tmp_path, path, body, status, said):
    answer = client.post(path, content=body if isinstance(body, bytes) else json.dumps(body))
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert said in error["what"]
    assert set(error) == {"what", "where", "next"}
    assert error["where"]
    assert error["next"]
    assert l2d.read_log(tmp_path / "log").decisions.is_empty()  # of a batch with a bad input none is decided
    if path == "/route/batch" and "high" in said:
        assert error["where"] == "input 1 of this request"


def test_another_method_and_another_path_are_refused(client):
    answer = client.get("/route")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["next"] == "send POST"
    assert client.post("/nowhere").status_code == 404


def test_a_body_that_says_no_length_is_cut_off(client):
    assert client.post("/route", content=(b" " * 1000 for _ in range(30))).status_code == 413


def test_costs_that_are_none_are_refused(client):
    known = client.post("/route", json={"input": ROW}).json()["id"]
    for cost in (-1, "much", True, {"clas": 1}, [1]):
        answer = client.post("/feedback", json={"id": known, "cost": cost})
        assert 400 <= answer.status_code < 500, cost
        assert "cost" in answer.json()["error"]["what"]


def test_what_is_counted_and_shown(client):
    for _ in range(3):
        chosen = client.post("/route", json={"input": ROW}).json()["agent"]
    client.post("/route", content=b"{")
    text = client.get("/metrics").text
    assert f'l2d_decisions_total{{agent="{chosen}"}} 3.0' in text
    assert 'l2d_requests_total{path="/route",status="400"} 1.0' in text
    health = client.get("/health").json()
    assert (health["status"], health["columns"]) == ("ok", ["x1", "x2", "ward"])
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/route", "/route/batch", "/next", "/feedback", "/health", "/metrics", "/reload"}
    assert paths["/route"]["post"]["requestBody"]["content"]["application/json"]["schema"]["required"] == ["input"]
    assert client.get("/docs").status_code == 200


def test_a_key_is_asked_for(patient_runs):
    service = Service(lambda: l2d.load_router(patient_runs / "linear"))
    with TestClient(make_app(service, key="secret")) as client:
        assert client.get("/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-API-Key": "sécret".encode()}):
            for path in ("/route", "/feedback", "/reload"):
                assert client.post(path, json={"input": ROW}, headers=headers).status_code == 401
            assert client.get("/metrics", headers=headers).status_code == 401
        for headers in ({"Authorization": "Bearer secret"}, {"X-API-Key": "secret"}):
            assert client.post("/route", json={"input": ROW}, headers=headers).status_code == 200


def test_a_run_is_opened_again_and_a_broken_one_is_not(patient_runs, tmp_path):
    shutil.copytree(patient_runs / "linear", tmp_path / "run")
    service = Service(lambda: l2d.load_router(tmp_path / "run"))
    with TestClient(make_app(service)) as client:
        before = client.get("/health").json()["digest"]
        shutil.rmtree(tmp_path / "run")
        shutil.copytree(patient_runs / "mlp", tmp_path / "run")
        assert client.get("/health").json()["digest"] == before
        assert client.post("/reload").json()["digest"] != before
        (tmp_path / "run" / "rejector.safetensors").write_bytes(b"no weights")
        answer = client.post("/reload")
        assert (answer.status_code, answer.json()["error"]["what"]) == (422, "is not the file that was written")
        assert client.post("/route", json={"input": ROW}).status_code == 200


def test_a_full_queue_and_a_late_turn_are_refused(patient_runs):
    async def full() -> None:
        service = Service(lambda: l2d.load_router(patient_runs / "linear"), queue=2, timeout=0.05)
        ask = {"available": None, "cap": None}
        waiting = [asyncio.create_task(service.decide([ROW], **ask)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="2 requests wait"):
            await service.decide([ROW], **ask)
        await asyncio.sleep(0.1)
        await service.start()  # too late for these
        for task in waiting:
            with pytest.raises(Busy, match=r"more than 0\.05 s"):
                await task
        assert len(await service.decide([ROW] * 40, **ask)) == 40
        await service.stop()

    asyncio.run(full())


def test_the_server_is_not_opened_to_others_by_mistake(patient_runs, monkeypatch):
    monkeypatch.delenv("L2D_API_KEY", raising=False)
    with pytest.raises(UsageError, match="others could ask"):
        serve(patient_runs / "linear", host="0.0.0.0")
    with pytest.raises(UsageError, match="not heard"):
        serve(patient_runs / "linear", shadow=patient_runs / "best")


def test_the_command_serves_until_it_is_told_to_end(patient_runs, tmp_path):
    command = [
        sys.executable,
        "-m",
        "l2d.cli",
        "serve",
        patient_runs / "best",
        "--port",
        "0",
        "--log",
        tmp_path / "log",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent)
    try:
        said = process.stderr.readline()
        (url,) = re.findall(r"http://127\.0\.0\.1:\d+", said)
        body = json.dumps({"input": ROW}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{url}/route", body), timeout=20) as answer:
            assert json.load(answer)["agent"] == l2d.load_router(patient_runs / "best").route(ROW).agent
        process.send_signal(signal.SIGHUP)
        assert process.stderr.readline().startswith("opened again: ")
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(20)
        process.stderr.close()
    assert not list((tmp_path / "log" / "journals").iterdir())
    assert l2d.read_log(tmp_path / "log").decisions.height == 1
