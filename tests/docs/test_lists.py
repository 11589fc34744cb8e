"""``tests/long.txt`` and ``tests/slow.txt`` name tests that exist: a stale line would put a test back unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["long.txt", "slow.txt"])
def test_every_line_is_a_test(name):
    lines = (ROOT / "tests" / name).read_text(encoding="utf-8").splitlines()
    named = [line for line in lines if line and not line.startswith("#")]
    assert named == sorted(set(named))
    for line in named:
        file, *inside = line.split("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert all(f"def {one}(" in text or f"class {one}" in text for one in inside), line
