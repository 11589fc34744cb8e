"""Attacks on a rejector through its features: how far an allocation can be moved by changes too small to matter.

Source: Montreuil, Carlier, Ng and Ooi, *Adversarial Robustness in Two-Stage Learning-to-Defer*, ICML 2025 (arXiv
2502.01027): *targeted* attacks, which force a sample to an agent, and *untargeted* ones, which spoil the best
allocation. Agents are offline there and here: an attack moves what the rejector sees, and costs stay what they are. The
paper's defence (SARD) is not built: no text with its loss could be read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from l2d.data.errors import UsageError
from l2d.rejector.evaluation.evaluation import Evaluation
from l2d.rejector.evaluation.intervals import paired_interval
from l2d.rejector.settings import INPUT_OF

MOST_SAMPLES = 200  # attacked; more would not narrow intervals by much
STEPS = 2  # to a corner, and on to a better one
ROWS_AT_ONCE = 65_536  # scored together

Scores = Callable[[np.ndarray], np.ndarray]  # features (n, width) -> scores (n, agents)


@dataclass(frozen=True)
class Attack:
    """Attacked samples.

    Attributes:
        reached: whether the attack on agent j brings a sample there, bool (n, agents); its own agent is reached.
        clean: the agent without an attack, (n,).
    """

    reached: np.ndarray
    clean: np.ndarray


def attack(scores: Scores, x: np.ndarray, scale: np.ndarray, radius: float, available: np.ndarray) -> Attack:
    """Move features within a box so that each agent in turn is chosen.

    Projected sign steps (Madry et al. 2018) on ``r_j - max_{i != j} r_i``, from differences of scores at both ends of
    the box along every feature in place of a gradient: so any rejector can be attacked, trees too, and a linear one is
    attacked in the best way that there is. For others, reaching an agent is proof; not reaching it is none.

    Args:
        scores: of the rejector.
        x: features, float32 (n, width).
        scale: standard deviation of each feature in training, (width,); a feature moves by at most ``radius`` of it,
            and constant ones do not move.
        radius: of the box, in standard deviations.
        available: which agents may be chosen, bool (n, agents).

    Returns:
        The attack.
    """
    first = np.where(available, scores(x), -np.inf)
    clean = first.argmax(axis=1)
    reached = np.zeros(first.shape, dtype=bool)
    reached[np.arange(len(x)), clean] = True
    box = (radius * scale).astype(np.float32)
    ends = _ends(scores, x, box)  # the first step's, which all agents' attacks share
    found = np.where(available[None, :, None], ends, -np.inf).argmax(axis=-1)  # these lie inside the box themselves
    for agent in range(first.shape[1]):
        reached[:, agent] |= (found == agent).any(axis=(0, 2))
    for agent in range(first.shape[1]):
        todo = np.flatnonzero(available[:, agent] & ~reached[:, agent])
        moved, around = x[todo], ends[:, todo]
        for step in range(STEPS):
            if not len(todo):
                break
            if step:
                around = _ends(scores, moved, box)
            lead = _lead(around, agent, available[todo][:, None])  # (2, n, features that move)
            moved = moved.copy()
            moved[:, box > 0] += (np.sign(lead[0] - lead[1]) * box[box > 0]).astype(np.float32)
            moved = np.clip(moved, x[todo] - box, x[todo] + box)
            there = np.where(available[todo], scores(moved), -np.inf).argmax(axis=1) == agent
            reached[todo[there], agent] = True
            todo, moved = todo[~there], moved[~there]
    return Attack(reached, clean)


def _lead(found: np.ndarray, agent: int, available: np.ndarray) -> np.ndarray:
    """An agent's score less the best of the others that are available: (..., agents) -> (...)."""
    others = np.where(available, found, -np.inf)
    others[..., agent] = -np.inf
    return found[..., agent] - others.max(axis=-1)


def _ends(scores: Scores, x: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Scores at the upper and the lower end of the box along each feature that moves: (2, n, features, agents)."""
    features = np.flatnonzero(box)
    step = np.zeros((len(features), x.shape[1]), dtype=np.float32)
    step[np.arange(len(features)), features] = box[features]
    rows = max(1, ROWS_AT_ONCE // max(1, len(features)))
    found = []
    for sign in (1, -1):
        parts = [
            scores((part[:, None] + sign * step).reshape(-1, x.shape[1])).reshape(len(part), len(features), -1)
            for part in np.split(x, range(rows, len(x), rows))
        ]
        found.append(np.concatenate(parts))
    return np.stack(found)


def robustness(evaluation: Evaluation, radius: float, *, most: int = MOST_SAMPLES) -> dict[str, Any]:
    """What attacks within a box of this radius do to a run, as plain values.

    At most ``most`` samples are attacked, evenly spaced. ``moved``: the share whose agent can be changed.
    ``deferral_loss`` and ``attacked_loss``: without an attack, and with an untargeted one that moves each sample to the
    dearest agent that it can be moved to; ``by``: the difference, with its interval. ``targeted``: for each agent, the
    share that is allocated to it without and with an attack on behalf of it.

    Raises:
        UsageError: the rejector does not read features alone, or the radius is no positive number.
    """
    if not (np.isfinite(radius) and radius > 0):
        raise UsageError(f"--robust {radius:g}", hint="a radius above 0, in standard deviations of each feature")
    run, table = evaluation.run, evaluation.measured.table
    run.rejector.check_routable()
    looks_at = INPUT_OF[run.rejector.config.network]  # of pixels there are thousands: an attack would take hours
    if looks_at != "features" or run.rejector.sizes or "feature_std" not in run.rejector.state:
        what = "something else" if looks_at == "features" else {"image": "pixels"}.get(looks_at, looks_at)
        raise UsageError(
            f"--robust attacks rejectors of features; {run.point.run_id} reads {what}", hint="leave it out"
        )
    rows = np.unique(np.linspace(0, len(table) - 1, min(most, len(table))).round().astype(int))
    costs = evaluation.baselines.costs.double().numpy()[rows]
    features, scale = table.features.numpy(), np.array(run.rejector.state["feature_std"].tolist())
    scale[np.ptp(features, axis=0) == 0] = 0.0  # where it is constant, standardisation divides by 1
    x = features[rows]
    found = attack(run.rejector.scores, x, scale, radius, np.isfinite(costs))
    every = np.arange(len(rows))
    worst = np.where(found.reached, costs, -np.inf).argmax(axis=1)
    clean, attacked = costs[every, found.clean], costs[every, worst]
    groups = None if evaluation.measured.groups is None else evaluation.measured.groups[rows]
    by = paired_interval(attacked - clean, groups)
    return {
        "radius": radius,
        "samples": len(rows),
        "moved": float((found.reached.sum(axis=1) > 1).mean()),
        "deferral_loss": float(clean.mean()),
        "attacked_loss": float(attacked.mean()),
        "by": by.to_json(test=False),
        "targeted": {
            name: {"clean": float((found.clean == j).mean()), "attacked": float(found.reached[:, j].mean())}
            for j, name in enumerate(evaluation.measured.names)
        },
    }


def robust_table(evaluations: list[Evaluation]) -> list[dict[str, str]]:
    """A row a run: losses without and under attack, what can be moved, and to which agent."""
    rows = []
    for evaluation in evaluations:
        found = evaluation.result["robust"]
        by, targeted = found["by"], found["targeted"]
        easiest = max(targeted, key=lambda name: targeted[name]["attacked"] - targeted[name]["clean"])
        share = targeted[easiest]
        rows.append(
            {
                "run": evaluation.result["run_id"],
                "loss": f"{found['deferral_loss']:.4f}",
                "under attack": f"{found['attacked_loss']:.4f}",
                "by": f"{by['value']:+.4f} [{by['low']:+.4f}, {by['high']:+.4f}]",
                "can be moved": f"{found['moved']:.1%}",
                "most easily to": f"{easiest}: {share['clean']:.1%} -> {share['attacked']:.1%}",
            }
        )
    return rows
