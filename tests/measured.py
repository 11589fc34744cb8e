"""Which tests are slow, out of a measured run: ``python tests/measured.py RUN.xml``.

``pytest --junitxml=RUN.xml`` writes what it reads, ``tests/slow.txt`` is what it writes: tests whose cases take longer
than ``SLOW`` on average. Lines that name a whole file, for what all of its tests share, and tests that the run left out
stay.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

SLOW = 0.35  # seconds
TITLE = """\
# The dearest tests, as measured: `make test-fast` leaves them out. Written by tests/measured.py.
"""
ROOT = Path(__file__).parent.parent
LIST = Path(__file__).with_name("slow.txt")


def name_of(case: ElementTree.Element) -> str:
    """``file::test`` of a case, ``file::Class::test`` of one in a class."""
    words = case.get("classname", "").split(".")
    length = next(k for k in range(len(words), 0, -1) if (ROOT / "/".join(words[:k])).with_suffix(".py").is_file())
    return "::".join(["/".join(words[:length]) + ".py", *words[length:], case.get("name", "").split("[")[0]])


def slow(run: Path, before: list[str]) -> list[str]:
    """What ``slow.txt`` names after a run, in order.

    Args:
        before: what it names so far.
    """
    seconds = defaultdict(list)
    for case in ElementTree.parse(run).iter("testcase"):
        seconds[name_of(case)].append(float(case.get("time", 0)))
    files = {line for line in before if "::" not in line}
    unseen = {line for line in before if "::" in line and line not in seconds}
    found = {name for name, taken in seconds.items() if sum(taken) / len(taken) > SLOW}
    return sorted(files | {name for name in found | unseen if name.partition("::")[0] not in files})


if __name__ == "__main__":
    lines = LIST.read_text(encoding="utf-8").splitlines()
    named = slow(Path(sys.argv[1]), [line for line in lines if not line.startswith("#")])
    LIST.write_text(TITLE + "".join(f"{line}\n" for line in named), encoding="utf-8")
