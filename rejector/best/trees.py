"""Extremely randomised trees whose leaves hold shrunken mean costs, kept as arrays.

Trees are grown by scikit-learn (Geurts, Ernst and Wehenkel, *Extremely randomized trees*, Machine Learning 2006) and
copied out of it, so that a run is read back without unpickling. The cost of an agent in a node is the mean over the
samples that it answered there, drawn towards the parent's by hierarchical shrinkage (Agarwal et al., *Hierarchical
Shrinkage*, ICML 2022, equation 2): ``v = parent + (mean - mean of parent) / (1 + penalty / n of parent)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from l2d.rejector.best.folds import FOLDS, Judge, give_back, tree_targets

try:  # where l2d was installed with a C compiler at hand
    from l2d.rejector.best.traversal import mean_of_leaves
except ImportError:
    mean_of_leaves = None

TREES, LEAF, FEATURES = 20, 5, 1.0
#: Leaves are larger where rows are many, so that a tree has some thousand leaves at most whatever the rows.
ROWS_TO_A_LEAF = 2500
MOST_FEATURES = 200  # tried for a split
#: Held-out rows that are enough to choose a penalty by.
ENOUGH = 2000
#: Penalties among which cross-fitting chooses.
PENALTIES = (0.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
#: Rows times trees from which on scikit-learn's traversal is worth importing, where ours was not compiled. All find the
#: same leaves.
COMPILED_FROM = 400_000


@dataclass(frozen=True)
class Forest:
    """Trees one after another.

    Attributes:
        roots: position of each tree's first node, int32 (trees,).
        left, right: children's positions, int32 (nodes,); of a leaf ``left`` is ``-1 - row of values``.
        feature: int32 (nodes,).
        threshold: float64 (nodes,); a sample whose float32 feature is at most this goes left.
        values: costs in each leaf, float32 (leaves, outputs).
    """

    roots: np.ndarray
    left: np.ndarray
    right: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    values: np.ndarray

    def predict(self, x: np.ndarray, *, compiled: bool | None = None) -> np.ndarray:
        """Mean over trees: float32 (n, width) -> float64 (n, outputs). A row's bits do not depend on other rows.

        Args:
            compiled: by scikit-learn's traversal, which has to be imported, or, where false, level by level in NumPy;
                None: by our own, else by what is worth it.
        """
        is_wide = x.shape[1] >= self._narrowest
        if compiled is None and mean_of_leaves is not None and is_wide:
            found = np.empty((len(x), self.values.shape[1]))
            mean_of_leaves(*self._arrays, np.ascontiguousarray(x, np.float32), found)
            return found
        total = np.zeros((len(x), self.values.shape[1]))
        for leaves in self.leaves(x, compiled):
            total += self.values.take(leaves, axis=0)
        return total / len(self.roots)

    @cached_property
    def _arrays(self) -> list[np.ndarray]:
        nodes = [np.ascontiguousarray(part, np.int32) for part in (self.roots, self.left, self.right, self.feature)]
        return [*nodes, np.ascontiguousarray(self.threshold, float), np.ascontiguousarray(self.values, np.float32)]

    @cached_property
    def _narrowest(self) -> int:
        """How wide rows have to be; every node is looked at once, as a wrong one would be followed, in circles even."""
        width = int(self.feature.max(initial=0)) + 1
        self.check(width)
        return width

    def leaves(self, x: np.ndarray, compiled: bool | None = None) -> Iterator[np.ndarray]:
        """Row of ``values`` that each sample reaches, int64 (n,), tree by tree."""
        x = np.ascontiguousarray(x, np.float32)
        compiled = self.worth_compiling(len(x)) if compiled is None else compiled
        for number, root in enumerate(self.roots.tolist()):
            node = self.compiled[number].apply(x) + root if compiled else walk(self, root, x)
            yield -1 - self.left[node].astype(np.int64)

    def worth_compiling(self, samples: int) -> bool:
        """Whether scikit-learn's traversal is worth importing to find leaves."""
        return samples * len(self.roots) >= COMPILED_FROM

    @cached_property
    def compiled(self) -> list:
        """Trees of scikit-learn."""
        ends = [*self.roots[1:].tolist(), len(self.left)]
        return [compiled_tree(self, start, end) for start, end in zip(self.roots.tolist(), ends, strict=True)]

    def check(self, width: int) -> None:
        """Refuse arrays that no tree consists of.

        Raises:
            ValueError: a child does not come after its parent within its tree, or a leaf or feature does not exist.
        """
        count, roots = len(self.left), self.roots
        shapes = {each.shape for each in (self.left, self.right, self.feature, self.threshold)}
        good = shapes == {(count,)} and len(roots) > 0 and roots[0] == 0 and roots[-1] < count
        good = good and bool((np.diff(roots) > 0).all()) and self.left.min() >= -len(self.values)
        if good:
            inner = np.flatnonzero(self.left >= 0)
            ends = np.append(roots[1:], count).astype(np.int32)
            end = np.repeat(ends, np.diff(np.append(roots, count))).take(inner)
            children = [side.take(inner) for side in (self.left, self.right)]
            good = all((side > inner).all() and (side < end).all() for side in children)
            good = good and self.feature.min() >= 0 and self.feature.max() < width
        if not good:
            raise ValueError("these arrays are not trees")


def walk(forest: Forest, root: int, x: np.ndarray) -> np.ndarray:
    """Position of the leaf that each row reaches, level by level."""
    node = np.full(len(x), root, np.int64)
    rows = np.arange(len(x))
    while len(rows):
        here = node[rows]
        inner = forest.left[here] >= 0
        rows, here = rows[inner], here[inner]
        goes_left = x[rows, forest.feature[here]] <= forest.threshold[here]
        node[rows] = np.where(goes_left, forest.left[here], forest.right[here])
    return node


def compiled_tree(forest: Forest, start: int, end: int):
    """One tree as scikit-learn's; its ``apply`` finds the leaves that :func:`walk` does."""
    from sklearn.tree._tree import NODE_DTYPE, Tree

    nodes = np.zeros(end - start, NODE_DTYPE)
    is_leaf = forest.left[start:end] < 0
    nodes["left_child"] = np.where(is_leaf, -1, forest.left[start:end] - start)
    nodes["right_child"] = np.where(is_leaf, -1, forest.right[start:end] - start)
    nodes["feature"] = np.where(is_leaf, -2, forest.feature[start:end])
    nodes["threshold"] = forest.threshold[start:end]
    tree = Tree(int(forest.feature[start:end].max(initial=0)) + 1, np.ones(1, np.intp), 1)
    values = np.zeros((len(nodes), 1, 1))
    tree.__setstate__({"max_depth": 0, "node_count": len(nodes), "nodes": nodes, "values": values})
    return tree


def cross_fit(
    x: np.ndarray,
    costs: np.ndarray,
    counted: np.ndarray,
    fold: np.ndarray,
    unknown: np.ndarray,
    *,
    seed: int,
    threads: int | None = None,
) -> tuple[list[Forest], np.ndarray]:
    """Trees of each fold, grown on the other folds' rows; the penalty is the one whose held-out contrasts are best.

    It is chosen on as many folds as :data:`ENOUGH` rows take; the others' leaves are worked out for it alone.

    Args:
        x: float32 (n, width).
        costs: (n, agents, tasks).
        counted: which answers there are, bool (n, agents), or what each of them counts, 0 where there is none.
        fold: int64 (n,).
        unknown: what an agent is taken to cost that no row tells of, (folds, agents, tasks).
        seed: of the first fold's trees; the others' follow.

    Returns:
        Forests, and what each predicts of the rows it has not seen: float32 (n, agents, tasks).
    """
    shape, judge, targets = costs.shape, Judge(costs, counted), tree_targets(costs, counted > 0)
    flat, there = costs.reshape(len(x), -1), np.repeat(counted, shape[2], axis=1)
    penalties: tuple[float, ...] = PENALTIES
    losses, judged = np.zeros(len(PENALTIES)), 0
    grown: list[Grown] = []
    for number in range(FOLDS):
        seen, others = fold != number, fold == number
        mine = x[seen]
        trees = grow(mine, targets[seen], seed=seed * FOLDS + number, threads=threads)
        unseen = unknown[number].ravel()
        grown.append(Grown.of(trees, mine, flat[seen], there[seen], unseen, penalties=penalties))
        del mine, trees
        give_back()
        if len(penalties) > 1:
            held_out = grown[-1].predict(x[others])
            losses += [judge(one.reshape(-1, *shape[1:]), others) for one in held_out]
            judged += int(others.sum())
            if judged >= ENOUGH or number == FOLDS - 1:
                penalties = (PENALTIES[int(losses.argmin())],)
                grown = [one.only(int(losses.argmin())) for one in grown]
    forests, predicted = [one.forest for one in grown], np.empty(flat.shape, np.float32)
    for number, forest in enumerate(forests):
        predicted[fold == number] = forest.predict(x[fold == number])
    give_back()
    return forests, predicted.reshape(shape)


def grow(x: np.ndarray, targets: np.ndarray, *, seed: int, trees: int = TREES, threads: int | None = None) -> list:
    """Trees of scikit-learn, grown on float32 (n, width) and (n, outputs)."""
    from sklearn.ensemble import ExtraTreesRegressor

    model = ExtraTreesRegressor(
        trees,
        min_samples_leaf=max(LEAF, len(x) // ROWS_TO_A_LEAF),
        max_features=min(FEATURES, MOST_FEATURES / x.shape[1]),
        random_state=seed % 2**32,
        n_jobs=threads,
    )
    return [tree.tree_ for tree in model.fit(x, targets).estimators_]


@dataclass(frozen=True)
class Grown:
    """Grown trees with the costs in their leaves under each penalty: float32 (penalties, leaves, outputs)."""

    forest: Forest
    values: np.ndarray

    @classmethod
    def of(
        cls,
        trees: Sequence,
        x: np.ndarray,
        costs: np.ndarray,
        counted: np.ndarray,
        unknown: np.ndarray | float = 0.0,
        *,
        penalties: Sequence[float] = PENALTIES,
    ) -> Grown:
        """Fill trees.

        Args:
            trees: of scikit-learn.
            x: float32 (n, width).
            costs: (n, outputs).
            counted: bool (n, outputs), or what each cost counts; where 0, it does not matter.
            unknown: what an output is taken to be that no sample tells of, (outputs,) or one number.
        """
        costs = np.where(counted > 0, costs * counted, 0)
        roots, arrays, values, nodes, leaves = [], [], [], 0, 0
        for tree in trees:
            left, right = tree.children_left.astype(np.int64), tree.children_right.astype(np.int64)
            is_leaf = left < 0
            shrunk = _shrunken(left, right, tree.apply(x), costs, counted, unknown, penalties)[:, is_leaf]
            number = np.cumsum(is_leaf) - 1 + leaves
            arrays.append(
                (
                    np.where(is_leaf, -1 - number, left + nodes).astype(np.int32),
                    np.where(is_leaf, 0, right + nodes).astype(np.int32),
                    np.where(is_leaf, 0, tree.feature).astype(np.int32),
                    np.where(is_leaf, 0.0, tree.threshold),
                )
            )
            roots.append(nodes)
            values.append(shrunk.astype(np.float32))
            nodes, leaves = nodes + len(left), leaves + int(is_leaf.sum())
        joined = [np.concatenate(parts) for parts in zip(*arrays, strict=True)]
        lefts, rights, features, thresholds = joined
        whole = np.concatenate(values, axis=1)
        return cls(Forest(np.array(roots, np.int32), lefts, rights, features, thresholds, whole[0]), whole)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Under each penalty: float32 (penalties, n, outputs)."""
        total = np.zeros((len(self.values), len(x), self.values.shape[2]), np.float32)
        for leaves in self.forest.leaves(x):
            total += self.values[:, leaves]
        return total / len(self.forest.roots)

    def only(self, position: int) -> Grown:
        """The trees with the costs of one penalty."""
        whole, values = self.forest, np.ascontiguousarray(self.values[position])
        forest = Forest(whole.roots, whole.left, whole.right, whole.feature, whole.threshold, values)
        return Grown(forest, values[None])


def _shrunken(
    left: np.ndarray,
    right: np.ndarray,
    leaf: np.ndarray,
    costs: np.ndarray,
    counted: np.ndarray,
    unknown: np.ndarray | float,
    penalties: Sequence[float],
) -> np.ndarray:
    """Shrunken mean costs of every node of one tree: (penalties, nodes, outputs)."""
    count, outputs = len(left), costs.shape[1]
    total, number = np.zeros((count, outputs)), np.zeros((count, outputs))
    for output in range(outputs):
        total[:, output] = np.bincount(leaf, costs[:, output], count)
        number[:, output] = np.bincount(leaf, counted[:, output], count)
    levels = [np.zeros(1, np.int64)]
    while True:
        inner = levels[-1][left[levels[-1]] >= 0]
        if not len(inner):
            break
        levels.append(np.concatenate([left[inner], right[inner]]))
    parents = [level[left[level] >= 0] for level in levels]
    for inner in reversed(parents):
        for sums in (total, number):
            sums[inner] = sums[left[inner]] + sums[right[inner]]
    mean = np.divide(total, number, out=np.zeros_like(total), where=number > 0)
    found = np.empty((len(penalties), count, outputs))
    found[:, 0] = np.where(number[0] > 0, mean[0], unknown)
    for inner in parents:
        for child in (left[inner], right[inner]):
            step = np.where(number[child] > 0, mean[child] - mean[inner], 0.0)
            for position, penalty in enumerate(penalties):
                found[position, child] = found[position, inner] + step / (1 + penalty / np.maximum(number[inner], 1))
    return found
