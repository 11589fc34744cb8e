"""Servers killed, or told to open their run again, under load: nothing acknowledged is lost, no request dropped."""

from __future__ import annotations

import pytest
from servers import kill_servers, reload_servers

pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
pytestmark = pytest.mark.slow


def test_killed_servers_lose_nothing_that_they_acknowledged():
    outcome = kill_servers(3)
    assert not outcome.problems, outcome.shown()
    assert outcome.cases == 3


def test_a_server_that_writes_late_is_noticed():
    assert kill_servers(2, sabotage="late").problems


def test_a_reload_drops_no_request():
    outcome = reload_servers(2)
    assert not outcome.problems, outcome.shown()
    assert reload_servers(2, sabotage="deaf").problems
