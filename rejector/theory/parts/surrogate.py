"""The surrogate's excess risk on a run, and the bound of Theorem 4.4 that it gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from l2d.rejector.theory.conditional_risk import (
    expected_tau,
    log_softmax,
    minimiser,
    optimal_risk,
    risk_at_logs,
    surrogate_losses,
)
from l2d.rejector.theory.consistency import deferral_bound
from l2d.rejector.theory.quantity import Quantity, mean_of
from l2d.rejector.theory.subject import Subject, chosen_costs

SURROGATE = "surrogate: excess risk and the bound of Theorem 4.4"


def surrogate_findings(subject: Subject) -> list[Quantity]:
    """Surrogate risk over its infimum, under the estimated expected costs, and what that allows the deferral loss."""
    config, nu = subject.run.rejector.config, subject.run.point.nu
    if config.loss != "surrogate":
        says = (
            f"trained with the loss {config.loss!r}. Theorems 4.4 and 4.6 are about the surrogate: its infimum, the "
            "minimizability gap and the bound do not apply. All other parts do"
        )
        return [Quantity(key="applies", title="applies", value=None, says=says)]
    expected = subject.trained_expected
    available = np.isfinite(expected)
    tau = expected_tau(expected)
    infimum = optimal_risk(tau, nu)
    risk = surrogate_losses(subject.scores, subject.trained, nu)
    best = surrogate_losses(subject.scores_of(subject.members[subject.best_fit]), subject.trained, nu)
    data = np.zeros(len(risk))
    if subject.halves:
        halves = [surrogate_losses(subject.scores_of(half), subject.trained, nu) for half in subject.halves]
        data = np.mean(halves, axis=0) - risk
    data = data if data.mean() > 0 else np.zeros(len(risk))
    gap = mean_of("minimizability_gap", "  minimizability gap", best - data - infimum)
    says = "the best of its class over the infimum"
    if gap.ends[1] < 0:
        says += "; below 0: the true infimum is lower than the regressors make it"
    elif gap.ends[0] <= 0:
        says += "; cannot be told from 0"
    of = "" if np.array_equal(subject.trained, subject.costs) else ", of the costs it was trained on"
    shares = np.sort(minimiser(tau, nu), axis=1)[:, ::-1]
    return [
        mean_of("risk", f"surrogate risk (nu = {nu:g})", risk, f"mean training loss on these samples{of}"),
        mean_of("infimum", "its infimum, any function", infimum, "E_x C*(x) of Theorem 4.6, of the expected costs"),
        mean_of("excess", "= excess surrogate risk", risk - infimum, "the next three add up to it"),
        replace(gap, says=says),
        mean_of("data", "  too little data", data, "what the second half of the training samples brought"),
        mean_of("optimization", "  optimization", risk - best, f"best on validation: {subject.best_fit}"),
        Quantity(
            key="target", title="largest share at the infimum", value=float(shares[:, 0].mean()),
            says=_sharpness(shares, tau, nu, config.recentre),
        ),
        *_bound_findings(subject, expected, available, tau, infimum, nu),
    ]  # fmt: skip


def _bound_findings(
    subject: Subject, expected: np.ndarray, available: np.ndarray, tau: np.ndarray, infimum: np.ndarray, nu: float
) -> list[Quantity]:
    """Theorem 4.4, both sides under one law of costs: the estimated one. So the inequality has to hold."""
    agents, norm = expected.shape[1], tau.sum(axis=1)
    excess = np.maximum(risk_at_logs(log_softmax(subject.scores, available), tau, nu) - infimum, 0.0)
    deferral = chosen_costs(subject.scores, expected) - expected.min(axis=1)
    bound = float(deferral_bound(excess.mean(), norm.mean(), nu, agents))
    worst = float((np.where(available, expected, -np.inf).max(axis=1) - expected.min(axis=1)).mean())
    speaks = f"always choosing wrongly would cost {worst:.4f}" + ("" if bound < worst else ", so it says nothing")
    return [
        Quantity(key="tau_norm", title="||tau||_1", value=float(norm.mean()), says="scales the bound"),
        mean_of("expected_excess", "excess surrogate risk, expected", excess, "were the estimated costs the truth"),
        mean_of("deferral_excess", "excess deferral loss, expected", deferral, "over the Bayes rejector, likewise"),
        Quantity(key="bound", title="bound of Theorem 4.4", value=bound, says=f"the most it can be; {speaks}"),
        Quantity(
            key="pointwise_bound", title="bound, sample by sample",
            value=float(deferral_bound(excess, norm, nu, agents).mean()),
            says="the same inequality at each sample, then averaged: tighter",
        ),
        Quantity(
            key="slack", title="slack", value=bound - float(deferral.mean()),
            says="bound less excess deferral loss: never below 0",
        ),
        Quantity(
            key="encoder_bound", title="bound with the model's own part",
            value=None if subject.model.best is None else bound + max(0.0, _model_gap(subject)),
            says="over the best model found too (Corollary 4.11)"
            if subject.model.best is not None else f"not known: {subject.model.reasons.get('best', '')}",
        ),
    ]  # fmt: skip


def _model_gap(subject: Subject) -> float:
    model = subject.model
    here = np.isfinite(model.as_is)
    return float((model.as_is[here] - model.best[here]).mean()) if here.any() and model.best is not None else 0.0


def _sharpness(shares: np.ndarray, tau: np.ndarray, nu: float, recentre: bool) -> str:
    if nu >= 2:
        return "all on the cheapest agent; but with nu >= 2 training can get stuck, as it is not convex"
    second = float(shares[:, 1].mean())
    says = f"the second largest is {second:.3f} on average"
    ideal = minimiser(expected_tau(_less_cheapest(tau)), nu).max(axis=1).mean()
    if not recentre and ideal > shares[:, 0].mean() + 0.05:
        says += f"; {ideal:.3f} without what all agents' costs share (--recentre)"
    return says


def _less_cheapest(tau: np.ndarray) -> np.ndarray:
    """Expected costs less the cheapest, from ``tau``: ``c_i - c_j = tau_j - tau_i``; unavailable agents at +inf."""
    absent = (tau == 0) & (tau.max(axis=1, keepdims=True) > 0)
    return np.where(absent, np.inf, tau.max(axis=1, keepdims=True) - tau)
