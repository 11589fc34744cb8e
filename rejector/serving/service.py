"""What serves decisions: a bounded queue in front of a router that can be exchanged while it works."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from l2d.rejector.serving.asking import PolicyRouter
from l2d.rejector.serving.decision import Decision
from l2d.rejector.serving.log import DecisionLog
from l2d.rejector.serving.metrics import Metrics
from l2d.rejector.serving.open_decisions import OpenDecisions
from l2d.rejector.serving.router import Router, Row

AT_ONCE = 16  # inputs of a batch, between which others get their turn


class Busy(Exception):
    """The queue is full, or a request has waited too long: try again."""


@dataclass
class Job:
    """Inputs of one request, and where their decisions go."""

    rows: Sequence[Row]
    options: dict[str, Any]
    name: str | None
    deadline: float
    done: asyncio.Future[list[Decision]]


class Service:
    """Decides for many clients, one request after another.

    Args:
        open_router: opens the run anew, with a log if there is one; called at the start and for each reload.
        log: where decisions are written down.
        queue: requests that may wait; more are told to try again.
        timeout: seconds a request may wait.
    """

    def __init__(
        self,
        open_router: Callable[[], Router],
        *,
        log: DecisionLog | None = None,
        queue: int = 256,
        timeout: float = 2.0,
    ):
        self._open, self.log, self.timeout = open_router, log, timeout
        self.router = open_router()
        self.metrics = Metrics(self.router.agents)
        self.open = OpenDecisions()
        self.started = time.time()
        self._queue: asyncio.Queue[Job] = asyncio.Queue(queue)
        self._worker: asyncio.Task[None] | None = None
        self._busy = True  # until it is started
        self._reloading = asyncio.Lock()

    async def start(self) -> None:
        """Begin to decide."""
        self._busy = False
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Decide about what waits, and write down what is left."""
        await self._queue.join()
        if self._worker is not None:
            self._worker.cancel()
        self.router.close()
        if self.log is not None:
            await asyncio.to_thread(self.log.close)

    @property
    def waiting(self) -> int:
        return self._queue.qsize()

    async def decide(
        self, rows: Sequence[Row], *, available: Collection[str] | None, cap: float | None, name: str | None = None
    ) -> list[Decision]:
        """Decisions about some inputs, in their order.

        Raises:
            Busy: there is no room, or it has waited too long.
            L2DError: as :meth:`l2d.rejector.serving.router.Router.route`.
        """
        options = {"available": available, "cap": cap}
        if len(rows) == 1 and not self._busy and self._queue.empty():  # it is its turn: no need to wait for it
            return await self._decisions(rows, name, options)
        job = Job(
            rows,
            options,
            name,
            time.monotonic() + self.timeout,
            asyncio.get_running_loop().create_future(),
        )
        try:
            self._queue.put_nowait(job)
        except asyncio.QueueFull:
            raise Busy(f"{self._queue.maxsize} requests wait already") from None
        return await job.done

    def next(self, identity: str, answer: Any, agent: str | None, **said: Any) -> Decision:
        """Go on with a decision of a policy; see :meth:`OpenDecisions.next`."""
        found = self.open.next(identity, answer, agent, **said)
        self.metrics.stepped(found)
        return found

    async def reload(self) -> Router:
        """Open the run again. Requests go on being answered, by the old one until the new one is ready."""
        async with self._reloading:
            fresh = await asyncio.to_thread(self._open)
            old, self.router = self.router, fresh
            if old.guard is not None and fresh.guard is not None and old.run.digest == fresh.run.digest:
                fresh.guard = old.guard  # it knows decisions whose outcomes are still to come
            self.metrics.know(fresh.agents)
            old.close()
            self.metrics.reloads.inc()
        return fresh

    async def _work(self) -> None:
        while True:
            job = await self._queue.get()
            self._busy = True
            try:
                if job.done.cancelled():  # whose client has gone
                    continue
                if time.monotonic() > job.deadline:
                    job.done.set_exception(Busy(f"waited for more than {self.timeout:g} s"))
                    continue
                decisions = await self._decisions(job.rows, job.name, job.options)
                if not job.done.cancelled():
                    job.done.set_result(decisions)
            except Exception as error:  # belongs to the request that made it
                if not job.done.done():
                    job.done.set_exception(error)
            finally:
                self._busy = False
                self._queue.task_done()
            await asyncio.sleep(0)

    async def _decisions(self, rows: Sequence[Row], name: str | None, options: dict[str, Any]) -> list[Decision]:
        router = self.router
        if len(rows) == 1:
            found = [router.route(rows[0], id=name, **options)]
        else:
            encoded = []
            for start in range(0, len(rows), AT_ONCE):
                encoded += router.encode(rows[start : start + AT_ONCE], start)
                await asyncio.sleep(0)
            found = []
            for start in range(0, len(encoded), AT_ONCE):
                found += [router.decide(one, **options) for one in encoded[start : start + AT_ONCE]]
                await asyncio.sleep(0)
        self.metrics.decided(found)
        if isinstance(router, PolicyRouter):
            for decision in found:
                self.open.add(router, decision)
        return found
