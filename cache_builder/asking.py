"""Asking one agent about one chunk: batches shrink when memory runs out, failures stop the build or are recorded."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from l2d.cache_builder.agents import Agent
from l2d.cache_builder.answers import Answers
from l2d.cache_builder.lending import with_lent
from l2d.data.errors import AgentFailure, L2DError
from l2d.data.samples.dataset import Dataset


class Asker:
    """Asks an agent, keeping what it has learnt about the batch size.

    Args:
        agent: loaded, ready to answer.
        dataset: whose samples to ask about.
        wanted: what has to be answered, out of ``cla``, ``reg`` and ``boxes``.
        batch_size: largest batch.
        record_failures: a sample that the agent fails on becomes a recorded failure; otherwise the build stops there.
        advance: told of samples done.
    """

    def __init__(
        self,
        agent: Agent,
        dataset: Dataset,
        wanted: list[str],
        *,
        batch_size: int,
        record_failures: bool,
        advance: Callable[[int], None],
    ):
        self.agent, self.dataset, self.wanted = agent, dataset, wanted
        self.batch_size, self.record_failures, self.advance = batch_size, record_failures, advance
        self.asked = self.failed = self.unavailable = 0
        self.seconds = 0.0  # that the agent has taken for its answers; not for batches that failed as a whole

    def ask(self, rows: range, needed: dict[str, pa.Table]) -> Answers:
        """Answers about the samples at ``rows``, checked.

        Args:
            needed: cached predictions of the agents in ``agent.needs``, for the same rows.

        Raises:
            AgentFailure: the agent raised, hung, or gave no proper answer, and failures are not recorded. Names the
                agent and the sample, or the batch where only that is known.
        """
        parts = []
        start = rows.start
        while start < rows.stop:
            batch = range(start, min(start + self.batch_size, rows.stop))
            tables = {name: table.slice(start - rows.start, len(batch)) for name, table in needed.items()}
            try:
                parts.append(self._attempt(batch, tables))
            except _OutOfMemory as error:
                if len(batch) == 1:
                    parts.append(self._failure(batch, error.failure))
                else:
                    self.batch_size = max(1, len(batch) // 2)
                    continue
            except AgentFailure as failure:
                if not self.record_failures:
                    raise
                parts.append(self._isolate(batch, tables, failure))
            self.asked += len(batch)  # once, however often it took
            self.advance(len(batch))
            start = batch.stop
        return Answers.concatenate(parts)

    def _attempt(self, rows: range, needed: dict[str, pa.Table]) -> Answers:
        """Ask one batch once; whatever goes wrong is an :class:`AgentFailure`."""
        batch = self.dataset.batch(rows, needed)
        name = self.agent.config.name
        where = f"sample {batch.ids[0]!r}" if len(rows) == 1 else f"the batch {batch.ids[0]!r} to {batch.ids[-1]!r}"
        started = time.perf_counter()
        try:
            with time_limit(self.agent.config.timeout):
                answers = self.agent.ask(batch)
        except L2DError:
            raise
        except (Exception, SystemExit, GeneratorExit) as error:  # an agent that exits has failed, not finished
            hint = "finished chunks are kept: fix it and build with --keep-answers, or go on with --on-failure record"
            failure = AgentFailure(f"agent {name!r} raised {error!r}", where=where, hint=hint)
            if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, on any device
                raise _OutOfMemory(failure) from error
            raise failure from error
        self.seconds += time.perf_counter() - started
        if self.agent.partial:
            answers = answers.with_gaps(len(rows), self.wanted, len(self.dataset.classes))
        checked = answers.checked(name, batch.ids, self.wanted, len(self.dataset.classes))
        if checked.failure is not None:
            unavailable = checked.is_unavailable
            self.unavailable += int(unavailable.sum())
            own = checked.is_failure & ~unavailable
            if not getattr(self.agent.config, "of", None) and own.any():  # those of averaged agents are on record
                self._own_failures(checked, own, batch.ids)
        return with_lent(self.agent, checked, needed, batch.ids)

    def _own_failures(self, answers: Answers, failed: np.ndarray, ids: list[str]) -> None:
        """Samples (bool (n,)) that the agent itself says it cannot answer, an image it cannot read, say."""
        row = int(failed.argmax())
        if not self.record_failures:
            raise AgentFailure(
                f"agent {self.agent.config.name!r}: {None if answers.failure is None else answers.failure[row]}",
                where=f"sample {ids[row]!r}",
                hint="finished chunks are kept: repair it and run the same command, or go on with --on-failure record",
            )
        self.failed += int(failed.sum())

    def _isolate(self, rows: range, needed: dict[str, pa.Table], failure: AgentFailure) -> Answers:
        """Find the samples that fail by halving a failed batch; they are recorded, the others answered."""
        if len(rows) == 1:
            return self._failure(rows, failure)
        middle = len(rows) // 2
        parts = []
        for part in (rows[:middle], rows[middle:]):
            tables = {name: table.slice(part.start - rows.start, len(part)) for name, table in needed.items()}
            try:
                parts.append(self._attempt(part, tables))
            except (AgentFailure, _OutOfMemory) as error:
                again = error.failure if isinstance(error, _OutOfMemory) else error
                parts.append(self._isolate(part, tables, again))
        return Answers.concatenate(parts)

    def _failure(self, rows: range, failure: AgentFailure) -> Answers:
        if not self.record_failures:
            raise failure
        self.failed += 1
        width = len(self.dataset.classes) if "cla" in self.wanted else 0
        return Answers.failed(failure.what, self.wanted, width)


class _OutOfMemory(Exception):
    """The agent ran out of memory on a batch: a smaller one may do."""

    def __init__(self, failure: AgentFailure):
        super().__init__(str(failure))
        self.failure = failure


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise :class:`TimeoutError` in the code inside after this number of seconds.

    By an alarm signal, so it ends waiting (sleep, network, files) and Python code in the main thread, on POSIX;
    native code that never returns to Python has to be killed, which costs the chunk at hand.
    """
    usable = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if seconds is None or not usable:
        yield
        return

    def ring(*_) -> None:
        raise TimeoutError(f"no answer within {seconds:g} s")

    started, handler = time.monotonic(), signal.signal(signal.SIGALRM, ring)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:  # another alarm was running
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - started)), interval)
