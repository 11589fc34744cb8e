"""The rejector as a scikit-learn estimator, for costs that are in memory: no cache, no recipe."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import Tags, check_array, check_consistent_length
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted, validate_data

from l2d.data.errors import nearest
from l2d.data.samples.standardise import lost_in_32_bits
from l2d.rejector.best.answering import answering_in_words
from l2d.rejector.best.model import fit_costs
from l2d.rejector.best.training import rejectors_of
from l2d.rejector.costs import CostWeights, total_costs
from l2d.rejector.grid import GridPoint
from l2d.rejector.losses import allocate, deferral_loss
from l2d.rejector.rows.table import CostTable
from l2d.rejector.settings import TrainConfig
from l2d.rejector.trained import Rejector
from l2d.rejector.training.loop import train_grid


class DeferralRejector(BaseEstimator):
    """Learns which agent should answer an input, from what each agent would have cost on training inputs.

    Where other estimators take ``y``, this one takes ``costs``: what every agent's answer costs on every sample, (n,
    agents), or raw costs by task, (n, agents, tasks), to be weighted. Agent 0 is the model. Trained as ``l2d train``
    does: ``best`` (:mod:`l2d.rejector.best`) predicts each agent's costs, with five-fold cross-fitting on all samples;
    ``multi-task`` (paper, section 5.2) fits a network on a part of the samples, and the others choose the epoch.

    Args:
        method: ``best`` or ``multi-task``.
        guard: of ``best``: standard errors by which choosing has to pay on held-out samples; else one agent is asked
            always. 0: no guard.
        fallback: of ``best``: position of that agent; None: the best constant one.
        nu: of the surrogate: 0 sum-exponential, 1 log-softmax, 2 MAE. This and what follows, except weights, query
            costs and seed, is ``multi-task``'s alone.
        weights: ``lambda``, one a task; 1 each if None.
        query_costs: ``beta``, one an agent, added to its costs; 0 each if None.
        validation_fraction: of the samples, drawn by ``seed``.
        seed: of the split, the initial parameters and the order of samples.
        device: of torch, for training.
        network: linear, mlp or transformer.
        hidden, layers, loss, recentre, epochs, batch_size, lr, schedule, warmup, weight_decay, patience: see
            :class:`l2d.rejector.settings.TrainConfig`.

    Attributes:
        rejector_: the :class:`l2d.rejector.trained.Rejector`;
            :func:`l2d.rejector.export.onnx_model` takes it. That of ``best`` takes float32 features, from which what
            32 bits cannot hold has been taken off.
        n_agents_: how many agents.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.
    """

    __metadata_request__fit = {"costs": UNUSED}  # it is what others call y, not metadata to be routed
    __metadata_request__score = {"costs": UNUSED}

    def __init__(
        self,
        *,
        method: str = "best",
        guard: float = 1.0,
        fallback: int | None = None,
        nu: float = 1.0,
        weights: Any = None,
        query_costs: Any = None,
        validation_fraction: float = 0.2,
        seed: int = 0,
        device: str = "cpu",
        network: str = "mlp",
        hidden: int = 64,
        layers: int = 2,
        loss: str = "surrogate",
        recentre: bool = False,
        epochs: int = 100,
        batch_size: int = 1024,
        lr: float = 3e-3,
        schedule: str = "cosine",
        warmup: float = 0.1,
        weight_decay: float = 0.0,
        patience: int = 0,
    ):
        self.method = method
        self.guard = guard
        self.fallback = fallback
        self.nu = nu
        self.weights = weights
        self.query_costs = query_costs
        self.validation_fraction = validation_fraction
        self.seed = seed
        self.device = device
        self.network = network
        self.hidden = hidden
        self.layers = layers
        self.loss = loss
        self.recentre = recentre
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.schedule = schedule
        self.warmup = warmup
        self.weight_decay = weight_decay
        self.patience = patience

    def fit(self, X: Any, costs: Any) -> DeferralRejector:
        """Train on samples and their costs.

        Args:
            X: features, (n, width), finite. What 32 bits cannot tell apart, such as unix seconds, is standardised in 64
                before it is trained on, and then ``rejector_`` takes, and exports as ONNX, float64 features.
            costs: (n, agents) or (n, agents, tasks), finite and not negative; for ``best`` NaN where an agent has no
                answer.

        Raises:
            ValueError: a shape or value is not as it has to be, or a setting is another method's.
            UsageError: a parameter of training is out of range.
            DataError: the loss is not finite.
        """
        self._check_method()
        features = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        way = _WAYS[self.method]
        raw = self._check_costs(features, costs, gaps=way.takes_gaps)
        weights, query_costs = self._check_weights(raw)
        point = GridPoint(
            run_id=type(self).__name__,
            method=self.method,
            weights=_named(weights),
            beta=float(query_costs.max()),
            query_costs=tuple(query_costs.tolist()),
            nu=float(self.nu),
            seed=int(self.seed),
        )
        self._before: tuple[np.ndarray, np.ndarray] | None = None
        self.rejector_ = way.fit(self, point, features, raw)
        self.n_agents_ = raw.shape[1]
        return self

    def at(self, *, query_costs: Any = None, weights: Any = None) -> DeferralRejector:
        """A fitted rejector at other query costs, other weights, or both: nothing is trained again.

        Method ``best`` predicts raw costs, so this equals fitting with these parameters, its guard included.

        Args:
            query_costs, weights: as in the constructor; None: as they are.

        Raises:
            ValueError: the method is another one, or a shape or value is wrong.
        """
        check_is_fitted(self)
        if not self.rejector_.any_setting:
            raise ValueError(f"method {self.method!r} is trained at one setting; 'best' predicts costs for all of them")
        moved = copy(self)
        moved.query_costs = self.query_costs if query_costs is None else query_costs
        moved.weights = self.weights if weights is None else weights
        lambdas, betas = moved._check_weights(np.empty((0, self.n_agents_, len(self.rejector_.point.weights.by_task))))
        point = replace(
            self.rejector_.point,
            weights=_named(lambdas),
            beta=float(betas.max()),
            query_costs=tuple(betas.tolist()),
        )
        moved.rejector_ = self.rejector_.at(point)
        return moved

    def _fit_best(self, point: GridPoint, features: np.ndarray, raw: np.ndarray) -> Rejector:
        if not (isinstance(self.guard, int | float) and self.guard >= 0):
            raise ValueError(f"guard = {self.guard!r}: a number >= 0 of standard errors")
        names = [str(agent) for agent in range(raw.shape[1])]
        if self.fallback is not None and self.fallback not in range(len(names)):
            raise ValueError(f"fallback = {self.fallback!r}: the position of one of {len(names)} agents")
        answered = (~np.isnan(raw).any(axis=2)).any(axis=1)
        if not answered.any():
            raise ValueError("costs are NaN everywhere: no agent has answered anything")
        features, raw = features[answered], raw[answered]  # a sample without an answer tells nothing
        offset, scale = self._before = _before_32_bits(features, np.arange(len(features)))
        x = ((features - offset) / scale).astype(np.float32)
        ids = [str(row) for row in range(len(x))]
        model = fit_costs(x, raw, ids, seed=point.seed, threads=torch.get_num_threads())
        if model.answering is not None:
            for line in answering_in_words(model.answering.facts(names))[1:]:
                warnings.warn(line.removeprefix("warning: "), stacklevel=3)
        config = TrainConfig(guard=float(self.guard), fallback=None if self.fallback is None else names[self.fallback])
        return rejectors_of(model, [point], ids, x, raw, names, config)[0]

    def _fit_network(self, point: GridPoint, features: np.ndarray, raw: np.ndarray) -> Rejector:
        tasks = [task for task, _ in point.weights.by_task]
        config = TrainConfig(**{name: getattr(self, name) for name in TRAINING}).on(("features",))
        rows_of = self._split(len(features))
        offset, scale = _before_32_bits(features, rows_of[0])
        fitting = ((features - offset) / scale).astype(np.float32)
        train, validation = (
            CostTable(split=split, ids=[], features=torch.from_numpy(fitting[rows]), raw=torch.from_numpy(raw[rows]))
            for split, rows in zip(("train", "validation"), rows_of, strict=True)
        )
        rejector = train_grid([point], train, validation, config, tasks=tasks, device=self.device)[0]
        if not offset.any():
            return rejector
        mean = torch.from_numpy(offset) + rejector.state["feature_mean"] * torch.from_numpy(scale)
        std = rejector.state["feature_std"] * torch.from_numpy(scale)
        return replace(rejector, state={**rejector.state, "feature_mean": mean, "feature_std": std})

    def decision_function(self, X: Any) -> np.ndarray:
        """Score of each agent, (n, agents) float32: the highest is chosen. Of ``best`` the negated predicted costs."""
        check_is_fitted(self)
        features = validate_data(self, X, dtype=np.float64, reset=False)
        if self._before is not None:
            features = (features - self._before[0]) / self._before[1]
        mean, std = (np.asarray(self.rejector_.state[name]) for name in ("feature_mean", "feature_std"))
        largest = np.finfo(np.float32).max
        far = (np.abs(features - mean) / std > largest) | (np.abs(features) > np.finfo(mean.dtype).max)
        if far.any():
            row, column = np.argwhere(far)[0]
            raise ValueError(f"X[{row}, {column}] = {features[row, column]} is too far from what it was trained on")
        if self._before is not None:
            features = features.astype(np.float32)
        return self.rejector_.scores(features)

    def predict(self, X: Any) -> np.ndarray:
        """Index of the agent that should answer each sample, (n,) int64; ties go to the lowest."""
        return allocate(torch.from_numpy(self.decision_function(X))).numpy()

    def score(self, X: Any, costs: Any) -> float:
        """Minus the mean deferral loss (Definition 4.1): what the chosen agents cost, queries included."""
        chosen = self.predict(X)
        raw = self._check_costs(X, costs)
        if raw.shape[1] != self.n_agents_:
            raise ValueError(f"costs of {raw.shape[1]} agents, but it was trained on those of {self.n_agents_}")
        weights, query_costs = (torch.from_numpy(values) for values in self._check_weights(raw))
        losses = deferral_loss(torch.from_numpy(chosen), total_costs(torch.from_numpy(raw), weights, query_costs))
        return -float(losses.double().mean())

    def _check_method(self) -> None:
        """Refuse an unknown method, and settings that it does not have."""
        if self.method not in _WAYS:
            raise ValueError(f"method = {self.method!r}: {nearest(self.method, _WAYS)}")
        defaults = {name: parameter.default for name, parameter in signature(DeferralRejector).parameters.items()}
        for other, way in _WAYS.items():
            foreign = [name for name in way.settings if getattr(self, name) != defaults[name] and other != self.method]
            if foreign:
                given = ", ".join(f"{name} = {getattr(self, name)!r}" for name in foreign)
                raise ValueError(f"{given}: method {self.method!r} has no such setting, {other!r} has")

    def _check_costs(self, X: Any, costs: Any, *, gaps: bool = False) -> np.ndarray:
        """Raw costs as (n, agents, tasks) float32; NaN is refused unless ``gaps``."""
        if costs is None:
            raise ValueError("it requires y to be passed, but the target y is None: here y are the agents' costs")
        finite = "allow-nan" if gaps else True
        raw = check_array(costs, dtype=np.float32, allow_nd=True, input_name="costs", ensure_all_finite=finite)
        check_consistent_length(X, raw)
        raw = raw[:, :, None] if raw.ndim == 2 else raw
        if raw.ndim != 3 or raw.shape[1] < 2 or raw.shape[2] < 1:
            raise ValueError(f"costs are (n, agents) or (n, agents, tasks) of two agents or more, not {raw.shape}")
        if (raw < 0).any():
            raise ValueError(f"costs are not negative, the least is {np.nanmin(raw)}")
        return raw

    def _check_weights(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``lambda`` (tasks,) and ``beta`` (agents,), float32."""
        found = []
        for name, default, length in (("weights", 1.0, raw.shape[2]), ("query_costs", 0.0, raw.shape[1])):
            given = getattr(self, name)
            values = np.full(length, default, np.float32) if given is None else np.asarray(given, dtype=np.float32)
            if values.shape != (length,) or not np.isfinite(values).all() or (values < 0).any():
                raise ValueError(f"{name} = {given!r}: {length} numbers >= 0 are needed for costs of shape {raw.shape}")
            found.append(values)
        return found[0], found[1]

    def _split(self, samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the training and of the validation samples, each in order."""
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction = {self.validation_fraction}: it lies between 0 and 1")
        count = min(max(round(self.validation_fraction * samples), 1), samples - 1)
        order = np.random.default_rng(self.seed).permutation(samples)
        return np.sort(order[count:]), np.sort(order[:count])

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.two_d_labels = True
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = False
        return tags


def _named(weights: np.ndarray) -> CostWeights:
    """``lambda`` (tasks,) by task."""
    return CostWeights(tuple((str(task), weight) for task, weight in enumerate(weights.tolist())))


def _before_32_bits(features: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What to take off features and to divide them by before they become float32: 0 and 1 where nothing is lost."""
    lost = lost_in_32_bits(features)
    offset, scale = np.zeros(features.shape[1]), np.ones(features.shape[1])
    rows = features[train][:, lost]
    deviation = rows.std(axis=0)
    offset[lost], scale[lost] = rows.mean(axis=0), np.where(deviation > 0, deviation, 1.0)
    return offset, scale


#: Parameters that are TrainConfig's and a network's. Not among them: `guard` and `fallback`, which are of `best`;
#: `failures`, as missing costs are refused or have no answer; `memory`, as everything is held; and `dropout`, as no
#: network over features has any.
TRAINING = (
    "network",
    "hidden",
    "layers",
    "loss",
    "recentre",
    "epochs",
    "batch_size",
    "lr",
    "schedule",
    "warmup",
    "weight_decay",
    "patience",
)


@dataclass(frozen=True)
class _Way:
    """What a method of the estimator is.

    Attributes:
        fit: (estimator, point, features (n, width) float64, raw costs (n, agents, tasks) float32) -> its rejector.
        settings: the estimator's parameters that it alone has.
        takes_gaps: costs may be NaN, where an agent has no answer.
    """

    fit: Callable[[DeferralRejector, GridPoint, np.ndarray, np.ndarray], Rejector]
    settings: tuple[str, ...]
    takes_gaps: bool


_WAYS = {
    "best": _Way(DeferralRejector._fit_best, ("guard", "fallback"), takes_gaps=True),
    "multi-task": _Way(
        DeferralRejector._fit_network, (*TRAINING, "nu", "validation_fraction", "device"), takes_gaps=False
    ),
}
