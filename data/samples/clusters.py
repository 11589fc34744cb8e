"""k-means clusters of the samples, fitted on training features (paper, section 5.2), as a column for agents and SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from l2d.data.errors import DataError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


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
        raise DataError("the inertia curve has no elbow", hint="give a number: [dataset.clusters] count = 6")
    return int(found)


def fit_clusters(
    features: np.ndarray | csr_matrix, train: np.ndarray, *, count: int | str, largest: int, seed: int
) -> tuple[np.ndarray, dict]:
    """Cluster all samples by k-means centres fitted on the training split.

    Args:
        features: standardised features, float32, shape (n, width), dense or sparse.
        train: boolean mask of training samples, shape (n,).
        count: number of clusters Z, or ``"elbow"`` to choose it from 1..``largest``.
        largest: the largest Z tried by the elbow method.
        seed: of the k-means initialisation.

    Returns:
        Cluster numbers 1..Z (1 the largest in training), int32, shape (n,); and facts: Z and the inertia curve.

    Raises:
        DataError: fewer training samples than clusters, or no elbow.
    """
    from sklearn.cluster import KMeans

    rows = features[train]

    def fit(z: int) -> KMeans:
        if z > rows.shape[0]:
            raise DataError(f"{z} clusters of {rows.shape[0]} training samples", hint="lower [dataset.clusters] count")
        return KMeans(z, n_init=10, random_state=seed).fit(rows)

    inertias = {}
    if count == "elbow":
        models = {z: fit(z) for z in range(1, largest + 1)}
        inertias = {z: float(model.inertia_) for z, model in models.items()}
        count = elbow(inertias)
        model = models[count]
    else:
        model = fit(int(count))
    by_size = np.argsort(-np.bincount(model.labels_, minlength=count), kind="stable")
    number = np.empty(count, dtype=np.int32)
    number[by_size] = np.arange(1, count + 1)
    return number[model.predict(features)], {"count": int(count), "inertias": inertias}
