"""Every method that a sweep can train: its source, what it needs, and what trains it. Loads no torch.

The paper's are trained together as a grid (:mod:`l2d.rejector.training`), ``best`` is fitted once for all its points
(:mod:`l2d.rejector.best`), and those of the literature one after another (:mod:`l2d.rejector.literature`).
``docs/methods.md`` says when to use which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from l2d.data.errors import UsageError

if TYPE_CHECKING:
    from l2d.data.cache.reader import CostCache

#: ``none``: scores come from the input alone; ``given``: they need the class probabilities of a model, the cached one's
#: or those of a classifier of their own; ``own``: the method trains classifier and rejector together.
Classifier = Literal["none", "given", "own"]

#: What scores say of costs: ``costs``: negated expected costs; ``chances``: one minus the expected cost; ``surrogate``:
#: they minimise the paper's surrogate at ``nu = 1``; ``order``: which agent is best, and nothing of by how much;
#: ``loss``: they minimise the run's own training loss.
Scores = Literal["costs", "chances", "surrogate", "order", "loss"]


@dataclass(frozen=True)
class Trainer:
    """What trains some of the methods, and reads their runs back.

    Attributes:
        module: with what :class:`l2d.rejector.trained.TrainerModule` lists.
        rejector: ``module:class`` of a :class:`l2d.rejector.trained.Rejector`, which its runs are read back as.
        theory: the module whose ``section`` says why a run falls short, see
            :func:`l2d.rejector.theory.section.theory_section`; None where no theory is about its methods.
        has_nu: ``nu`` of the surrogate means something to its methods.
        seeds: how many a sweep has where none are given.
    """

    module: str
    rejector: str
    theory: str | None = None
    has_nu: bool = False
    seeds: int = 4


#: All points of a grid together.
GRID = Trainer(
    "l2d.rejector.training.points",
    "l2d.rejector.training.network:TrainedNetwork",
    theory="l2d.rejector.theory.of_surrogate",
    has_nu=True,
)
#: One fit for all points.
BEST = Trainer(
    "l2d.rejector.best.training",
    "l2d.rejector.best.trained:TrainedBest",
    theory="l2d.rejector.theory.of_costs",
    seeds=1,
)
#: One point after another.
ONE_BY_ONE = Trainer("l2d.rejector.literature.sweep", "l2d.rejector.literature.trained:TrainedMethod")


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method.

    Attributes:
        source: authors and year, shown in tables.
        paper: title and venue, and where in it the method stands.
        classifier: see :data:`Classifier`.
        classes_only: it is defined for 0-1 costs of a class alone.
        one_expert: it is defined for one expert alone.
        pays_queries: its training knows query costs; otherwise they are only charged when it is evaluated.
        scores: see :data:`Scores`.
        preferences: it learns which of two agents costs less.
        trainer: see :data:`Trainer`.
        task: the one task whose costs it trains on, None for all; it is always evaluated on all.
    """

    source: str
    paper: str
    classifier: Classifier = "none"
    classes_only: bool = False
    one_expert: bool = False
    pays_queries: bool = True
    scores: Scores = "order"
    preferences: bool = False
    trainer: Trainer = ONE_BY_ONE
    task: str | None = None

    @property
    def has_nu(self) -> bool:
        """Whether ``nu`` of the surrogate means something to it."""
        return self.trainer.has_nu

    @property
    def learns_costs(self) -> bool:
        """Whether it learns from what agents cost, so that a classifier of its own needs costs, too."""
        return self.scores in ("costs", "surrogate") or self.preferences

    def trains_classifier(self, setting: str) -> bool:
        """Whether a run's classes come from a classifier of its own, under ``--classifier`` cached or own."""
        return self.classifier == "own" or setting == "own"


METHODS: dict[str, Method] = {
    "multi-task": Method(
        source="Montreuil et al. 2025",
        paper="A Two-Stage Learning-to-Defer Approach for Multi-Task Learning, ICML 2025, the surrogate of section 4",
        scores="loss",
        trainer=GRID,
    ),
    "classification-only": Method(
        source="Mao et al. 2023a",
        paper="Two-Stage Learning to Defer with Multiple Experts, NeurIPS 2023, as in Montreuil et al. 2025, Table 1",
        scores="loss",
        trainer=GRID,
        task="cla",
    ),
    "regression-only": Method(
        source="Mao et al. 2024e",
        paper="Regression with Multi-Expert Deferral, ICML 2024, as in Montreuil et al. 2025, Table 1",
        scores="loss",
        trainer=GRID,
        task="reg",
    ),
    "best": Method(
        source="trees and ridge, stacked",
        paper="Geurts et al. 2006; Agarwal et al. 2022; Rahimi and Recht 2007; Breiman 1996",
        scores="costs",
        trainer=BEST,
    ),
    "cost_regression": Method(
        source="Krishnamurthy et al. 2017",
        paper="Active Learning for Cost-Sensitive Classification, ICML 2017, section 2",
        scores="costs",
    ),
    "knn": Method(
        source="Hu et al. 2024",
        paper="RouterBench, 2024, KNN router; k-nearest neighbours of Cover and Hart 1967 on costs",
        scores="costs",
    ),
    "carrot": Method(
        source="Somerstep et al. 2025",
        paper="CARROT: A Cost Aware Rate Optimal Router, 2025, arXiv 2502.03261, nearest neighbours",
        scores="costs",
    ),
    "profiles": Method(
        source="Jitkrittum et al. 2026",
        paper="Universal Model Routing for Efficient LLM Inference, ICLR 2026, UniRoute with k-means, equation 12",
        scores="costs",
    ),
    "confidence": Method(
        source="Raghu et al. 2019",
        paper="The Algorithmic Automation Problem, 2019, as in Mozannar and Sontag 2020, section 7 (Confidence)",
        classifier="given",
        classes_only=True,
        scores="chances",
    ),
    "model_confidence": Method(
        source="Chow 1970, threshold on validation",
        paper="On Optimum Recognition Error and Reject Tradeoff, IEEE Trans. Information Theory 16(1), 1970",
        classifier="given",
    ),
    "conformal": Method(
        source="Bary et al. 2025",
        paper="No Need for Learning to Defer? A Training Free Deferral Framework to Multiple Experts through "
        "Conformal Prediction, 2025, arXiv 2509.12573",
        classifier="given",
        classes_only=True,
    ),
    "imputed": Method(
        source="Hemmer et al. 2023",
        paper="Learning to Defer with Limited Expert Predictions, AAAI 2023; then the surrogate of Montreuil et al. "
        "2025 at nu = 1",
        classes_only=True,
        scores="surrogate",
    ),
    "matrix_factorization": Method(
        source="Ong et al. 2024",
        paper="RouteLLM: Learning to Route LLMs with Preference Data, 2024, matrix factorization",
        preferences=True,
    ),
    "elo": Method(
        source="Ong et al. 2024",
        paper="RouteLLM: Learning to Route LLMs with Preference Data, 2024, similarity-weighted ranking",
        preferences=True,
    ),
    "irt": Method(
        source="Song et al. 2025",
        paper="IRT-Router: Effective and Interpretable Multi-LLM Routing via Item Response Theory, ACL 2025, M-IRT",
        scores="costs",
    ),
    "learned_oracle": Method(
        source="Mozannar & Sontag 2020, LearnedOracle",
        paper="Consistent Estimators for Learning to Defer to an Expert, ICML 2020, section 7 (LearnedOracle)",
        classes_only=True,
        pays_queries=False,
    ),
    "post_hoc": Method(
        source="Narasimhan et al. 2022",
        paper="Post-hoc Estimators for Learning to Defer to an Expert, NeurIPS 2022, rejector on a base model",
        classifier="given",
        one_expert=True,
        scores="surrogate",
    ),
    "mozannar_sontag": Method(
        source="Mozannar & Sontag 2020",
        paper="Consistent Estimators for Learning to Defer to an Expert, ICML 2020, the losses L_CE and L_CE^alpha",
        classifier="own",
        classes_only=True,
    ),
    "one_vs_all": Method(
        source="Verma & Nalisnick 2022",
        paper="Calibrated Learning to Defer with One-vs-All Classifiers, ICML 2022; several experts: Verma, "
        "Barrejón and Nalisnick, Learning to Defer to Multiple Experts, AISTATS 2023",
        classifier="own",
        classes_only=True,
        pays_queries=False,
    ),
    "realizable": Method(
        source="Mozannar et al. 2023",
        paper="Who Should Predict? Exact Algorithms for Learning to Defer to Humans, AISTATS 2023, RealizableSurrogate",
        classifier="own",
        classes_only=True,
        pays_queries=False,
    ),
    "picce": Method(
        source="Liu et al. 2026",
        paper="When More Experts Hurt: Underfitting in Multi-Expert Learning to Defer, ICML 2026, equation 9",
        classifier="own",
        classes_only=True,
        pays_queries=False,
    ),
    "mixture_of_experts": Method(
        source="Madras et al. 2018",
        paper="Predict Responsibly: Improving Fairness and Accuracy by Learning to Defer, NeurIPS 2018, L_defer",
        classifier="own",
        classes_only=True,
    ),
}

#: Methods that :mod:`l2d.rejector.literature` trains.
LITERATURE = {name: method for name, method in METHODS.items() if method.trainer is ONE_BY_ONE}

#: The others. Each of their rejectors is one model.
ONE_MODEL = tuple(name for name in METHODS if name not in LITERATURE)


def check_method(name: str, cache: CostCache, weights: dict[str, float], cost: str | None, setting: str) -> None:
    """Refuse a method on a cache that it is not defined for.

    Args:
        name: one of :data:`METHODS`.
        cache: with the agents to choose among.
        weights: ``lambda`` by task.
        cost: an SQL expression in place of the weighted sum, or None.
        setting: ``--classifier``, cached or own.

    Raises:
        UsageError: says what does not fit.
    """
    method, experts = METHODS[name], [agent.name for agent in cache.agents[1:]]
    if method.one_expert and len(experts) > 1:
        raise UsageError(
            f"method {name!r} is for one expert; there are {len(experts)}",
            where=cache.address,
            hint=f"choose one: --only {cache.agents[0].name},{experts[0]}",
        )
    if not (method.classes_only or method.trains_classifier(setting)):
        return
    why = f"method {name!r}" + ("" if method.classes_only else " with --classifier own")
    kind = cache.record.costs.get("cla", {}).get("kind")
    if kind != "zero_one" or not cache.record.classes:
        found = "the cache has no costs of classes" if kind is None else f"these are {kind}"
        raise UsageError(
            f"{why} needs 0-1 costs of classes; {found}",
            where=cache.address,
            hint='a recipe with [costs.cla] kind = "zero_one", or another method',
        )
    others = [task for task, weight in weights.items() if task != "cla" and weight]
    if cost is not None or others or not weights.get("cla"):
        what = "--cost" if cost is not None else f"the weights {', '.join(f'{t}={w:g}' for t, w in weights.items())}"
        raise UsageError(f"{why} only knows errors of classes, not {what}", hint="--lambda cla=1, or another method")
