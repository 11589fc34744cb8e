"""What each kind of agent writes into a cache, against numpy and the truth in the table."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from recipes import CLUSTER, COLUMN, HEAD, changed

from l2d.data.errors import CorruptPart

NAMES = ["model", "called", "column", "hard", "sim", "all"]
ROWS = 120


@pytest.mark.slow
def test_a_two_head_model_is_trained_the_same_again_and_never_twice(workshop, recipe):
    assert workshop.build(recipe).fitted == ["model"]
    workshop.build(recipe, out="again")
    frozen = "agents/model/frozen.safetensors"
    assert workshop.files()[frozen][1] == workshop.files("again")[frozen][1]
    first = workshop.predictions("model")
    for column, values in workshop.predictions("model", "again").items():
        np.testing.assert_array_equal(values, first[column])
    shutil.rmtree(workshop.folder / "cache" / "agents" / "model" / "predictions")
    before = workshop.files()[frozen]
    report = workshop.build(recipe)
    assert (report.fitted, report.asked["model"]) == ([], ROWS)
    assert workshop.files()[frozen] == before
    weights = workshop.folder / "cache" / frozen
    workshop.build(recipe.but({"agents.model.epochs": None, "agents.model.weights": str(weights)}), out="loaded")
    for column, values in workshop.predictions("model", "loaded").items():
        np.testing.assert_array_equal(values, first[column])
    workshop.build(recipe.but({"agents.model.seed": 1}), out="other")
    assert (workshop.predictions("model", "other")["pred_reg"] != first["pred_reg"]).any()


@pytest.mark.slow
def test_changed_frozen_weights_are_noticed(workshop, recipe):
    workshop.build(recipe)
    file = workshop.folder / "cache" / "agents" / "model" / "frozen.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptPart, match="not what was frozen"):
        workshop.build(recipe)


@pytest.mark.slow
def test_an_average_is_the_mean_of_what_its_agents_said(workshop, recipe):
    workshop.build(recipe)
    of = [workshop.predictions(name) for name in ("model", "called", "hard")]
    sure = np.eye(2)[of[2]["pred_cla"]]
    found = workshop.predictions("all")
    np.testing.assert_allclose(
        found["pred_prob"], np.mean([of[0]["pred_prob"], of[1]["pred_prob"], sure], axis=0), atol=1e-6
    )
    np.testing.assert_allclose(found["pred_reg"], np.mean([part["pred_reg"] for part in of], axis=0), rtol=1e-6)
    assert workshop.cache().agent("all").queries == ["model", "called", "hard"]


@pytest.mark.parametrize("three_classes", [False, True])
def test_a_cluster_expert_is_right_on_its_clusters_and_wrong_elsewhere(workshop, three_classes):
    recipe = HEAD.plus(CLUSTER)
    if three_classes:
        recipe = HEAD.plus(changed(COLUMN, {"prob": None, "cla": "ward"}), CLUSTER)
        recipe = recipe.but({"dataset.target_cla": "ward", "dataset.classes": None})
    workshop.build(recipe)
    found, cluster = workshop.predictions("sim"), workshop.column("samples", "cluster")
    target, value = workshop.column("samples", "target_cla"), workshop.column("samples", "target_reg")
    np.testing.assert_array_equal(found["pred_cla"] == target, np.isin(cluster, [1, 3]))
    np.testing.assert_array_equal(found["pred_reg"] == value, cluster == 2)
    train = value[workshop.column("samples", "split") == "train"]
    drawn = found["pred_reg"][cluster != 2]
    assert train.min() <= drawn.min() < drawn.max() <= train.max()
    assert abs((drawn - train.min()).mean() / np.ptp(train) - 0.5) < 4 * (1 / 12 / len(drawn)) ** 0.5
    assert set(np.unique(cluster)) == {1, 2, 3, 4}


@pytest.mark.parametrize(("chunk", "batch"), [(7, 3), (120, 120), (1000, 1)])
@pytest.mark.slow
def test_answers_do_not_depend_on_chunks_and_batches(workshop, recipe, chunk, batch):
    workshop.build(recipe)
    workshop.build(recipe.but({"build.chunk_size": chunk, "build.batch_size": batch}), out="resized")
    for name in NAMES:
        exact = name not in ("model", "all")  # a matrix product may round differently for another batch
        for column, values in workshop.predictions(name, "resized").items():
            expected = workshop.predictions(name)[column]
            if exact or column in ("sample_id", "failure"):
                np.testing.assert_array_equal(values, expected)
            elif column != "pred_cla":
                np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)


def test_a_column_agent_with_an_aggregate_answers_the_same_in_any_batch(workshop):
    """``stay - AVG(stay)`` means the whole table's average, whatever the batch size."""
    recipe = HEAD.plus(changed(COLUMN, {"reg": "stay - AVG(stay)"}))
    workshop.build(recipe)
    workshop.build(recipe.but({"build.batch_size": 50}), out="resized")
    stay = workshop.table["stay"].to_numpy()
    for out in ("cache", "resized"):
        np.testing.assert_allclose(workshop.predictions("column", out)["pred_reg"], stay - stay.mean(), atol=1e-6)
