"""What a policy must keep to: a budget, an exact coverage, capacities. Each limits how often which agent is asked."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from l2d.data.cache.reader import AgentRecord
from l2d.data.errors import UsageError

SLACK = 1e-9  # rounding that is forgiven, relative to a limit: 0.3 x 10 samples are 3
#: To what range costs are scaled for HiGHS, whose tolerances are absolute: 1e-7 of a reduced cost, 1e-6 of the whole.
#: In it costs that differ by 1e-13 of their range are told apart.
RANGE = 2.0**20
ROUNDING = 1e-12  # of the range of costs, per sample: how far a bound of HiGHS may be off, with some to spare


@dataclass(frozen=True)
class Constraint:
    """``sum_i use[a_i] <= limit`` over the samples of a batch, or ``==`` where ``exact``; agent ``a_i`` gets sample i.

    Attributes:
        name: as users read it, such as ``budget``.
        asked: the limit as it was asked for.
        use: what an answer of each agent takes of it, (agents,), >= 0.
        limit: mean use per sample; None where ``count`` is given.
        count: use over a whole batch.
        exact: the limit is met, not kept below: then it is rounded to whole samples.
    """

    name: str
    asked: str
    use: tuple[float, ...]
    limit: float | None = None
    count: int | None = None
    exact: bool = False

    def total(self, samples: int) -> float:
        """The right-hand side for a batch of so many samples."""
        if self.count is not None:
            return float(self.count)
        total = self.limit * samples
        return float(math.floor(total + 0.5)) if self.exact else total

    def mean(self, batch: int) -> float:
        """The limit per sample, in batches of this size."""
        return self.count / batch if self.count is not None else self.limit

    def used(self, allocation: np.ndarray) -> float:
        """Use by an allocation, in all."""
        return float(np.bincount(allocation, minlength=len(self.use)) @ np.array(self.use))

    def holds(self, used: float, samples: int) -> bool:
        """Whether a batch that uses so much in all keeps to it."""
        total = self.total(samples)
        room = SLACK * max(1.0, abs(total))
        return used <= total + room and (not self.exact or used >= total - room)

    def __str__(self) -> str:
        return f"{self.name} {self.asked}"


def use_of(constraints: list[Constraint], agents: int) -> np.ndarray:
    """What an answer of each agent takes of each constraint, (constraints, agents)."""
    return np.array([constraint.use for constraint in constraints], np.float64).reshape(len(constraints), agents)


def make_constraints(
    agents: list[AgentRecord],
    *,
    budget: float | None = None,
    gflops: float | None = None,
    coverage: float | None = None,
    capacity: dict[str, float | int | str] | dict[str, float | int] | None = None,
) -> list[Constraint]:
    """Constraints on the agents of a cache.

    Args:
        agents: in order, agent 0 the model.
        budget: mean price per input, in the unit of the recipe's prices. The model is free.
        gflops: mean GFLOPs per input, of the answering agent alone.
        coverage: share of inputs that the model keeps, met exactly (to a whole sample).
        capacity: agent -> at most so many samples (an int) or such a share of them (a float) in a batch.

    Raises:
        UsageError: nothing is asked for, a value is out of range, an agent is unknown, or no agent has a price.
    """
    names = [agent.name for agent in agents]
    found = []
    for name, limit in (("budget", budget), ("gflops", gflops)):
        if limit is None:
            continue
        if not (math.isfinite(limit) and limit >= 0):
            raise UsageError(f"--{name} {limit}", hint="a mean per input, a number >= 0")
        found.append(Constraint(name, f"<= {limit:g}", _use(name, agents), limit=float(limit)))
    if coverage is not None:
        if not 0 <= coverage <= 1:
            raise UsageError(f"--coverage {coverage}", hint="a share of the inputs, from 0 to 1")
        is_model = tuple(float(j == 0) for j in range(len(agents)))
        found.append(Constraint("coverage", f"= {coverage:g}", is_model, limit=float(coverage), exact=True))
    for agent, most in (capacity or {}).items():
        if agent not in names:
            raise UsageError(f"--capacity names agent {agent!r}", hint=f"the agents are {', '.join(names)}")
        use, title = tuple(float(name == agent) for name in names), f"capacity of {agent}"
        if isinstance(most, int) and most >= 0:
            found.append(Constraint(title, f"<= {most} samples", use, count=most))
        elif isinstance(most, float) and 0 <= most <= 1:
            found.append(Constraint(title, f"<= {most:g}", use, limit=most))
        else:
            raise UsageError(f"--capacity {agent}={most}", hint="a share from 0.0 to 1.0, or a whole number of samples")
    if not found:
        raise UsageError("no constraint is given", hint="give --budget, --gflops, --coverage or --capacity")
    return found


def parse_capacity(text: str) -> dict[str, float | int]:
    """``expert_1=0.3,expert_2=100``: a number with a point is a share of the samples, a whole one counts them.

    Raises:
        UsageError: it is not of that form.
    """
    found: dict[str, float | int] = {}
    for part in text.split(","):
        name, _, value = part.rpartition("=")
        try:
            number = int(value) if value.strip().isdecimal() else float(value)
        except ValueError:
            name = ""
        if not name.strip() or name.strip() in found:
            raise UsageError(
                f"--capacity {text}: expects agent=limit pairs, each agent once; got {part!r}",
                hint="such as --capacity expert_1=0.3,expert_2=100 (30 % of the samples, 100 samples)",
            )
        found[name.strip()] = number
    return found


def check_feasible(available: np.ndarray, constraints: list[Constraint], where: str) -> None:
    """Refuse constraints that no allocation of a batch can meet.

    What is feasible depends only on how many samples have which agents available: a small integer program.

    Args:
        available: bool (n, agents), someone in each row.
        where: names the batch.

    Raises:
        UsageError: names constraints that cannot be met together, none of which can be left out of that statement.
    """
    patterns, counts = np.unique(available, axis=0, return_counts=True)

    def feasible(chosen: list[Constraint]) -> bool:
        return integer_program(np.where(patterns, 0.0, np.inf), counts, chosen, len(available)) is not None

    if feasible(constraints):
        return
    clash = list(constraints)
    for constraint in constraints:
        without = [other for other in clash if other is not constraint]
        if not feasible(without):
            clash = without
    if len(clash) == 1:
        only, samples = clash[0], len(available)
        least, most = (_extreme(only, patterns, counts, sign) / samples for sign in (1, -1))
        what = f"{only} cannot be met: any allocation gives {least:.4g} to {most:.4g} per input"
    else:
        what = "these cannot be met together: " + " and ".join(map(str, clash))
    raise UsageError(what, where=where, hint="allow more, or drop one of them")


def integer_program(
    costs: np.ndarray,
    counts: np.ndarray,
    constraints: list[Constraint],
    samples: int,
    *,
    fixed: np.ndarray | None = None,
    relaxed: bool = False,
    tolerance: float = 0.0,
    seconds: float = 60.0,
) -> tuple[np.ndarray, float, float] | None:
    """Cheapest allocation of groups of samples alike, by HiGHS: how many of group g go to agent j.

    Args:
        costs: of a sample of each group, (groups, agents); infinite where the agent is unavailable.
        counts: samples in each group, (groups,).
        samples: of the whole batch, that the limits are of.
        fixed: samples of the batch that are in no group, by the agent they have, (agents,).
        relaxed: samples may be divided between agents: the linear program.
        tolerance: an allocation will do that costs at most so much more than the cheapest, in all.
        seconds: after which the best found so far is taken.

    Returns:
        Numbers (groups, agents), their cost, and a bound on the cost of any; None if there is no allocation, or none
        was found in time.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    group, agent = np.nonzero(np.isfinite(costs))
    already = np.zeros(costs.shape[1]) if fixed is None else fixed
    cheapest = costs.min(axis=1, keepdims=True)  # what a sample costs at least; HiGHS minimises what comes on top
    excess = (costs - cheapest)[group, agent]
    spread = float(excess.max(initial=0.0)) or 1.0
    if not len(group):  # no sample is left to allocate
        held = all(c.holds(float(already @ np.array(c.use)), samples) for c in constraints)
        return (np.zeros(costs.shape), 0.0, 0.0) if held else None
    size, columns = len(group), np.arange(len(group))
    each = csr_array((np.ones(size), (group, columns)), (len(costs), size))
    rows = [LinearConstraint(each, counts, counts)]
    # HiGHS knows relative gaps alone: with 1 added to each sample's cost, the whole lies between n and 2 n.
    scaled = (excess / spread + 1) * RANGE
    relative = tolerance / spread / (2 * float(counts.sum()))
    for tightened in (0.0, 4e-6):  # HiGHS forgives 1e-6 of a row; where that broke a limit, once more with less room
        limits = []
        for constraint in constraints:
            use = np.array(constraint.use)
            scale = use.max() if use.any() else 1.0
            upper = (constraint.total(samples) - already @ use) / scale
            room = SLACK * max(1.0, abs(constraint.total(samples))) / scale
            if constraint.exact:
                limits.append(LinearConstraint((use / scale)[agent][None, :], upper - room, upper + room))
                continue
            whole = bool((use / scale == np.round(use / scale)).all())
            upper = np.floor(upper + room) if whole and not relaxed else upper + room
            row = (use / scale)[agent][None, :]
            limits.append(LinearConstraint(row, -np.inf, upper - (0.0 if whole else tightened)))
        with _no_chatter():
            found = milp(
                scaled,
                integrality=np.full(size, 0 if relaxed else 1),
                bounds=Bounds(0, counts[group]),
                constraints=rows + limits,
                options={"time_limit": seconds, "mip_rel_gap": relative},
            )
        if found.x is None:
            return None
        numbers = np.zeros(costs.shape)
        numbers[group, agent] = found.x if relaxed else np.round(found.x)
        whole_batch = numbers.sum(0) + already
        if relaxed or all(c.holds(float(whole_batch @ np.array(c.use)), samples) for c in constraints):
            value = float((numbers[group, agent] * costs[group, agent]).sum())
            proven = found.fun if relaxed or found.mip_dual_bound is None else found.mip_dual_bound
            on_top = (proven / RANGE - float(counts.sum())) * spread - ROUNDING * spread * float(counts.sum())
            return numbers, value, min(value, float(counts @ cheapest[:, 0]) + on_top)
    return None


@contextmanager
def _no_chatter() -> Iterator[None]:
    """Keeps stdout clean, on which results are printed: HiGHS's branch and bound has a forgotten line of debugging."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        libc.fflush(None)
        os.dup2(nowhere, 1)
        yield
        libc.fflush(None)  # what C has buffered, before the descriptor is itself again
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _use(name: str, agents: list[AgentRecord]) -> tuple[float, ...]:
    """Price or GFLOPs of an answer of each agent."""
    values = [agent.price if name == "budget" else agent.gflops for agent in agents]
    unknown = [agent.name for agent, value in zip(agents, values, strict=True) if value is None]
    if unknown and name == "budget":
        raise UsageError(
            f"--budget: the price of {', '.join(unknown)} is not known", hint="give the `price` in the recipe"
        )
    if unknown:
        raise UsageError(
            f"--gflops: the GFLOPs of {', '.join(unknown)} are not known",
            hint="torchvision's detectors say theirs; for others give a `price` and use --budget",
        )
    if not any(values):
        raise UsageError(f"--{name}: no agent costs anything", hint="give the experts a `price` in the recipe")
    return tuple(float(value) for value in values)


def _extreme(constraint: Constraint, patterns: np.ndarray, counts: np.ndarray, sign: int) -> float:
    """Least (sign 1) or most (-1) use by any allocation."""
    use = np.where(patterns, sign * np.array(constraint.use), np.inf)
    return sign * float(use.min(axis=1) @ counts)
