"""Several builders at once, and readers beside a builder."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from crowd import crowd, readers
from small import World, differences

import l2d.cache_builder.builder
from l2d.data.cache import store

pytestmark = pytest.mark.slow


def test_builders_of_one_cache_do_not_disturb_each_other():
    outcome = crowd(2)
    assert not outcome.problems, outcome.shown()


def test_builders_that_write_in_place_are_noticed():
    assert crowd(8, sabotage="in place").problems


def test_a_reader_beside_a_builder_sees_committed_parts_only():
    outcome = readers(400)
    assert not outcome.problems, outcome.shown()


def test_a_reader_beside_a_builder_that_writes_in_place_is_noticed():
    assert readers(400, sabotage="in place").problems


def test_a_second_builder_does_not_discard_what_the_first_has_begun_meanwhile(tmp_path, monkeypatch):
    """The second finds an empty folder; before it writes a thing, the first builds all of it."""
    world, real = World(tmp_path / "world"), l2d.cache_builder.builder.settle
    world.out.mkdir()

    def slow_settle(*arguments, **options):
        real(*arguments, **options)
        monkeypatch.setattr(l2d.cache_builder.builder, "settle", real)
        world.build()

    monkeypatch.setattr(l2d.cache_builder.builder, "settle", slow_settle)
    world.build()
    assert not differences(world)
    assert len(world.chunks_asked()) == world.settings["rows"], "the agent was asked again"


def test_a_second_builder_does_not_take_what_the_first_has_begun_meanwhile_for_a_strangers(tmp_path, monkeypatch):
    """The same, where the first comes between looking for cache.json and looking at what else there is."""
    world, real = World(tmp_path / "world"), Path.iterdir
    world.out.mkdir()

    def late_iterdir(path):
        if path == world.out:
            monkeypatch.setattr(Path, "iterdir", real)
            world.build()
        return real(path)

    monkeypatch.setattr(Path, "iterdir", late_iterdir)
    world.build()
    assert not differences(world)


def test_a_builder_that_comes_late_does_not_take_away_costs_that_the_other_is_sealing(tmp_path, monkeypatch):
    """The late one saw no predictions, asks, and finds on writing them that the other has finished meanwhile."""
    world, real = World(tmp_path / "world"), store.commit_json
    began, may_go, is_between, may_end = (threading.Event() for _ in range(4))
    errors = []

    def late() -> None:
        steps = []

        def advance(done: int) -> None:
            steps.append(done)
            if len(steps) == 1:  # within chunk 0
                began.set()
                may_go.wait(20)
            if len(steps) == 3:  # within chunk 1: chunk 0 is written
                is_between.set()
                may_end.wait(20)

        try:
            world.build(progress=lambda agent, samples: advance if agent == "asked" else lambda done: None)
        except Exception as error:
            errors.append(error)

    def commit_json(path, value, *, replace=False):
        if path.name == "predictions.seal.json" and path.parent.name == "asked" and not may_go.is_set():
            may_go.set()  # all costs are there; they are sealed next
            is_between.wait(20)
        return real(path, value, replace=replace)

    thread = threading.Thread(target=late)
    thread.start()
    assert began.wait(20)
    monkeypatch.setattr(store, "commit_json", commit_json)
    try:
        world.build()
    except Exception as error:
        errors.append(error)
    finally:
        for event in (may_go, may_end):
            event.set()
        thread.join()
    assert not errors
    assert not differences(world)
