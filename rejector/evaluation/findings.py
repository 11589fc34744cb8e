"""What an evaluation shows, in sentences: above all where a rejector is no better than something simpler."""

from __future__ import annotations

from l2d.rejector.best.answering import answering_in_words
from l2d.rejector.evaluation.comparisons import BOUNDS
from l2d.rejector.evaluation.evaluation import Evaluation
from l2d.rejector.evaluation.guarded import guard_in_words
from l2d.rejector.evaluation.settings import (
    LEVEL,
    METHOD_OF_PAPER,
    corrected,
    difference_text,
    method_title,
    p_text,
    setting_text,
    settings_of,
    shown_differences,
    varying_settings,
    verdict,
)

FEW_SLOPES = 3  # agents whose slopes are all told


def findings(evaluations: list[Evaluation]) -> list[str]:
    """Sentences on each cache's runs: what each rejector is not better than, then where it is better than everything.

    Differences are of deferral losses, with their 95 % intervals and p-values after Holm's correction over all
    comparisons of the sweep; better is told at 5 % of these, worse where the interval lies above 0. Where the
    default method or the paper's multi-task rejector was trained, only these are spoken of.

    Args:
        evaluations: on one cache and split.

    Returns:
        At least one sentence.
    """
    if not comparable(evaluations[0]):
        return [
            "Nothing can be compared here, since no sample has the answers of two agents: the answer that is there "
            "counts, whatever is chosen, and every policy costs the same. Have some inputs answered by several agents."
        ]
    groups = settings_of(evaluations)
    varying = varying_settings(groups)
    spoken_of = ("best", METHOD_OF_PAPER)
    if any(members[0].result["method"] in spoken_of for members in groups):
        groups = [members for members in groups if members[0].result["method"] in spoken_of]
    sentences, winners, highest = [], [], 0.0
    for members in groups:
        result = members[0].result
        at = ", ".join(f"{name} {setting_text(members[0], name)}" for name in varying)
        subject = f"{method_title(result['method'])} at {at}" if at else method_title(result["method"])
        differences = {name: value for name, value in shown_differences(result).items() if name not in BOUNDS}
        verdicts = {name: verdict(result, value) for name, value in differences.items()}
        if result.get("guard", {}).get("holds"):
            sentences.append(f"{subject}: {guard_in_words(result['guard'], result['num_samples'])}")
            continue
        few = [text for text in verdicts.values() if text.startswith("too few")]
        if few:
            sentences.append(f"{subject}: {few[0]} to tell it from anything.")
            continue
        for name, value in differences.items():
            if verdicts[name] == "better":
                continue
            comparison = "Worse than" if verdicts[name] == "worse" else "Not shown to be better than"
            told = f"{difference_text(value)}, {corrected(value['p_holm'])}"
            alone = ", compared by itself" if verdicts[name] == "worse" and value["p_holm"] >= LEVEL else ""
            sentences.append(f"{subject}: {comparison} {in_words(name, result)}{alone}: {told}.")
        if set(verdicts.values()) <= {"better"}:
            winners.append(at)
            highest = max(highest, *(value["p_holm"] for value in differences.values()))
    if winners:
        where = " at every setting" if len(winners) == len(groups) else " at " + "; ".join(winners)
        where = where if len(groups) > 1 else ""
        p = p_text(highest) if highest < 0.001 else f"p at most {highest:.3f}"
        sentences.append(f"Better than every baseline{where}: {p} after Holm's correction for all comparisons.")
    result = groups[0][0].result
    return (
        sentences
        + [text for text in [predicted_in_words(result)] if text]
        + answering_in_words(result.get("answering"))[1:]
    )


def comparable(evaluation: Evaluation) -> bool:
    """Whether any sample has the answers of two agents, so that it matters which is chosen."""
    costs = evaluation.baselines.costs
    return costs.shape[1] < 2 or bool((costs.isfinite().sum(dim=1) > 1).any())


def predicted_in_words(result: dict) -> str | None:
    """How far predicted costs are from those paid, over the agents; None where a method predicts none."""
    agents = result.get("reliability")
    if not agents:
        return None
    worst = max(agents, key=lambda name: agents[name]["error"])
    off, chance = agents[worst]["error"], agents[worst]["error_by_chance"]
    text = f"Predicted costs are off by {off:.3f} or less, on average of ten bins ({worst}; {chance:.3f} by chance)"
    varying = {name: about for name, about in agents.items() if about["slope"] is not None}
    if not varying:
        return f"{text}; they vary too little for a slope."
    ends = sorted(varying, key=lambda name: varying[name]["slope"])
    few = ends if len(ends) <= FEW_SLOPES else [ends[0], ends[-1]]
    told = ", ".join(
        f"{name} {about['slope']:.2f} [{about['slope_low']:.2f}, {about['slope_high']:.2f}]"
        for name, about in varying.items()
        if name in few
    )
    which = "" if len(few) == len(ends) else f", lowest and highest of {len(ends)}"
    left = len(agents) - len(varying)
    whose = "one other agent" if left == 1 else f"{left} other agents"
    rest = f"; the predictions of {whose} vary too little for a slope" if left and len(agents) > 1 else ""
    return f"{text}. Slope of paid on predicted costs, 1 if calibrated{which}: {told}{rest}."


def in_words(baseline: str, result: dict) -> str:
    """A baseline in words."""
    if baseline in ("best_constant", "best_agent"):
        return f"always taking {result[baseline]}" + (", the best in hindsight" if baseline == "best_agent" else "")
    if baseline in result["agents"]:
        return f"the reference {baseline}"
    if baseline == "confidence":
        chosen = result["confidence"]
        below = (
            "" if chosen["threshold"] is None else f" where the model's confidence is below {chosen['threshold']:.3f}"
        )
        return f"deferring to {chosen['expert']}{below}"
    return {
        "random_same_shares": "random allocation at the same shares",
        "confidence_same_coverage": "the model's own confidence at the same coverage",
        "averaging": "averaging the answers of all agents",
    }.get(baseline) or method_title(baseline)
