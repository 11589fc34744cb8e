#!/usr/bin/env bash
# DuckDB 2.0.0 (bound by nanobind) with CPython's gc.freeze(): a program that imports duckdb, calls gc.freeze(), which
# says only that what is there is looked at no more for cycles, and ends, is told by a page of lines on stderr that
# duckdb has leaked instances, types and functions. Without gc.freeze(), or with it before the import, nothing is said.
# Expected: nothing, as with other compiled packages (numpy here). Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "duckdb==2.0.0" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import subprocess
import sys

PROGRAMS = {
    "import duckdb": False,
    "import gc, duckdb; gc.freeze()": True,
    "import gc; gc.freeze(); import duckdb": False,
    "import gc, numpy; gc.freeze()": False,
}
for program, expected in PROGRAMS.items():
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    print(f"{program}: {len(lines)} lines on stderr{': ' + lines[0] if lines else ''}")
    if any("nanobind: leaked" in line for line in lines) != expected:
        raise SystemExit("that has changed")
PYTHON
