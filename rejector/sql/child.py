"""A query in a process of its own, ended from outside where it holds too much memory or takes too long.

DuckDB's limits are its own word: one huge value is made in one piece and no interrupt is looked at meanwhile. Here the
operating system and the parent keep the promise. The child's address space for data is bounded (``RLIMIT_DATA``), and
the parent looks at its resident memory and at its deadline a hundred times a second.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from l2d.data.cache.temporary import sweep_orphans
from l2d.data.errors import UsageError

POLL_SECONDS = 0.01
GRACE_SECONDS = 1.0  # for DuckDB's own interrupt, whose message is the better one
SLACK = 1.1  # of the memory limit
_NUMBERS = struct.Struct("dd")  # the deadline in force (0: none), the bytes that the child may hold (0: any)


@dataclass(frozen=True)
class Request:
    """What a child is asked: as the command was typed, checked by the parent."""

    paths: list[str]
    sql: str | None
    format: str
    out: str | None
    overwrite: bool
    memory_limit: int | None
    timeout: float | None


def run_apart(request: Request, *, interactive: bool) -> None:
    """Answer a request in a child. At a prompt a child that was ended is followed by a new one.

    Raises:
        UsageError: the query was ended, as it held too much or took too long.
        SystemExit: the child ended with an error, which it has told.
    """
    while True:
        ended = _run_once(request)
        if ended is None:
            return
        if not interactive:
            raise ended
        from l2d.data.terminal.progress import say

        say(f"error: {ended}")


def _run_once(request: Request) -> UsageError | None:
    with tempfile.TemporaryDirectory(prefix="l2d-query-") as folder:  # ours alone: mode 0700; what is spilled goes too
        board = Path(folder) / "board"
        with open(board, "wb") as file:  # memory that both share, not a result
            file.write(_NUMBERS.pack(0.0, 0.0))
        command = [
            sys.executable,
            "-m",
            "l2d.rejector.sql.answer",
            json.dumps(asdict(request)),
            folder,
            str(os.getpid()),
        ]
        child = subprocess.Popen(command)
        try:
            with open(board, "r+b") as shared, mmap.mmap(shared.fileno(), _NUMBERS.size) as numbers:
                reason = _watch(child, numbers, request)
        except BaseException:  # a signal: the child has had it too, or gets it now
            with suppress(ProcessLookupError):
                child.send_signal(signal.SIGINT)
            try:
                child.wait(timeout=5)
            except subprocess.TimeoutExpired:
                child.kill()
            raise
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    if reason is not None:
        if request.out is not None:
            sweep_orphans(Path(request.out).absolute().parent)
        return reason
    if child.returncode < 0:
        if request.memory_limit is not None:
            return _too_much(request)  # the system ended it: no memory was to be had
        raise SystemExit(128 - child.returncode)
    if child.returncode:
        raise SystemExit(child.returncode)
    return None


def _watch(child: subprocess.Popen, numbers: mmap.mmap, request: Request) -> UsageError | None:
    """Wait for the child; why it had to be ended, or None."""
    page = os.sysconf("SC_PAGE_SIZE")
    while child.poll() is None:
        deadline, most = _NUMBERS.unpack(numbers[:])
        if deadline and time.monotonic() > deadline + GRACE_SECONDS:
            return UsageError(
                f"the query did not end within {request.timeout:g} s", hint="ask for less, or give a longer --timeout"
            )
        if most:
            with suppress(OSError, ValueError, IndexError):  # it has just ended
                held = int(Path(f"/proc/{child.pid}/statm").read_text().split()[1]) * page
                if held > most:
                    return _too_much(request)
        time.sleep(POLL_SECONDS)
    return None


def _too_much(request: Request) -> UsageError:
    limit = (request.memory_limit or 0) / 2**20
    return UsageError(
        f"the query needs more memory than {limit:,.0f} MiB",
        hint="ask for less at once, or give a higher --memory-limit",
    )


class Board:
    """What a child tells its parent: until when the query at hand may run, and how much memory is too much."""

    def __init__(self, folder: Path):
        with open(folder / "board", "r+b") as file:
            self._numbers = mmap.mmap(file.fileno(), _NUMBERS.size)

    def deadline(self, moment: float | None) -> None:
        """Of the query that begins; None as soon as it has ended. A moment of ``time.monotonic``."""
        self._numbers[:8] = struct.pack("d", moment or 0.0)

    def most(self, count: float) -> None:
        """Resident bytes at which the child is ended."""
        self._numbers[8:] = struct.pack("d", count)


def share_of(limit: int) -> tuple[int, int]:
    """Bytes for DuckDB, and bytes at which the process is ended, when all of it shall stay within ``limit``.

    Where the interpreter and its libraries alone take half of the limit, DuckDB gets the other half on top of them.
    """
    import psutil

    own = psutil.Process().memory_info().rss
    duckdb = max(limit - own, limit // 2)
    return duckdb, max(int(SLACK * limit), own + int(SLACK * duckdb))


def _bound_data(most: int) -> None:
    """Let the system refuse what no query within the limit asks for, such as one value of 10 GB."""
    with open("/proc/self/status") as file:
        now = next((int(line.split()[1]) << 10 for line in file if line.startswith("VmData")), 0)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = now + 2 * most
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _leave_with(parent: int) -> None:
    """End when the parent has gone, which may have been killed."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def main(arguments: list[str], answer: Callable[..., None]) -> None:
    """The child: answer the request, within its limits."""
    request, folder, parent = Request(**json.loads(arguments[0])), Path(arguments[1]), int(arguments[2])
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    board = Board(folder)
    limits: int | None = None
    if request.memory_limit is not None:
        import duckdb  # noqa: F401  # before the memory of what is imported is measured

        share, most = share_of(request.memory_limit)
        board.most(most)
        with suppress(OSError, ValueError):  # not on this system: the parent's watch is left
            _bound_data(most)
        limits = share
    answer(request, memory_limit=limits, announce=board.deadline, folder=folder)
