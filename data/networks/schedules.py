"""How the learning rate falls over training, for agents and rejectors alike."""

from __future__ import annotations

import math
from collections.abc import Callable

#: Schedule -> factor of the learning rate, by the share of the steps after the warm-up that is done.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


def rate_at(step: int, steps: int, *, lr: float, warmup: float, schedule: str) -> float:
    """Learning rate of step ``step`` out of ``steps``: linear warm-up over a share of them, then the schedule."""
    warm = round(warmup * steps)
    if step < warm:
        return lr * (step + 1) / warm
    return lr * SCHEDULES[schedule]((step - warm) / max(1, steps - warm))
