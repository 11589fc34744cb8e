"""The page's script: Vega, Vega-Lite and Vega-Embed, made while figures are drawn."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

VEGA_LITE = "6.4"  # of the specifications that Altair 6.3 writes, and of the library in the page
_PROGRAM = """
import sys, vl_convert
sys.stdout.buffer.write(vl_convert.javascript_bundle(vl_version=sys.argv[1]).encode())
"""
_made: dict[str, str] = {}  # version -> script


def script() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; two seconds of work the first time."""
    if VEGA_LITE not in _made:
        import vl_convert

        _made[VEGA_LITE] = vl_convert.javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg] # its stub is off
    return _made[VEGA_LITE]


@contextmanager
def script_beside() -> Iterator[Callable[[], str]]:
    """:func:`script`, begun now in a process of its own: a thread would hold the interpreter's lock throughout."""
    if VEGA_LITE in _made:
        yield script
        return
    command = [sys.executable, "-c", _PROGRAM, VEGA_LITE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            yield partial(_made_by, process)
        finally:
            process.kill()


def _made_by(process: subprocess.Popen[bytes]) -> str:
    found = process.communicate()[0].decode()
    if process.returncode == 0 and found:
        _made[VEGA_LITE] = found
    return script()  # made here where that process could not
