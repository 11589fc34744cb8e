"""Builders killed with -9 or asked to stop: nothing is lost, and the same command goes on."""

from __future__ import annotations

import signal

import pytest
from kills import interrupts, kill_forked, kill_real
from processes import built_apart, errors_of, fork
from small import World, differences

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("check", "kills"), [(kill_forked, 20), (kill_real, 6)])
def test_a_killed_build_goes_on_and_ends_as_if_undisturbed(check, kills):
    outcome = check(kills)
    assert not outcome.problems, outcome.shown()
    assert outcome.cases >= kills


@pytest.mark.parametrize(("check", "kills"), [(kill_forked, 40), (kill_real, 20)])
def test_kills_are_noticed_where_files_are_written_in_place(check, kills):
    outcome = check(kills, sabotage="in place, slowly")
    assert outcome.cases
    assert any("is not JSON" in problem or "cannot be read back" in problem for problem in outcome.problems)


def test_a_sabotaged_builder_that_is_left_alone_builds_well(tmp_path):
    world = World(tmp_path / "world")
    process = fork(built_apart, world.folder, "in place")
    process.join()
    assert process.exitcode == 0
    assert not errors_of(world) + differences(world)


def test_an_interrupted_build_stops_soon_and_says_how_to_go_on():
    outcome = interrupts([signal.SIGINT, signal.SIGTERM])
    assert not outcome.problems, outcome.shown()


def test_a_command_that_does_not_listen_is_noticed():
    assert interrupts([signal.SIGTERM], sabotage="deaf").problems
