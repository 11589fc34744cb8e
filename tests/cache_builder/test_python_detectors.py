"""A user's own detector: its labels by name or position, the summary that it shows, and answers that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from l2d.cache_builder.agents import config_class, make_agent
from l2d.cache_builder.agents._summary import summary_of_detections
from l2d.data.errors import AgentFailure, UsageError
from l2d.data.samples.boxes import Boxes
from l2d.data.samples.dataset import Dataset

ASK = """
def ask(batch, found):
    return {"boxes": [found[name] for name in batch.ids]}
"""
CORNERS = [[0.0, 0.0, 4.0, 5.0], [1.0, 1.0, 3.0, 3.0], [2.0, 2.0, 9.0, 9.0]]


def dataset() -> Dataset:
    return Dataset(
        name="test",
        ids=["a", "b"],
        split=np.array(["train", "test"]),
        features=None,
        columns=pl.DataFrame({"width": [10, 20], "height": [10, 10]}),
        target_boxes=Boxes.empty(2),
        classes=("person", "sofa"),
        keep=(),
        inputs={},
        config={},
    )


def answers(folder: Path, given: list, **keys):
    (folder / "mine.py").write_text(ASK)
    first = {"boxes": CORNERS, "labels": given, "scores": [0.9, 0.2, 0.6]}
    nothing = {"boxes": [], "labels": [], "scores": []}
    config = {"name": "mine", "kind": "python", "file": folder / "mine.py", **keys}
    agent = make_agent(config_class("python").model_validate(config))
    agent.config.options["found"] = {"a": first, "b": nothing}
    agent.check(dataset(), ["boxes"])
    agent.load(None, dataset(), "cpu")
    return agent.ask(dataset().batch(range(2)))


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        (["human", "cat", "couch"], {"label_map": {"human": "person"}}),  # COCO's name of VOC's sofa is known
        ([1, 0, 2], {"labels": ["cat", "human", "couch"], "label_map": {"human": "person"}}),
        ([0, 15, 57], {"labels": "coco80"}),
        ([0, 14, 62], {"labels": "coco91"}),
    ],
)
def test_labels_are_names_or_positions_and_what_is_no_class_is_left_out(tmp_path, given, keys):
    found = answers(tmp_path, given, **keys).boxes
    np.testing.assert_array_equal(found.xyxy, [CORNERS[0], CORNERS[2]])
    np.testing.assert_array_equal(found.label, [0, 1])
    np.testing.assert_array_equal(found.score, [0.9, 0.6])


def test_boxes_of_a_low_score_are_dropped_and_the_rest_can_be_summarised(tmp_path):
    found = answers(tmp_path, [0, 1, 1], min_score=0.5, features=["detections"])
    np.testing.assert_array_equal(found.boxes.score, [0.9, 0.6])
    np.testing.assert_array_equal(found.features, summary_of_detections(found.boxes, np.array([100.0, 200.0]), 2))
    np.testing.assert_array_equal(found.features[1], np.zeros(9))


@pytest.mark.parametrize("given", [[0, 0, 3], [-1, 0, 1]])
def test_a_position_outside_the_list_is_refused(tmp_path, given):
    with pytest.raises(AgentFailure, match="not a position in `labels`"):
        answers(tmp_path, given, labels=["person", "cat", "couch"])


def test_names_that_there_are_not_are_refused_before_anything_is_asked(tmp_path):
    with pytest.raises(UsageError, match="no class 'persona'"):
        answers(tmp_path, [0, 0, 0], label_map={"human": "persona"})
    with pytest.raises(UsageError, match="the detector has no label 'humen'"):
        answers(tmp_path, [0, 0, 0], labels=["human"], label_map={"humen": "person"})
    with pytest.raises(UsageError, match="none of the detector's labels"):
        answers(tmp_path, [0, 0, 0], labels=["cat"])


def test_the_fingerprint_of_an_agent_of_before_is_what_it_was(tmp_path):
    (tmp_path / "mine.py").write_text(ASK)
    config = config_class("python").model_validate({"name": "m", "kind": "python", "file": tmp_path / "mine.py"})
    assert not {"labels", "label_map", "min_score"} & make_agent(config).fingerprint(dataset()).keys()
