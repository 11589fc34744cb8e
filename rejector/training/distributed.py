"""Several processes that train one grid: each takes its share of every batch, gradients are added up.

Started by ``torchrun``, on one machine or several. All read the cache and hold the same parameters; the result is
that of one process, except for the order in which floats are added.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """The processes that train together; by default one.

    Attributes:
        rank: of this process, from 0. Rank 0 writes and speaks.
        size: how many there are.
        device: of torch, where tensors are exchanged.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def share(self, rows: Tensor, dim: int) -> Tensor:
        """This process's part of rows, about as many as every other's; may be none."""
        return rows if self.size == 1 else rows.tensor_split(self.size, dim=dim)[self.rank]

    def add(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def least(self, value: int) -> int:
        """The smallest of all processes' values."""
        if self.size == 1:
            return value
        values = torch.tensor([value], device=self.device)
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MIN)
        return int(values)

    def from_first(self, content: bytes | None) -> bytes | None:
        """What rank 0 gives, on all processes."""
        if self.size == 1:
            return content
        size = torch.tensor([-1 if content is None else len(content)], device=self.device)
        torch.distributed.broadcast(size, src=0)
        if size < 0:
            return None
        shared = torch.empty(int(size), dtype=torch.uint8, device=self.device)
        if content is not None:
            shared.copy_(torch.from_numpy(np.frombuffer(content, np.uint8).copy()))
        torch.distributed.broadcast(shared, src=0)
        return shared.cpu().numpy().tobytes()


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def joined(device: str) -> Iterator[tuple[Group, str]]:
    """Join the processes that ``torchrun`` has started with this one.

    Args:
        device: of torch; ``cuda`` becomes this process's own GPU.

    Yields:
        The group, and the device to use.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group(), device
        return
    gpu = torch.device(device).type == "cuda"
    if gpu:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if gpu else "gloo")
    try:
        yield Group(torch.distributed.get_rank(), size, device), device
        torch.distributed.barrier()  # no process leaves before rank 0 has written
    finally:
        torch.distributed.destroy_process_group()
