"""Promises about a policy that may give no answer: "error at most 5 % with 95 % confidence, the rest to a person".

A setting is a threshold: an answer that is expected to cost more is not given. **Learn then Test** (Angelopoulos,
Bates, Candès, Jordan and Lei, *Learn then Test*, 2021) tests for each threshold the hypothesis that the risk is too
high, by p-values that hold for any number of samples, and controls the chance of any wrong rejection.
**Conformal risk control** (Angelopoulos, Bates, Fisch, Lei and Schuster, 2022) promises a mean, over draws of the
calibration samples too, of losses that only grow with the threshold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from l2d.data.errors import UsageError, nearest

#: Quantity -> what it is a mean of, and whether over the inputs that get an answer (else over all).
QUANTITIES = {
    "error": ("wrong classes", True),
    "error_of_all": ("wrong classes", False),
    "cost": ("task cost, in units of its bound", True),
    "cost_of_all": ("task cost, in units of its bound", False),
    "abstained": ("inputs without an answer", False),
}
MONOTONE = ("error_of_all", "cost_of_all")  # they only grow with the threshold
FAMILIES = ("fixed-sequence", "bonferroni")
SETTINGS = 60  # thresholds that are tried


@dataclass(frozen=True)
class Risk:
    """``quantity <= limit``."""

    quantity: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Risk:
        """From ``error<=0.05``.

        Raises:
            UsageError: it is not of that form, or the quantity is unknown.
        """
        found = re.fullmatch(r"\s*(\w+)\s*<=?\s*([0-9.eE+-]+)\s*", text)
        try:
            limit = float(found[2]) if found else math.nan
        except ValueError:
            limit = math.nan
        if found is None or not 0 < limit < 1:
            raise UsageError(f"--risk {text}", hint="write it as error<=0.05: a quantity, and a limit between 0 and 1")
        if found[1] not in QUANTITIES:
            raise UsageError(f"--risk names {found[1]!r}", hint=nearest(found[1], QUANTITIES, "risks are"))
        return cls(found[1], limit)

    def __str__(self) -> str:
        return f"{self.quantity}<={self.limit:g}"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Samples as promises see them.

    Attributes:
        expected: what the answer is expected to cost, float64 (n,); infinite where none is given anyway.
        wrong: whether its class is wrong, bool (n,); None without classes.
        cost: its task cost over ``bound``, float64 (n,), in [0, 1].
        group: codes, int (n,); None: one group.
    """

    expected: np.ndarray
    wrong: np.ndarray | None
    cost: np.ndarray
    group: np.ndarray | None = None

    def losses(self, quantity: str, threshold: float, rows: np.ndarray | None = None) -> np.ndarray:
        """Losses of the samples that the quantity is a mean over, at a threshold."""
        mine = slice(None) if rows is None else rows
        given = self.expected[mine] <= threshold
        if quantity == "abstained":
            return (~given).astype(np.float64)
        if quantity.startswith("error"):
            if self.wrong is None:
                raise UsageError(f"--risk {quantity}: answers have no classes", hint="promise cost<=… instead")
            values = self.wrong[mine].astype(np.float64)
        else:
            values = self.cost[mine]
        return values[given] if QUANTITIES[quantity][1] else values * given

    @property
    def parts(self) -> list[np.ndarray | None]:
        """Rows of each group."""
        return [None] if self.group is None else [np.flatnonzero(self.group == code) for code in np.unique(self.group)]


def p_value(losses: np.ndarray, limit: float) -> float:
    """Of the hypothesis that the mean of losses in [0, 1] is above the limit; valid for any number of them.

    0-1 losses: the binomial tail. Others: Hoeffding-Bentkus (Bates, Angelopoulos, Lei, Malik and Jordan,
    *Distribution-Free, Risk-Controlling Prediction Sets*, 2021, Proposition 5). Without losses nothing can be said: 1.
    """
    from scipy.stats import binom  # here, and below: a quarter of what every command of stage two imports

    n = len(losses)
    if n == 0:
        return 1.0
    total = float(losses.sum())
    if bool(((losses == 0) | (losses == 1)).all()):
        return float(binom.cdf(round(total), n, limit))
    return hoeffding_bentkus(total / n, n, limit)


def hoeffding_bentkus(mean: float, n: int, limit: float) -> float:
    """The p-value for a mean of n losses in [0, 1]."""
    from scipy.stats import binom

    low = min(mean, limit)
    divergence = _relative_entropy(low, limit)
    bentkus = math.e * float(binom.cdf(math.ceil(n * mean - 1e-9), n, limit))
    return float(min(1.0, math.exp(-n * divergence), bentkus))


def _relative_entropy(a: float, b: float) -> float:
    first = a * math.log(a / b) if a > 0 else 0.0
    return first + ((1 - a) * math.log((1 - a) / (1 - b)) if a < 1 else 0.0)


def upper_bound(losses: np.ndarray, level: float) -> float:
    """What the mean is below, with probability ``1 - level``: the limit at which :func:`p_value` is ``level``."""
    from scipy.stats import beta

    n = len(losses)
    if n == 0:
        return 1.0
    if bool(((losses == 0) | (losses == 1)).all()):
        wrong = round(float(losses.sum()))
        return 1.0 if wrong == n else float(beta.ppf(1 - level, wrong + 1, n - wrong))
    low, high = float(losses.mean()), 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if hoeffding_bentkus(float(losses.mean()), n, middle) <= level else (middle, high)
    return high


def worst_p(judged: Judged, risks: Sequence[Risk], threshold: float) -> float:
    """Of the hypothesis that any of the risks is too high in any group: the largest p-value.

    Rejecting a union of hypotheses at the level of the largest p-value needs no correction (Berger, 1982).
    """
    return max(
        p_value(judged.losses(risk.quantity, threshold, rows), risk.limit) for risk in risks for rows in judged.parts
    )


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What was found.

    Attributes:
        risks: that were asked for.
        confidence: of Learn then Test; None: a mean, by conformal risk control.
        family: how the thresholds' tests are corrected for each other.
        threshold: of the answers that may be given; None: no threshold can promise it.
        tried: a row for each threshold.
        instead: what could be promised, a row for each risk.
        samples: calibration samples.
        groups: how many groups it is promised for.
    """

    risks: tuple[Risk, ...]
    confidence: float | None
    family: str
    threshold: float | None
    tried: list[dict[str, Any]]
    instead: list[dict[str, Any]]
    samples: int
    groups: int

    def to_json(self) -> dict[str, Any]:
        return {
            "risks": [str(risk) for risk in self.risks], "confidence": self.confidence, "family": self.family,
            "threshold": self.threshold, "samples": self.samples, "groups": self.groups, "tried": self.tried,
            "instead": self.instead,
        }  # fmt: skip


def thresholds_of(expected: np.ndarray, settings: int = SETTINGS) -> np.ndarray:
    """Thresholds to try, rising: quantiles of what answers to *other* samples are expected to cost."""
    finite = expected[np.isfinite(expected)]
    if not len(finite):
        return np.zeros(0)
    return np.unique(np.quantile(finite, np.linspace(0.02, 1.0, settings), method="higher"))


def learn_then_test(
    judged: Judged,
    risks: Sequence[Risk],
    thresholds: np.ndarray,
    *,
    confidence: float = 0.95,
    family: str = "fixed-sequence",
    pilot: Judged | None = None,
) -> Promise:
    """The highest threshold for which the risks are promised with this confidence.

    Args:
        judged: calibration samples, which neither the rule nor the thresholds have been chosen on.
        thresholds: rising.
        family: ``fixed-sequence``: thresholds are tested from a low one up, each at the full level, until one is not
            rejected; ``bonferroni``: all, each at its share of the level.
        pilot: other samples, by which the sequence begins where a promise is likely; None: at the lowest threshold.
    """
    delta, found, tried = 1 - confidence, None, []
    order = range(len(thresholds))
    start = _start(pilot, judged, risks, thresholds, delta) if family == "fixed-sequence" else 0
    stopped = False
    for position in order:
        threshold = float(thresholds[position])
        p = worst_p(judged, risks, threshold)
        if family == "bonferroni":
            passed = p <= delta / max(1, len(thresholds))
        else:
            stopped |= position >= start and p > delta
            passed = position >= start and not stopped
        if passed:
            found = threshold
        answered = float((judged.expected <= threshold).mean())
        row: dict[str, Any] = {"threshold": threshold, "answered": answered, "p": p}
        for risk in risks:
            losses = judged.losses(risk.quantity, threshold)
            row[risk.quantity] = float(losses.mean()) if len(losses) else None
        tried.append(row | {"promised": bool(passed)})
    instead = [] if found is not None else possible(judged, risks, thresholds, delta)
    return Promise(
        risks=tuple(risks), confidence=confidence, family=family, threshold=found, tried=tried, instead=instead,
        samples=len(judged.expected), groups=len(judged.parts),
    )  # fmt: skip


def _start(pilot: Judged | None, judged: Judged, risks: Sequence[Risk], thresholds: np.ndarray, delta: float) -> int:
    """Where the sequence begins: where the pilot samples say that a promise is most likely, in the lower thresholds.

    It looks at calibration samples only for how many there are, so the order is fixed before they are seen.
    """
    if pilot is None or not len(thresholds):
        return 0
    from scipy.stats import binom

    share = len(judged.expected) / max(1, len(pilot.expected))
    chances = []
    for threshold in thresholds.tolist():
        worst = 1.0
        for risk in risks:
            for rows in pilot.parts:
                losses = pilot.losses(risk.quantity, threshold, rows)
                likely = len(losses) * share
                count = int(likely - 2 * math.sqrt(likely))  # there may be fewer
                rate = (float(losses.sum()) + 0.5) / (len(losses) + 1)
                most = _most_allowed(count, risk.limit, delta)
                worst = min(worst, float(binom.cdf(most, max(count, 1), rate)) if most >= 0 else 0.0)
        chances.append(worst)
    best = max(chances)
    # of those about as likely the lowest: what is promised first can only grow
    return next(position for position, chance in enumerate(chances) if chance >= 0.98 * best)


def _most_allowed(count: int, limit: float, delta: float) -> int:
    """How many errors among ``count`` still allow the promise; -1: not even none."""
    from scipy.stats import binom

    if count <= 0:
        return -1
    most = int(binom.ppf(delta, count, limit))
    while most >= 0 and binom.cdf(most, count, limit) > delta:
        most -= 1
    return most


def possible(judged: Judged, risks: Sequence[Risk], thresholds: np.ndarray, delta: float) -> list[dict[str, Any]]:
    """The lowest limit of each risk that could be promised alone, bounds of all thresholds holding together."""
    rows = []
    for risk in risks:
        best: dict[str, Any] | None = None
        for threshold in thresholds.tolist():
            bound = max(
                upper_bound(judged.losses(risk.quantity, threshold, part), delta / max(1, len(thresholds)))
                for part in judged.parts
            )
            if best is None or bound < best["limit"]:
                answered = float((judged.expected <= threshold).mean())
                best = {"risk": risk.quantity, "limit": bound, "answered": answered, "threshold": threshold}
        if best is not None:
            rows.append(best)
    return rows


def conformal_risk_control(judged: Judged, risks: Sequence[Risk], thresholds: np.ndarray) -> Promise:
    """The highest threshold at which the mean of each loss, over calibration and new input, is promised.

    ``(n R(t) + 1) / (n + 1) <= limit`` (Theorem 1), in every group.

    Raises:
        UsageError: a quantity does not grow with the threshold.
    """
    for risk in risks:
        if risk.quantity not in MONOTONE:
            raise UsageError(
                f"--risk {risk} on average: {risk.quantity} may fall when more is answered",
                hint=f"leave out --on-average, or promise one of {', '.join(MONOTONE)}",
            )
    found, tried = None, []
    for threshold in thresholds.tolist():
        answered = float((judged.expected <= threshold).mean())
        row: dict[str, Any] = {"threshold": threshold, "answered": answered, "p": None}
        holds = True
        for risk in risks:
            row[risk.quantity] = float(judged.losses(risk.quantity, threshold).mean())
            for rows in judged.parts:
                losses = judged.losses(risk.quantity, threshold, rows)
                holds &= (losses.sum() + 1) / (len(losses) + 1) <= risk.limit
        if holds:
            found = threshold
        tried.append(row | {"promised": bool(holds)})
        if not holds:
            break
    instead = []
    if found is None:
        count = min(len(judged.expected) if rows is None else len(rows) for rows in judged.parts)
        instead = [{"risk": r.quantity, "limit": 1 / (count + 1), "answered": 0.0, "threshold": None} for r in risks]
    return Promise(
        risks=tuple(risks), confidence=None, family="conformal risk control", threshold=found, tried=tried,
        instead=instead, samples=len(judged.expected), groups=len(judged.parts),
    )  # fmt: skip
