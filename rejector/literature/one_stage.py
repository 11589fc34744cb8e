"""One-stage methods: classifier and rejector trained together, on the cached features, from one network.

Of K classes and J experts. ``g`` are the network's outputs: K of the classes, then those of the experts. ``m_j`` is
expert j's answer, ``a_j = 1[m_j = y]``. Costs are in errors; an unavailable expert has no term and no share of a
softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from l2d.rejector.literature.rule import Rule, hidden_where
from l2d.rejector.literature.samples import Samples


def _split(outputs: Tensor, num_agents: int) -> tuple[Tensor, Tensor]:
    """Outputs of the classes and of the experts."""
    return outputs[:, : 1 - num_agents], outputs[:, 1 - num_agents :]


def _largest_class_or_expert(outputs: Tensor, _: Tensor | None, query_costs: Tensor) -> Tensor:
    """``max_k g_k`` for the model, ``g_(K+j)`` for expert j: defer where an expert's output is above all classes'."""
    classes, experts = _split(outputs, len(query_costs))
    return torch.cat([classes.amax(dim=1, keepdim=True), experts], dim=1)


def _softmax_of_classes(outputs: Tensor, num_agents: int) -> Tensor:
    return _split(outputs, num_agents)[0].softmax(dim=1)


def mozannar_sontag_loss(outputs: Tensor, samples: Samples, alpha: float) -> Tensor:
    """``sum_i (max c - c_i) (-log softmax(g)_i)`` over the K + J outputs; consistent for cost-sensitive learning.

    Class k costs ``1[k != y]``, expert j what it costs, its query included. Without query costs this is
    ``-log s_y - sum_j a_j log s_(K+j)``, the paper's ``L_CE``. ``alpha`` weighs the classes' terms where an expert is
    right, their ``L_CE^alpha``: below 1 the classifier leaves to the expert what the expert knows. A query cost adds
    ``beta`` to the weight of every class, as label smoothing would (Narasimhan et al. 2022 say what that does to the
    classifier).

    Source: Mozannar and Sontag, *Consistent Estimators for Learning to Defer to an Expert*, ICML 2020; several experts
    are further outputs of the same reduction to cost-sensitive learning (Verma et al. 2023, section 3).

    Returns:
        (n,).
    """
    num_experts = samples.costs.shape[1] - 1
    missing = samples.missing[:, 1:]
    num_classes = outputs.shape[1] - num_experts
    by_class = 1.0 - torch.eye(num_classes)[samples.known_target]
    experts = samples.costs[:, 1:].masked_fill(missing, 0.0)
    dearest = torch.maximum(experts.amax(dim=1, keepdim=True), torch.ones(1))
    known = (samples.known_right == 1).any(dim=1, keepdim=True)
    class_weights = (dearest - by_class) * torch.where(known, alpha, 1.0)
    weights = torch.cat([class_weights, (dearest - experts).masked_fill(missing, 0.0)], dim=1)
    hidden = torch.cat([torch.zeros_like(by_class, dtype=torch.bool), missing], dim=1)
    return -(weights * hidden_where(outputs, hidden).log_softmax(dim=1)).sum(dim=1)


def one_vs_all_loss(outputs: Tensor, samples: Samples, alpha: float) -> Tensor:
    """``phi(g_y) + sum_(k != y) phi(-g_k) + sum_j [a_j phi(g_(K+j)) + (1 - a_j) phi(-g_(K+j))]``, ``phi`` the logistic
    loss: K + J binary problems, so ``sigmoid(g_(K+j))`` is the probability that expert j is right.

    Source: Verma and Nalisnick, *Calibrated Learning to Defer with One-vs-All Classifiers*, ICML 2022; several experts:
    Verma, Barrejón and Nalisnick, AISTATS 2023. Neither knows query costs.
    """
    classes, experts = _split(outputs, samples.costs.shape[1])
    truth = torch.eye(classes.shape[1])[samples.known_target]
    value = _logistic(classes, truth).sum(dim=1)
    of_experts = _logistic(experts, samples.known_right).masked_fill(samples.missing[:, 1:], 0.0)
    return value + of_experts.sum(dim=1)


def _logistic(outputs: Tensor, positive: Tensor) -> Tensor:
    return -(positive * logsigmoid(outputs) + (1 - positive) * logsigmoid(-outputs))


def _one_vs_all_probabilities(outputs: Tensor, num_agents: int) -> Tensor:
    """``sigmoid(g_k)``, divided by their sum."""
    chances = _split(outputs, num_agents)[0].double().sigmoid() + 1e-300
    return (chances / chances.sum(dim=1, keepdim=True)).float()


def realizable_loss(outputs: Tensor, samples: Samples, alpha: float) -> Tensor:
    """``alpha * -log(s_y + sum_j a_j s_(K+j)) + (1 - alpha) * -log softmax(g_1 .. g_K)_y``, ``s`` the softmax of all.

    Where a classifier and a rejector of the class of networks make no error together, its minimiser makes none. The
    loss ``L_CE`` need not: it asks for ``s_y`` even where an expert is right. ``alpha = 1`` is the paper's surrogate;
    below, its mixture with the cross-entropy of the classifier. It is not consistent for experts whose answers do not
    follow from the input: with classes of chances 0.55 and 0.45 and an expert that is right on 0.6 of either, its
    minimum is ``s = (0.449, 0.353, 0.198)``, which keeps.

    Source: Mozannar, Lang, Wei, Sattigeri, Das and Sontag, *Who Should Predict?*, AISTATS 2023 (up to a factor of 2);
    several experts: Mao, Mohri and Zhong, *Realizable H-Consistent and Bayes-Consistent Loss Functions for Learning to
    Defer*, NeurIPS 2024. It knows no query costs.
    """
    missing = samples.missing[:, 1:]
    classes, experts = _split(outputs, samples.costs.shape[1])
    joined = torch.cat([classes, hidden_where(experts, missing)], dim=1)
    own = classes.gather(1, samples.known_target[:, None])
    helpful = hidden_where(experts, missing) + samples.known_right.log().clamp(min=torch.finfo(outputs.dtype).min / 4)
    value = joined.logsumexp(dim=1) - torch.cat([own, helpful], dim=1).logsumexp(dim=1)
    if alpha == 1:
        return value
    return alpha * value + (1 - alpha) * cross_entropy(classes, samples.known_target, reduction="none")


def picce_loss(outputs: Tensor, samples: Samples, alpha: float) -> Tensor:
    """``-log s_y - log s_(K+j*)``, ``j*`` the expert of the highest output among those that are right, ``s`` the
    softmax of all K + J outputs; where no expert is right the second term is left out.

    PiCCE, *Pick the Confident and Correct Expert*. With one expert it is ``L_CE`` of Mozannar and Sontag. With several,
    ``L_CE`` adds up all of their accuracies: at its minimum ``s_y = P(y | x) / (1 + sum_j A_j)``, which flattens as
    experts are added. Here ``s_y = P(y | x) / (1 + V)`` with ``V`` the probability that some expert is right, which is
    at most 1. Where one expert is the most accurate, and adds most to any set of the others, ``s_(K+j*) = A_j* / (1 +
    V)``: the paper's proof says so, its Theorem 6(A) prints another formula, and numerical minima agree with the proof.

    Source: Liu, Cao, Feng, An and Ong, *When More Experts Hurt: Underfitting in Multi-Expert Learning to Defer*, 2026,
    arXiv 2602.17144, Definition 1 (equation 9) on the cross-entropy. Left open there, and so here: query costs (it
    trains without), and ties of experts (the first).

    Returns:
        (n,).
    """
    classes, experts = _split(outputs, samples.costs.shape[1])
    hidden = hidden_where(experts, samples.missing[:, 1:])
    total = torch.cat([classes, hidden], dim=1).logsumexp(dim=1)
    own = total - classes.gather(1, samples.known_target[:, None])[:, 0]
    right = samples.known_right == 1
    picked = hidden.detach().masked_fill(~right, -torch.inf).argmax(dim=1, keepdim=True)
    return own + torch.where(right.any(dim=1), total - hidden.gather(1, picked)[:, 0], 0.0)


def mixture_of_experts_loss(outputs: Tensor, samples: Samples, alpha: float) -> Tensor:
    """``pi_0 * -log softmax(g_1 .. g_K)_y + sum_j pi_j c_j``, ``pi`` the softmax of 1 + J outputs of the gate.

    Not consistent: it weighs a cross-entropy, which is not bounded, against costs, which are. Source: Madras, Pitassi
    and Zemel, *Predict Responsibly*, NeurIPS 2018 (with ``gamma_defer`` for the query cost); in this form Mozannar and
    Sontag 2020, section 7 (MixOfExp).
    """
    classes, gate = _split_gate(outputs, samples.costs.shape[1])
    missing = samples.missing[:, 1:]
    never = torch.zeros(len(missing), 1, dtype=torch.bool)
    shares = hidden_where(gate, torch.cat([never, missing], dim=1)).softmax(dim=1)
    error = cross_entropy(classes, samples.known_target, reduction="none")
    experts = samples.costs[:, 1:].masked_fill(missing, 0.0)
    return shares[:, 0] * error + (shares[:, 1:] * experts).sum(dim=1)


def _split_gate(outputs: Tensor, num_agents: int) -> tuple[Tensor, Tensor]:
    return outputs[:, :-num_agents], outputs[:, -num_agents:]


def _joint(num_classes: int, num_agents: int) -> int:
    return num_classes + num_agents - 1


RULES: dict[str, Rule] = {
    "mozannar_sontag": Rule(
        outputs=_joint,
        loss=mozannar_sontag_loss,
        scores=_largest_class_or_expert,
        probabilities=_softmax_of_classes,
    ),
    "one_vs_all": Rule(
        outputs=_joint,
        loss=one_vs_all_loss,
        scores=_largest_class_or_expert,
        probabilities=_one_vs_all_probabilities,
    ),
    "realizable": Rule(
        outputs=_joint, loss=realizable_loss, scores=_largest_class_or_expert, probabilities=_softmax_of_classes
    ),
    "picce": Rule(outputs=_joint, loss=picce_loss, scores=_largest_class_or_expert, probabilities=_softmax_of_classes),
    "mixture_of_experts": Rule(
        outputs=lambda num_classes, num_agents: num_classes + num_agents,
        loss=mixture_of_experts_loss,
        scores=lambda outputs, _, query_costs: _split_gate(outputs, len(query_costs))[1],
        probabilities=lambda outputs, num_agents: _split_gate(outputs, num_agents)[0].softmax(dim=1),
    ),
}
