"""Is a new agent worth it? Told from its answers to some 50 to 200 samples, before the whole table is paid for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from l2d.data.errors import DataError
from l2d.data.results import Shown
from l2d.rejector.decisions.world import World
from l2d.rejector.decisions.worth import losses_of

FEWEST = 20
FOLDS = 5


@dataclass(frozen=True)
class NewAgent(Shown):
    """What is known of a new agent's worth; ``result`` is the JSON object users see.

    Attributes:
        next: ids of samples whose answers would tell most, the best first.
        asks: which samples of the world would go to it, bool (n,).
    """

    result: dict[str, Any]
    next: list[str]
    asks: np.ndarray = field(repr=False)

    def rows(self) -> list[dict[str, Any]]:
        r = self.result
        return [
            {
                "answers": r["answers"], "its loss": r["alone"], "would get %": round(100 * r["share"], 1),
                "gain": f"{r['gain']['value']:+.4f} [{r['gain']['low']:+.4f}, {r['gain']['high']:+.4f}]",
                "verdict": r["verdict"], "answers needed": r["needed"],
            }
        ]  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return {**self.result, "next": self.next}


def judge_new_agent(
    world: World, costs: Mapping[str, float], *, charge: float = 0.0, buy: int = 0, seed: int = 0
) -> NewAgent:
    """Whether a router gains by one more agent.

    The new agent's cost is predicted from what is predicted of the others (ridge, cross-fitted on its answers); inputs
    go to it where that, with its charge, is below the others. The gain on the answered samples is adjusted by how its
    prediction there differs from that on all samples (a control variate), so the answered ones need not be typical.

    Args:
        world: samples that the predictions have not seen.
        costs: sample id -> task cost of the new agent's answer, in the units of ``world.costs``.
        charge: for each answer, in units of loss.
        buy: how many samples to name whose answers would tell most.

    Raises:
        DataError: too few of the samples are in the table.
    """
    place = {name: row for row, name in enumerate(world.ids)}
    rows = np.array([place[name] for name in costs if name in place], np.int64)
    if len(rows) < FEWEST:
        raise DataError(
            f"{len(rows)} answers are to samples of this table",
            hint=f"{FEWEST} or more are needed, 50 to 200 tell much",
        )
    own = np.array([cost for name, cost in costs.items() if name in place], float)
    x = _columns(world)
    everyone = range(world.num_agents)
    total = np.where(np.isfinite(world.costs), world.known.predicted + world.charges.mean(axis=0), np.inf).min(axis=1)
    old = losses_of(world, everyone)
    fold = np.random.default_rng(seed).permutation(len(rows)) % FOLDS
    predicted = np.empty(len(rows))
    for number in range(FOLDS):
        held = fold == number
        predicted[held] = x[rows[held]] @ _ridge(x[rows[~held]], own[~held])
    weights = _ridge(x, own, rows)
    told = x @ weights
    asks = predicted + charge < total[rows]
    gains = np.where(asks, old[rows] - own - charge, 0.0)
    hoped = np.maximum(0.0, total - told - charge)
    control = np.maximum(0.0, total[rows] - predicted - charge)
    spread = float(control.var())
    slope = float(np.cov(gains, control)[0, 1] / np.var(control, ddof=1)) if spread > 1e-12 else 0.0
    slope = min(1.0, max(0.0, slope))  # 1: what was hoped for came; beyond, a few answers have drawn the line
    residual = gains - slope * (control - control.mean())
    value = float(gains.mean() + slope * (hoped.mean() - control.mean()))
    share, saved = float((told + charge < total).mean()), old[rows] - own - charge
    least = share * float((saved**2).mean()) - value**2  # variance of a gain, from all answers: few of them are asked
    error = math.sqrt(max(float(residual.var(ddof=1)), least) / len(rows))
    from scipy.stats import t as student  # here: it takes long to import

    half = float(student.ppf(0.975, len(rows) - 1)) * error
    low, high = value - half, value + half
    verdict = (
        "worth it" if low > 0 else "not worth it" if high < 0 or (value <= 0 and not asks.any()) else "not shown yet"
    )
    needed = None
    if verdict == "not shown yet" and value > 0:
        needed = math.ceil(len(rows) * (half / value) ** 2)
    result = {
        "answers": len(rows),
        "alone": float(own.mean() + charge),
        "charge": charge,
        "share": share,
        "gain": {"value": value, "low": low, "high": high},
        "verdict": verdict,
        "needed": needed,
        "router_loss": float(old.mean()),
    }
    chosen = worth_asking(world, x, rows, told + charge - total, float(np.std(own - predicted)))[:buy] if buy else []
    return NewAgent(result, [world.ids[row] for row in chosen], told + charge < total)


def _columns(world: World) -> np.ndarray:
    """What a new agent's cost is predicted from: ones, what is predicted of the others, and their mean and least."""
    predicted = world.known.predicted
    centre, scale = predicted.mean(axis=0), np.where(predicted.std(axis=0) > 1e-9, predicted.std(axis=0), 1.0)
    return np.concatenate([np.ones((len(predicted), 1)), (predicted - centre) / scale], axis=1)


def _ridge(x: np.ndarray, y: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Ridge with the penalty of least generalised cross-validation error; the mean is not penalised."""
    some = x if rows is None else x[rows]
    n, width = some.shape
    best, least = None, np.inf
    for penalty in (0.1, 1.0, 10.0, 100.0, 1000.0):
        gram = some.T @ some + penalty * np.diag([0.0, *[1.0] * (width - 1)])
        solved = np.linalg.solve(gram, some.T)
        weights = solved @ y
        freedom = float(np.trace(some @ solved))
        error = float(((y - some @ weights) ** 2).mean()) / max(1e-9, 1 - freedom / n) ** 2
        if error < least:
            best, least = weights, error
    assert best is not None
    return best


def worth_asking(world: World, x: np.ndarray, rows: np.ndarray, lead: np.ndarray, noise: float) -> list[int]:
    """Samples whose answers would tell most, the best first: unlike those answered, and near a change of decision.

    Greedy D-optimal design (the variance of a prediction, ``x' G^-1 x``) weighted by how near the decision is: the
    density of the lead of the new agent at 0, given the noise.
    """
    gram = x[rows].T @ x[rows] + np.eye(x.shape[1])
    near = np.exp(-0.5 * (lead / max(noise, 1e-6)) ** 2)
    free = np.ones(len(world), bool)
    free[rows] = False
    inverse, chosen = np.linalg.inv(gram), []
    for _ in range(min(500, int(free.sum()))):
        variance = np.einsum("ij,jk,ik->i", x, inverse, x)
        score = np.where(free, variance * near, -np.inf)
        best = int(score.argmax())
        chosen.append(best)
        free[best] = False
        step = inverse @ x[best]
        inverse -= np.outer(step, step) / (1 + x[best] @ step)
    return chosen
