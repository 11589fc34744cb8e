"""Bags of codes as dense features and as clusters; what is fitted is fitted on the training split alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from l2d.data.errors import DataError
from l2d.data.samples.clusters import fit_clusters
from l2d.data.samples.tokens import SPECIAL, Tokens
from l2d.data.sources.table import KMeansConfig, Strict

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

#: Entries of a projection are multiples of this. A projected bag is then a sum without rounding, and the same on every
#: machine, though the last digits of the singular vectors are not.
GRID = 2.0**-14


class CodeFeatures(Strict):
    """``[dataset.features]``: bags of codes as numbers, for agents and rejectors that look at no token lists."""

    kind: Literal["svd", "counts"] = "svd"
    """Latent semantic analysis, or the presence of the most frequent codes."""
    width: Annotated[int, Field(ge=1)] = 64
    """Number of features."""
    seed: int = 42
    """Draws the start of the SVD."""


class CodeClusters(KMeansConfig):
    """``[dataset.clusters]``: k-means of the training samples, as column ``cluster`` (1 the largest)."""

    space: Literal["svd", "bag"] = "svd"
    """What is clustered: directions in an SVD's space, or the bags of codes themselves."""
    width: Annotated[int, Field(ge=1)] = 64
    """Dimensions of that SVD."""


def bag_of_codes(tokens: Mapping[str, Tokens]) -> tuple[csr_matrix, list[str]]:
    """Which codes each sample has: float64 (n, codes of all vocabularies), 0 or 1, and the columns' names.

    Codes that are unknown to the vocabulary have no column.
    """
    from scipy import sparse

    parts, names = [], []
    for field, lists in tokens.items():
        ones = np.ones(len(lists.values))
        shape = (len(lists), len(lists.vocabulary))
        bag = sparse.csr_matrix((ones, lists.values.astype(np.int64), lists.offsets), shape=shape)
        bag.sum_duplicates()
        bag.data[:] = 1.0
        parts.append(bag[:, len(SPECIAL) :])
        names += [f"{field} {code}" for code in lists.vocabulary[len(SPECIAL) :]]
    return sparse.hstack(parts, format="csr"), names


def code_features(tokens: Mapping[str, Tokens], train: np.ndarray, config: CodeFeatures) -> tuple[np.ndarray, dict]:
    """Dense features of each sample's codes.

    Args:
        tokens: lists of n samples, by field.
        train: boolean mask of training samples, (n,).

    Returns:
        float32 (n, width), and what ``inputs["features"]`` of the dataset says of them.

    Raises:
        DataError: the training samples have too few codes for the width.
    """
    bag, names = bag_of_codes(tokens)
    facts: dict[str, Any] = {"kind": "dense", "width": config.width, "of": f"codes, {config.kind}"}
    if config.kind == "counts":
        if config.width > len(names):
            raise DataError(
                f"width {config.width} with {len(names)} codes in the training split",
                hint="lower [dataset.features] width",
            )
        frequency = np.asarray(bag[train].sum(axis=0)).ravel()
        chosen = np.sort(np.argsort(-frequency, kind="stable")[: config.width])
        return bag[:, chosen].toarray().astype(np.float32), facts | {"names": [names[i] for i in chosen]}
    projection = svd_projection(bag[train], config.width, config.seed)
    digest = hashlib.sha256(np.ascontiguousarray(projection).tobytes()).hexdigest()[:16]
    facts |= {"names": [f"svd {i + 1}" for i in range(config.width)], "projection": digest}
    return (bag @ projection).astype(np.float32), facts


def svd_projection(bag: csr_matrix, width: int, seed: int) -> np.ndarray:
    """Latent semantic analysis (Deerwester et al. 1990): codes weighted by ``ln(n / samples with the code)``, then a
    truncated SVD.

    Args:
        bag: of training samples, (n, codes).
        width: number of singular vectors.

    Returns:
        float64 (codes, width), to multiply bags of codes by.

    Raises:
        DataError: there are fewer samples or codes than that.
    """
    from sklearn.decomposition import TruncatedSVD

    if width >= min(bag.shape):
        raise DataError(
            f"width {width} with {bag.shape[0]} training samples and {bag.shape[1]} codes",
            hint="lower `width` under [dataset.features] and [dataset.clusters]",
        )
    weight = np.log(bag.shape[0] / np.maximum(np.asarray(bag.sum(axis=0)).ravel(), 1))
    svd = TruncatedSVD(width, n_iter=7, random_state=seed).fit(bag.multiply(weight).tocsr())
    return np.round(svd.components_.T * weight[:, None] / GRID) * GRID


def code_clusters(tokens: Mapping[str, Tokens], train: np.ndarray, config: CodeClusters) -> tuple[np.ndarray, dict]:
    """k-means clusters of the samples' codes, centres fitted on the training split.

    In an SVD's space samples are brought to length 1 first: clusters are then of what was coded, not of how much.

    Returns:
        Cluster numbers from 1, int32 (n,), and facts, see :func:`l2d.data.samples.clusters.fit_clusters`.

    Raises:
        DataError: too few training samples or codes, or no elbow.
    """
    bag, _ = bag_of_codes(tokens)
    space: Any = bag.astype(np.float32)
    if config.space == "svd":
        projected = bag @ svd_projection(bag[train], config.width, config.seed)
        lengths = np.linalg.norm(projected, axis=1, keepdims=True)
        space = (projected / np.where(lengths == 0, 1, lengths)).astype(np.float32)
    return fit_clusters(space, train, count=config.count, largest=config.largest, seed=config.seed)
