"""Builders without a shared folder meet in a store and finish one cache, the bytes of which are those of one build."""

from __future__ import annotations

import threading

import fsspec
import pytest
from recipes import HEAD, MODEL, RECIPE, agent
from safetensors.numpy import load, save

from l2d.cache_builder.builder import build as build_parts
from l2d.cache_builder.engines.shards import NOTHING
from l2d.cache_builder.library import run_build
from l2d.cache_builder.sharing import BUILDING, SharedBuild
from l2d.data.cache import schema, store
from l2d.data.cache.integrity import sha256_of
from l2d.data.cache.places import open_place
from l2d.data.cache.reader import CostCache
from l2d.data.cache.remote import fetch
from l2d.data.errors import FingerprintMismatch, UsageError

AVERAGED = RECIPE.plus(agent("everyone", "average", of=["expert", "cheap"], reference=True))


@pytest.fixture
def url():
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield "memory://bucket/shared"
    memory.store.clear()


def shared(workshop, recipe, out: str, shard: str, url: str):
    workshop.recipe(recipe)
    return run_build(workshop.folder / "recipe.toml", workshop.folder / out, device="cpu", shard=shard, share=url)


def content(workshop, out: str) -> dict[str, bytes]:
    return {name: found for name, (_, found) in workshop.files(out).items()}


def test_the_last_of_the_builders_finishes_a_cache_of_the_same_bytes(workshop, url):
    workshop.build(AVERAGED, "alone")
    first = shared(workshop, AVERAGED, "one", "1/2", url)
    assert first.report.unfinished
    place = open_place(url)
    assert place.size("cache.json") is None
    assert place.size(BUILDING) is not None
    second = shared(workshop, AVERAGED, "two", "2/2", url)
    assert not second.report.unfinished
    assert second.report.asked["model"] == 50  # of 120 in chunks of 50, the second
    assert content(workshop, "two") == content(workshop, "alone")
    assert place.size(BUILDING) is None
    assert fetch(url, workshop.folder / "fetched").verify() == 3 * 9
    again = shared(workshop, AVERAGED, "one", "1/2", url)  # takes what the other has made
    assert not any(again.report.asked.values())
    assert content(workshop, "one") == content(workshop, "alone")
    late = shared(workshop, AVERAGED, "three", "1/1", url)  # a new folder asks nothing
    assert not any(late.report.asked.values())
    assert content(workshop, "three") == content(workshop, "alone")


def test_builders_at_once_agree(workshop, tmp_path):
    url = str(tmp_path / "between")
    workshop.build(AVERAGED, "alone")
    workshop.recipe(AVERAGED)
    wrong: list[BaseException] = []

    def work(out: str, shard: str) -> None:
        try:
            run_build(workshop.folder / "recipe.toml", workshop.folder / out, device="cpu", shard=shard, share=url)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(f"w{k}", f"{k}/3")) for k in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    shared(workshop, AVERAGED, "w1", "1/3", url)  # where the last two ended in the same moment
    CostCache(tmp_path / "between").verify()
    assert content(workshop, "w1") == content(workshop, "alone")


def test_two_that_fitted_an_agent_at_once_keep_the_one_that_was_first(workshop, url):
    recipe = HEAD.plus(MODEL)
    first, second = (SharedBuild(url, workshop.folder / out) for out in ("one", "two"))
    for each in (first, second):
        each.join()
        build_parts(workshop.recipe(recipe), each.out, device="cpu", shard=NOTHING)
    name = MODEL["name"]
    frozen, record = schema.frozen_file(second.out, name), schema.agent_file(second.out, name)
    store.commit_bytes(frozen, save({key: value + 1 for key, value in load(frozen.read_bytes()).items()}), replace=True)
    value = store.read_json(record)
    value["fingerprint"]["frozen"] = sha256_of(frozen)[:16]
    store.commit_json(record, value, replace=True)
    first.agree()
    second.agree()
    ours = schema.frozen_file(first.out, name)
    assert frozen.read_bytes() == ours.read_bytes()
    assert store.read_json(record)["fingerprint"]["frozen"] == sha256_of(ours)[:16]


def test_builders_of_something_else_are_refused(workshop, url):
    shared(workshop, RECIPE, "one", "1/2", url)
    with pytest.raises(FingerprintMismatch):
        shared(workshop, RECIPE.but({"costs.reg.clamp": 4.0}), "two", "2/2", url)
    with pytest.raises(FingerprintMismatch):
        shared(workshop, RECIPE.but({"agents.expert.reg": "stay"}), "three", "2/2", url)
    workshop.recipe(RECIPE)
    with pytest.raises(UsageError, match="other builders"):
        run_build(workshop.folder / "recipe.toml", workshop.folder / "one", overwrite=True, share=url)
