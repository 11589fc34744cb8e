"""The decision log: decisions and outcomes, appended by any number of processes, each to files of its own.

::

    LOG/journals/WRITER-00001.jsonl   what is being written: a line a record, there before the decision is answered
    LOG/parts/WRITER-00001.parquet    what was a journal: whole or absent, by the store's commit protocol
    LOG/parts/all-DIGEST.parquet      many parts as one; says which ones it replaces
    LOG/runs/DIGEST.json              of each run that decided: its agents, query costs and weights

A journal becomes a part when it is long or the writer closes. One that a killed process has left becomes a part when
the next writer opens the log; until then it is read as it is. So a record is in exactly one file, or in a journal and
the part that was made of it, which counts.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from l2d.data.cache import store
from l2d.data.cache.journal import Journal, left_behind
from l2d.data.errors import UsageError
from l2d.rejector.serving import reading
from l2d.rejector.serving.record import DECISION, FALL, INPUTS, JOURNALS, OUTCOME, PARTS, RUNS, STEP

ROLL = 20_000  # lines, after which a journal becomes a part
SYNC_SECONDS = 1.0
COMPACTED_FROM = 32  # parts
STATISTICS_EVERY = 500  # inputs

_as_line = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


class DecisionLog:
    """A log that this process writes. Safe to use from several threads.

    Args:
        path: its folder; made if it is not there.
        keep_inputs: write inputs down too.

    Raises:
        DataError: it cannot be written.
    """

    def __init__(self, path: Path | str, *, keep_inputs: bool = False):
        self.path, self.keep_inputs = Path(path), keep_inputs
        if self.path.exists() and not self.path.is_dir():
            raise UsageError("a log is a folder", where=self.path, hint="give another name")
        self.writer, self._generation, self.decisions, self.outcomes = uuid.uuid4().hex[:12], 1, 0, 0
        self._lock, self._known_runs, self._closed = threading.Lock(), set[str](), threading.Event()
        self._others = reading.Known(self.path)
        self.recover()
        self._journal = Journal(self._journal_path())
        self._keeper = threading.Thread(target=self._keep, name="decision log", daemon=True)
        self._keeper.start()

    # --- writing

    def run(self, digest: str, facts: Callable[[], dict[str, Any]]) -> None:
        """Write down a run before its first decision."""
        if digest not in self._known_runs:
            store.commit_json(self.path / RUNS / f"{digest}.json", facts())
            self._known_runs.add(digest)

    def decided(self, record: dict[str, Any]) -> str:
        """Append a decision; returns its id. It outlives the process from here on."""
        with self._lock:
            identity = f"{self.writer}-{self.decisions}"
            self._append({"kind": DECISION, "id": identity, "time": _now(), **record})
            self.decisions += 1
        return identity

    def outcome(
        self, identity: str, cost: float | None, *, paid: float | None = None, seconds: float | None = None
    ) -> None:
        """Append what the answer of a decision cost. A later outcome of the same decision takes its place."""
        record = {"kind": OUTCOME, "id": identity, "time": _now(), "cost": cost, "paid": paid, "seconds": seconds}
        with self._lock:
            self._append(record)
            self.outcomes += 1

    def step(self, identity: str, record: dict[str, Any]) -> None:
        """Append where a decision stands after an answer."""
        with self._lock:
            self._append({"kind": STEP, "id": identity, "time": _now(), **record})

    def fell(self, record: dict[str, Any]) -> None:
        """Append that the guard fell back."""
        with self._lock:
            self._append({"kind": FALL, "time": _now(), **record})

    def inputs(self, statistics: dict[str, Any]) -> None:
        """Append sums over the features of some inputs."""
        with self._lock:
            self._append({"kind": INPUTS, "time": _now(), **statistics})

    def knows(self, identity: str) -> bool:
        """Whether there is such a decision, of this writer or another."""
        writer, _, number = identity.rpartition("-")
        if not (number.isascii() and number.isdigit()) or str(int(number)) != number:
            return False
        return int(number) < self.decisions if writer == self.writer else self._others(writer, int(number))

    def _append(self, record: dict[str, Any]) -> None:
        if self._closed.is_set():
            raise UsageError("this log is closed", where=self.path, hint="open it again")
        self._journal.append(_as_line(record).encode())
        if self._journal.lines >= ROLL:
            full, self._journal = self._journal, self._next()
            threading.Thread(target=self._into_part, args=(full,), name="decision log part").start()

    # --- journals and parts

    def _journal_path(self) -> Path:
        return self.path / JOURNALS / f"{self.writer}-{self._generation:05d}.jsonl"

    def _next(self) -> Journal:
        self._generation += 1
        return Journal(self._journal_path())

    def _keep(self) -> None:
        while not self._closed.wait(SYNC_SECONDS):
            with self._lock:
                journal = self._journal
            try:
                journal.sync()
            except OSError:  # it has just been closed; what becomes of it is on the disk
                continue

    def _into_part(self, journal: Journal) -> None:
        make_part(journal.path)
        journal.close()

    def recover(self) -> int:
        """Make parts of journals that no process writes any more; returns how many there were."""
        found = 0
        for path in sorted((self.path / JOURNALS).glob("*.jsonl")):
            with left_behind(path) as ours:
                if ours:
                    make_part(path)
                    found += 1
        return found

    def close(self) -> None:
        """Make a part of what is in the journal, and join parts where they are many."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
        for thread in threading.enumerate():
            if thread.name == "decision log part":
                thread.join()
        self._into_part(self._journal)
        compact(self.path)

    def __enter__(self) -> DecisionLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_part(journal: Path) -> None:
    """Make a part of a journal, and remove the journal."""
    table = reading.journal_frame(journal).to_arrow()
    if len(table):
        store.commit_table(journal.parents[1] / PARTS / f"{journal.stem}.parquet", table)
    store.remove(journal)


def compact(log: Path, *, least: int = COMPACTED_FROM) -> int:
    """Join parts into one where there are at least so many; returns how many were joined. No record changes."""
    parts = reading.parts_of(log)
    if len(parts) < least:
        return 0
    frame = reading.parts_frame(parts)
    names = [part.name for part in parts]
    digest = reading.digest_of_names(names)
    store.commit_table(log / PARTS / f"all-{digest}.parquet", frame.to_arrow(), {"replaces": json.dumps(names)})
    for part in parts:
        store.remove(part)
    return len(parts)


class FeatureSums:
    """Sums over the features of inputs, to be logged every so often.

    Args:
        seen: of ``run.json``: ``least`` and ``most`` of each feature in training, if it has them.
        write: is given the sums of each lot.
    """

    def __init__(self, width: int, run: str, seen: dict[str, Any] | None, write: Callable[[dict[str, Any]], None]):
        known = seen is not None and seen.get("least") is not None
        self._least = np.array(seen["least"]) if known and seen else np.full(width, -np.inf)
        self._most = np.array(seen["most"]) if known and seen else np.full(width, np.inf)
        self._run, self._write, self._lock = run, write, threading.Lock()
        self._waiting: list[np.ndarray] = []

    def add(self, features: np.ndarray) -> None:
        """One input's features, (width,)."""
        with self._lock:
            self._waiting.append(features)
            full = len(self._waiting) >= STATISTICS_EVERY
            rows = np.array(self._waiting, np.float64) if full else None
            if full:
                self._waiting = []
        if rows is not None:
            self._log(rows)

    def flush(self) -> None:
        """Log what is there."""
        with self._lock:
            rows, self._waiting = np.array(self._waiting, np.float64), []
        if len(rows):
            self._log(rows)

    def _log(self, rows: np.ndarray) -> None:
        outside = ((rows < self._least) | (rows > self._most)).sum(axis=0)
        self._write(
            {
                "run": self._run,
                "rows": len(rows),
                "sums": rows.sum(axis=0).tolist(),
                "squares": (rows**2).sum(axis=0).tolist(),
                "outside": outside.tolist(),
            }
        )


def _now() -> int:
    return time.time_ns() // 1000
