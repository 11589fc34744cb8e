"""ONNX detectors: tiny graphs whose answers are known, decoded by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from l2d.cache_builder.agents import config_class, make_agent
from l2d.cache_builder.agents._labels import names_of
from l2d.cache_builder.agents.onnx_detector import GREY, place
from l2d.data.errors import AgentFailure, DataError, UsageError
from l2d.data.samples.boxes import Boxes
from l2d.data.samples.dataset import Dataset

CLASSES = ("person", "sofa")
# Places of an input of 64 x 64: centre x, centre y, width, height, objectness, scores of sofa, cup, person
PLACES = [
    (32, 32, 16, 8, 0.8, 0.1, 0.2, 1.0),  # a person: 0.8
    (33, 32, 16, 8, 0.5, 0.1, 0.2, 1.0),  # the same one, suppressed: overlap 15/17
    (32, 32, 16, 8, 0.6, 1.0, 0.2, 0.1),  # a sofa in the same place, kept: 0.6
    (10, 32, 8, 4, 0.9, 0.0, 1.0, 0.0),  # a cup: not a class of the dataset
    (60, 20, 20, 4, 1.0, 0.0, 0.0, 0.3),  # a person that reaches outside: 0.3
    (20, 20, 4, 4, 0.1, 0.0, 0.0, 0.3),  # a person: 0.03, below min_score
]
LABELS = ["couch", "cup", "person"]
SIZES = [(32, 32), (64, 32)]  # of the images: width, height


def save(
    file: Path, answers: dict[str, np.ndarray], shape: list, *, brightness: bool = False, dtype=np.float32
) -> Path:
    """A model that answers constants, whatever it sees; or, for the first of them, times the mean of its input."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, outputs = [], []
    nodes.append(helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0))
    nodes.append(helper.make_node("Cast", ["mean"], ["mean32"], to=TensorProto.FLOAT))
    if not brightness:
        nodes.append(helper.make_node("Mul", ["mean32", "zero"], ["nothing"]))
        nodes.append(helper.make_node("Add", ["nothing", "one"], ["factor"]))
    else:
        nodes.append(helper.make_node("Identity", ["mean32"], ["factor"]))
    constants = [
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
        numpy_helper.from_array(np.array(1, np.float32), "one"),
    ]
    for position, (name, value) in enumerate(answers.items()):
        constants.append(numpy_helper.from_array(value, f"{name}_value"))
        if position == 0:
            nodes.append(helper.make_node("Mul", [f"{name}_value", "factor"], [name]))
        else:
            nodes.append(helper.make_node("Identity", [f"{name}_value"], [name]))
        value_type = helper.np_dtype_to_tensor_dtype(value.dtype)
        outputs.append(helper.make_tensor_value_info(name, value_type, value.shape))
    inputs = [helper.make_tensor_value_info("image", kind, shape)]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, file)
    return file


def v5(places=PLACES) -> np.ndarray:
    return np.array([places], np.float32)


def v8(places=PLACES) -> np.ndarray:
    """The same as YOLOv8 says it: no objectness, values first."""
    rows = np.array(places, np.float32)
    return np.concatenate([rows[:, :4], rows[:, 4:5] * rows[:, 5:]], axis=1).T[None].copy()


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    paths = []
    for number, size in enumerate(SIZES):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", size, (255, 0, 0)).save(paths[-1])
    width, height = np.array(SIZES).T
    return Dataset(
        name="test",
        ids=["square", "wide"],
        split=np.array(["train", "train"]),
        features=None,
        columns=pl.DataFrame({"width": width, "height": height}),
        target_boxes=Boxes.empty(2),
        images=tuple(paths),
        classes=CLASSES,
        keep=(),
        inputs={},
        config={},
    )


def make(file: Path, decode: str, **keys):
    config = {"name": "yolo", "kind": "onnx_detector", "file": file, "decode": decode, "labels": LABELS, **keys}
    return make_agent(config_class("onnx_detector").model_validate(config))


def ask(dataset: Dataset, file: Path, decode: str, **keys):
    agent = make(file, decode, **keys)
    agent.check(dataset, ["boxes"])
    agent.load(None, dataset, "cpu")
    return agent.ask(dataset.batch(range(len(dataset))))


def check_places(boxes: Boxes, *, stretched: bool = False) -> None:
    """What PLACES are, by hand, in the images of 32 x 32 and of 64 x 32 pixels."""
    square, wide = boxes.of(0), boxes.of(1)
    for found in (square, wide):
        assert found["labels"].tolist() == [0, 1, 0]
        np.testing.assert_allclose(found["scores"], [0.8, 0.6, 0.3], rtol=1e-3)
    # the square image is twice as large in the input
    np.testing.assert_allclose(square["boxes"], [[12, 14, 20, 18], [12, 14, 20, 18], [25, 9, 32, 11]], atol=1e-3)
    if stretched:  # twice as high, and as wide
        expected = [[24, 14, 40, 18], [24, 14, 40, 18], [50, 9, 64, 11]]
    else:  # as it is, 16 rows of grey above and below
        expected = [[24, 12, 40, 20], [24, 12, 40, 20], [50, 2, 64, 6]]
    np.testing.assert_allclose(wide["boxes"], expected, atol=1e-3)


@pytest.mark.parametrize("decode", ["yolov5", "yolov8"])
@pytest.mark.parametrize("shape", [[1, 3, 64, 64], [1, 64, 64, 3]])
@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_yolo_is_decoded(dataset, tmp_path, decode, shape, resize):
    answer = v5() if decode == "yolov5" else v8()
    file = save(tmp_path / "yolo.onnx", {"out": answer}, shape)
    check_places(ask(dataset, file, decode, resize=resize).boxes, stretched=resize == "stretch")


def test_fractions_of_the_input(dataset, tmp_path):
    places = [(*(value / 64 for value in place[:4]), *place[4:]) for place in PLACES]
    file = save(tmp_path / "yolo.onnx", {"out": v5(places)}, [1, 3, 64, 64])
    check_places(ask(dataset, file, "yolov5", normalized=True).boxes)


def test_batches_where_the_model_takes_them(dataset, tmp_path):
    file = save(tmp_path / "yolo.onnx", {"out": np.repeat(v5(), 2, axis=0)}, ["n", 3, "h", "w"])
    check_places(ask(dataset, file, "yolov5", input_size=64).boxes)
    one = save(tmp_path / "one.onnx", {"out": v5()}, ["n", 3, "h", "w"])
    with pytest.raises(AgentFailure, match=r"shape \(1, 6, 8\)"):  # two images were asked about
        ask(dataset, one, "yolov5", input_size=64)
    check_places(ask(dataset, one, "yolov5", input_size=[64, 64], batch_size=1).boxes)


def test_half_precision(dataset, tmp_path):
    file = save(tmp_path / "yolo.onnx", {"out": v5()}, [1, 3, 64, 64], dtype=np.float16)
    check_places(ask(dataset, file, "yolov5").boxes)


def test_suppression_and_the_lowest_score_are_settings(dataset, tmp_path):
    file = save(tmp_path / "yolo.onnx", {"out": v5()}, [1, 3, 64, 64])
    assert ask(dataset, file, "yolov5", nms_iou=0.9).boxes.counts.tolist() == [4, 4]
    assert ask(dataset, file, "yolov5", min_score=0.02).boxes.counts.tolist() == [4, 4]
    assert ask(dataset, file, "yolov5", min_score=0.5).boxes.counts.tolist() == [2, 2]
    assert ask(dataset, file, "yolov5", max_detections=1).boxes.label.tolist() == [0, 0]
    shown = ask(dataset, file, "yolov5", features=["detections"]).features
    assert shown.shape == (2, 4 + 3 + 2)
    assert shown[:, 0].tolist() == [3, 3]


BOXES = np.array([[16, 24, 32, 40], [0, 0, 8, 8], [40, 20, 60, 30]], np.float32)
GIVEN = {
    "boxes": BOXES,
    "labels": np.array([3, 2, 1], np.int64),
    "scores": np.array([0.9, 0.8, 0.3], np.float32),
}


@pytest.mark.parametrize("batched", [True, False])
def test_boxes_are_taken_as_they_are(dataset, tmp_path, batched):
    answers = {name: value[None] if batched else value for name, value in GIVEN.items()}
    file = save(tmp_path / "boxes.onnx", answers, [1, 3, 64, 64] if batched else [3, 64, 64])
    found = ask(dataset, file, "boxes").boxes
    assert found.counts.tolist() == [2, 2]
    assert found.label.tolist() == [0, 1, 0, 1]
    np.testing.assert_allclose(found.of(0)["boxes"], BOXES[[0, 2]] / 2)
    np.testing.assert_allclose(found.of(1)["boxes"], BOXES[[0, 2]] - [0, 16, 0, 16])
    shuffled = {name: answers[name] for name in ("boxes", "scores", "labels")}
    named = ask(dataset, save(tmp_path / "named.onnx", shuffled, [1, 3, 64, 64]), "boxes").boxes
    np.testing.assert_array_equal(named.xyxy, found.xyxy)


def test_images_as_they_are(dataset, tmp_path):
    file = save(tmp_path / "boxes.onnx", GIVEN, [3, "height", "width"])
    found = ask(dataset, file, "boxes").boxes
    np.testing.assert_allclose(found.of(1)["boxes"], [[16, 24, 32, 32], [40, 20, 60, 30]])
    assert found.of(0)["boxes"][0].tolist() == [16, 24, 32, 32]


def test_values_are_from_0_to_1_and_red_comes_first(dataset, tmp_path):
    """The answer is scaled by the mean of what the model sees: a third for pure red, and grey around the wide one."""
    answers = {"boxes": BOXES[:1] * 3, "labels": GIVEN["labels"][:1], "scores": GIVEN["scores"][:1]}
    file = save(tmp_path / "boxes.onnx", answers, [1, 3, 64, 64], brightness=True)
    found = ask(dataset, file, "boxes").boxes
    np.testing.assert_allclose(found.of(0)["boxes"], BOXES[:1] / 2, rtol=1e-5)
    factor = 3 * (1 / 3 + GREY) / 2
    np.testing.assert_allclose(found.of(1)["boxes"], BOXES[:1] * factor - [0, 16, 0, 16], rtol=1e-4)


def test_an_image_in_its_input():
    image = torch.zeros(3, 10, 40)
    image[0], image[2, :, 20:] = 1.0, 0.5
    canvas, placement = place(image, (40, 80), "letterbox")
    assert placement == ((2.0, 2.0), (0.0, 10.0), 40, 10)
    assert torch.all(canvas[:, :10] == torch.tensor(GREY))
    assert torch.all(canvas[:, 30:] == torch.tensor(GREY))
    assert torch.allclose(canvas[0, 10:30], torch.ones(20, 80))
    assert canvas[2, 20, 10] == 0
    assert canvas[2, 20, 70] == 0.5
    canvas, placement = place(image, (40, 80), "stretch")
    assert placement == ((2.0, 4.0), (0.0, 0.0), 40, 10)
    assert torch.allclose(canvas[0], torch.ones(40, 80))


def test_cocos_names(dataset, tmp_path):
    coco80, coco91 = names_of("coco80", ()), names_of("coco91", ())
    assert (len(coco80), [coco80[k] for k in (0, 57, 62, 79)]) == (80, ["person", "couch", "tv", "toothbrush"])
    assert (len(coco91), coco91[62], coco91[89]) == (90, "couch", "toothbrush")
    row = np.zeros((1, 1, 85), np.float32)
    row[0, 0, [0, 1, 2, 3, 4, 5 + 57]] = [32, 32, 8, 8, 1, 0.7]
    file = save(tmp_path / "coco.onnx", {"out": row}, [1, 3, 64, 64])
    assert ask(dataset, file, "yolov5", labels=None).boxes.label.tolist() == [1, 1]
    answers = {**GIVEN, "labels": np.array([1, 63, 62], np.int64)}
    file = save(tmp_path / "ids.onnx", answers, [1, 3, 64, 64])
    assert ask(dataset, file, "boxes", labels=None).boxes.label.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("broken", [0, 4, 6])
def test_what_is_not_finite_is_a_failure(dataset, tmp_path, broken):
    answer = v5()
    answer[0, 3, broken] = np.nan
    file = save(tmp_path / "yolo.onnx", {"out": answer}, [1, 3, 64, 64])
    found = ask(dataset, file, "yolov5")
    assert all("not finite" in reason for reason in found.failure)
    assert found.boxes.counts.tolist() == [0, 0]


def test_models_and_settings_that_do_not_fit_are_refused(dataset, tmp_path, monkeypatch):
    file = save(tmp_path / "yolo.onnx", {"out": v5()}, [1, 3, 64, 64])
    with pytest.raises(AgentFailure, match=r"shape \(1, 6, 8\)") as error:
        ask(dataset, file, "yolov5", labels=["couch", "person"])
    assert str(file) in str(error.value)
    with pytest.raises(AgentFailure, match="shape"):
        ask(dataset, file, "yolov8")
    with pytest.raises(AgentFailure, match="shape"):
        ask(dataset, file, "boxes")
    with pytest.raises(UsageError, match=r"takes images of \[64, 64\], not \(32, 32\)"):
        ask(dataset, file, "yolov5", input_size=32)
    with pytest.raises(UsageError, match="set input_size"):
        ask(dataset, save(tmp_path / "any.onnx", {"out": v5()}, [1, 3, "h", "w"]), "yolov5")
    with pytest.raises(DataError, match="takes batches of 4"):
        ask(dataset, save(tmp_path / "four.onnx", {"out": v5()}, [4, 3, 64, 64]), "yolov5")
    with pytest.raises(DataError, match=r"takes image tensor\(float\) \[1, 64\]"):
        ask(dataset, save(tmp_path / "flat.onnx", {"out": v5()}, [1, 64]), "yolov5")
    wrong = {**GIVEN, "labels": np.array([7, 1, 1], np.int64)}
    with pytest.raises(AgentFailure, match="label 7"):
        ask(dataset, save(tmp_path / "seven.onnx", wrong, [1, 3, 64, 64]), "boxes")
    with pytest.raises(UsageError, match="no such file"):
        ask(dataset, tmp_path / "none.onnx", "yolov5")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be run") as error:
        ask(dataset, cut, "yolov5")
    assert str(cut) in str(error.value)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"(?s)onnxruntime is not installed.*l2d\[onnx\]"):
        ask(dataset, file, "yolov5")


def test_the_fingerprint_is_of_the_content(dataset, tmp_path):
    file = save(tmp_path / "yolo.onnx", {"out": v5()}, [1, 3, 64, 64])
    before = make(file, "yolov5").fingerprint(dataset)
    assert make(file, "yolov5", batch_size=3, workers=1, price=4.0).fingerprint(dataset) == before
    assert make(file, "yolov5", nms_iou=0.5).fingerprint(dataset) != before
    save(file, {"out": v5(PLACES[:2])}, [1, 3, 64, 64])
    assert make(file, "yolov5").fingerprint(dataset)["file"] != before["file"]
