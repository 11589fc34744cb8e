"""Ridge regression of costs on standardised features and random Fourier features of them.

The features are cosines of random projections (Rahimi and Recht, *Random Features for Large-Scale Kernel Machines*,
NeurIPS 2007), a Gaussian kernel of width ``sqrt(2 * width)``; the plain features stand beside them. Everything is
computed in blocks of rows: the inputs of all rows, many times as wide as the features, never stand in memory at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from l2d.rejector.best.folds import FOLDS, Judge
from l2d.rejector.scoring import ExactProducts

COSINES = 400
PENALTIES = (30.0, 300.0, 3000.0)
CLIPPED_AT = 5.0  # standard deviations
FITTED_AT_ONCE = 1024  # rows
REMEMBERED = 1 << 25  # bytes of inputs that are kept rather than worked out again
#: Sets of rows that agents have answered, up to which each set has equations of its own.
OWN_EQUATIONS = 64


@dataclass(frozen=True)
class Basis:
    """From features to the regression's inputs.

    Attributes:
        mean, scale: of the features, float64 (width,).
        projection: float64 (width, cosines).
        phase: float64 (cosines,).
    """

    mean: np.ndarray
    scale: np.ndarray
    projection: np.ndarray
    phase: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, seed: int) -> Basis:
        scale = x.std(axis=0, dtype=np.float64)
        random = np.random.default_rng(seed)
        width = x.shape[1]
        return cls(
            mean=x.mean(axis=0, dtype=np.float64),
            scale=np.where(scale > 0, scale, 1.0),
            projection=random.standard_normal((width, COSINES)) / np.sqrt(2 * width),
            phase=random.uniform(0, 2 * np.pi, COSINES),
        )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(n, width) -> (n, width + cosines)."""
        return self.of_projections(x, lambda z: z @ self.projection)

    def of_projections(self, x: np.ndarray, project: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The same with another way to multiply standardised features, (n, width) -> (n, cosines)."""
        z = (x.astype(np.float64) - self.mean) / self.scale
        np.minimum(np.maximum(z, -CLIPPED_AT, out=z), CLIPPED_AT, out=z)
        cosines = project(z)  # in place from here on: it is the largest array of a fit
        cosines += self.phase
        np.cos(cosines, out=cosines)
        cosines *= 10 * np.sqrt(2 / len(self.phase))
        return np.concatenate([z, cosines], axis=1)


@dataclass(frozen=True)
class Ridge:
    """``weights`` (inputs, outputs) and ``intercept`` (outputs,)."""

    weights: np.ndarray
    intercept: np.ndarray

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        return inputs @ self.weights + self.intercept


class Inputs:
    """The inputs of many rows, block by block."""

    def __init__(self, x: np.ndarray, basis: Basis):
        self.x, self.basis, self.width = x, basis, x.shape[1] + len(basis.phase)
        self._kept: dict[int, np.ndarray] | None = {} if len(x) * self.width * 8 <= REMEMBERED else None

    def __iter__(self) -> Iterator[tuple[slice, np.ndarray]]:
        for start in range(0, len(self.x), FITTED_AT_ONCE):
            rows = slice(start, min(len(self.x), start + FITTED_AT_ONCE))
            if self._kept is None:
                yield rows, self.basis(self.x[rows])
                continue
            if start not in self._kept:
                self._kept[start] = self.basis(self.x[rows])
            yield rows, self._kept[start]


def cross_fit(
    x: np.ndarray, basis: Basis, costs: np.ndarray, counted: np.ndarray, fold: np.ndarray, unknown: np.ndarray
) -> tuple[list[Ridge], np.ndarray]:
    """One fit a fold, on the other folds' rows; the penalty is the one whose held-out contrasts are best.

    Args:
        x: float32 (n, width).
        costs: (n, agents, tasks).
        counted: which answers there are, bool (n, agents), or what each of them counts, 0 where there is none.
        fold: int64 (n,).
        unknown: what an agent is taken to cost that no row tells of, (folds, agents, tasks).

    Returns:
        Fits, and what each fold's predicts of the rows it has not seen: float32 (n, agents, tasks).
    """
    shape, inputs = costs.shape, Inputs(x, basis)
    flat, there = costs.reshape(len(x), -1), np.repeat(counted, shape[2], axis=1)
    fits = _fits(inputs, flat, there, fold, unknown.reshape(FOLDS, -1))
    judge = Judge(costs, counted)
    losses = np.zeros(len(PENALTIES))
    for position in range(len(PENALTIES)):
        for rows, z in inputs:
            losses[position] += judge(_held_out(fits, position, z, fold[rows]).reshape(-1, *shape[1:]), rows)
    best = int(losses.argmin())
    predicted = np.empty(flat.shape, np.float32)
    for rows, z in inputs:
        predicted[rows] = _held_out(fits, best, z, fold[rows])
    return [found[best] for found in fits], predicted.reshape(shape)


def _held_out(fits: list[list[Ridge]], position: int, inputs: np.ndarray, fold: np.ndarray) -> np.ndarray:
    found = np.empty((len(inputs), len(fits[0][0].intercept)))
    for number in range(FOLDS):
        rows = fold == number
        found[rows] = fits[number][position](inputs[rows])
    return found


@dataclass
class Sums:
    """What the normal equations of some rows consist of: counts, sums, products."""

    n: float
    z: np.ndarray
    y: np.ndarray
    zz: np.ndarray
    zy: np.ndarray

    @classmethod
    def over(cls, inputs: Inputs, costs: np.ndarray, outputs: np.ndarray, counted: np.ndarray) -> Sums:
        width = inputs.width
        found = cls(0, np.zeros(width), np.zeros(len(outputs)), np.zeros((width,) * 2), np.zeros((width, len(outputs))))
        for rows, z in inputs:
            chosen = counted[rows] > 0
            if not chosen.any():
                continue
            z, y = (z, costs[rows]) if chosen.all() else (z[chosen], costs[rows][chosen])
            y = y[:, outputs].astype(np.float64)
            if counted.dtype != bool:
                root = np.sqrt(counted[rows][chosen].astype(np.float64))[:, None]
                found.n += float((root**2).sum())
                found.z += (root**2 * z).sum(axis=0)
                found.y += (root**2 * y).sum(axis=0)
                z, y = root * z, root * y
            else:
                found.n += len(z)
                found.z += z.sum(axis=0)
                found.y += y.sum(axis=0)
            found.zz += z.T @ z
            found.zy += z.T @ y
        return found

    def without(self, other: Sums) -> Sums:
        return Sums(
            self.n - other.n, self.z - other.z, self.y - other.y, self.zz - other.zz, self.zy - other.zy
        )  # fmt: skip

    def solved(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Weights and intercept under each penalty."""
        from scipy.linalg import cho_factor, cho_solve

        mean, level = self.z / self.n, self.y / self.n
        gram = self.zz - self.n * np.outer(mean, mean)
        wanted = self.zy - np.outer(self.z, level)
        found = []
        for penalty in PENALTIES:
            factor = cho_factor(gram + penalty * np.eye(len(gram)), lower=True, overwrite_a=True, check_finite=False)
            weights = cho_solve(factor, wanted, check_finite=False)
            found.append((weights, level - mean @ weights))
        return found


def _patterns(counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct columns of a matrix, and which one each column is: what ``np.unique`` makes a field a row for."""
    places: dict[bytes, int] = {}
    of = [places.setdefault(counted[:, column].tobytes(), len(places)) for column in range(counted.shape[1])]
    return counted[:, [of.index(number) for number in range(len(places))]], np.array(of, np.int64)


def _fits(
    inputs: Inputs, costs: np.ndarray, counted: np.ndarray, fold: np.ndarray, unknown: np.ndarray
) -> list[list[Ridge]]:
    """Every fold's fits under every penalty, each output on the rows that it is known of: ``[fold][penalty]``."""
    width, outputs = inputs.width, costs.shape[1]
    weights = np.zeros((FOLDS, len(PENALTIES), width, outputs))
    intercepts = np.repeat(unknown[:, None], len(PENALTIES), axis=1)
    patterns, pattern_of = _patterns(counted)
    if patterns.shape[1] > OWN_EQUATIONS:
        for number in range(FOLDS):
            known = (counted[fold != number] > 0).any(axis=0)
            for position, (found, intercept) in enumerate(_shared(inputs, costs, counted, fold != number)):
                weights[number, position][:, known] = found[:, known]
                intercepts[number, position][known] = intercept[known]
        patterns = patterns[:, :0]
    for pattern in range(patterns.shape[1]):
        weights_of, which = patterns[:, pattern], np.flatnonzero(pattern_of.ravel() == pattern)
        whole = None
        for number in range(FOLDS):
            seen = weights_of * (fold != number)
            if not seen.any():
                continue
            if (seen > 0).sum() < width:
                solved = _dual(inputs, costs, which, seen)
            else:
                whole = Sums.over(inputs, costs, which, weights_of) if whole is None else whole
                solved = whole.without(Sums.over(inputs, costs, which, weights_of * (fold == number))).solved()
            for position, (found, intercept) in enumerate(solved):
                weights[number, position][:, which], intercepts[number, position][which] = found, intercept
    return [
        [Ridge(weights[number, position], intercepts[number, position]) for position in range(len(PENALTIES))]
        for number in range(FOLDS)
    ]


def _shared(inputs: Inputs, costs: np.ndarray, counted: np.ndarray, seen: np.ndarray) -> list:
    """Fits of many agents that each answered other rows, from one decomposition.

    An agent's sums of products of inputs are taken to be those of all rows, times the share that it answered: right on
    average where answering does not depend on features, and a matter of how much is shrunk where it does.
    """
    width, outputs = inputs.width, costs.shape[1]
    z_sum, gram, n = np.zeros(width), np.zeros((width, width)), 0
    number, level, of_z, of_zy = np.zeros(outputs), np.zeros(outputs), *np.zeros((2, width, outputs))
    for rows, block in inputs:
        z, there = block[seen[rows]], counted[rows][seen[rows]].astype(np.float64)
        y = costs[rows][seen[rows]] * there
        n, z_sum, gram = n + len(z), z_sum + z.sum(axis=0), gram + z.T @ z
        number, level = number + there.sum(axis=0), level + y.sum(axis=0)
        of_z, of_zy = of_z + z.T @ there, of_zy + z.T @ y
    count = np.maximum(number, 1)
    mean, level, share = of_z / count, level / count, number / max(1, n)
    values, vectors = np.linalg.eigh(gram - np.outer(z_sum, z_sum) / max(1, n))
    along = vectors.T @ (of_zy - of_z * level)
    found = []
    for penalty in PENALTIES:
        weights = vectors @ (along / (np.maximum(values, 0)[:, None] * share + penalty))
        found.append((weights, level - (mean * weights).sum(axis=0)))
    return found


def _dual(inputs: Inputs, costs: np.ndarray, outputs: np.ndarray, seen: np.ndarray) -> list:
    """The same from products of rows with rows, of which there are fewer than inputs."""
    from scipy.linalg import cho_factor, cho_solve

    there = seen > 0
    z = np.concatenate([block[there[rows]] for rows, block in inputs])
    y = costs[there][:, outputs].astype(np.float64)
    if seen.dtype == bool:
        mean, level = z.mean(axis=0), y.mean(axis=0)
        z, y = z - mean, y - level
    else:
        share = seen[there].astype(np.float64)[:, None] / seen.sum(dtype=np.float64)
        mean, level, root = (share * z).sum(axis=0), (share * y).sum(axis=0), np.sqrt(seen[there])[:, None]
        z, y = root * (z - mean), root * (y - level)
    products, found = z @ z.T, []
    for penalty in PENALTIES:
        factor = cho_factor(products + penalty * np.eye(len(z)), lower=True, overwrite_a=True, check_finite=False)
        weights = z.T @ cho_solve(factor, y, check_finite=False)
        found.append((weights, level - mean @ weights))
    return found


class SteadyRidge:
    """A regression on a basis, whose products round nothing: a row has the same bits alone and among any others.

    See :mod:`l2d.rejector.scoring`. Fits take ordinary products, from which these differ by some units in the seventh
    place.

    Attributes:
        project: the basis's projection, of standardised features.
        weigh: the weights, of inputs.
        intercept: (outputs,).
    """

    def __init__(self, basis: Basis, ridge: Ridge):
        self._basis, self.intercept = basis, ridge.intercept
        largest = max(CLIPPED_AT, 10 * np.sqrt(2 / len(basis.phase)))  # of standardised features, and of cosines
        self.project = ExactProducts(basis.projection.T, CLIPPED_AT)
        self.weigh = ExactProducts(ridge.weights.T, largest)

    @property
    def outputs(self) -> int:
        return len(self.intercept)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Float32 (n, width) -> float64 (n, outputs)."""
        found = np.empty((len(x), self.outputs))
        for start in range(0, len(x), FITTED_AT_ONCE):
            rows = slice(start, start + FITTED_AT_ONCE)
            found[rows] = self.weigh(self._basis.of_projections(x[rows], self.project)) + self.intercept
        return found
