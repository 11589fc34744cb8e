"""Which tests are slow, out of a measured run: ``python tests/measured.py RUN.xml > tests/slow.txt``.

``pytest --junitxml=RUN.xml`` writes what it reads. The dearest tests are listed until what is left takes a twelfth of
the whole.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

LEFT = 1 / 12
TITLE = """\
# The dearest tests, as measured: `make test-fast` leaves them out. Written by tests/measured.py.
"""
ROOT = Path(__file__).parent.parent


def name_of(case: ElementTree.Element) -> str:
    """``file::test`` of a case, ``file::Class::test`` of one in a class."""
    words = case.get("classname", "").split(".")
    length = next(k for k in range(len(words), 0, -1) if (ROOT / "/".join(words[:k])).with_suffix(".py").is_file())
    return "::".join(["/".join(words[:length]) + ".py", *words[length:], case.get("name", "").split("[")[0]])


def slow(run: Path) -> list[str]:
    """The tests of a run that take longest on average over their cases, in order of their names."""
    seconds = defaultdict(list)
    for case in ElementTree.parse(run).iter("testcase"):
        seconds[name_of(case)].append(float(case.get("time", 0)))
    left = whole = sum(map(sum, seconds.values()))
    found = []
    for name in sorted(seconds, key=lambda name: -sum(seconds[name]) / len(seconds[name])):
        if left <= LEFT * whole:
            break
        left -= sum(seconds[name])
        found.append(name)
    return sorted(found)


if __name__ == "__main__":
    print(TITLE + "\n".join(slow(Path(sys.argv[1]))))
