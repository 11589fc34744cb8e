"""A part of the training split, for experiments with less data."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from l2d.data.errors import UsageError


def training_rows(count: int, wanted: float | None, seed: int) -> Tensor:
    """Positions of the rows to train on, in order, int64.

    Drawn without replacement by the seed; of one seed, smaller parts lie within larger ones.

    Args:
        count: rows of the split.
        wanted: a share below 1, or how many; None: all.
        seed: of the point.

    Raises:
        UsageError: there are fewer, or that is less than two.
    """
    if wanted is None:
        return torch.arange(count)
    size = round(wanted * count) if wanted < 1 else int(wanted)
    if not 2 <= size <= count:
        raise UsageError(f"{size} of {count:,} training rows", hint="give --train-rows a share below 1, or fewer rows")
    chosen = np.random.default_rng([seed, 0x726F7773]).permutation(count)[:size]
    return torch.from_numpy(np.sort(chosen))
