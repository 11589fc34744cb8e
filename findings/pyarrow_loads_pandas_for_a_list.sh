#!/usr/bin/env bash
# pyarrow 26.0.1 beside pandas 3.1.1: making an array of a plain list, pa.array([1, 2]), imports all of pandas wherever it
# is installed, though nothing of pandas is handed in; so do an array of numpy's numbers, pa.scalar(1) and reading a file
# with pyarrow.parquet.read_table. Importing pyarrow alone does not. A program that only reads a small file starts
# later for a package that it does not use.
# Expected: pandas is looked at only if it is loaded already. Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "pyarrow==26.0.1" "pandas==3.1.1" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import subprocess
import sys

START = "import sys\nimport numpy as np\nimport pyarrow as pa\nimport pyarrow.parquet as pq\n"
CASES = {
    "write a file first": ("pq.write_table(pa.table({'a': [1, 2]}), 'a.parquet')", True),
    "import alone": ("pass", False),
    "array of a list": ("pa.array([1, 2])", True),
    "array of numpy's": ("pa.array(np.arange(2))", True),
    "scalar": ("pa.scalar(1)", True),
    "reading Parquet": ("pq.read_table('a.parquet')", True),
}
for name, (code, expected) in CASES.items():
    program = f"{START}{code}\nprint('pandas' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = ended.stdout.strip() == "True"
    print(f"{name}: pandas is {'' if loaded else 'not '}imported")
    assert loaded is expected, name
PYTHON
