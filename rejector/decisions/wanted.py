"""What a policy can be asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from l2d.data.errors import UsageError, nearest
from l2d.rejector.decisions.combine import RULES
from l2d.rejector.decisions.promises import FAMILIES, Risk

#: What can be asked for -> what it is, in words.
KINDS = {
    "router": "one agent, chosen by the input",
    "topk": "the k best agents by the input, k chosen too; answers combined",
    "committee": "the same agents for every input; answers combined",
    "cascade": "agents in one order; go on or stop by the answers",
    "adaptive": "the next agent depends on the answers",
}
AUTO = "auto"
CAPS = ("price", "seconds", "gflops")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a policy is asked for.

    Attributes:
        ask: out of KINDS, or ``auto``: the simplest that is not beaten beyond chance on validation.
        depth: agents for one input at most.
        combining: out of RULES.
        abstain: cost of giving no answer, in units of loss; None: an answer is always given, a promise aside.
        budget: mean price of an input's path, at most.
        caps: quantity out of CAPS -> the most that one input may take.
        capacity: of agents in a batch, as :func:`l2d.rejector.decisions.capacity.parse_capacities` takes it.
        batch: inputs of one batch; None: all that are decided together.
        every: seconds from one batch to the next, for capacities that are rates.
        wait: what waiting for the next batch costs, in units of loss; None: inputs do not wait.
        risks: promises.
        confidence: of promises; None: on average.
        family: out of :data:`l2d.rejector.decisions.promises.FAMILIES`.
    """

    ask: str = AUTO
    depth: int = 2
    combining: str = "weighted"
    abstain: float | None = None
    budget: float | None = None
    caps: dict[str, float] = field(default_factory=dict)
    capacity: str | Mapping[str, float | int | str] | None = None
    batch: int | None = None
    every: float | None = None
    wait: float | None = None
    risks: tuple[Risk, ...] = ()
    confidence: float | None = 0.95
    family: str = FAMILIES[0]

    def check(self) -> None:
        """Refuse values that make no sense."""
        for name, value, known in (
            ("ask", self.ask, (*KINDS, AUTO)), ("combine", self.combining, RULES), ("family", self.family, FAMILIES),
        ):  # fmt: skip
            if value not in known:
                raise UsageError(f"--{name} {value}", hint=nearest(value, known))
        if not 1 <= self.depth <= 5:
            raise UsageError(f"--depth {self.depth}", hint="agents for one input, from 1 to 5")
        for name, number in {"abstain": self.abstain, "budget": self.budget, "wait": self.wait, **self.caps}.items():
            if number is not None and not (math.isfinite(number) and number >= 0):
                raise UsageError(f"--{name} {number}", hint="a number >= 0")
        if self.capacity is None and (self.batch, self.every, self.wait) != (None, None, None):
            raise UsageError("--batch-size, --every and --wait are about agents that are full",
                             hint="give --capacity expert_1=100")  # fmt: skip
        if self.every is not None and not (math.isfinite(self.every) and self.every > 0):
            raise UsageError(f"--every {self.every}", hint="seconds from one batch to the next, above 0")
        if self.capacity is not None and self.risks:
            raise UsageError("--risk with --capacity", hint="give one: full agents make inputs hang together")
        for name in self.caps:
            if name not in CAPS:
                raise UsageError(f"--cap names {name!r}", hint=nearest(name, CAPS, "caps are"))
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise UsageError(f"--confidence {self.confidence}", hint="a number between 0 and 1, such as 0.95")


def parse_risks(risks: str | Sequence[str] | None) -> tuple[Risk, ...]:
    """``"error<=0.05"``, several of them, or several by commas."""
    if risks is None:
        return ()
    texts = [risks] if isinstance(risks, str) else list(risks)
    return tuple(Risk.parse(part) for text in texts for part in text.split(","))


def wanted_of(
    *,
    ask: str | None = None,
    depth: int | None = None,
    combine: str | None = None,
    abstain: float | None = None,
    budget: float | None = None,
    cap: dict[str, float] | None = None,
    risk: str | Sequence[str] | None = None,
    confidence: float | None = None,
    on_average: bool = False,
    family: str | None = None,
    capacity: Any = None,
    batch: int | None = None,
    every: float | None = None,
    wait: float | None = None,
) -> Wanted | None:
    """What is asked of the engine; None where nothing is: then a policy only allocates, by prices."""
    given = (ask, depth, combine, abstain, cap, risk, family, every, wait)
    if all(value is None for value in given) and not on_average and confidence is None:
        return None
    if (confidence is not None or on_average or family is not None) and risk is None:
        raise UsageError(
            "--confidence, --on-average and --family say how a risk is promised", hint="give --risk error<=0.05"
        )
    if on_average and confidence is not None:
        raise UsageError("--on-average with --confidence", hint="give one: a promise on average has no confidence")
    plain: dict[str, Any] = {"ask": ask, "depth": depth, "combining": combine, "family": family}
    plain = {name: value for name, value in plain.items() if value is not None}
    if ask is None and depth is None and combine is None:
        plain["ask"] = "router" if risk is not None or abstain is not None else AUTO
    return Wanted(
        **plain, abstain=abstain, budget=budget, caps=dict(cap or {}), risks=parse_risks(risk),
        confidence=None if on_average else confidence or 0.95,
        capacity=capacity, batch=batch, every=every, wait=wait,
    )  # fmt: skip
