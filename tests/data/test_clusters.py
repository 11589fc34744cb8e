"""Clusters of samples: fitted on training rows alone, numbered by size, as many as the elbow says."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from conftest import load_patients as load
from conftest import patients
from scipy import sparse
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from l2d.data.errors import DataError
from l2d.data.samples.clusters import elbow, fit_clusters
from l2d.data.samples.expressions import evaluate
from l2d.data.samples.features import FeatureEncoder
from l2d.data.samples.standardise import standardisation
from l2d.data.sources.table import ClusterConfig


def blobs(count: int, rows: int = 400, seed: int = 0, equal: bool = False):
    """Blobs at the corners of a simplex, of sizes 1:2:3… or equal; features and each row's blob."""
    generator = np.random.default_rng(seed)
    share = np.ones(count) if equal else np.arange(1, count + 1)
    blob = generator.choice(count, size=rows, p=share / share.sum())
    return (20 * np.eye(count)[blob] + generator.normal(size=(rows, count))).astype(np.float32), blob


def test_clusters_are_the_blobs_numbered_by_training_size():
    features, blob = blobs(4)
    train = np.arange(400) < 250
    cluster, facts = fit_clusters(features, train, count=4, largest=10, seed=0)
    assert facts["count"] == 4
    sizes = [int((cluster[train] == z).sum()) for z in (1, 2, 3, 4)]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == 250
    for z in (1, 2, 3, 4):
        assert len(set(blob[cluster == z])) == 1  # one blob each


def test_clusters_and_their_curve_do_not_depend_on_the_number_of_cores():
    features, _ = blobs(4, rows=4_000)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(fit_clusters(features, np.ones(4_000, bool), count="elbow", largest=6, seed=0))
    assert found[0][1] == found[1][1]
    np.testing.assert_array_equal(found[0][0], found[1][0])


def test_clusters_are_fitted_on_training_rows_alone(tmp_path):
    features, _ = blobs(3)
    train = np.arange(400) < 250
    before, facts = fit_clusters(features, train, count="elbow", largest=8, seed=0)
    moved = features.copy()
    moved[~train] = 500
    after, other = fit_clusters(moved, train, count="elbow", largest=8, seed=0)
    np.testing.assert_array_equal(before[train], after[train])
    assert facts == other
    table = patients()
    settings = {"features": ["x1", "x2"], "count": 3}
    one = load(tmp_path, table, clusters=settings)
    changed = table.with_columns(pl.when(pl.Series(one.split == "test")).then(99.0).otherwise("x1").alias("x1"))
    two = load(tmp_path, changed, clusters=settings)
    np.testing.assert_array_equal(
        one.columns["cluster"].to_numpy()[one.train], two.columns["cluster"].to_numpy()[one.train]
    )


def test_clusters_are_scikit_learns_on_standardised_features(tmp_path):
    dataset = load(tmp_path, patients(), clusters={"features": ["x1", "ward"], "count": 3, "seed": 7})
    space = FeatureEncoder.fit(patients().filter(pl.Series(dataset.train)), ["x1", "ward"]).transform(patients())
    scaled = (space - space[dataset.train].mean(axis=0)) / space[dataset.train].std(axis=0)
    reference = KMeans(3, n_init=10, random_state=7).fit(scaled[dataset.train]).predict(scaled)
    pairs = set(zip(reference.tolist(), dataset.columns["cluster"].to_list(), strict=True))
    assert len(pairs) == 3  # the same partition, numbered otherwise
    assert "cluster" in dataset.keep


@pytest.mark.parametrize("count", [3, 4, 5])
def test_the_elbow_finds_obvious_blobs(count):
    features, _ = blobs(count, equal=True)
    _, facts = fit_clusters(features, np.ones(400, dtype=bool), count="elbow", largest=10, seed=0)
    assert facts["count"] == count
    assert sorted(facts["inertias"]) == list(range(1, 11))


def test_a_curve_without_an_elbow_is_refused_with_a_hint():
    with pytest.raises(DataError, match="no elbow") as caught:
        elbow({z: 10.0 - z for z in range(1, 8)})
    assert "count" in caught.value.hint


def test_more_clusters_than_distinct_points_are_refused_and_as_many_are_not():
    features = np.float32([[0, 0], [-0.0, 0], [1, 0], [1, 1]] * 10)
    everything = np.ones(40, dtype=bool)
    cluster, facts = fit_clusters(features, everything, count=3, largest=10, seed=0)
    assert sorted(np.bincount(cluster)[1:]) == [10, 10, 20]
    with pytest.raises(DataError, match=r"4 clusters of 3 distinct points \(40 training samples\)"):
        fit_clusters(features, everything, count=4, largest=10, seed=0)
    with pytest.raises(DataError, match="4 clusters of 3 distinct points"):
        fit_clusters(features, everything, count="elbow", largest=10, seed=0)
    with pytest.raises(DataError, match="3 clusters of 2 distinct points"):
        fit_clusters(sparse.csr_matrix(features[[0, 2] * 5]), np.ones(10, dtype=bool), count=3, largest=10, seed=0)
    more = np.concatenate([features, np.float32([[9, 9], [5, 0]] * 10)])  # five points: the elbow looks no further
    _, facts = fit_clusters(more, np.ones(60, dtype=bool), count="elbow", largest=10, seed=0)
    assert max(facts["inertias"]) == 5


def test_an_elbow_that_could_never_be_seen_is_refused_before_anything_is_read():
    with pytest.raises(ValueError, match="an elbow cannot be seen in the curve of 1 to 3 clusters"):
        ClusterConfig(largest=3)
    assert ClusterConfig(count=3, largest=3).count == 3


def test_standardisation_leaves_constant_columns_finite():
    mean, std = standardisation(np.float32([[1, 5], [3, 5]]))
    assert mean.tolist() == [2, 5]
    assert std.tolist() == [1, 1]
    assert evaluate(pl.DataFrame({"x": [1, 2]}), "max(x)").to_list() == [2, 2]
