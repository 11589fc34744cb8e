"""Cross-fitted ridge regression of several targets on one set of columns, from sums of products by fold.

Each fold's samples are predicted by weights that the other folds gave; new inputs by weights of all. The penalty is the
one of :data:`PENALTIES` whose held-out squared error is least.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

PENALTIES = (1e-5, 1e-3, 1e-2, 1e-1)  # as shares of the mean square of a standardised column, times samples
EXTRA = (1.0, 10.0)  # for few samples
ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Gram:
    """Sums of products of the columns by fold.

    Attributes:
        products: float64 (folds, width, width).
        counts: samples, (folds,).
        centre, scale: mean and deviation of each column over all folds, (width,); of the ones 0 and 1.
    """

    products: np.ndarray
    counts: np.ndarray
    centre: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, columns: np.ndarray, fold: np.ndarray, folds: int) -> Gram:
        """From columns (n, width), the first of ones, whose samples lie in ``fold`` (n,)."""
        width = columns.shape[1]
        products = np.zeros((folds, width, width))
        for number, rows in blocks(fold):
            some = columns[rows]
            products[number] += some.T @ some
        counts = products[:, 0, 0].copy()
        total, n = products.sum(axis=0), max(counts.sum(), 1.0)
        centre = total[0] / n
        variance = np.maximum(np.diagonal(total) / n - centre**2, 0.0)
        scale = np.where(variance > 1e-9 * (1e-9 + centre**2), np.sqrt(variance), np.inf)  # constants weigh nothing
        centre[0], scale[0] = 0.0, 1.0
        return cls(products, counts, centre, scale)

    def standardised(self) -> np.ndarray:
        """Products of standardised columns, (folds, width, width)."""
        shift = np.eye(len(self.centre))
        shift[0] -= self.centre
        shift = shift / self.scale
        return np.einsum("ia,fij,jb->fab", shift, self.products, shift, optimize=True)

    def weights(self, crossed: np.ndarray, squares: np.ndarray) -> np.ndarray:
        """Weights of every fold's complement, and of all samples last: float64 (folds + 1, width, targets).

        Args:
            crossed: products of columns and targets, (folds, width, targets).
            squares: sums of squared targets, (folds, targets).
        """
        folds, width = self.products.shape[:2]
        shift = np.eye(width)
        shift[0] -= self.centre
        shift = shift / self.scale
        grams = self.standardised()
        sides = np.einsum("ia,fit->fat", shift, crossed)
        all_gram, all_side = grams.sum(axis=0), sides.sum(axis=0)
        n = max(self.counts.sum(), 1.0)
        spread = np.maximum(squares.sum(axis=0) - all_side[0] ** 2 / n, 1e-12)  # of each target
        penalised = np.ones(width)
        penalised[0] = 0.0
        best, least = None, np.inf
        for penalty in PENALTIES if n > 20 * width else (*PENALTIES, *EXTRA):
            found = np.empty((folds + 1, width, crossed.shape[2]))
            for number in range(folds + 1):
                gram, side, count = all_gram, all_side, n
                if number < folds:
                    gram, side = all_gram - grams[number], all_side - sides[number]
                    count = max(n - self.counts[number], 1.0)
                ridge = gram + np.diag(penalty * count * penalised + 1e-9 * count)
                found[number] = np.linalg.solve(ridge, side)
            missed = sum(
                squares[f]
                - 2 * (found[f] * sides[f]).sum(axis=0)
                + np.einsum("at,ab,bt->t", found[f], grams[f], found[f], optimize=True)
                for f in range(folds)
            )
            error = float((missed / spread).sum())
            if error < least:
                best, least = found, error
        assert best is not None
        return np.einsum("ab,fbt->fat", shift, best)


def cross_products(
    columns: np.ndarray, targets: np.ndarray, fold: np.ndarray, folds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Products of columns and targets by fold, (folds, width, targets), and sums of squared targets."""
    crossed = np.zeros((folds, columns.shape[1], targets.shape[1]))
    squares = np.zeros((folds, targets.shape[1]))
    for number, rows in blocks(fold):
        some = targets[rows].astype(np.float32)
        crossed[number] += columns[rows].T @ some
        squares[number] += np.square(some, dtype=np.float64).sum(axis=0)
    return crossed, squares


def blocks(fold: np.ndarray) -> Iterator[tuple[int, slice | np.ndarray]]:
    """Rows of each fold, some at a time: slices where samples are in the order of their folds, which is fast."""
    if bool((fold[1:] >= fold[:-1]).all()):
        numbers = np.unique(fold).tolist()
        edges = np.searchsorted(fold, [*numbers, np.iinfo(np.int64).max]).tolist()
        for number, start, stop in zip(numbers, edges[:-1], edges[1:], strict=True):
            for first in range(start, stop, ROWS_AT_ONCE):
                yield number, slice(first, min(first + ROWS_AT_ONCE, stop))
        return
    for number in np.unique(fold).tolist():
        rows = np.flatnonzero(fold == number)
        for first in range(0, len(rows), ROWS_AT_ONCE):
            yield number, rows[first : first + ROWS_AT_ONCE]


def applied(columns: np.ndarray, weights: np.ndarray, fold: np.ndarray | None) -> np.ndarray:
    """Predictions float64 (n, targets), each row by the weights of its fold; None: by those of all samples.

    Then sums run column by column, so that a row has the same bits alone and among others.
    """
    found = np.zeros((len(columns), weights.shape[2]))
    if fold is None:
        for column, weight in zip(columns.T, weights[-1], strict=True):
            found += column[:, None].astype(np.float64) * weight
        return found
    few = weights.astype(np.float32)
    for number, rows in blocks(fold):
        found[rows] = columns[rows] @ few[number]
    return found
