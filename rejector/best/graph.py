"""Pieces of an ONNX graph: trees, ridge regression on random Fourier features, and sums of them, in 64 bits.

Converters are not used: of those measured, forests came out with other answers where a value is missing. A tree
ensemble gives, for each tree, the row of ``values`` that a sample reaches (a float32, exact up to 2**24), and the costs
there are gathered and added in 64 bits. So the graph differs from the run by the order of additions alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from l2d.rejector.best.linear import CLIPPED_AT, Basis, SteadyRidge
from l2d.rejector.best.model import MORE, CostModel
from l2d.rejector.best.scorer import Scorer
from l2d.rejector.best.trees import Forest
from l2d.rejector.scoring import ExactProducts

if TYPE_CHECKING:
    import onnx

OPSETS = {"": 17, "ai.onnx.ml": 3}
EXACT_IN_FLOAT32 = 1 << 24


def scorer_graph(scorer: Scorer, instead: np.ndarray, indicated: dict[int, int]) -> onnx.ModelProto:
    """A run of method ``best``: float32 ``features`` to ``scores`` and ``agent``, ties to the lowest index.

    Args:
        instead: what stands in for a number that is NaN or infinite, (width,).
        indicated: column that tells whether a number is missing -> the column of that number.
    """
    width, agents = len(instead), len(scorer.query_costs)
    graph = Graph()
    # With one row more, so that no step ever sees an empty batch, which onnxruntime's ArgMax gives another shape.
    rows = graph.node("Concat", "features", graph.constant(np.zeros((1, width), np.float32)), axis=0)
    scores = graph.scores(graph.filled(rows, instead, indicated), scorer)
    for values, name in ((scores, "scores"), (graph.node("ArgMax", scores, axis=1, keepdims=0), "agent")):
        first, last, axis = (graph.constant(np.array([number], np.int64)) for number in (0, -1, 0))
        graph.node("Slice", values, first, last, axis, name=name)
    return graph.model(width, [("scores", np.float32, ("batch", agents)), ("agent", np.int64, ("batch",))])


class Graph:
    """Nodes and constants of a graph that is being written."""

    def __init__(self):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, values: np.ndarray) -> str:
        """Name of a constant."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def node(self, kind: str, *inputs: str, name: str | None = None, domain: str = "", **attributes: object) -> str:
        """Add a node of one output; returns the output's name."""
        from onnx import helper

        out = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], domain=domain, **attributes))
        return out

    def to_double(self, value: str) -> str:
        from onnx import TensorProto

        return self.node("Cast", value, to=TensorProto.DOUBLE)

    def filled(self, features: str, instead: np.ndarray, indicated: dict[int, int]) -> str:
        """Features without missing numbers, as ``l2d route`` fills them: see :func:`scorer_graph`."""
        largest = self.constant(np.float32(np.finfo(np.float32).max))
        known = self.node("LessOrEqual", self.node("Abs", features), largest)  # false for NaN
        if indicated:
            tells, sources = np.zeros(len(instead), bool), np.arange(len(instead))
            for indicator, source in indicated.items():
                tells[indicator], sources[indicator] = True, source
            tells = self.constant(tells)
            missing = self.node("Not", self.node("Gather", known, self.constant(sources.astype(np.int64)), axis=1))
            one = self.constant(np.float32(1))
            features = self.node("Where", self.node("And", tells, missing), one, features)
            known = self.node("Or", known, tells)
        return self.node("Where", known, features, self.constant(instead.astype(np.float32)))

    def forest(self, features: str, forest: Forest) -> str:
        """Mean over trees: float32 (batch, width) -> float64 (batch, outputs)."""
        if len(forest.values) >= EXACT_IN_FLOAT32:
            raise ValueError(f"{len(forest.values)} leaves cannot be numbered in float32")
        from onnx import TensorProto

        rows = self.node("TreeEnsembleRegressor", features, domain="ai.onnx.ml", **_trees(forest))
        rows = self.node("Cast", rows, to=TensorProto.INT64)
        reached = self.to_double(self.node("Gather", self.constant(forest.values), rows, axis=0))
        return self.node("ReduceMean", reached, axes=[1], keepdims=0)  # (batch, trees, outputs)

    def ridge(self, features: str, ridge: SteadyRidge, basis: Basis) -> str:
        """As :class:`l2d.rejector.best.linear.SteadyRidge`: float32 (batch, width) -> float64 (batch, outputs)."""
        centred = self.node("Sub", self.to_double(features), self.constant(basis.mean))
        scaled = self.node("Div", centred, self.constant(basis.scale))
        limits = [self.constant(np.float64(limit)) for limit in (-CLIPPED_AT, CLIPPED_AT)]
        z = self.node("Clip", scaled, *limits)
        cosines = self.node("Cos", self.node("Add", self.products(z, ridge.project), self.constant(basis.phase)))
        factor = self.constant(np.float64(10 * np.sqrt(2 / len(basis.phase))))
        inputs = self.node("Concat", z, self.node("Mul", cosines, factor), axis=1)
        return self.node("Add", self.products(inputs, ridge.weigh), self.constant(ridge.intercept))

    def products(self, inputs: str, products: ExactProducts) -> str:
        """(batch, in) -> (batch, out), float64: whole numbers are multiplied, so no runtime rounds otherwise."""
        whole = self.node("Round", self.node("Mul", inputs, self.constant(np.float64(products.scale))))
        found = self.node("MatMul", whole, self.constant(products.whole))
        found = self.node("Mul", found, self.constant(np.float64(1.0 / products.scale)))
        return self.node("Mul", found, self.constant(products.back))

    def costs(self, features: str, model: CostModel) -> str:
        """Raw costs as :meth:`l2d.rejector.best.model.CostModel.predict` gives them, (batch, agents, tasks)."""
        agents, tasks = model.num_agents, model.num_tasks
        shape = self.constant(np.array([-1, agents, tasks], np.int64))
        if model.basis is None:
            return self.repeated(features, model.mean)
        trees = [self.forest(features, forest) for forest in model.forests]
        folds = self.constant(np.float64(len(trees)))
        members = [
            self.node("Div", self.node("Sum", *trees), folds),
            self.ridge(features, model.ridge, model.basis),
        ]
        members = [self.node("Reshape", member, shape) for member in members]
        members.append(self.constant(model.means.mean(axis=0)[None]))
        parts = []
        for number, member in enumerate(members):
            level = self.node("ReduceMean", member, axes=[1], keepdims=1)
            apart, common = self.node("Sub", member, level), self.constant(model.stacking.centre[number])
            parts.append(self.node("Mul", apart, self.constant(model.stacking.difference[number])))
            level = self.node("Sub", level, common)
            parts.append(self.node("Mul", level, self.constant(model.stacking.common[number])))
        found = self.node("Add", self._sum(parts), self.constant(model.stacking.mean))
        found = self.node("Mul", found, self.constant(model.factor))
        if model.known.all():
            return found
        return self.node("Where", self.constant(model.known[None, :, None]), found, self._unknown(found, model))

    def _unknown(self, found: str, model: CostModel) -> str:
        """What agents cost that have answered nothing, see :class:`l2d.rejector.best.model.CostModel`."""
        known = self.node("Gather", found, self.constant(np.flatnonzero(model.known)), axis=1)
        dearest = self.node("ReduceMax", known, axes=[1], keepdims=1)
        more = self.node("Mul", self.node("Abs", dearest), self.constant(np.float64(MORE)))
        more = self.node("Add", self.node("Add", dearest, more), self.constant(np.float64(MORE)))
        return self.node("Max", self.constant(model.mean[None]), more)

    def repeated(self, features: str, values: np.ndarray) -> str:
        """The same for every sample: (batch, ...)."""
        batch = self.node("Shape", features, start=0, end=1)
        rest = self.constant(np.array(values.shape, np.int64))
        shape = self.node("Concat", batch, rest, axis=0)
        return self.node("Expand", self.constant(values[None]), shape)

    def scores(self, features: str, scorer: Scorer) -> str:
        """Scores as :class:`l2d.rejector.best.scorer.Scorer` gives them: (batch, agents), float32."""
        if scorer.guard["holds"]:
            scores = scorer.scored(np.zeros((1, *scorer.weights.shape)))[0]
            return self.node("Identity", self.repeated(features, scores))
        from onnx import TensorProto

        total = self.node("Mul", self.costs(features, scorer.model), self.constant(scorer.weights))
        total = self.node("ReduceSum", total, self.constant(np.array([2], np.int64)), keepdims=0)
        total = self.node("Add", total, self.constant(scorer.query_costs))
        return self.node("Cast", self.node("Neg", total), to=TensorProto.FLOAT)

    def _sum(self, parts: list[str]) -> str:
        """One after another: shapes differ, and not every runtime broadcasts those of Sum."""
        total = parts[0]
        for part in parts[1:]:
            total = self.node("Add", total, part)
        return total

    def model(self, width: int, outputs: list[tuple[str, type, tuple[str | int, ...]]]) -> onnx.ModelProto:
        """The model: float32 ``features`` (batch, width) to outputs (name, type, shape)."""
        import onnx
        from onnx import helper

        entry = helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["batch", width])
        ends = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), list(shape))
            for name, kind, shape in outputs
        ]
        graph = helper.make_graph(self.nodes, "rejector", [entry], ends, self.constants)
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="l2d")


def _trees(forest: Forest) -> dict[str, object]:
    """Attributes of a TreeEnsembleRegressor whose target t is the row of ``values`` that tree t's leaf has."""
    count, trees = len(forest.left), len(forest.roots)
    tree = np.repeat(np.arange(trees), np.diff([*forest.roots, count]))
    start = forest.roots.astype(np.int64)[tree]
    leaf = forest.left < 0
    at = np.flatnonzero(leaf)
    position = np.arange(count) - start
    return {
        "n_targets": trees,
        "aggregate_function": "SUM",
        "post_transform": "NONE",
        "nodes_treeids": tree.tolist(),
        "nodes_nodeids": position.tolist(),
        "nodes_featureids": np.where(leaf, 0, forest.feature).tolist(),
        "nodes_modes": ["LEAF" if ends else "BRANCH_LEQ" for ends in leaf.tolist()],
        "nodes_values": np.where(leaf, 0, at_most_in_float32(forest.threshold)).tolist(),
        "nodes_truenodeids": np.where(leaf, 0, forest.left - start).tolist(),
        "nodes_falsenodeids": np.where(leaf, 0, forest.right - start).tolist(),
        "target_treeids": tree[at].tolist(),
        "target_nodeids": position[at].tolist(),
        "target_ids": tree[at].tolist(),
        "target_weights": (-1.0 - forest.left[at]).tolist(),
    }


def at_most_in_float32(thresholds: np.ndarray) -> np.ndarray:
    """The largest float32 that is not above: a float32 feature is at most one exactly if it is at most the other."""
    nearest = thresholds.astype(np.float32)
    below = np.nextafter(nearest, np.float32(-np.inf))
    return np.where(nearest.astype(np.float64) > thresholds, below, nearest).astype(np.float32)
