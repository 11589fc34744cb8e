"""Parts that are committed in threads, each whole or not at all, while the next is made."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

#: A function and what it is called with, now or in a thread.
Commit = Callable[..., None]
THREADS = 2  # that write, and wait for the disk: several milliseconds a part, however small it is


@contextmanager
def committing(at_once: int) -> Iterator[Commit]:
    """Call functions in threads, at most this many at once, in order; with 0 none is used.

    What one raises comes from a later call or at the end. All that have begun end before this does.
    """
    if not at_once:
        yield lambda commit, *given: commit(*given)
        return
    with ThreadPoolExecutor(at_once, thread_name_prefix="committing") as pool:
        under_way: deque[Future[None]] = deque()

        def begin(commit: Callable[..., None], *given: Any) -> None:
            if len(under_way) >= at_once:
                under_way.popleft().result()
            under_way.append(pool.submit(commit, *given))

        yield begin
        while under_way:
            under_way.popleft().result()
