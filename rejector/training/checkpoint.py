"""Where the training of a grid stands, kept on disk, so that a kill costs what was done since the last save."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from l2d.data.cache import store
from l2d.data.errors import CorruptPart
from l2d.rejector.training.distributed import Group

EVERY = 30.0  # seconds between two saves


@dataclass(frozen=True)
class Progress:
    """Training between two steps.

    Attributes:
        epoch: under way, counted from 0.
        step: of this epoch that comes next.
        losses: sum of each point's losses in this epoch so far, float64 (P,).
        history: mean loss and validation risk of each point in the epochs before, float64 (epochs, P, 2).
        state: of all points, see :meth:`l2d.rejector.training.stack.Stack.state`.
    """

    epoch: int
    step: int
    losses: Tensor
    history: Tensor
    state: dict[str, Tensor]


class Checkpoint:
    """One file that is replaced as a whole and removed at the end.

    Args:
        file: where; its name says what is trained on what, so that nothing else is ever resumed from it.
        every: seconds between two saves; 0 saves whenever asked.
        group: processes that train together. They all stand where rank 0 does, so it alone saves and reads.
    """

    def __init__(self, file: Path, every: float = EVERY, group: Group | None = None):
        self.file, self.every, self.group = file, every, group or Group()
        self._saved = time.monotonic()

    @property
    def is_due(self) -> bool:
        return self.group.rank == 0 and time.monotonic() - self._saved >= self.every

    def save(self, progress: Progress) -> None:
        """Replace the file, atomically."""
        from safetensors.torch import save

        tensors = {f"state.{name}": value.contiguous() for name, value in progress.state.items()}
        tensors |= {"losses": progress.losses.cpu(), "history": progress.history.cpu()}
        facts = {"epoch": progress.epoch, "step": progress.step, "sha256": _digest(tensors)}
        store.commit_bytes(self.file, save(tensors, {"l2d": json.dumps(facts)}), replace=True)
        self._saved = time.monotonic()

    def load(self) -> Progress | None:
        """What was saved last, or None.

        Raises:
            CorruptPart: the file is not what was saved.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        is_there = self.group.rank == 0 and self.file.is_file()
        content = self.group.from_first(self.file.read_bytes() if is_there else None)
        if content is None:
            return None
        try:
            tensors = load(content)
            header = content[8 : 8 + int.from_bytes(content[:8], "little")]
            facts = json.loads(json.loads(header)["__metadata__"]["l2d"])
            if facts["sha256"] != _digest(tensors):
                raise ValueError("its content has changed")
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CorruptPart(
                f"is not what was saved: {error}", where=self.file, hint="delete it: training starts from the beginning"
            ) from error
        state = {name.removeprefix("state."): v for name, v in tensors.items() if name.startswith("state.")}
        return Progress(facts["epoch"], facts["step"], tensors["losses"], tensors["history"], state)

    def remove(self) -> None:
        """Training is over."""
        store.remove(self.file)


def _digest(tensors: dict[str, Tensor]) -> str:
    state = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        state.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        state.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return state.hexdigest()
