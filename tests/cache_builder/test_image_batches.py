"""Decoding ahead, and what every detector has in common: order, memory, failures, labels, the summary."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from l2d.cache_builder.agents import _image_batches as image_batches
from l2d.cache_builder.agents._detector import DetectorAgent, DetectorConfig
from l2d.cache_builder.agents._image_batches import ImageReader, order_by_shape
from l2d.cache_builder.agents._labels import class_index, class_labels
from l2d.cache_builder.agents._summary import summary_of_detections
from l2d.data.errors import UsageError
from l2d.data.samples.boxes import Boxes
from l2d.data.samples.dataset import Dataset

SIZES = [(40, 20), (20, 40), (40, 20), (30, 30), (20, 40), (80, 40), (40, 20)]  # width, height


class NoteConfig(DetectorConfig):
    kind: Literal["note"] = "note"


class NoteAgent(DetectorAgent):
    """Finds one thing, whose score is the image's brightness; keeps the batches it was given."""

    room = 100  # images that fit into memory

    def detect(self, images):
        if len(images) > self.room:
            raise torch.OutOfMemoryError("pretended")
        self.seen = [*getattr(self, "seen", []), [tuple(image.shape[1:]) for image in images]]
        scores = [image.float().mean().item() / 255 for image in images]
        answers = [
            {"boxes": np.array([[0, 0, 2, 1]]), "labels": np.array([1]), "scores": np.array([score])}
            for score in scores
        ]
        return answers, np.array([[score, 2 * score, 3.0] for score in scores], dtype=np.float32)


def brightness(number: int) -> int:
    return (20 * number + 60) % 256


def make_dataset(folder: Path, sizes=SIZES) -> Dataset:
    paths = []
    for number, (width, height) in enumerate(sizes):
        paths.append(folder / f"{number}.png")
        Image.fromarray(np.full((height, width, 3), brightness(number), np.uint8)).save(paths[-1])
    width, height = np.array(sizes).T
    return Dataset(
        name="test",
        ids=[str(number) for number in range(len(sizes))],
        split=np.array(["train"] * len(sizes)),
        features=None,
        columns=pl.DataFrame({"width": width, "height": height}),
        target_boxes=Boxes.empty(len(sizes)),
        images=tuple(paths),
        classes=("cat", "dog", "sofa"),
        keep=(),
        inputs={},
        config={},
    )


def loaded(dataset: Dataset, room: int = 100, **keys) -> NoteAgent:
    agent = NoteAgent(NoteConfig(name="note", **keys))
    agent.room = room
    agent.load(None, dataset, "cpu")
    return agent


def expected_scores(dataset: Dataset) -> np.ndarray:
    return np.array([brightness(number) for number in range(len(dataset))]) / 255


def test_images_of_one_shape_come_together_and_ties_keep_their_order():
    width, height = np.array(SIZES).T
    assert order_by_shape(width.astype(float), height.astype(float)).tolist() == [1, 4, 3, 0, 2, 6, 5]


def test_batches_are_of_like_shape_and_the_answers_in_the_order_of_the_samples(tmp_path):
    dataset = make_dataset(tmp_path)
    agent = loaded(dataset, batch_size=3)
    answers = agent.ask(dataset.batch(range(len(dataset))))
    assert agent.seen == [[(40, 20), (40, 20), (30, 30)], [(20, 40)] * 3, [(40, 80)]]
    np.testing.assert_allclose(answers.boxes.score, expected_scores(dataset), rtol=1e-6)
    assert answers.boxes.counts.tolist() == [1] * len(dataset)
    assert answers.failure is None


def test_a_batch_that_does_not_fit_into_memory_is_halved_and_stays_so(tmp_path):
    dataset = make_dataset(tmp_path)
    agent = loaded(dataset, room=2, batch_size=7)
    answers = agent.ask(dataset.batch(range(len(dataset))))
    assert [len(part) for part in agent.seen] == [1] * 7  # 7, 3, 1
    np.testing.assert_allclose(answers.boxes.score, expected_scores(dataset), rtol=1e-6)
    agent = loaded(dataset, room=3, batch_size=6)
    answers = agent.ask(dataset.batch(range(len(dataset))))
    assert [len(part) for part in agent.seen] == [3, 3, 1]
    np.testing.assert_allclose(answers.boxes.score, expected_scores(dataset), rtol=1e-6)
    assert agent.batch_size == 3
    with pytest.raises(torch.OutOfMemoryError):
        loaded(dataset, room=0).ask(dataset.batch(range(1)))


def test_no_more_is_decoded_than_was_asked_for_ahead(tmp_path):
    dataset = make_dataset(tmp_path, SIZES * 3)
    started, lock = [], threading.Lock()
    reader = ImageReader(workers=2, ahead=4, pin=False)
    read = reader._read

    def noted(path):
        with lock:
            started.append(path)
        return read(path)

    reader._read = noted
    order = np.arange(len(dataset))[::-1]
    images = reader.read(dataset.images, order)
    for count, (position, image) in enumerate(images, start=1):
        assert position == order[count - 1]
        assert image[0, 0, 0] == brightness(position)
        assert len(started) <= count + 4
    assert len(started) == len(dataset)


def test_an_unreadable_image_is_its_own_failure(tmp_path):
    dataset = make_dataset(tmp_path)
    dataset.images[2].write_bytes(dataset.images[2].read_bytes()[:60])
    agent = loaded(dataset, features=["backbone", "detections"])
    answers = agent.ask(dataset.batch(range(len(dataset))))
    assert [reason is not None for reason in answers.failure] == [False, False, True, False, False, False, False]
    assert str(dataset.images[2]) in answers.failure[2]
    assert answers.boxes.counts.tolist() == [1, 1, 0, 1, 1, 1, 1]
    assert answers.features.shape == (7, 3 + 4 + 3 + 3)
    assert not answers.features[2].any()
    np.testing.assert_allclose(answers.features[[0, 3], 1], 2 * expected_scores(dataset)[[0, 3]], rtol=1e-6)
    alone = agent.ask(dataset.batch(range(2, 3)))  # as wide as where others could be read
    assert alone.features.shape == (1, 13)
    assert not alone.features.any()


def test_the_best_of_known_classes_are_kept():
    agent = NoteAgent(NoteConfig(name="note", min_score=0.3, max_detections=2))
    answer = {
        "boxes": np.arange(20.0).reshape(5, 4),
        "labels": np.array([0, -1, 2, 1, 0]),
        "scores": np.array([0.3, 0.9, 0.5, 0.29, 0.6]),
    }
    kept, reason = agent._tidy(answer)
    assert reason is None
    assert kept["scores"].tolist() == [0.6, 0.5]
    assert kept["labels"].tolist() == [0, 2]
    assert kept["boxes"][:, 0].tolist() == [16, 8]
    for name in ("scores", "boxes"):
        broken = {**answer, name: answer[name] * np.nan}
        assert "not finite" in agent._tidy(broken)[1]


def test_the_summary_against_counting_by_hand():
    boxes = Boxes.from_images(
        [
            {"boxes": [[0, 0, 5, 10], [0, 0, 10, 10]], "labels": [1, 1], "scores": [0.8, 0.25]},
            {"boxes": [], "labels": [], "scores": []},
            {"boxes": [[0, 0, 4, 5]], "labels": [0], "scores": [0.04]},
        ]
    )
    rows = summary_of_detections(boxes, np.array([100.0, 50.0, 200.0]), 2)
    expected = [
        [2, 2, 1, 1, 0.8, 0.525, 0.75, 0, 0.8],
        [0] * 9,
        [0, 0, 0, 0, 0.04, 0.04, 0.1, 0.04, 0],
    ]
    np.testing.assert_allclose(rows, expected, rtol=1e-6)


def test_labels_go_by_the_map_then_by_name_then_by_cocos_names_of_voc_classes():
    names = ["dog", "couch", "wolf", "N/A", None, "cat"]
    assert class_index(names, ("cat", "dog", "sofa"), {"wolf": "dog"}).tolist() == [1, 2, 1, -1, -1, 0]
    assert class_index(["cat", "dog"], ("cat", "dog"), {"cat": "dog"}).tolist() == [1, 1]
    for label_map, said in (
        ({"wulf": "dog"}, "the detector has no label 'wulf'.*did you mean 'wolf'"),
        ({"wolf": "dgo"}, "the dataset has no class 'dgo'.*did you mean 'dog'"),
    ):
        config = NoteConfig(name="note", label_map=label_map)
        with pytest.raises(UsageError, match="(?s)" + said):
            class_labels(["wolf", "dog"], ("cat", "dog"), config)
    with pytest.raises(UsageError, match="none of the detector's labels"):
        class_labels(["wolf"], ("cat", "dog"), NoteConfig(name="note"))


def test_pinning_is_asked_of_torch(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path)
    pinned = []
    image = image_batches.read_image(dataset.images[0])
    monkeypatch.setattr(image_batches, "read_image", lambda path: Pinnable(image, pinned))
    list(ImageReader(workers=1, ahead=1, pin=True).read(dataset.images[:1], np.array([0])))
    assert pinned == [True]


class Pinnable:
    def __init__(self, image, pinned):
        self.image, self.pinned = image, pinned

    def pin_memory(self):
        self.pinned.append(True)
        return self.image
