"""A full disk, and each operation on a file failing in turn."""

from __future__ import annotations

import errno

import pytest
from disk import full_disk
from faults import WRITES, nth_failures

pytestmark = pytest.mark.slow


def test_a_full_disk_is_told_and_nothing_finished_is_lost():
    outcome = full_disk(rows=20)
    assert not outcome.problems, outcome.shown()
    assert outcome.cases > 5, outcome.note


def test_the_command_line_exits_with_3_on_a_full_disk():
    outcome = full_disk(rows=10, stride=18, command_line=True)
    assert not outcome.problems, outcome.shown()


def test_a_full_disk_that_leaves_half_a_file_is_noticed():
    assert full_disk(rows=10, stride=2, in_place=True).problems


def test_no_space_at_each_write_is_told():
    outcome = nth_failures(kinds=WRITES, number=errno.ENOSPC)
    assert not outcome.problems, outcome.shown()


@pytest.mark.parametrize(
    ("kinds", "stride"),
    [(("open",), 2), (WRITES, 1), (("fsync",), 1), (("link", "replace", "rename", "mkdir"), 1), (("unlink",), 1)],
    ids=["open", "write", "fsync", "link", "unlink"],
)
def test_each_operation_may_fail_and_the_build_goes_on(kinds, stride):
    outcome = nth_failures(kinds=kinds, stride=stride)
    assert not outcome.problems, outcome.shown()
    assert outcome.cases > 5


def test_a_store_that_forgives_fsync_is_noticed():
    assert nth_failures(kinds=("fsync",), stride=5, forgiving=True).problems
