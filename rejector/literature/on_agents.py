"""Methods that score the agents as they are: what is learnt is what they cost, or whether the experts are right."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from l2d.rejector import losses
from l2d.rejector.literature.rule import Rule
from l2d.rejector.literature.samples import Samples


def _num_agents(num_classes: int, num_agents: int) -> int:
    return num_agents


def cost_regression_loss(outputs: Tensor, samples: Samples, alpha: float) -> Tensor:
    """``sum_j (r_j + c_j)^2``: an output is a negated prediction of an agent's cost, the argmax the cheapest agent.

    Source: Krishnamurthy et al., *Active Learning for Cost-Sensitive Classification*, ICML 2017, section 2. The same as
    ``--loss regression``.
    """
    missing = samples.missing
    error = (outputs + samples.costs.masked_fill(missing, 0.0)).masked_fill(missing, 0.0)
    return error.square().sum(dim=1)


def expert_right_loss(outputs: Tensor, samples: Samples, alpha: float) -> Tensor:
    """Logistic loss of "expert j is right" over the experts that answer: ``sigmoid`` of an output is its chance."""
    right = samples.known_right
    value = -(right * logsigmoid(outputs) + (1 - right) * logsigmoid(-outputs))
    return value.masked_fill(samples.missing[:, 1:], 0.0).sum(dim=1)


def _confidence_scores(outputs: Tensor, probabilities: Tensor | None, query_costs: Tensor) -> Tensor:
    """The model's highest class probability against each expert's probability of being right, less its query cost.

    Source: Raghu et al., *The Algorithmic Automation Problem: Prediction, Triage, and Human Effort*, 2019; in this form
    Mozannar and Sontag 2020, section 7 (Confidence).
    """
    assert probabilities is not None  # the method's classifier is given
    return torch.cat([probabilities.amax(dim=1, keepdim=True), outputs.sigmoid() - query_costs[1:]], dim=1)


def _oracle_scores(outputs: Tensor, _: Tensor | None, query_costs: Tensor) -> Tensor:
    """Defer where an expert is more likely right than not, whatever the model thinks.

    Source: Mozannar and Sontag 2020, section 7 (LearnedOracle), there with the region where the synthetic expert is
    perfect as the target; here whether it was right, which is what a table of costs has.
    """
    return torch.cat([torch.full((len(outputs), 1), 0.5), outputs.sigmoid()], dim=1)


def post_hoc_loss(outputs: Tensor, samples: Samples, alpha: float) -> Tensor:
    """``c_1 phi(-r) + c_0 phi(r)``, ``phi(r) = log(1 + e^-r)``, ``r`` the expert's output less the model's.

    The rejector of a base model that stays as it is: ``sigmoid(r) = E[c_0|x] / E[c_0 + c_1|x]``, so it defers where the
    model is expected to cost more. It sees the input and the model's class probabilities. With one expert this is the
    paper's surrogate at ``nu = 1``.

    Source: Narasimhan, Jitkrittum, Menon, Rawat and Kumar, *Post-hoc Estimators for Learning to Defer to an Expert*,
    NeurIPS 2022.
    """
    return losses.surrogate_deferral_loss(outputs, samples.costs)


def with_artificial_answers(samples: Samples) -> Samples:
    """Samples with an artificial answer, right or wrong, wherever an expert has none.

    For each expert, an expertise predictor (logistic regression on the features) learns from the samples that the
    expert has answered whether it is right, and its more likely outcome is taken for an answer elsewhere. An expert
    who is always right, or never, where it has answered is taken to be so everywhere; one who has answered nothing
    stays unavailable, as does the model.

    Source: Hemmer, Thede, Vössing, Jakubik and Kühl, *Learning to Defer with Limited Expert Predictions*, AAAI 2023:
    the expertise predictor and artificial predictions (steps 2 and 3). Its first step, an embedding trained with the
    true classes, is what a cache has as features. Left open there: several experts (each has a predictor of its own).
    """
    from sklearn.linear_model import LogisticRegression

    missing, right, costs = samples.missing[:, 1:], samples.known_right.clone(), samples.costs.clone()
    paid = (costs[:, 1:] + right - 1).masked_fill(missing, -torch.inf).amax(dim=0)
    x = samples.x.double().numpy()
    for expert in range(right.shape[1]):
        gone, known = missing[:, expert], right[~missing[:, expert], expert]
        if not len(known) or not bool(gone.any()):
            continue
        guess = torch.full((int(gone.sum()),), float(known[0]))
        if len(known.unique()) > 1:
            predictor = LogisticRegression(max_iter=1000).fit(x[~gone.numpy()], known.numpy() == 1)
            guess = torch.from_numpy(predictor.predict(x[gone.numpy()])).float()
        right[gone, expert] = guess
        costs[gone, 1 + expert] = 1 - guess + paid[expert]
    return replace(samples, right=right, costs=costs)


RULES: dict[str, Rule] = {
    "cost_regression": Rule(
        outputs=_num_agents, loss=cost_regression_loss, scores=lambda outputs, probabilities, query_costs: outputs
    ),
    "imputed": Rule(
        outputs=_num_agents,
        loss=post_hoc_loss,
        scores=lambda outputs, probabilities, query_costs: outputs,
        complete=with_artificial_answers,
    ),
    "confidence": Rule(
        outputs=lambda num_classes, num_agents: num_agents - 1,
        loss=expert_right_loss,
        scores=_confidence_scores,
        estimates=True,
    ),
    "learned_oracle": Rule(
        outputs=lambda num_classes, num_agents: num_agents - 1,
        loss=expert_right_loss,
        scores=_oracle_scores,
        estimates=True,
    ),
    "post_hoc": Rule(
        outputs=_num_agents,
        loss=post_hoc_loss,
        scores=lambda outputs, probabilities, query_costs: outputs,
        sees_probabilities=True,
    ),
}
