"""How many threads work on one product or one elementwise operation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for each operation of numpy and torch, as long as this lasts.

    Operations on some thousands of rows take less time than threads take to meet at their end: on two idle cores they
    gain little by a second one, and on a busy machine they wait for each other for many times as long as they work.
    What is worth several threads is divided by rows or by runs, by those who know of them.
    """
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")  # where it is not loaded it works on nothing
    threads = torch.get_num_threads() if torch is not None else 0
    if torch is not None:
        torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        if torch is not None:
            torch.set_num_threads(threads)
