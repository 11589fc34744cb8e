"""Ridge regression of costs on standardised features and random Fourier features of them.

The features are cosines of random projections (Rahimi and Recht, *Random Features for Large-Scale Kernel Machines*,
NeurIPS 2007), a Gaussian kernel of width ``sqrt(2 * width)``; the plain features stand beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COSINES = 400
PENALTIES = (30.0, 300.0, 3000.0)
CLIPPED_AT = 5.0  # standard deviations
BLOCK = 256  # rows of a product, padded: a row's bits do not depend on how many others there are


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
        x = x.astype(np.float64)
        scale = x.std(axis=0)
        random = np.random.default_rng(seed)
        width = x.shape[1]
        return cls(
            mean=x.mean(axis=0),
            scale=np.where(scale > 0, scale, 1.0),
            projection=random.standard_normal((width, COSINES)) / np.sqrt(2 * width),
            phase=random.uniform(0, 2 * np.pi, COSINES),
        )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(n, width) -> (n, width + cosines)."""
        z = np.clip((x.astype(np.float64) - self.mean) / self.scale, -CLIPPED_AT, CLIPPED_AT)
        cosines = np.cos(z @ self.projection + self.phase) * (10 * np.sqrt(2 / len(self.phase)))
        return np.concatenate([z, cosines], axis=1)


@dataclass(frozen=True)
class Ridge:
    """``weights`` (inputs, outputs) and ``intercept`` (outputs,)."""

    weights: np.ndarray
    intercept: np.ndarray


def fit_ridge(
    inputs: np.ndarray, costs: np.ndarray, answered: np.ndarray, unknown: np.ndarray | float = 0.0
) -> list[Ridge]:
    """One fit a penalty, each output on the samples that it is known of.

    Args:
        inputs: (n, inputs).
        costs: (n, outputs).
        answered: bool (n, outputs).
        unknown: what an output is taken to be that no sample tells of, (outputs,) or one number.
    """
    found = [np.zeros((inputs.shape[1], costs.shape[1])) for _ in PENALTIES]
    intercepts = [np.full(costs.shape[1], unknown, np.float64) for _ in PENALTIES]
    patterns, which = np.unique(answered, axis=1, return_inverse=True)
    for pattern in range(patterns.shape[1]):
        rows, outputs = patterns[:, pattern], np.flatnonzero(which.ravel() == pattern)
        if not rows.any():
            continue
        x, y = inputs[rows], costs[np.ix_(rows, outputs)]
        mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
        x = x - mean_x
        values, vectors = np.linalg.eigh(x.T @ x)
        along = vectors.T @ (x.T @ (y - mean_y))
        for position, penalty in enumerate(PENALTIES):
            weights = vectors @ (along / (np.maximum(values, 0) + penalty)[:, None])
            found[position][:, outputs] = weights
            intercepts[position][outputs] = mean_y - mean_x @ weights
    return [Ridge(weights, intercept) for weights, intercept in zip(found, intercepts, strict=True)]


def in_blocks(function, x: np.ndarray, outputs: int) -> np.ndarray:
    """A row-wise function of float32 (n, width), always called with :data:`BLOCK` rows: float64 (n, outputs)."""
    found = np.empty((len(x), outputs))
    for start in range(0, len(x), BLOCK):
        rows = x[start : start + BLOCK]
        padded = rows if len(rows) == BLOCK else np.concatenate([rows, np.zeros((BLOCK - len(rows), x.shape[1]))])
        found[start : start + len(rows)] = function(padded)[: len(rows)]
    return found
