"""Policies whose value a log may tell: what each would have done in every logged decision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from l2d.data.errors import DataError, UsageError, nearest
from l2d.rejector.calibration import MAKE, own_digest, read_calibration, uncorrected

ALWAYS = "always:"
NAMED = ("greedy", "uniform", "shadow")


class Decisions:
    """Logged decisions of one run, as arrays.

    Attributes:
        agents: names, in the run's order.
        frame: a row a decision, those without an agent aside; see :class:`l2d.rejector.serving.reading.Log`.
        there: who could be asked, bool (n, agents).
        scores: (n, agents).
        agent, greedy: who was asked, and who has the best score, (n,).
        chances: probability with which each agent was to be asked, (n, agents).
    """

    def __init__(self, facts: dict[str, Any], decisions: pl.DataFrame):
        self.facts, self.agents = facts, list(facts["agents"])
        self.frame = decisions.filter(pl.col("agent").is_not_null())
        n, width = len(self.frame), len(self.agents)
        self.there = np.array(self.frame["candidates"].to_list(), bool).reshape(n, width)
        self.scores = np.array(self.frame["scores"].to_list(), np.float32).reshape(n, width)
        self.agent, self.greedy = (self.frame[name].to_numpy().astype(np.int64) for name in ("agent", "greedy"))
        explore = self.frame["explore"].to_numpy()
        drawn = np.where(self.there.sum(axis=1) > 1, explore, 0.0) / self.there.sum(axis=1)
        self.chances = np.where(self.there, drawn[:, None], 0.0)
        rows = np.arange(n)
        self.chances[rows, self.greedy] += 1 - np.where(self.there.sum(axis=1) > 1, explore, 0.0)
        said = self.frame["propensity"].to_numpy()
        if n and not np.allclose(self.chances[rows, self.agent], said, atol=1e-9):
            raise DataError("propensities are not those of the exploring that is logged", hint="restore the log")

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def predicted(self) -> np.ndarray | None:
        """Total costs that the run predicted, (n, agents); None where its scores are no costs."""
        return -self.scores.astype(np.float64) if self.facts["costs"] else None

    @property
    def cost(self) -> np.ndarray:
        """Total costs of the outcomes, NaN where one is not known, (n,)."""
        cost, paid = (self.frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in ("cost", "paid"))
        total = cost + np.array(self.facts["query_costs"], np.float64)[self.agent]
        return total if not self.facts.get("paid") else total + self.facts["paid"] * paid


def policy_of(text: str, decisions: Decisions) -> np.ndarray:
    """What a policy would have done: probabilities (n, agents).

    Args:
        text: ``always:AGENT``, ``greedy``, ``uniform``, ``shadow``; or a file: one of ``l2d policy --save``, one of
            ``l2d recalibrate`` (.toml), or the allocations that ``l2d route`` gave the inputs, which decisions name.

    Raises:
        UsageError: there is no such policy, agent or file.
        DataError: the file or the log does not say what it would have done.
    """
    n = len(decisions)
    if text == "uniform":
        return decisions.there / decisions.there.sum(axis=1, keepdims=True)
    if text.startswith(ALWAYS):
        name = text.removeprefix(ALWAYS)
        if name not in decisions.agents:
            raise UsageError(f"--policy {text}: there is no such agent", hint=nearest(name, decisions.agents))
        agent = decisions.agents.index(name)
        chosen = np.where(decisions.there[:, agent], agent, decisions.greedy)
    elif text == "greedy":
        chosen = decisions.greedy
    elif text == "shadow":
        chosen = _shadow(decisions)
    elif (suffix := Path(text).suffix.lower()) in READERS:
        chosen = READERS[suffix](Path(text), decisions)
    else:
        raise UsageError(
            f"--policy {text}: there is no such policy",
            hint=nearest(text, NAMED, "give always:AGENT, a file of `l2d policy --save` or of `l2d route`, or one of"),
        )
    found = np.zeros((n, len(decisions.agents)))
    found[np.arange(n), chosen] = 1.0
    return found


def _shadow(decisions: Decisions) -> np.ndarray:
    silent = decisions.frame["shadow"]
    if decisions.frame["shadow_run"].null_count():
        raise DataError(
            f"{decisions.frame['shadow_run'].null_count():,} decisions have no shadow",
            hint="serve with --shadow RUN, and replay that log; or name the run: --run",
        )
    if silent.null_count():
        raise DataError(
            f"in {silent.null_count():,} decisions the shadow asks an agent that could not be asked",
            hint="the log cannot say what that would have cost: add the agent, and serve again",
        )
    return silent.to_numpy().astype(np.int64)


def _saved(path: Path, decisions: Decisions) -> np.ndarray:
    from l2d.data.cache import store
    from l2d.rejector.policies.price_rule import read_policy

    weights = store.read_json(path).get("weights", "") if path.is_file() else ""
    rule = read_policy(path, weights=weights)
    if rule.agents != decisions.agents or rule.weights != decisions.facts["weights_digest"]:
        raise UsageError("this policy is of another run", where=path, hint="make it of the run that decided")
    return rule.allocate(decisions.scores.astype(np.float64), decisions.there)


def _allocated(path: Path, decisions: Decisions) -> np.ndarray:
    if not path.is_file():
        raise UsageError("there is no such file", where=path, hint="make it: l2d route RUN INPUT --out FILE")
    frame = pl.read_parquet(path) if path.suffix.lower() == ".parquet" else pl.read_csv(path, infer_schema=False)
    if not {"sample_id", "agent"} <= set(frame.columns):
        raise DataError("there are no columns sample_id and agent", where=path, hint="give a file of `l2d route`")
    known = dict(frame.select(pl.col("sample_id").cast(pl.String), "agent").iter_rows())
    named = decisions.frame["input"].to_list()
    missing = sum(name not in known for name in named)
    if missing:
        raise DataError(
            f"{missing:,} of {len(named):,} decisions are about inputs that are not in the file",
            where=path,
            hint="decisions know inputs by the `id` that they were asked with",
        )
    chosen = np.array([decisions.agents.index(known[n]) if known[n] in decisions.agents else -1 for n in named])
    if (chosen < 0).any():
        raise DataError("the file has agents that did not decide here, or none", where=path, hint="route without them")
    return chosen


def _corrected(path: Path, decisions: Decisions) -> np.ndarray:
    calibration = read_calibration(path)
    own = own_digest(str(decisions.frame["run"][0]), decisions.facts) if len(decisions) else calibration.run
    if own != calibration.run or not decisions.facts["costs"]:
        raise UsageError(f"this calibration is of run {calibration.run_id}", where=path, hint=MAKE)
    scores = calibration.correct(uncorrected(decisions.scores, decisions.facts), decisions.agents)
    return np.where(decisions.there, scores, -np.inf).argmax(axis=1)


#: Suffix of a file -> what reads it.
READERS: dict[str, Callable[[Path, Decisions], np.ndarray]] = {
    ".json": _saved, ".toml": _corrected, ".parquet": _allocated, ".csv": _allocated,
}  # fmt: skip
