"""A run of the default method: predicted raw costs, to which its query costs and task weights are applied."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from l2d.rejector.best.guard import Guard
from l2d.rejector.best.model import CostModel
from l2d.rejector.best.scorer import PAID_MEAN, Scorer, model_of, weights_of
from l2d.rejector.best.trees import Forest
from l2d.rejector.grid import GridPoint
from l2d.rejector.trained import Rejector

if TYPE_CHECKING:
    import onnx

    from l2d.rejector.rows.table import CostTable

#: Splits whose samples the models were fitted on: each is scored by the models of the fold that has not seen it.
FITTED_ON = ("train", "validation")
REMEMBERED_BYTES = 1 << 28
THREADS = min(4, os.cpu_count() or 1)  # of rows that are scored at once; they change no bit
REMEMBERED_MODELS = 4
_models: OrderedDict[str, Predictor] = OrderedDict()
_states: deque[tuple[Mapping[str, np.ndarray], Predictor]] = deque(maxlen=REMEMBERED_MODELS)
_lock = threading.Lock()  # runs may be scored by several threads


class Predictor:
    """A cost model that remembers what it predicted of its cache's samples: the runs of a grid share one."""

    def __init__(self, model: CostModel):
        self.model = model
        self._known: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, split: str | None, ids: Sequence[str], x: np.ndarray) -> np.ndarray:
        """Raw costs (n, agents, tasks); ``split`` is None for samples of no cache."""
        if split is None:
            return self.model.predict(x, threads=THREADS)
        key = (split, len(ids), *(ids[position] for position in ((0, -1) if len(ids) else ())))
        with self._lock:
            if key not in self._known:
                unseen = split in FITTED_ON
                self._known[key] = (
                    self.model.predict_unseen(x, ids) if unseen else self.model.predict(x, threads=THREADS)
                )
                while sum(found.nbytes for found in self._known.values()) > REMEMBERED_BYTES and len(self._known) > 1:
                    self._known.popitem(last=False)
            return self._known[key]


@dataclass(frozen=True, kw_only=True)
class TrainedBest(Rejector):
    """Scores are negated predicted total costs; behind the guard, those of the agents' means.

    Attributes:
        state: the cost model's arrays, see :func:`state_of`, and what guards are judged by: ``held_out.predicted`` and
            ``held_out.costs``, raw costs (n, agents, tasks) float32 of the fitted samples by models that had not seen
            them, and the true ones, NaN where there was no answer.
        guard: what :meth:`l2d.rejector.best.guard.Guard.facts` says.
        about: facts of the fit for people: samples, what the combination weighs.
    """

    arrays: ClassVar[Literal["numpy", "torch"]] = "numpy"
    any_setting: ClassVar[bool] = True
    exact_onnx: ClassVar[bool] = True

    state: Mapping[str, np.ndarray]
    guard: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def predictor(self) -> Predictor:
        """Made once for all runs of a process that hold the same models."""
        with _lock:
            for state, found in _states:
                if state is self.state:  # of a grid: no need to look into it
                    return found
            digest = hashlib.sha256(b"".join(self.state[name].tobytes() for name in sorted(self.state))).hexdigest()
            if digest not in _models:
                _models[digest] = Predictor(model_of(self.state))
                while len(_models) > REMEMBERED_MODELS:
                    _models.popitem(last=False)
            _states.append((self.state, _models[digest]))
            return _models[digest]

    def scores(self, features: np.ndarray) -> np.ndarray:
        """New samples' raw features (n, width) -> scores (n, agents), float32. A row's bits are its own."""
        return self._scored(self.predictor(None, (), features))

    def scores_of(self, split: str, ids: Sequence[str], features: np.ndarray) -> np.ndarray:
        """Samples of the cache, those of training and validation by models that have not seen them."""
        return self._scored(self.predictor(split, ids, features))

    def predicted_costs(self, table: CostTable) -> np.ndarray:
        """Total costs that the models predict of a table's samples, whatever the guard says: float64 (n, agents)."""
        return self.total(self.predictor(table.split, table.ids, table.features.numpy()))

    @cached_property
    def scorer(self) -> Scorer:
        """What scores inputs."""
        return Scorer(self.predictor.model, self.weights, np.array(self.point.query_costs), self.guard)

    def _scored(self, raw: np.ndarray) -> np.ndarray:
        return self.scorer.scored(raw)

    def total(self, raw: np.ndarray) -> np.ndarray:
        """Total costs (n, agents) of raw ones (n, agents, tasks) at this run's weights, query costs and prices."""
        return self.scorer.total(raw)

    @property
    def weights(self) -> np.ndarray:
        """What a unit of each predicted cost weighs, (agents, tasks)."""
        return weights_of(self.point.cost_weights(), len(self.point.query_costs), self.state)

    def as_predicted(self, raw: np.ndarray) -> np.ndarray:
        """Raw costs (n, agents, tasks) in the units that they are predicted in: prices as shares of their means."""
        if not self.predicts_prices:
            return raw
        return np.concatenate([raw[:, :, :-1], raw[:, :, -1:] / self.state[PAID_MEAN][:, None]], axis=2)

    @property
    def predicts_prices(self) -> bool:
        return PAID_MEAN in self.state

    def predicted_prices(self, split: str, ids: Sequence[str], features: np.ndarray) -> np.ndarray | None:
        if not self.predicts_prices:
            return None
        return self.predictor(split, ids, features)[:, :, -1] * self.state[PAID_MEAN]

    def at(self, point: GridPoint) -> TrainedBest:
        """What training at other query costs or task weights would have made: the same models, a guard of its own."""
        fallback = None if self.config.fallback is None else self.guard["fallback"]
        guard = self.judged_at(point).guard_of(z=self.config.guard, fallback=fallback)
        return replace(self.judged_at(point), guard=guard.facts())

    def judged_at(self, point: GridPoint) -> TrainedBest:
        return replace(self, point=point, guard={**self.guard, "holds": False})

    @property
    def activations(self) -> int:
        return 1  # many rows take it a fraction of the time

    def unguarded(self) -> TrainedBest:
        return self.judged_at(self.point) if self.guard["holds"] else self

    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and true total costs of the fitted samples, float64 (n, agents), infinite without an answer."""
        predicted, costs = (self.total(self.state[f"held_out.{name}"]) for name in ("predicted", "costs"))
        return predicted, np.where(np.isnan(costs), np.inf, costs)

    def guard_of(self, *, z: float, fallback: int | None) -> Guard:
        """The guard at this run's query costs and weights."""
        return Guard.of(*self.held_out(), z=z, fallback=fallback, decided=self.judged_at(self.point).decided)

    @property
    def decides(self) -> bool:
        return not self.guard["holds"]

    @property
    def answering(self) -> dict[str, Any] | None:
        return self.about.get("answering")

    def onnx_graph(self, example: np.ndarray, instead: np.ndarray, indicated: dict[int, int]) -> onnx.ModelProto:
        from l2d.rejector.best.graph import scorer_graph

        return scorer_graph(self.scorer, instead, indicated)

    def facts(self) -> dict[str, Any]:
        return {"guard": self.guard, "best": self.about}

    @classmethod
    def from_facts(cls, facts: dict[str, Any], **fields: Any) -> TrainedBest:
        return cls(**fields, guard=facts["guard"], about=facts["best"])

    def check(self) -> None:
        """Refuse arrays that do not belong together."""
        model = model_of(self.state)
        shapes = {tuple(self.state[f"held_out.{name}"].shape[1:]) for name in ("predicted", "costs")}
        if shapes != {(model.num_agents, model.num_tasks)}:
            raise ValueError("held-out costs are those of other agents or tasks")
        self.scorer.check(self.width)


def state_of(model: CostModel, mean: np.ndarray, std: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of a cost model by name: ``trees.*``, ``ridge.*``, ``means``, ``stacking.*``."""
    arrays = {"feature_mean": mean, "feature_std": std, "mean": model.mean, "known": model.known, "means": model.means}
    arrays["factor"] = model.factor
    if model.basis is not None:
        arrays |= {f"basis.{name}": value for name, value in vars(model.basis).items()}
        arrays |= {f"stacking.{name}": value for name, value in vars(model.stacking).items()}
        arrays["ridge.weights"] = np.stack([ridge.weights for ridge in model.ridges])
        arrays["ridge.intercept"] = np.stack([ridge.intercept for ridge in model.ridges])
        for fold, forest in enumerate(model.forests):
            arrays |= {f"trees.{fold}.{field.name}": getattr(forest, field.name) for field in fields(Forest)}
    return {name: np.ascontiguousarray(value) for name, value in arrays.items()}
