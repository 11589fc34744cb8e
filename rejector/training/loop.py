"""Training a grid of rejectors together: one pass over the rows, stacked parameters, one optimizer.

Each point has its own initialisation and its own shuffle, both drawn from its seed alone, so a point comes out of a
grid as it would come out alone: to float tolerance, and linear and mlp on a CPU to the last bit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from l2d.data.errors import DataError, UsageError
from l2d.rejector.grid import GridPoint
from l2d.rejector.rows.shuffled import Shuffled, Window
from l2d.rejector.rows.stream import Stream
from l2d.rejector.rows.table import CostTable, HeldStream
from l2d.rejector.settings import TrainConfig, learning_rate
from l2d.rejector.training.checkpoint import Checkpoint, Progress
from l2d.rejector.training.distributed import Group
from l2d.rejector.training.dropout import row_keys
from l2d.rejector.training.network import ROWS_AT_ONCE, TrainedNetwork
from l2d.rejector.training.stack import AutogradStack, Stack, points_at_once
from l2d.rejector.training.stack_mlp import MLPStack
from l2d.rejector.training.standing import Standing, best_of

BATCHES_AT_ONCE = 64  # that stacks train on before they wait for each other: seldom enough to cost nothing


def train_grid(
    points: list[GridPoint],
    train: CostTable | Stream,
    validation: CostTable | Stream,
    config: TrainConfig,
    *,
    tasks: list[str],
    device: str = "cpu",
    group: Group | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    make: Callable[[], nn.Module] | None = None,
) -> list[TrainedNetwork]:
    """Train every point of a grid on the same rows, together.

    Args:
        points: the grid.
        train: rows to fit; features are standardised by their mean and deviation. Raw costs are NaN where an agent is
            unavailable.
        validation: rows that choose the epoch (lowest deferral risk on the costs trained on).
        tasks: of the cache, in the order of the tables' last dimension.
        device: of torch.
        group: processes that train together; this one alone if None.
        checkpoint: where to go on from, and to save to now and then; the caller removes it.
        progress: called after each epoch with (epoch, rows trained on, mean validation risk).
        make: makes the network, where it is of none of the kinds in networks.py.

    Returns:
        One rejector per point, in order.

    Raises:
        UsageError: a point has its own ``nu``, and the loss none; or ``config.memory`` is too little.
        DataError: a loss is not finite.
    """
    if config.loss != "surrogate" and any(point.nu != 1 for point in points):
        raise UsageError(f"loss {config.loss!r} has no nu", hint="nu is the surrogate's: leave it out")
    train, validation = (HeldStream(s) if isinstance(s, CostTable) else s for s in (train, validation))
    job = _Training(points, train, validation, config, tasks=tasks, device=device, group=group or Group(), make=make)
    job.run(checkpoint, progress)
    return job.rejectors()


class _Training:
    """One grid under way. Losses and risks are in the order of ``order``: points that share rows are neighbours."""

    def __init__(
        self,
        points: list[GridPoint],
        train: Stream | HeldStream,
        validation: Stream | HeldStream,
        config: TrainConfig,
        *,
        tasks: list[str],
        device: str,
        group: Group,
        make: Callable[[], nn.Module] | None = None,
    ):
        self.points, self.config, self.group = points, config, group
        self.mean, self.std = _standardisation(train)

        def prepare(features: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
            return (features - self.mean) / self.std, points[0].raw_costs(raw, tasks).float()

        self.seeds = sorted({point.seed for point in points})
        self.rows = Shuffled(train, config.batch_size, self.seeds, memory=config.memory, prepare=prepare, device=device)
        in_order = (
            (features.to(device), raw.to(device))
            for features, raw in validation.in_order(ROWS_AT_ONCE, prepare=prepare)
        )
        hold = self.rows.window_rows is None
        self._validation = list(in_order) if hold else None
        self._validation_again = lambda: validation.in_order(ROWS_AT_ONCE, prepare=prepare)
        self.num_validation, self.device = len(validation), device
        self.order = sorted(range(len(points)), key=lambda index: points[index].seed)
        ordered = [points[index] for index in self.order]
        missing, self.sizes = train.has_unavailable or validation.has_unavailable, train.sizes

        def stacks_of(points: list[GridPoint]) -> list[Stack]:
            return _stacks(
                points,
                config,
                train.width,
                self.sizes,
                device,
                alone=group.size > 1,
                has_unavailable=missing,
                make=make,
            )

        self.standing = Standing(ordered, stacks_of, may_leave=group.size == 1)
        self.history: list[Tensor] = []  # (P, 2) an epoch
        self.losses = torch.zeros(len(points), dtype=torch.float64)  # of the epoch under way

    def run(self, checkpoint: Checkpoint | None, progress: Callable[[int, int, float], None] | None) -> None:
        """Train until the last epoch, or until every point has run out of patience."""
        start, step = self._resume(checkpoint)
        with _side_by_side(self.standing.stacks) as map_stacks:
            for epoch in range(start, self.config.epochs):
                over = self._is_over(epoch)
                if over.all():
                    break
                self.standing.leave(over)
                standing = self.standing.positions
                for window in self.rows.windows(epoch, step):
                    for first in range(0, window.orders.shape[1], BATCHES_AT_ONCE * self.config.batch_size):
                        found = map_stacks(
                            lambda stack: self._pass_over(stack, window, first, epoch),  # noqa: B023 - used at once
                            self.standing.stacks,
                        )
                        self.losses[standing] += torch.cat([losses.cpu() for losses in found])
                        done = min(first + BATCHES_AT_ONCE * self.config.batch_size, window.orders.shape[1])
                        step = window.first_step + -(-done // self.config.batch_size)
                        if checkpoint is not None and checkpoint.is_due and step < self.rows.steps:
                            checkpoint.save(self._progress(epoch, step))
                self._end_epoch(epoch, map_stacks)
                step = 0
                if checkpoint is not None and checkpoint.is_due:
                    checkpoint.save(self._progress(epoch + 1, 0))
                if progress:
                    progress(epoch, len(self.rows.stream), float(self.history[-1][:, 1].mean()))

    def _pass_over(self, stack: Stack, window: Window, first: int, epoch: int) -> Tensor:
        """Some batches of a window, from row ``first`` of each seed's order on; the sum of each point's losses."""
        config, steps = self.config, self.rows.steps
        of_seeds = [self.seeds.index(seed) for seed in stack.seeds]
        mine = window.orders[of_seeds, first : first + BATCHES_AT_ONCE * config.batch_size]
        losses = torch.zeros(len(stack.points), dtype=torch.float64, device=stack.device)
        number = epoch * steps + window.first_step + first // config.batch_size
        for step, rows in enumerate(mine.split(config.batch_size, dim=1), start=number):
            share = self.group.share(rows, dim=1)
            lr = learning_rate(step, config.epochs * steps, config)
            keys = None
            if config.dropout:
                keys = self.group.share(row_keys(stack.seeds, step, rows.shape[1], rows.device), dim=1)
            found = stack.step(*window.take(share), lr, total=rows.shape[1], group=self.group, keys=keys)
            losses += found * rows.shape[1]
        return losses

    def _end_epoch(self, epoch: int, map_stacks: Callable) -> None:
        """Validate, remember the best epochs, begin a new one."""
        if not bool(torch.isfinite(self.losses).all()):
            point = self.points[self.order[int((~torch.isfinite(self.losses)).nonzero()[0])]]
            raise DataError(f"the loss of {point.run_id} is not finite in epoch {epoch}", hint="lower --lr")
        over, standing = self._is_over(epoch), self.standing.positions
        risk = torch.zeros(len(standing), dtype=torch.float64)
        for features, raw in self._validation if self._validation is not None else self._validation_again():
            x, costs = (self.group.share(values.to(self.device), dim=0) for values in (features, raw))
            if len(x):
                found = map_stacks(lambda stack: stack.risk(x, costs, ROWS_AT_ONCE), self.standing.stacks)  # noqa: B023 - used at once
                risk += torch.cat([part.cpu() for part in found]) * len(x)
        risk = self.group.add(risk.to(self.device)).cpu() / self.num_validation
        start = 0
        counted = torch.where(over[standing], math.inf, risk)
        for stack in self.standing.stacks:
            stack.keep_best(counted[start : start + len(stack.points)].to(stack.device), epoch)
            start += len(stack.points)
        found = torch.stack([self.losses / len(self.rows.stream), torch.zeros_like(self.losses)], dim=1)
        if self.history:
            found[:, 1] = self.history[-1][:, 1]  # of points that have left, whose curve ends before
        found[standing, 1] = risk
        self.history.append(found)
        self.losses = torch.zeros_like(self.losses)

    def _is_over(self, epoch: int) -> Tensor:
        """Points that had stopped before this epoch, bool (P,)."""
        best = self.standing.best_epoch()
        if not self.config.patience or not self.history:
            return torch.zeros(len(best), dtype=torch.bool)
        return epoch - 1 - best >= self.config.patience

    def _progress(self, epoch: int, step: int) -> Progress:
        history = torch.stack(self.history) if self.history else torch.zeros(0, len(self.points), 2)
        return Progress(epoch, step, self.losses, history.double(), self.standing.state())

    def _resume(self, checkpoint: Checkpoint | None) -> tuple[int, int]:
        """Go on where the checkpoint was saved; returns the epoch and the step that come next."""
        found = checkpoint.load() if checkpoint is not None else None
        if found is None:
            return 0, 0
        self.standing.load(found.state)
        self.losses, self.history = found.losses, list(found.history)
        return found.epoch, found.step

    def rejectors(self) -> list[TrainedNetwork]:
        """One a point, in the grid's order, each as it would be had it been trained alone."""
        curves = torch.stack(self.history, dim=1)  # (points, epochs, 2)
        state, found = self.standing.state(), {}
        for position, (index, curve) in enumerate(zip(self.order, curves.tolist(), strict=True)):
            best = int(state["best_epoch"][position])
            last = best + self.config.patience + 1 if self.config.patience else len(curve)
            found[index] = TrainedNetwork(
                point=self.points[index],
                config=self.config,
                state={**best_of(state, position), "feature_mean": self.mean, "feature_std": self.std},
                best_epoch=best,
                validation_risk=float(state["best_risk"][position]),
                history=[tuple(row) for row in curve[:last]],
                sizes=self.sizes,
            )
        return [found[index] for index in range(len(self.points))]


def _standardisation(train: Stream | HeldStream) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature; what leaves token lists as they are, whose numbers are names."""
    if train.sizes:
        return torch.zeros(train.width), torch.ones(train.width)
    mean, std = train.standardisation()
    return torch.from_numpy(mean), torch.from_numpy(std)


def _stacks(
    points: list[GridPoint],
    config: TrainConfig,
    width: int,
    sizes: tuple[tuple[int, int], ...],
    device: str,
    *,
    alone: bool,
    has_unavailable: bool,
    make: Callable[[], nn.Module] | None = None,
) -> list[Stack]:
    """Points of a grid in stacks: on a CPU as many of the fast kind as there are threads, or one if that has to do."""
    on_cpu = torch.device(device).type == "cpu"
    if on_cpu and config.network in ("linear", "mlp"):
        kind, count = MLPStack, 1 if alone else min(torch.get_num_threads(), len(points))
    else:
        size = points_at_once(device, config.batch_size, config.network, width, config.hidden, config.layers)
        kind, count = AutogradStack, -(-len(points) // size)
    cuts = [len(points) * position // count for position in range(count + 1)]
    return [
        kind(
            points[start:stop],
            torch.from_numpy(np.stack([point.cost_weights(train=True) for point in points[start:stop]])).float(),
            network=config.network,
            width=width,
            num_agents=len(points[0].query_costs),
            hidden=config.hidden,
            layers=config.layers,
            sizes=sizes,
            loss=config.loss,
            recentre=config.recentre,
            has_unavailable=has_unavailable,
            weight_decay=config.weight_decay,
            dropout=config.dropout,
            device=device,
            make=make,
        )
        for start, stop in itertools.pairwise(cuts)
    ]


@contextmanager
def _side_by_side(stacks: list[Stack]) -> Iterator[Callable]:
    """A ``map`` over stacks: on a CPU several at once, each on a thread of its own.

    That is faster than one after another with every operation divided among the threads, which wait for each other
    after each: several times so where other programs run on the same cores.
    """
    threads = torch.get_num_threads()
    alone = isinstance(stacks[0], AutogradStack) and (len(stacks) < threads or stacks[0].device.type != "cpu")
    if alone:
        yield map
        return
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)
