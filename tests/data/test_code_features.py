"""Bags of codes as features and clusters, against dense linear algebra; all of it fitted on training rows alone."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from l2d.data.errors import DataError
from l2d.data.samples.code_features import GRID, CodeClusters, CodeFeatures, bag_of_codes, code_clusters, code_features
from l2d.data.samples.tokens import SPECIAL, Tokens


def lists_of(bags: list[list[int]], size: int) -> Tokens:
    values = np.array([code for codes in bags for code in codes], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(codes) for codes in bags])]).astype(np.int64)
    return Tokens(values, offsets, SPECIAL + tuple(f"c{i}" for i in range(2, size)))


@pytest.fixture
def grouped():
    """Samples of three groups, each with codes of its own, some common or unknown ones; and the group."""
    rng = np.random.default_rng(0)
    group = rng.integers(3, size=240)
    bags = [
        [1] * int(rng.random() < 0.3)
        + (2 + 8 * g + rng.choice(8, 5, replace=False)).tolist()
        + [int(rng.integers(26, 30))]
        for g in group
    ]
    others = [rng.choice(np.arange(2, 6), 2, replace=False).tolist() for _ in group]
    return {"diagnoses": lists_of(bags, 30), "procedures": lists_of(others, 6)}, group


def test_a_bag_has_a_column_for_every_known_code(grouped):
    tokens, _ = grouped
    bag, names = bag_of_codes(tokens)
    assert bag.shape == (240, 28 + 4)
    dense = bag.toarray()
    for row in range(240):
        codes = {f"{field} {code}" for field in tokens for code in tokens[field][row : row + 1].to_lists()[0]}
        assert {names[i] for i in np.flatnonzero(dense[row])} == {code for code in codes if "<unk>" not in code}
    assert set(np.unique(dense)) == {0.0, 1.0}


def test_counts_are_the_most_frequent_training_codes(grouped):
    tokens, _ = grouped
    train = np.arange(240) < 100
    features, facts = code_features(tokens, train, CodeFeatures(kind="counts", width=6))
    bag, names = bag_of_codes(tokens)
    frequency = bag[train].toarray().sum(axis=0)
    least = min(frequency[names.index(name)] for name in facts["names"])
    assert least >= np.sort(frequency)[-6]
    columns = [names.index(name) for name in facts["names"]]
    np.testing.assert_array_equal(features, bag.toarray()[:, columns])
    assert facts["width"] == features.shape[1] == 6


def test_svd_features_are_those_of_dense_linear_algebra(grouped):
    tokens, _ = grouped
    train = np.arange(240) % 3 > 0
    features, facts = code_features(tokens, train, CodeFeatures(width=3))
    bag = bag_of_codes(tokens)[0].toarray()
    weight = np.log(train.sum() / np.maximum(bag[train].sum(axis=0), 1))
    _, _, right = np.linalg.svd(bag[train] * weight, full_matrices=False)
    expected = (bag * weight) @ right[:3].T
    signs = np.sign((features * expected).sum(axis=0))
    np.testing.assert_allclose(features, expected * signs, atol=20 * GRID)
    assert features.dtype == np.float32
    assert facts["width"] == 3
    exact = features.astype(np.float64) / GRID
    np.testing.assert_array_equal(exact, np.round(exact))  # so that another machine's last digits do not show


@pytest.mark.parametrize("space", ["svd", "bag"])
def test_clusters_find_the_groups_and_look_at_training_rows_alone(grouped, space):
    tokens, group = grouped
    train = np.arange(240) < 160
    config = CodeClusters(space=space, width=4, count=3)
    cluster, facts = code_clusters(tokens, train, config)
    assert adjusted_rand_score(group, cluster) > 0.95
    assert facts["count"] == 3
    assert np.bincount(cluster[train])[1:].tolist() == sorted(np.bincount(cluster[train])[1:], reverse=True)
    spoilt = {
        field: Tokens.concatenate([lists[:160], lists[np.full(80, 3)]]) for field, lists in tokens.items()
    }  # other validation and test rows
    again, _ = code_clusters(spoilt, train, config)
    np.testing.assert_array_equal(again[train], cluster[train])
    assert (again[160:] == cluster[3]).all()


def test_the_elbow_is_at_the_number_of_groups(grouped):
    tokens, _ = grouped
    _, facts = code_clusters(tokens, np.ones(240, bool), CodeClusters(width=4, largest=8))
    assert facts["count"] == 3
    assert sorted(facts["inertias"]) == list(range(1, 9))


def test_widths_that_do_not_fit_are_refused(grouped):
    tokens, _ = grouped
    train = np.ones(240, bool)
    for config in (CodeFeatures(width=200), CodeFeatures(kind="counts", width=200)):
        with pytest.raises(DataError, match="width 200"):
            code_features(tokens, train, config)
    with pytest.raises(DataError, match="clusters"):
        code_clusters(tokens, np.arange(240) < 2, CodeClusters(space="bag", count=3))
