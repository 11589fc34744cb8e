"""Training one method at one point of a grid, on tables that are held."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from l2d.data.errors import UsageError
from l2d.data.samples.standardise import standardisation
from l2d.rejector.grid import GridPoint
from l2d.rejector.literature.fitting import Fitted, fit, network_of
from l2d.rejector.literature.samples import Samples
from l2d.rejector.literature.trained import (
    RULES,
    TrainedMethod,
    expert_classes,
    known_query_costs,
    model_probabilities,
)
from l2d.rejector.literature.without_network import WITHOUT_NETWORK
from l2d.rejector.losses import allocate, deferral_loss
from l2d.rejector.methods import METHODS, Method
from l2d.rejector.rows.subset import training_rows
from l2d.rejector.rows.table import CostTable
from l2d.rejector.settings import TrainConfig

FOLDS = 4  # of the training split, for what a classifier of its own says of rows that it has not seen
NETWORKS = ("linear", "mlp")


def train_method(
    point: GridPoint,
    train: CostTable,
    validation: CostTable,
    config: TrainConfig,
    *,
    tasks: list[str],
    num_classes: int,
) -> TrainedMethod:
    """Train a method.

    Args:
        point: its ``method`` is one of :data:`l2d.rejector.methods.LITERATURE`.
        train: rows to fit, read with predictions; with ``config.train_rows`` a part of them is drawn by the seed.
        validation: rows that choose the epoch, the number of neighbours or the threshold: lowest deferral risk (or
            loss, see :class:`l2d.rejector.literature.rule.Rule`).
        tasks: of the cache.
        num_classes: K; 0 without classes.

    Raises:
        UsageError: a network that these methods do not have, or a model without probabilities.
        DataError: a loss is not finite.
    """
    if config.network not in NETWORKS:
        raise UsageError(
            f"method {point.method!r} has no {config.network} rejector", hint=f"choose from {', '.join(NETWORKS)}"
        )
    rows = training_rows(len(train), config.train_rows, point.seed)
    mean, std = (torch.from_numpy(values) for values in standardisation(train.features[rows].numpy()))
    job = _Job(point, config, tasks, num_classes, mean, std)
    return job.run(job.samples(train).take(rows), job.samples(validation))


class _Job:
    def __init__(
        self, point: GridPoint, config: TrainConfig, tasks: list[str], num_classes: int, mean: Tensor, std: Tensor
    ):
        self.point, self.config, self.tasks, self.num_classes = point, config, tasks, num_classes
        self.mean, self.std = mean, std
        self.method: Method = METHODS[point.method]
        self.own = self.method.trains_classifier(config.classifier)
        self.query_costs = known_query_costs(self.method, point, in_errors=self.method.classes_only or self.own)

    def samples(self, table: CostTable) -> Samples:
        """A table as the method sees it. Agent 0's costs are filled in later where the classifier is its own."""
        x = (table.features - self.mean) / self.std
        target, right, answers = None, None, None
        if self.method.classes_only or self.own:
            target = torch.from_numpy(table.targets["target_cla"].astype(np.int64))
            wrong = table.raw[:, :, self.tasks.index("cla")].float()
            right = (1 - wrong[:, 1:]).nan_to_num(nan=0.0)
            answers = expert_classes(table).masked_fill(wrong[:, 1:].isnan(), -1)
            costs = (wrong + self.query_costs).nan_to_num(nan=math.inf)
        else:
            costs = self.point.total_costs(table.raw, self.tasks).float()
        if self.own:
            costs = torch.cat([torch.zeros(len(costs), 1), costs[:, 1:]], dim=1)
        parts = None
        if not (self.method.classes_only or self.own):
            weights = torch.from_numpy(self.point.cost_weights(train=True)).float()
            parts = (self.point.raw_costs(table.raw, self.tasks).float() * weights).nan_to_num(nan=math.inf)
        given = self.method.classifier == "given" and not self.own
        chances = model_probabilities(table) if given else None
        return Samples(
            x=x,
            costs=costs,
            target=target,
            probabilities=chances,
            right=right,
            answers=answers,
            parts=parts,
            unasked=costs - self.query_costs,
        )

    def run(self, train: Samples, validation: Samples) -> TrainedMethod:
        state = {
            "feature_mean": self.mean,
            "feature_std": self.std,
            "num_classes": torch.tensor(self.num_classes, dtype=torch.int64),
        }
        if self.own and self.method.classifier != "own":
            classifier = self._fit_classifier(train, validation)
            state |= {f"classifier.{name}": value for name, value in classifier.state.items()}
            validation = validation.answered_by(self._classes(classifier, validation.x))
            if self.method.learns_costs:  # what its own classifier costs, too
                train = train.answered_by(self._unseen_probabilities(train, validation))
        plain = WITHOUT_NETWORK.get(self.point.method)
        if plain is not None:
            learnt, risk = plain.learn(train, validation)
            return self._trained(state | learnt, Fitted({}, 0, risk, [(0.0, risk)]))
        fitted = self._fit(train, validation)
        return self._trained(state | {f"network.{name}": value for name, value in fitted.state.items()}, fitted)

    def _trained(self, state: dict[str, Tensor], fitted: Fitted) -> TrainedMethod:
        return TrainedMethod(
            point=self.point,
            config=self.config,
            state=state,
            best_epoch=fitted.best_epoch,
            validation_risk=fitted.validation_risk,
            history=fitted.history,
        )

    def _fit(self, train: Samples, validation: Samples) -> Fitted:
        rule, num_agents = RULES[self.point.method], len(self.point.query_costs)
        if rule.check is not None:
            rule.check(train)
        if rule.complete is not None:
            train = rule.complete(train)

        def loss(outputs: Tensor, samples: Samples) -> Tensor:
            return rule.loss(outputs, samples, self.config.alpha)

        def risk(outputs: Tensor, samples: Samples) -> float:
            if rule.estimates:
                return float(loss(outputs, samples).double().mean())
            if rule.probabilities is not None:
                samples = samples.answered_by(rule.probabilities(outputs, num_agents))
            scores = rule.scores(outputs, samples.probabilities, self.query_costs)
            chosen = allocate(scores, ~samples.missing)
            return float(deferral_loss(chosen, samples.costs).double().mean())

        if rule.sees_probabilities:
            train, validation = (_with_probabilities(samples) for samples in (train, validation))
        outputs = rule.outputs(self.num_classes, num_agents)
        settings = (self.config, self.point.seed, self.point.run_id)
        return fit(train, validation, outputs, loss, risk, *settings, make=rule.network)

    def _fit_classifier(self, train: Samples, validation: Samples) -> Fitted:
        """A classifier by cross-entropy, its epoch that of the lowest cross-entropy on validation."""

        def loss(outputs: Tensor, samples: Samples) -> Tensor:
            return cross_entropy(outputs, samples.known_target, reduction="none")

        def risk(outputs: Tensor, samples: Samples) -> float:
            return float(loss(outputs, samples).mean())

        who = f"the classifier of {self.point.run_id}"
        return fit(train, validation, self.num_classes, loss, risk, self.config, self.point.seed, who)

    def _unseen_probabilities(self, train: Samples, validation: Samples) -> Tensor:
        """Class probabilities of training rows, each by a classifier fitted on the other folds: (n, K).

        What a classifier says of rows that it was fitted on is surer and right more often than what it says of others.
        """
        generator = torch.Generator().manual_seed(self.point.seed)
        fold = torch.arange(len(train))[torch.randperm(len(train), generator=generator)] % FOLDS
        found = torch.zeros(len(train), self.num_classes)
        for number in range(FOLDS):
            fitted = self._fit_classifier(train.take(fold != number), validation)
            found[fold == number] = self._classes(fitted, train.x[fold == number])
        return found

    def _classes(self, classifier: Fitted, x: Tensor) -> Tensor:
        network = network_of(classifier.state, self.config, x.shape[1], self.num_classes)
        with torch.no_grad():
            return network(x).softmax(dim=1)


def _with_probabilities(samples: Samples) -> Samples:
    """The model's class probabilities behind the input."""
    return replace(samples, x=torch.cat([samples.x, samples.known_probabilities], dim=1))
