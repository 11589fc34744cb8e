"""Dropout whose draws depend on seed, step and row alone, so that a grid, a resumed run and several processes agree.

A generator's draws would depend on what else is drawn; these are a hash of where they stand (as counter-based
generators are: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), with the mixing function of
splitmix64 (Steele, Lea and Flood 2014).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

GOLDEN, FIRST, SECOND = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
AT_ONCE, BITS = 4, 16  # numbers that one hash decides about, and its bits for each


def row_keys(seeds: list[int], step: int, rows: int, device: torch.device) -> Tensor:
    """Keys of the rows of one step's batches, int64 (S, rows)."""
    states = [int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0]) - 2**63 for seed in seeds]
    return _mixed(torch.tensor(states, device=device)[:, None] + GOLDEN * torch.arange(1, rows + 1, device=device))


class SeededDropout:
    """Sets each number to zero with probability ``share`` and scales the others up.

    What is dropped depends on the row's key, on the number's place in its row, and on how many times this object has
    been called before: one object is for one forward pass.

    Args:
        keys: of the rows, (batch,).
        share: below 1.
    """

    def __init__(self, keys: Tensor, share: float):
        self._keys, self._share, self._calls = keys, share, 0

    def __call__(self, values: Tensor) -> Tensor:
        """Values (batch, …, a multiple of 4) -> the same shape."""
        self._calls += 1
        shape = (*values.shape[1:-1], values.shape[-1] // AT_ONCE)
        places = torch.arange(1, 1 + int(np.prod(shape)), device=values.device).reshape(shape)
        keys = _mixed(self._keys + self._calls).reshape(-1, *[1] * len(shape))
        shifts = BITS * torch.arange(AT_ONCE, device=values.device)
        draws = (_mixed(keys + GOLDEN * places).unsqueeze(-1) >> shifts) & ((1 << BITS) - 1)
        kept = draws.flatten(-2) >= round(self._share * (1 << BITS))
        return torch.where(kept, values / (1 - self._share), 0.0)


def _mixed(values: Tensor) -> Tensor:
    """int64 -> int64, each bit of which depends on all. (What overflows wraps around, as it should.)"""
    values = (values ^ _shifted(values, 30)) * FIRST
    values = (values ^ _shifted(values, 27)) * SECOND
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """To the right, zeros coming in on the left (torch's own ``>>`` repeats the sign)."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
