"""The long lane: ``python tests/reliability/stress.py [SCALE]`` runs every check at length, and with its sabotage.

Prints a Markdown table to stdout, progress to stderr; exits with 1 if a promise fails or a sabotage goes unnoticed.
SCALE multiplies the counts: 1 takes about a quarter of an hour on two cores.
"""

from __future__ import annotations

import errno
import signal
import sys
import time
from collections.abc import Callable
from functools import partial

from crashes import replay
from crowd import crowd, readers
from damage import damages
from disk import full_disk
from faults import WRITES, nth_failures
from kills import interrupts, kill_forked, kill_real
from processes import apart
from servers import kill_servers, reload_servers
from small import Outcome

Check = Callable[[], Outcome]


def promises(scale: float) -> dict[str, tuple[Check, Check]]:
    """Each promise: its check, and its check sabotaged."""

    def times(count: int) -> int:
        return max(2, round(count * scale))

    stops = [signal.SIGINT, signal.SIGTERM] * times(10)
    sabotaged = {reader: partial(damages, 60, reader=reader, sabotage=True) for reader in ("python", "sql")}
    return {
        "kill -9 of `l2d build`": (partial(kill_real, times(200)), partial(kill_real, 20, sabotage="in place, slowly")),
        "kill -9 of a forked builder": (
            partial(kill_forked, times(500)),
            partial(kill_forked, 40, sabotage="in place, slowly"),
        ),
        "every crash state of a build": (
            partial(replay, rows=30, subsets=8, resumes=times(1000)),
            partial(replay, rows=10, subsets=0, resumes=0, sync=False),
        ),
        "every crash state of asking anew": (
            partial(replay, rows=30, subsets=8, resumes=times(300), redo=True),
            partial(replay, rows=20, subsets=0, resumes=0, redo=True, sync=False),
        ),
        "damage, read by Python": (partial(damages, times(1500), reader="python"), partial(apart, sabotaged["python"])),
        "damage, read by SQL": (partial(damages, times(1500), reader="sql"), partial(apart, sabotaged["sql"])),
        "4 builders at once": (partial(crowd, times(20)), partial(crowd, 8, sabotage="in place")),
        "a full disk": (partial(full_disk, rows=40), partial(full_disk, rows=10, stride=2, in_place=True)),
        "a full disk, `l2d build`": (
            partial(full_disk, rows=20, stride=2, command_line=True),
            partial(full_disk, rows=10, stride=4, in_place=True),
        ),
        "the Nth operation fails": (
            partial(nth_failures, rows=20),
            partial(nth_failures, kinds=("fsync",), forgiving=True),
        ),
        "the Nth write finds no space": (
            partial(nth_failures, rows=20, kinds=WRITES, number=errno.ENOSPC),
            partial(nth_failures, kinds=WRITES, number=errno.ENOSPC, in_place=True, stride=3),
        ),
        "SIGINT and SIGTERM": (partial(interrupts, stops), partial(interrupts, [signal.SIGTERM], sabotage="deaf")),
        "kill -9 of `l2d serve` under load": (
            partial(kill_servers, times(100)),
            partial(kill_servers, 5, sabotage="late"),
        ),
        "`l2d serve` opens its run again under load": (
            partial(reload_servers, times(10)),
            partial(reload_servers, 2, sabotage="deaf"),
        ),
        "readers beside a builder": (partial(readers, times(10_000)), partial(readers, 1000, sabotage="in place")),
    }


def main() -> int:
    scale = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    failures = 0
    print("| promise | cases | result | sabotaged result |\n| --- | ---: | --- | --- |", flush=True)
    for promise, (check, sabotaged) in promises(scale).items():
        started = time.monotonic()
        print(f"{promise} …", end=" ", file=sys.stderr, flush=True)
        outcome, broken = check(), sabotaged()
        print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
        for problem in outcome.problems[:10]:
            print(f"  {problem}", file=sys.stderr)
        noticed = broken.problems and broken.cases
        failures += bool(outcome.problems) + (not noticed)
        result = f"**{len(outcome.problems)} problems**" if outcome.problems else "0 problems"
        shown = f"noticed, {len(broken.problems)} problems" if noticed else "**not noticed**"
        note = f" ({outcome.note})" if outcome.note else ""
        print(f"| {promise} | {outcome.cases:,}{note} | {result} | {shown} in {broken.cases} |", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
