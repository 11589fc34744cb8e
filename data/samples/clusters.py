"""k-means clusters of the samples, fitted on training features (paper, section 5.2), as a column for agents and SQL."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np

from l2d.data.errors import DataError
from l2d.data.threads import one_thread

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


#: Counts that a curve needs for an elbow: Kneedle looks for one between the ends, and for the curve's return after it.
FEWEST_OF_ELBOW = 4
#: Training samples up to which one thread fits: several would add up centres in any order, and wait for each other.
FEW = 100_000


def elbow(inertias: dict[int, float]) -> int:
    """Number of clusters at the elbow of the inertia curve (Kneedle, Satopaa et al. 2011).

    Args:
        inertias: number of clusters -> within-cluster sum of squares.

    Raises:
        DataError: the curve has no elbow.
    """
    from kneed import KneeLocator

    counts = sorted(inertias)
    found = KneeLocator(counts, [inertias[z] for z in counts], curve="convex", direction="decreasing").knee
    if found is None:
        raise DataError(
            f"the inertia curve of {counts[0]} to {counts[-1]} clusters has no elbow",
            hint="give a number, [dataset.clusters] count = 6, or another `largest`",
        )
    return int(found)


def fit_clusters(
    features: np.ndarray | csr_matrix, train: np.ndarray, *, count: int | str, largest: int, seed: int
) -> tuple[np.ndarray, dict]:
    """Cluster all samples by k-means centres fitted on the training split.

    Args:
        features: standardised features, float32, shape (n, width), dense or sparse.
        train: boolean mask of training samples, shape (n,).
        count: number of clusters Z, or ``"elbow"`` to choose it from 1..``largest``.
        largest: the largest Z tried by the elbow method, which tries no more than there are distinct points.
        seed: of the k-means initialisation.

    Returns:
        Cluster numbers 1..Z (1 the largest in training), int32, shape (n,); and facts: Z and the inertia curve.

    Raises:
        DataError: fewer distinct training points than clusters, or no elbow.
    """
    from sklearn.cluster import KMeans

    rows = features[train]
    needed = FEWEST_OF_ELBOW if count == "elbow" else int(count)
    distinct = _distinct(rows, max(needed, largest))
    if distinct < needed:
        raise DataError(
            f"{needed} clusters of {distinct} distinct points ({rows.shape[0]:,} training samples)",
            hint=f"lower [dataset.clusters] count to {distinct} or less, or cluster on other features",
        )

    def fit(z: int) -> KMeans:
        with one_thread() if rows.shape[0] <= FEW else nullcontext():
            return KMeans(z, n_init=10, random_state=seed).fit(rows)

    inertias = {}
    if count == "elbow":
        models = {z: fit(z) for z in range(1, min(largest, distinct) + 1)}
        inertias = {z: float(model.inertia_) for z, model in models.items()}
        count = elbow(inertias)
        model = models[count]
    else:
        model = fit(int(count))
    count = int(count)
    by_size = np.argsort(-np.bincount(model.labels_, minlength=count), kind="stable")
    number = np.empty(count, dtype=np.int32)
    number[by_size] = np.arange(1, count + 1)
    return number[model.predict(features)], {"count": count, "inertias": inertias}


def _distinct(rows: np.ndarray | csr_matrix, most: int) -> int:
    """How many different rows occur, counted up to ``most``."""
    seen: set[bytes] = set()
    for row in rows:  # of most tables the first few will do
        if isinstance(row, np.ndarray):
            seen.add((row + 0).tobytes())  # -0.0 is 0.0
        else:
            seen.add(row.indices.tobytes() + row.data.tobytes())
        if len(seen) == most:
            break
    return len(seen)
