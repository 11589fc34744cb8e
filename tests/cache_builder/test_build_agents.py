"""What each kind of agent writes into a cache, against numpy and the truth in the table."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from conftest import CLUSTER, COLUMN, HEAD

from l2d.data.errors import CorruptPart

NAMES = ["model", "called", "column", "hard", "sim", "all"]
ROWS = 120


def test_a_two_head_model_is_trained_the_same_again_and_never_twice(workshop, text):
    assert workshop.build(text).fitted == ["model"]
    workshop.build(text, out="again")
    frozen = "agents/model/frozen.safetensors"
    assert workshop.files()[frozen][1] == workshop.files("again")[frozen][1]
    first = workshop.predictions("model")
    for column, values in workshop.predictions("model", "again").items():
        np.testing.assert_array_equal(values, first[column])
    shutil.rmtree(workshop.folder / "cache" / "agents" / "model" / "predictions")
    before = workshop.files()[frozen]
    report = workshop.build(text)
    assert (report.fitted, report.asked["model"]) == ([], ROWS)
    assert workshop.files()[frozen] == before
    weights = workshop.folder / "cache" / frozen
    workshop.build(text.replace("epochs = 2", f'weights = "{weights}"'), out="loaded")
    for column, values in workshop.predictions("model", "loaded").items():
        np.testing.assert_array_equal(values, first[column])
    workshop.build(text.replace("epochs = 2", "epochs = 2\nseed = 1"), out="other")
    assert (workshop.predictions("model", "other")["pred_reg"] != first["pred_reg"]).any()


def test_changed_frozen_weights_are_noticed(workshop, text):
    workshop.build(text)
    file = workshop.folder / "cache" / "agents" / "model" / "frozen.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptPart, match="not what was frozen"):
        workshop.build(text)


def test_an_average_is_the_mean_of_what_its_agents_said(workshop, text):
    workshop.build(text)
    of = [workshop.predictions(name) for name in ("model", "called", "hard")]
    sure = np.eye(2)[of[2]["pred_cla"]]
    found = workshop.predictions("all")
    np.testing.assert_allclose(
        found["pred_prob"], np.mean([of[0]["pred_prob"], of[1]["pred_prob"], sure], axis=0), atol=1e-6
    )
    np.testing.assert_allclose(found["pred_reg"], np.mean([part["pred_reg"] for part in of], axis=0), rtol=1e-6)
    assert workshop.cache().agent("all").queries == ["model", "called", "hard"]


@pytest.mark.parametrize("three_classes", [False, True])
def test_a_cluster_expert_is_right_on_its_clusters_and_wrong_elsewhere(workshop, text, three_classes):
    text = HEAD + COLUMN.replace('prob = "risk_bad"', 'cla = "ward"') + CLUSTER if three_classes else HEAD + CLUSTER
    if three_classes:
        text = text.replace('"died"', '"ward"').replace('classes = ["no", "yes"]\n', "")
    workshop.build(text)
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
def test_answers_do_not_depend_on_chunks_and_batches(workshop, text, chunk, batch):
    workshop.build(text)
    resized = text.replace("chunk_size = 50", f"chunk_size = {chunk}").replace(
        "batch_size = 20", f"batch_size = {batch}"
    )
    workshop.build(resized, out="resized")
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
    text = HEAD + COLUMN.replace('"stay_bad"', '"stay - AVG(stay)"')
    workshop.build(text)
    workshop.build(text.replace("batch_size = 20", "batch_size = 50"), out="resized")
    stay = workshop.table["stay"].to_numpy()
    for out in ("cache", "resized"):
        np.testing.assert_allclose(workshop.predictions("column", out)["pred_reg"], stay - stay.mean(), atol=1e-6)
