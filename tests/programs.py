"""The program as its users start it: a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def program(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run `l2d` with these words."""
    command = [sys.executable, "-m", "l2d.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def demo_in(folder: Path, name: str) -> tuple[Path, subprocess.CompletedProcess]:
    """A demo that has run: its folder, and what it printed."""
    result = program("demo", name, "--out", folder / "out")
    assert result.returncode == 0, result.stderr
    return folder / "out", result
