"""The page's script is made in a process of its own, or here where that fails; once."""

from __future__ import annotations

import pytest
import vl_convert

from l2d.rejector.report import script


@pytest.mark.parametrize(
    ("program", "expected"), [("print('there', end='')", "there"), ("print('half'); raise SystemExit(1)", "here")]
)
def test_the_script_is_made_beside_or_here(monkeypatch, program, expected):
    made: dict[str, str] = {}
    monkeypatch.setattr(script, "_made", made)
    monkeypatch.setattr(script, "_PROGRAM", program)
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda vl_version: "here")
    with script.script_beside() as found:
        assert found() == expected
    assert made == {script.VEGA_LITE: expected}
    monkeypatch.setattr(script, "_PROGRAM", "raise SystemExit(1)")
    with script.script_beside() as again:
        assert again() == expected


def test_what_goes_wrong_beside_it_ends_the_process(monkeypatch):
    monkeypatch.setattr(script, "_made", {})
    monkeypatch.setattr(script, "_PROGRAM", "import time; time.sleep(60)")
    with pytest.raises(ValueError, match="figures"), script.script_beside():
        raise ValueError("figures")
