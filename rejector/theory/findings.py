"""What a subject's figures say, part by part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from l2d.rejector.theory.bayes import FOLDS
from l2d.rejector.theory.conditional_risk import (
    expected_tau,
    log_softmax,
    minimiser,
    optimal_risk,
    risk_at_logs,
    surrogate_losses,
)
from l2d.rejector.theory.consistency import deferral_bound
from l2d.rejector.theory.diagnosis import Finding, Subject, chosen_costs, mean_of
from l2d.rejector.theory.learning_bound import LearningBound, agent_costs, bound_curve, learning_bound, score_class

LOSS = "deferral loss: from the oracle to this rejector"
SURROGATE = "surrogate: excess risk and the bound of Theorem 4.4"
MODEL = "the model's own cost: heads, representation, sharing"
LEARNING = "learning bound (Theorem 4.13, with probability 95 %)"

#: Parts of the deferral loss above the oracle's -> what to do about them.
ADVICE = {
    "not_in_features": "features that tell more or agents that err less would help, but no rejector on these features",
    "objective": "train on all tasks (--method multi-task)",
    "class": "a richer rejector (--rejector mlp, --hidden, --layers) or a sharper target (--recentre) may help",
    "data": "more training samples would help",
    "optimisation": "train longer (--epochs, --lr), or hold back more (--weight-decay, --patience)",
}


def all_parts(subject: Subject) -> dict[str, list[Finding]]:
    """Title of a part -> its findings."""
    of_model = {} if subject.model.constant_target else {MODEL: model_findings(subject)}
    return {
        LOSS: deferral_findings(subject),
        SURROGATE: surrogate_findings(subject),
        **of_model,
        LEARNING: learning_findings(subject),
    }


def deferral_findings(subject: Subject) -> list[Finding]:
    """The run's deferral loss as the oracle's plus what each shortcoming adds. The parts add up to the run's loss."""
    run_loss = chosen_costs(subject.scores, subject.costs)
    best_loss = subject.losses_of(subject.members[subject.best])
    bayes, learner = subject.bayes, subject.expected.learner
    data = np.zeros(len(run_loss))
    if subject.halves:
        data = np.mean([subject.losses_of(half) for half in subject.halves], axis=0) - run_loss
    shown = data if data.mean() > 0 else np.zeros(len(run_loss))
    rest = best_loss - shown - bayes.earned
    found = [
        mean_of("oracle", "oracle", bayes.oracle, "the cheapest agent of each sample, known only afterwards"),
        mean_of(
            "not_in_features", "+ not to be known from the features", bayes.earned - bayes.oracle,
            f"as far as {learner} can tell",
        ),
        mean_of(
            "bayes", "= Bayes rejector, estimated", bayes.earned,
            f"the agent of the lowest expected cost; its estimates promise {bayes.plug_in.mean():.4f}",
        ),
        _objective(subject, rest) if subject.single_task else _class(subject, rest),
    ]  # fmt: skip
    if not subject.halves:
        found.append(Finding(key="data", title="+ too little data", value=None, says=subject.why_not["data"]))
    elif data.mean() <= 0:
        found.append(mean_of("data", "+ too little data", shown, "half the training samples do as well"))
    else:
        says = "what the second half of the training samples brought; as many again bring 0.5 to 0.7 of it"
        found.append(mean_of("data", "+ too little data", shown, says))
    if subject.best == "as it is":
        says = "neither fitting longer nor weight decay does better on validation"
    else:
        says = f"best on validation: {subject.best}"
    found.append(mean_of("optimisation", "+ optimisation", run_loss - best_loss, says))
    found.append(mean_of("run", "= this rejector", run_loss, "as `l2d evaluate` gives it"))
    return found + _abstention(subject)


def _objective(subject: Subject, rest: np.ndarray) -> Finding:
    says = (
        f"{subject.run.point.method}: the best there is for that costs {subject.trained_bayes.earned.mean():.4f} here"
    )
    return mean_of("objective", "+ trained on one task, and class", rest, says)


def _class(subject: Subject, rest: np.ndarray) -> Finding:
    finding = mean_of("class", "+ class of rejectors, surrogate", rest)
    low, high = finding.interval
    if low > 0:
        says = "a rejector of its class does not get nearer"
    elif high < 0:
        says = f"below 0: it knows more than {subject.expected.learner}, the Bayes risk is lower yet"
    else:
        says = (
            f"cannot be told from 0: {subject.expected.learner} as a rejector pays {subject.bayes.earned.mean():.4f}; "
            f"another rejector of these features may save up to {high:.4f}"
        )
    return replace(finding, says=says)


def _abstention(subject: Subject) -> list[Finding]:
    """Where there is one expert and its answer always costs the same: Chow's rule."""
    if subject.costs.shape[1] != 2:
        return []
    expert = subject.costs[:, 1]
    if not np.isfinite(expert).all() or expert.min() != expert.max():
        return []
    says = (
        f"one expert at a constant {expert[0]:.4f}: learning with abstention. Right where the model's expected cost is "
        "above that: this share of samples"
    )
    return [mean_of("abstention", "abstention", (subject.bayes.allocation == 1).astype(float), says)]


def surrogate_findings(subject: Subject) -> list[Finding]:
    """Surrogate risk over its infimum, under the estimated expected costs, and what that allows the deferral loss."""
    config, nu = subject.run.rejector.config, subject.run.point.nu
    if config.loss != "surrogate":
        says = (
            f"trained with the loss {config.loss!r}. Theorems 4.4 and 4.6 are about the surrogate: its infimum, the "
            "minimizability gap and the bound do not apply. All other parts do"
        )
        return [Finding(key="applies", title="applies", value=None, says=says)]
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
    if gap.interval[1] < 0:
        says += "; below 0: the true infimum is lower than the regressors make it"
    elif gap.interval[0] <= 0:
        says += "; cannot be told from 0"
    of = "" if np.array_equal(subject.trained, subject.costs) else ", of the costs it was trained on"
    shares = np.sort(minimiser(tau, nu), axis=1)[:, ::-1]
    return [
        mean_of("risk", f"surrogate risk (nu = {nu:g})", risk, f"mean training loss on these samples{of}"),
        mean_of("infimum", "its infimum, any function", infimum, "E_x C*(x) of Theorem 4.6, of the expected costs"),
        mean_of("excess", "= excess surrogate risk", risk - infimum, "the next three add up to it"),
        replace(gap, says=says),
        mean_of("data", "  too little data", data, "what the second half of the training samples brought"),
        mean_of("optimisation", "  optimisation", risk - best, f"best on validation: {subject.best_fit}"),
        Finding(
            key="target", title="largest share at the infimum", value=float(shares[:, 0].mean()),
            says=_sharpness(shares, tau, nu, config.recentre),
        ),
        *_bound_findings(subject, expected, available, tau, infimum, nu),
    ]  # fmt: skip


def _bound_findings(
    subject: Subject, expected: np.ndarray, available: np.ndarray, tau: np.ndarray, infimum: np.ndarray, nu: float
) -> list[Finding]:
    """Theorem 4.4, both sides under one law of costs: the estimated one. So the inequality has to hold."""
    agents, norm = expected.shape[1], tau.sum(axis=1)
    excess = np.maximum(risk_at_logs(log_softmax(subject.scores, available), tau, nu) - infimum, 0.0)
    deferral = chosen_costs(subject.scores, expected) - expected.min(axis=1)
    bound = float(deferral_bound(excess.mean(), norm.mean(), nu, agents))
    worst = float((np.where(available, expected, -np.inf).max(axis=1) - expected.min(axis=1)).mean())
    speaks = f"always choosing wrongly would cost {worst:.4f}" + ("" if bound < worst else ", so it says nothing")
    return [
        Finding(key="tau_norm", title="||tau||_1", value=float(norm.mean()), says="scales the bound"),
        mean_of("expected_excess", "excess surrogate risk, expected", excess, "were the estimated costs the truth"),
        mean_of("deferral_excess", "excess deferral loss, expected", deferral, "over the Bayes rejector, likewise"),
        Finding(key="bound", title="bound of Theorem 4.4", value=bound, says=f"the most it can be; {speaks}"),
        Finding(
            key="pointwise_bound", title="bound, sample by sample",
            value=float(deferral_bound(excess, norm, nu, agents).mean()),
            says="the same inequality at each sample, then averaged: tighter",
        ),
        Finding(
            key="slack", title="slack", value=bound - float(deferral.mean()),
            says="bound less excess deferral loss: never below 0",
        ),
        Finding(
            key="encoder_bound", title="bound with the model's own part",
            value=None if subject.model.best is None else bound + max(0.0, _model_gap(subject)),
            says="over the best model found too (Corollary 4.11)"
            if subject.model.best is not None else f"not known: {subject.model.reasons.get('best', '')}",
        ),
    ]  # fmt: skip


def _model_gap(subject: Subject) -> float:
    model = subject.model
    here = np.isfinite(model.as_is)
    return float((model.as_is[here] - model.best[here]).mean()) if here.any() else 0.0


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


def model_findings(subject: Subject) -> list[Finding]:
    """Heads gap, representation gap, price of sharing, and what the model's cost is on rows it was fitted on."""
    model, agent = subject.model, subject.cache.agents[0]
    here = np.isfinite(model.as_is)
    if not here.any():
        return [
            Finding(key="as_is", title="model as it is", value=None, says=f"{agent.name!r} answered no sample here")
        ]
    found = [
        mean_of("as_is", "model as it is", model.as_is[here], f"expected cost of {agent.name!r}, kind {agent.kind}")
    ]
    train = _model_cost_on_train(subject)
    found.append(
        Finding(
            key="optimism", title="  more than on training samples", value=float(model.as_is[here].mean() - train),
            says=f"{train:.4f} there; far above 0, rejectors trust it too much",
        )
    )  # fmt: skip
    steps = (
        ("heads", "heads gap", model.as_is, model.heads, "better heads on its frozen representation would save this"),
        ("repr", "representation gap", model.heads, model.best, "a better representation would save this"),
        ("model_gap", "heads and representation", model.as_is, model.best, "the best model found would save this"),
        ("sharing", "price of sharing", model.best, model.separate, "separate models a task would save this"),
    )
    reason_of = {"heads": "heads", "repr": "best", "model_gap": "best", "sharing": "separate"}
    for key, title, before, after, says in steps:
        if before is None or after is None:
            reason = model.reasons.get(reason_of[key]) or model.reasons.get("heads", "")
            found.append(Finding(key=key, title=title, value=None, says=f"not known: {reason}"))
            continue
        finding = mean_of(key, title, before[here] - after[here])
        low, high = finding.interval
        if key == "sharing" and high < 0:
            says = "below 0: sharing a representation helps"
        elif low <= 0 <= high:
            says = "cannot be told from 0" + (f" ({_chosen(model.chosen, key)})" if _chosen(model.chosen, key) else "")
        elif high < 0:
            says = "below 0: what was best on validation is worse here"
        else:
            says += f" ({_chosen(model.chosen, key)})" if _chosen(model.chosen, key) else ""
        found.append(Finding(key=key, title=title, value=finding.value, interval=finding.interval, says=says))
    return found


def _chosen(chosen: dict[str, str], key: str) -> str:
    if key == "sharing":
        return ""
    return f"best on validation: {chosen.get('heads' if key == 'heads' else 'best', '')}"


def _model_cost_on_train(subject: Subject) -> float:
    from l2d.rejector.theory.diagnosis import costs_judged_on

    costs = costs_judged_on(subject.run, subject.tables["train"].raw, subject.cache.record.tasks)[:, 0]
    return float(costs[np.isfinite(costs)].mean())


def learning_findings(subject: Subject) -> list[Finding]:
    """Terms of the learning bound at the number of training rows."""
    inputs = _bound_inputs(subject)
    if inputs is None:
        says = f"no bound is known here for a {subject.run.rejector.config.network}: linear and mlp have one"
        return [Finding(key="bound", title="bound", value=None, says=says)]
    terms = learning_bound(*inputs, rows=len(inputs[0].inputs))
    actual = float(chosen_costs(subject.scores, subject.costs).mean())
    return [
        Finding(key="rows", title="training samples K", value=float(terms.rows)),
        Finding(key="empirical", title="deferral loss on them", value=terms.empirical, says="the bound starts here"),
        Finding(
            key="complexity", title="Rademacher complexity R_K", value=terms.complexity,
            says=f"of scores of at most this rejector's norm, {inputs[0].norm:.4g}; weight decay lowers it",
        ),
        Finding(
            key="accuracy", title="+ experts' class errors", value=terms.accuracy,
            says="2 x Omega: falls as experts err less" if terms.accuracy else "none, or the class cost is not 0-1",
        ),
        Finding(
            key="magnitude", title="+ size of the other costs", value=terms.magnitude,
            says="2 x (largest costs, beta) x R_K: falls with costs' clamp and with beta",
        ),
        Finding(
            key="confidence", title="+ chance", value=terms.confidence,
            says="B sqrt(log(1/delta) / 2K), B the largest cost",
        ),
        Finding(
            key="bound", title="= bound", value=terms.bound,
            says=f"on {subject.split} it is {actual:.4f}; bounds are loose: see which term is large",
        ),
    ]  # fmt: skip


def bound_curve_of(subject: Subject) -> list[dict[str, float]]:
    """The learning bound against sample size, one object a size; empty for networks without one."""
    inputs = _bound_inputs(subject)
    return [] if inputs is None else [_terms(terms) for terms in bound_curve(*inputs)]


def _terms(terms: LearningBound) -> dict[str, float]:
    names = ("rows", "empirical", "accuracy", "magnitude", "confidence", "bound")
    return {name: getattr(terms, name) for name in names}


def _bound_inputs(subject: Subject):
    from l2d.rejector.theory.diagnosis import costs_judged_on

    run, record, table = subject.run, subject.cache.record, subject.tables["train"]
    costs = costs_judged_on(run, table.raw, record.tasks)
    usable = np.isfinite(costs).any(axis=1)
    scores = score_class(run.rejector, table.features[usable])
    if scores is None:
        return None
    weights = None if run.point.cost is not None else dict(run.point.weights.by_task)
    agents = agent_costs(
        table.raw.numpy()[usable], costs[usable], run.point.query_costs, weights, record.costs, record.tasks
    )
    losses = chosen_costs(run.rejector.scores(table.features[usable]).double().numpy(), costs[usable])
    return scores, agents, float(losses.mean()), float(costs[np.isfinite(costs)].max())


def notes_of(subject: Subject) -> list[str]:
    """What the figures rest on."""
    explained = ", ".join(
        f"{agent.name} {100 * share:.0f} %"
        for agent, share in zip(subject.cache.agents, subject.expected.explained, strict=True)
    )
    errors = ", ".join(f"{name} {error:.4f}" for name, error in subject.expected.errors.items())
    notes = [
        f"Expected costs given the features are estimated by {subject.expected.learner}, cross-fitted ({FOLDS} folds, "
        f"every sample by regressors that did not see it); variance of each agent's cost explained: {explained}; mean "
        f"squared errors: {errors}. If the truth is not near these, Bayes risk and infimum are lower than given.",
    ]
    if subject.model.constant_target:
        notes.append(
            "The targets are one and the same for all samples, as those of imported scores are: what a better model "
            "could answer is not known, so the part about the model is left out."
        )
    if np.isinf(subject.costs).any():
        share = float(np.isinf(subject.costs).any(axis=1).mean())
        notes.append(
            f"On {100 * share:.1f} % of samples an agent is unavailable: expectations, softmax and oracle are over the "
            "available ones there."
        )
    if subject.left_out:
        notes.append(f"{subject.left_out} samples on which nobody is available are left out.")
    if subject.run.rejector.config.recentre:
        notes.append("The surrogate's part is about recentred costs (each sample's cheapest subtracted), as trained.")
    if subject.single_task:
        notes.append(f"The surrogate's part is about the cost of {subject.run.point.method}, as trained.")
    return notes


def verdict_of(parts: dict[str, dict[str, Finding]]) -> str:
    """In a sentence or two: what most of the loss above the oracle's is, and what else is beyond doubt."""
    loss = parts[LOSS]
    total = loss["run"].value - loss["oracle"].value
    if total <= 0:
        return "The rejector is as good as the oracle: nothing is left to gain."
    causes = [(key, loss[key]) for key in ADVICE if key in loss and loss[key].value is not None]
    key, largest = max(causes, key=lambda cause: cause[1].value)
    name = largest.title.removeprefix("+ ")
    text = (
        f"The rejector is {total:.4f} above the oracle. The largest part, {largest.value:.4f} "
        f"({100 * largest.value / total:.0f} %), is: {name}; {_advice(key, largest)}."
    )
    others = [
        f"{found.title.removeprefix('+ ')} {found.value:.4f} ({_advice(other, found)})"
        for other, found in causes
        if other != key and found.interval is not None and found.interval[0] > 0
    ]
    return text + (f" Also beyond doubt: {'; '.join(others)}." if others else "")


def _advice(key: str, found: Finding) -> str:
    return f"{ADVICE[key]}; {found.says}" if key == "optimisation" else ADVICE[key]
