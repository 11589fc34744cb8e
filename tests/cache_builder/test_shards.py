"""A build divided among jobs: the same bytes as one build, whatever the order, the overlap or the kills."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys

import pytest
from conftest import no_temporaries
from recipes import RECIPE, agent

from l2d.cache_builder.engines.shards import Shard
from l2d.data.cache.reader import CostCache
from l2d.data.errors import IncompleteCache, UsageError

AVERAGED = RECIPE.plus(agent("both", "average", of=["expert", "cheap"], reference=True))


def contents(workshop, out: str) -> dict[str, bytes]:
    return {name: content for name, (_, content) in workshop.files(out).items()}


@pytest.mark.parametrize("count", [2, 3, 7])
def test_shards_in_any_order_make_the_cache_that_one_build_makes(workshop, count):
    workshop.build(AVERAGED, "whole")
    order = list(range(count))
    random.Random(count).shuffle(order)
    for position, index in enumerate(order):
        if position:
            with pytest.raises(IncompleteCache):
                workshop.cache("divided").require_complete()
        report = workshop.build(AVERAGED, "divided", shard=Shard(index, count))
        assert bool(report.unfinished) == (position < count - 1)
        chunks = [k for k in range(CostCache(workshop.folder / "divided").record.num_chunks) if k % count == index]
        asked = sum(len(CostCache(workshop.folder / "divided").record.chunk_rows(k)) for k in chunks)
        assert report.asked["model"] == asked
    workshop.cache("divided").verify()
    assert contents(workshop, "whole") == contents(workshop, "divided")


def test_shards_that_overlap_or_come_twice_do_no_harm(workshop):
    workshop.build(RECIPE, "whole")
    for index, count in ((0, 2), (1, 3), (0, 2), (1, 2)):
        workshop.build(RECIPE, "divided", shard=Shard(index, count))
    assert contents(workshop, "whole") == contents(workshop, "divided")


def test_a_plain_build_finishes_what_shards_have_left_and_asks_nothing_again(workshop):
    first = workshop.build(RECIPE, "divided", shard=Shard(0, 2))
    rest = workshop.build(RECIPE, "divided")
    assert first.asked["expert"] + rest.asked["expert"] == 120
    workshop.cache("divided").verify()


@pytest.mark.slow
def test_shards_at_the_same_time_on_one_folder(workshop):
    workshop.build(AVERAGED, "whole")
    recipe, out = workshop.folder / "recipe.toml", workshop.folder / "divided"
    command = [sys.executable, "-m", "l2d.cli", "build", str(recipe), "--out", str(out), "--device", "cpu", "--shard"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    jobs = [
        subprocess.Popen([*command, f"{i}/3"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for i in (1, 2, 3)
    ]
    for job in jobs:
        _, said = job.communicate(timeout=120)
        assert job.returncode == 0, said.decode()
    workshop.build(AVERAGED, "divided")  # an average waits for all answers, whoever gives the last
    workshop.cache("divided").verify()
    assert contents(workshop, "whole") == contents(workshop, "divided")
    assert no_temporaries(workshop)


@pytest.mark.slow
def test_devices_by_commas_are_processes_that_share_the_work(workshop):
    workshop.build(AVERAGED, "whole")
    command = [sys.executable, "-m", "l2d.cli", "build", str(workshop.folder / "recipe.toml"), "--device", "cpu,cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = ["--out", str(workshop.folder / "divided")]
    done = subprocess.run([*command, *out], env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert contents(workshop, "whole") == contents(workshop, "divided")
    failing = subprocess.run(
        [*command, *out, "--overwrite"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert failing.returncode == 2
    assert "--overwrite" in failing.stderr


def test_every_chunk_belongs_to_one_shard():
    for count in (1, 2, 5, 8):
        owners = [[shard.has(k) for shard in map(Shard, range(count), itertools.repeat(count))] for k in range(40)]
        assert all(sum(row) == 1 for row in owners)
    assert Shard.parse("2/8") == Shard(1, 8)
    assert str(Shard(1, 8)) == "2/8"


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_a_share_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="--shard"):
        Shard.parse(text)


def test_overwriting_in_a_shard_is_refused_and_touches_nothing(workshop):
    workshop.build(RECIPE)
    before = workshop.files()
    with pytest.raises(UsageError, match="overwrite"):
        workshop.build(RECIPE.but({"costs.reg.clamp": 4.0}), overwrite=True, shard=Shard(0, 2))
    assert workshop.files() == before
