"""What a run's agents were like when it was tested, to compare its log with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from l2d.data.cache import store
from l2d.rejector.calibration import Calibration
from l2d.rejector.runs.files import ALLOCATIONS_FILE

ERRORS = 3.0  # standard errors of the baseline that are granted on either side


@dataclass(frozen=True)
class Baseline:
    """Of one agent: its cost on test samples that it was chosen for, less what was predicted.

    Attributes:
        samples: how many.
        mean, error: of the difference, with its standard error.
        least, most: between which it can lie, by the costs and predictions of all samples.
        of: what ``samples`` are.
    """

    samples: int
    mean: float
    error: float
    least: float
    most: float
    of: str = "test samples"

    @property
    def interval(self) -> tuple[float, float]:
        """Where the mean lies, given that it was estimated from some samples."""
        return self.mean - ERRORS * self.error, self.mean + ERRORS * self.error


def baselines(run: Path, agents: list[str], *, costs: bool, calibration: Calibration | None = None) -> list[Baseline]:
    """Of each agent, in order.

    Args:
        run: its folder.
        costs: whether its scores are negated predicted costs; else costs are compared by themselves.
        calibration: that corrects them. Agents that it corrects are compared with the outcomes that judged it.
    """
    columns = [f"{name}_{agent}" for agent in range(len(agents)) for name in ("score", "cost")]
    table = store.read_table(run / ALLOCATIONS_FILE, ["split", "agent_index", *columns])
    is_test = pc.equal(table["split"], "test").to_numpy(zero_copy_only=False).astype(bool)
    chosen = table["agent_index"].fill_null(-1).to_numpy()
    found = []
    corrections = {} if calibration is None else {one.agent: one for one in calibration.corrections if one.corrects}
    for agent, name in enumerate(agents):
        cost = table[f"cost_{agent}"].fill_null(np.nan).to_numpy().astype(np.float64)
        score = table[f"score_{agent}"].fill_null(np.nan).to_numpy().astype(np.float64)
        predicted = -score if costs else np.zeros_like(score)
        if name in corrections:
            predicted = corrections[name].intercept + corrections[name].slope * predicted
        there = np.isfinite(cost) & np.isfinite(predicted)
        differences = (cost - predicted)[there & is_test & (chosen == agent)]
        n = len(differences)
        error = float(differences.std(ddof=1) / np.sqrt(n)) if n > 1 else float("inf")
        ends = (0.0, 0.0)
        if there.any():
            ends = (
                float(cost[there].min() - predicted[there].max()),
                float(cost[there].max() - predicted[there].min()),
            )
        mean, of = float(differences.mean()) if n else 0.0, "test samples"
        if name in corrections:
            n, mean, error = corrections[name].residual or (0, 0.0, float("inf"))
            of = "outcomes that judged its correction"
        found.append(Baseline(n, mean, error, *ends, of))
    return found
