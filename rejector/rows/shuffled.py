"""A split of a cache shuffled for training, in bounded memory: a window of its parts is held, its rows are permuted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from l2d.data.errors import UsageError
from l2d.rejector.rows.stream import Prepare, Rows, Stream, ahead


@dataclass(frozen=True)
class Window:
    """Rows in memory, and the order in which each seed takes them.

    Attributes:
        first_step: of the epoch, where the orders begin.
        orders: positions of rows, int32 (S, n): whole batches, but for the epoch's last one.
        features: (m, W).
        raw: (m, A, T).
    """

    first_step: int
    orders: Tensor
    features: Tensor
    raw: Tensor

    def take(self, rows: Tensor) -> Rows:
        """Features (S, B, W) and raw costs (S, B, A, T) at these positions (S, B)."""
        flat = rows.reshape(-1)
        return tuple(v.index_select(0, flat).view(*rows.shape, *v.shape[1:]) for v in (self.features, self.raw))


@dataclass
class _Planned:
    number: int
    start: int  # rows of the epoch before it
    stop: int
    chunks: list[int]


class Shuffled:
    """A stream in a new order each epoch, and in another one for each seed. Deterministic, and can be entered anywhere.

    A split that fits into the bound is held, and an epoch is a permutation of it: ``torch.randperm`` of one generator a
    seed, an epoch after the other. Of a larger one a window is held, as many whole chunks as fit, while the next one is
    read in the background. Which chunks share a window is drawn from the epoch alone, so that all seeds of a grid can
    read the same window, and a seed's rows do not depend on which others there are. The rows of a window are permuted
    by a generator drawn from seed, epoch and window. An epoch is one such window after the other, cut into batches.

    Args:
        stream: the rows.
        batch_size: B; the last batch of an epoch may be smaller.
        seeds: S of them, in the order of the batches' first dimension.
        memory: bound in bytes on all that is held here; None for no bound. Three quarters are for rows, whatever the
            seeds and the batch size, as the rows that come out depend on it.
        window_rows: hold windows of at most this number of rows (to train again as a run on another machine was).
        prepare: applied to the rows of each chunk whenever they are read, in the background where not all is held.
        device: of torch, where the window lives and batches are gathered.

    Attributes:
        window_rows: None where the whole split is held.
        most_seeds: whose orders and batches fit into ``memory``; None where there is no bound.

    Raises:
        UsageError: not even one chunk fits into the bound, or not the orders and batches of all seeds.
    """

    def __init__(
        self,
        stream: Stream,
        batch_size: int,
        seeds: list[int],
        *,
        memory: int | None = None,
        window_rows: int | None = None,
        prepare: Prepare | None = None,
        device: str = "cpu",
    ):
        self.stream, self.batch_size, self.seeds = stream, batch_size, seeds
        self._prepare, self._device = prepare, device
        first = stream.rows(stream.chunks[0], prepare)
        self._shapes = tuple(values.shape[1:] for values in first)
        self.most_seeds: int | None = None
        if window_rows is None and memory is not None:
            window_rows = self._window_rows(memory)
            self._check_seeds(memory, window_rows)
        elif window_rows is not None and window_rows < stream.counts.max():
            raise UsageError(
                f"a window of {window_rows} rows is smaller than a part of {stream.counts.max()}",
                hint="windows are whole parts",
            )
        self.window_rows = None if window_rows is None or window_rows >= len(stream) else window_rows
        self._held: Rows | None = None
        self._drawn, self._generators = -1, []  # the epoch whose order was drawn last, where all is held

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.stream) // self.batch_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[int, Rows]]:
        """The batches of one epoch, from ``start_step`` on; windows before it are not read.

        Yields:
            The step, counted in the epoch, and features (S, B, W) and raw costs (S, B, A, T) of each seed's rows, on
            the device.
        """
        for window in self.windows(epoch, start_step):
            for step, rows in enumerate(window.orders.split(self.batch_size, dim=1), start=window.first_step):
                yield step, window.take(rows)

    def windows(self, epoch: int, start_step: int = 0) -> Iterator[Window]:
        """The same for callers that gather batches themselves, on threads say. A window is valid until the next one."""
        skip = start_step * self.batch_size
        if self.window_rows is None:
            changed = self.stream.begin(epoch)  # told in any case: training may go on in the middle, or begin again
            if changed or self._held is None:
                self._held = self._load(self.stream.chunks, 0, self._buffers(len(self.stream)))
            if skip < len(self.stream):
                yield Window(start_step, self._orders_of_all(epoch)[:, skip:], *self._held)
            return
        plan = [window for window in self._plan(epoch) if window.stop > skip]
        buffers = [self._buffers(self.window_rows + self._room(self.batch_size - 1)) for _ in range(2)]

        def load(place: int) -> Rows:
            return self._load(plan[place].chunks, self._room(self._carried(plan, place)), buffers[place % 2])

        left: Rows = ()
        for place, rows in enumerate(ahead(load, range(len(plan)))):
            window, carried = plan[place], self._carried(plan, place)
            orders = self._orders(epoch, window, carried)
            if place == 0:
                orders = orders[:, max(0, skip - window.start) :]
            elif carried:
                for values, rest in zip(rows, left, strict=True):
                    values[: len(rest)] = rest
            whole = orders.shape[1] // self.batch_size * self.batch_size
            if place + 1 == len(plan):
                whole = orders.shape[1]
            if whole:
                yield Window(start_step, orders[:, :whole], *rows)
            start_step += whole // self.batch_size
            left = tuple(values.index_select(0, orders[:, whole:].reshape(-1)) for values in rows)

    def _room(self, carried: int) -> int:
        """Rows at the beginning of a window that hold ``carried`` rows of each seed from the one before."""
        return len(self.seeds) * carried

    def _carried(self, plan: list[_Planned], place: int) -> int:
        """Rows that each seed has left of earlier windows, too few for a batch."""
        return plan[place].start % self.batch_size if place else 0

    def _orders(self, epoch: int, window: _Planned, carried: int) -> Tensor:
        """Positions in a window in each seed's order, (S, carried + n): what is carried over comes first."""
        orders = torch.empty(len(self.seeds), carried + window.stop - window.start, dtype=torch.int32)
        orders[:, :carried] = torch.arange(self._room(carried)).reshape(len(self.seeds), carried)
        for order, seed in zip(orders[:, carried:], self.seeds, strict=True):
            torch.randperm(len(order), generator=_generator(seed, epoch, window.number), dtype=torch.int32, out=order)
        orders[:, carried:] += self._room(carried)
        return orders.to(self._device)

    def _plan(self, epoch: int) -> list[_Planned]:
        """Which chunks share a window, in an order drawn from the epoch alone."""
        chunks = np.random.default_rng([epoch]).permutation(self.stream.chunks)
        windows: list[_Planned] = []
        for chunk in chunks.tolist():
            count = int(self.stream.counts[chunk])
            if not windows or windows[-1].stop - windows[-1].start + count > self.window_rows:
                start = windows[-1].stop if windows else 0
                windows.append(_Planned(len(windows), start, start, []))
            windows[-1].chunks.append(chunk)
            windows[-1].stop += count
        return windows

    def _orders_of_all(self, epoch: int) -> Tensor:
        """Each seed's permutation of the whole split, (S, n)."""
        if epoch <= self._drawn or not self._generators:
            self._drawn, self._generators = -1, [torch.Generator().manual_seed(seed) for seed in self.seeds]
        orders = torch.empty(len(self.seeds), len(self.stream), dtype=torch.int32)
        for _ in range(epoch - self._drawn):
            for order, generator in zip(orders, self._generators, strict=True):
                torch.randperm(len(order), generator=generator, dtype=torch.int32, out=order)
        self._drawn = epoch
        return orders.to(self._device)

    def _buffers(self, rows: int) -> list[np.ndarray]:
        # numpy asks the system for huge pages, torch does not: rows are gathered from all over the window
        return [np.empty((rows, *shape), np.float32) for shape in self._shapes]

    def _load(self, chunks: list[int], start: int, buffers: list[np.ndarray]) -> Rows:
        """Read chunks one after another into buffers, from row ``start`` on."""
        for chunk in chunks:
            rows = self.stream.rows(chunk, self._prepare)
            stop = start + len(rows[0])
            for buffer, values in zip(buffers, rows, strict=True):
                np.copyto(buffer[start:stop], values.numpy())
            start = stop
        return tuple(torch.from_numpy(buffer[:start]).to(self._device) for buffer in buffers)

    @property
    def _row_bytes(self) -> int:
        return sum(4 * int(np.prod(shape)) for shape in self._shapes)

    def _window_rows(self, memory: int) -> int:
        """Rows of which all, or else two windows, fit into three quarters of the bound beside a part being read."""
        part = int(self.stream.counts.max())
        reading = 3 * part * 4 * (self.stream.width + int(np.prod(self.stream.shape)))
        rows = max(0, memory * 3 // 4 - reading) // self._row_bytes
        if rows >= len(self.stream):
            return len(self.stream)
        if rows // 2 < part:
            least = (reading + 2 * part * self._row_bytes) * 4 / 3
            raise UsageError(
                f"{memory / 2**20:.1f} MiB do not hold a window of one part ({part} rows)",
                where=self.stream.cache_path,
                hint=f"at least {math.ceil(least / 2**20 * 10) / 10} MiB of --memory are needed",
            )
        return rows // 2

    def _check_seeds(self, memory: int, window_rows: int) -> None:
        """What there is for each seed fits into the last quarter: two orders, five batches (most of them left over)."""
        each = 2 * 4 * window_rows + 5 * self.batch_size * self._row_bytes
        self.most_seeds = memory // 4 // each
        if len(self.seeds) > self.most_seeds:
            raise UsageError(
                f"{len(self.seeds)} seeds at once do not fit into {memory / 2**20:.1f} MiB, {self.most_seeds} do",
                where=self.stream.cache_path,
                hint="give more --memory, a smaller batch size, or train fewer seeds at once",
            )


def _generator(seed: int, epoch: int, window: int) -> torch.Generator:
    """Independent of every other seed's, epoch's and window's."""
    state = np.random.SeedSequence([seed, epoch, window]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)
