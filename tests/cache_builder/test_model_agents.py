"""Models in torch, torch.export and ONNX: what they say is what they say outside, whatever the batch."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from conftest import refused
from PIL import Image
from recipes import RECIPE, agent, changed
from torch import nn

from l2d.cache_builder.agents import config_class, make_agent
from l2d.data.errors import AgentFailure, DataError, UsageError
from l2d.data.samples.dataset import Dataset

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=2, form="tuple"):
        super().__init__()
        self.form = form
        self.body = nn.Sequential(nn.Linear(width, 5), nn.Tanh(), nn.Dropout(0.5))
        self.classes, self.value = nn.Linear(5, 2), nn.Linear(5, 1)

    def forward(self, x):
        hidden = self.body(torch.nan_to_num(x))
        logits, value = self.classes(hidden), self.value(hidden)
        if self.form == "dict":
            return {"prob": logits.softmax(1), "reg": value[:, 0], "hidden": hidden}
        if self.form == "one":
            return logits[:, 1:] - logits[:, :1], value
        return logits, value

def not_a_module():
    return len
"""
NET_AGENT = agent("net", "torch", columns=["x1", "x2"], factory="net:Net", weights="net.safetensors")
MODULE = RECIPE.plus(NET_AGENT)
PROGRAM = RECIPE.plus(agent("net", "torch", columns=["x1", "x2"], file="net.pt2"))
ONNX = RECIPE.plus(agent("net", "onnx", columns=["x1", "x2"], file="net.onnx"))


@pytest.fixture
def net(workshop) -> nn.Module:
    """A module beside the recipe, with its weights in both kinds of file."""
    from safetensors.torch import save_file

    (workshop.folder / "net.py").write_text(NET)
    scope: dict = {"__name__": "net"}
    exec(NET, scope)
    torch.manual_seed(0)
    made = scope["Net"]().eval()
    save_file(made.state_dict(), workshop.folder / "net.safetensors")
    torch.save({"epoch": 3, "state_dict": made.state_dict()}, workshop.folder / "net.pth")
    return made


def inputs(workshop) -> torch.Tensor:
    return torch.tensor(workshop.table.select("x1", "x2").to_numpy(), dtype=torch.float32)


def check_answers(workshop, net: nn.Module, out: str = "cache") -> None:
    """What is in the cache is what the module says of the whole table at once."""
    with torch.inference_mode():
        logits, value = net(inputs(workshop))
    found = workshop.predictions("net", out)
    np.testing.assert_allclose(found["pred_prob"], logits.softmax(1).numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["pred_reg"], value[:, 0].numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", ["net.safetensors", "net.pth"])
@pytest.mark.parametrize("form", ["tuple", "dict", "one"])
@pytest.mark.slow
def test_a_module_with_its_weights(workshop, net, weights, form):
    recipe = RECIPE.plus({**NET_AGENT, "weights": weights, "options": {"form": form}, "batch_size": 7})
    workshop.build(recipe)
    check_answers(workshop, net)
    record = workshop.cache().agent("net")
    assert record.gflops == pytest.approx((2 * 5 + 5 * 2 + 5) / 1e9)
    assert record.seconds > 0
    assert set(workshop.build(recipe.but({"agents.net.batch_size": 9})).asked.values()) == {0}


def test_the_encoded_features_are_the_input_where_no_columns_are_named(workshop, net):
    """The module adds them up with weights of its own, so that its answer tells which it got, and in which order."""
    (workshop.folder / "weigh.py").write_text(
        "import torch\n\nclass Weigh(torch.nn.Module):\n    def forward(self, x):\n"
        "        value = x @ torch.arange(1.0, 1 + x.shape[1])\n        return torch.stack([value, -value], 1), value\n"
    )
    workshop.build(RECIPE.plus(agent("net", "torch", factory="weigh:Weigh")))
    table, train = workshop.table, workshop.column("samples", "split") == "train"
    seen = table["x2"].fill_null(table.filter(train)["x2"].median()).to_numpy()
    wards = [(table["ward"] == ward).to_numpy() for ward in ("a", "b", "c")]
    columns = [table["x1"], seen, table["x2"].is_null(), *wards]
    expected = sum(weight * np.asarray(column, float) for weight, column in enumerate(columns, 1))
    np.testing.assert_allclose(workshop.predictions("net")["pred_reg"], expected, rtol=1e-5, atol=1e-5)


def test_changed_weights_and_changed_code_are_noticed(workshop, net):
    from l2d.data.errors import FingerprintMismatch

    workshop.build(MODULE)
    (workshop.folder / "net.py").write_text(NET.replace("0.5", "0.4"))
    with pytest.raises(FingerprintMismatch, match="code"):
        workshop.build(MODULE)
    (workshop.folder / "net.py").write_text(NET)
    (workshop.folder / "net.pth").rename(workshop.folder / "net.safetensors")
    with pytest.raises(FingerprintMismatch, match="weights"):
        workshop.build(MODULE)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"factory": "net:not_a_module"}, UsageError, ["'net'", "not an nn.Module"]),
        ({"weights": "gone.pth"}, UsageError, ["'net'", "no such file"]),
        ({"weights": "net.py"}, DataError, ["cannot be read"]),
        ({"columns": ["x1", "x2", "died"]}, AgentFailure, ["'net'", "raised"]),
        ({"columns": ["x1", "wards"]}, DataError, ["'net'", "wards"]),
        ({"options": {"width": 3}}, DataError, ["the weights do not fit", "size mismatch"]),
        (
            {"outputs": ["logits"]},
            AgentFailure,
            ["returned 2 arrays", "`outputs` says logits"],
        ),
        ({"outputs": ["prob", "reg"]}, AgentFailure, ["does not sum to 1"]),
        ({"labels": ["no", "maybe"]}, UsageError, ["'yes'", "labels"]),
        (
            {"labels": ["no", "maybe", "yes"]},
            AgentFailure,
            ["x2", "3 columns"],
        ),
        ({"file": "net.pt2"}, UsageError, ["give `factory`, or `file`"]),
    ],
)
@pytest.mark.slow
def test_a_module_that_does_not_fit_is_named(workshop, net, changes, kind, words):
    refused(lambda: workshop.build(RECIPE.plus(changed(NET_AGENT, changes))), kind, *words)


@pytest.mark.parametrize("batch", [None, 1, 16])
def test_an_exported_program_needs_no_code(workshop, net, batch):
    shapes = None if batch else ({0: torch.export.Dim("n", min=1)},)
    program = torch.export.export(net, (torch.zeros(batch or 4, 2),), dynamic_shapes=shapes)
    torch.export.save(program, workshop.folder / "net.pt2")
    (workshop.folder / "net.py").unlink()
    workshop.build(PROGRAM)
    check_answers(workshop, net)


class Harmful:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("how", ["sample inputs", "weights", "sizes", "compiled", "no archive"])
def test_a_program_that_could_run_code_is_refused_before_it_does(workshop, net, how):
    trap, file = workshop.folder / "trap", workshop.folder / "net.pt2"
    program = torch.export.export(net, (torch.zeros(4, 2),), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
    torch.export.save(program, file)
    with zipfile.ZipFile(file) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    evil = io.BytesIO()
    torch.save((Harmful(trap),), evil)
    for name in list(content):
        if how == "sample inputs" and "sample_inputs" in name:
            content[name] = evil.getvalue()
        if how == "weights" and "weights" in name and name.endswith("config.json"):
            config = json.loads(content[name])
            for entry in config["config"].values():
                entry["use_pickle"] = True
                content[f"{name.rpartition('/')[0]}/{entry['path_name']}"] = pickle.dumps(Harmful(trap))
            content[name] = json.dumps(config).encode()
        if how == "sizes" and "models/" in name:
            content[name] = content[name].replace(b'"expr_str":', b'"expr_str": "exec(chr(1))", "hm":')
            assert b"exec(chr(1))" in content[name]
        if how == "compiled" and "models/" in name:
            content[name.replace("models/", "data/aotinductor/").replace(".json", ".so")] = b"\x7fELF"
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in content.items() if how != "no archive" else ():
            archive.writestr(name, value)
    refused(lambda: workshop.build(PROGRAM), DataError, "net.pt2")
    assert not trap.exists()


@pytest.mark.parametrize("batch", ["n", 1, 16])
def test_an_onnx_model_of_a_table(workshop, net, batch):
    pytest.importorskip("onnxruntime")
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    state = net.state_dict()
    weights = {name: numpy_helper.from_array(value.numpy(), name) for name, value in state.items()}
    clean = [helper.make_node("IsNaN", ["x"], ["gap"]), helper.make_node("Where", ["gap", "zero", "x"], ["given"])]

    def linear(name: str, source: str, target: str):
        return helper.make_node("Gemm", [source, f"{name}.weight", f"{name}.bias"], [target], transB=1)

    nodes = [
        *clean,
        linear("body.0", "given", "before"),
        helper.make_node("Tanh", ["before"], ["hidden"]),
        linear("classes", "hidden", "logits"),
        linear("value", "hidden", "reg"),
    ]
    zero = numpy_helper.from_array(np.zeros((), np.float32), "zero")
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 2])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, k]) for n, k in (("logits", 2), ("reg", 1))],
        [*weights.values(), zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, workshop.folder / "net.onnx")
    workshop.build(ONNX)
    check_answers(workshop, net)
    workshop.build(ONNX.but({"agents.net.outputs": ["logits", "reg"]}), out="by order")
    check_answers(workshop, net, "by order")
    wider = ONNX.but({"agents.net.columns": ["x1", "x2", "stay"]})
    refused(lambda: workshop.build(wider, out="wider"), UsageError, "takes 2 numbers", "gives 3")
    (workshop.folder / "net.onnx").write_bytes(b"no model")
    refused(lambda: workshop.build(ONNX, out="damaged"), DataError, "cannot be run", "net.onnx")


# --- images ---------------------------------------------------------------------------------------------------------


def photos(folder, classes=("cat", "dog", "owl"), count: int = 5) -> Dataset:
    """Small images of several shapes, the fourth of them damaged."""
    import polars as pl

    generator, files = np.random.default_rng(0), []
    for row in range(count):
        shape = (40 + 3 * row, 50, 3)
        files.append(folder / f"{row}.png")
        Image.fromarray(generator.integers(0, 255, shape, dtype=np.uint8)).save(files[-1])
    if count > 3:
        files[3].write_bytes(b"no image")
    return Dataset(
        name="photos",
        ids=[file.stem for file in files],
        split=np.full(count, "train"),
        features=None,
        columns=pl.DataFrame({"width": [50] * count}),
        target_cla=np.arange(count, dtype=np.int32) % len(classes),
        images=tuple(files),
        image_size=8,
        classes=classes,
        keep=(),
        inputs={},
        config={},
    )


def ask(dataset: Dataset, **keys):
    agent = make_agent(config_class(keys["kind"])(name="net", **keys))
    agent.check(dataset, ["cla"])
    agent.load(None, dataset, "cpu")
    return agent, agent.ask(dataset.batch(range(len(dataset))))


def test_torchvision_classifiers_with_published_weights_and_with_own_ones(tmp_path, monkeypatch):
    from torchvision.models import ShuffleNet_V2_X0_5_Weights, shufflenet_v2_x0_5
    from torchvision.transforms.functional import to_tensor

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub/hub"))  # what set_dir sets
    published = ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
    torch.manual_seed(0)
    model = shufflenet_v2_x0_5().eval()
    checkpoints = tmp_path / "hub/hub/checkpoints"
    checkpoints.mkdir(parents=True)
    keys = {"kind": "torchvision_classifier", "architecture": "shufflenet_v2_x0_5", "weights": "IMAGENET1K_V1"}
    map_ = {"tabby": "cat", "tiger cat": "cat", "beagle": "dog", "great grey owl": "owl"}
    made = photos(tmp_path)
    refused(lambda: ask(made, **keys, label_map=map_), UsageError, "no such file", "nothing is downloaded")
    torch.save(model.state_dict(), checkpoints / published.url.rpartition("/")[2])
    agent, found = ask(made, **keys, label_map=map_, batch_size=2)
    assert found.is_failure.tolist() == [False, False, False, True, False]
    assert "3.png" in found.failure[3]
    assert agent.gflops(made) == published.meta["_ops"]
    labels = published.meta["categories"]
    preset = published.transforms()
    for row in (0, 1, 2, 4):
        with torch.inference_mode():
            scores = model(preset(to_tensor(Image.open(made.images[row]))[None])).double().softmax(1)[0]
        expected = np.array(
            [sum(float(scores[labels.index(k)]) for k, v in map_.items() if v == c) for c in made.classes]
        )
        np.testing.assert_allclose(found.prob[row], expected / expected.sum(), rtol=1e-3)
    refused(lambda: ask(made, **keys, label_map={"beagle": "dog"}), UsageError, "'cat'", "label_map")
    refused(lambda: ask(made, **{**keys, "architecture": "resnet51"}), UsageError, "did you mean 'resnet50'")


def test_images_that_are_no_files_are_seen_as_they_are(tmp_path):
    (tmp_path / "sums.py").write_text(
        "import torch\nclass Sums(torch.nn.Module):\n    def forward(self, x):\n"
        "        return {'prob': x.mean(dim=(2, 3)) / x.mean(dim=(2, 3)).sum(1, keepdim=True)}\n"
    )
    made = photos(tmp_path, count=3)
    pixels = np.random.default_rng(0).integers(1, 255, (3, 3, 6, 8), dtype=np.uint8)
    made = dataclasses.replace(made, images=None, image_size=None, pixels=pixels)
    keys = {"kind": "torch", "factory": "sums:Sums", "path": tmp_path, "mean": [0.0] * 3, "std": [1.0] * 3}
    _, found = ask(made, **keys, batch_size=2)
    colours = pixels.mean(axis=(2, 3))
    np.testing.assert_allclose(found.prob, colours / colours.sum(axis=1, keepdims=True), rtol=1e-5)


def test_a_module_of_images_sees_them_scaled_cropped_and_normalised(tmp_path):
    """Against torchvision's own preset."""
    from torchvision.transforms._presets import ImageClassification
    from torchvision.transforms.functional import to_tensor

    (tmp_path / "seen.py").write_text(
        "import torch\nclass Seen(torch.nn.Module):\n    def forward(self, x):\n"
        "        self.x = x\n        return torch.zeros(len(x), 3)\n"
    )
    made = photos(tmp_path, count=3)
    keys = {"kind": "torch", "factory": "seen:Seen", "path": tmp_path, "image_size": 28}
    agent, found = ask(made, **keys, crop=0.875)
    np.testing.assert_allclose(found.prob, 1 / 3)
    preset = ImageClassification(crop_size=28, resize_size=32)
    for row, file in enumerate(made.images):
        expected = preset(to_tensor(Image.open(file)))
        assert agent.model.x[row].shape == expected.shape == (3, 28, 28)
        assert float((agent.model.x[row] - expected).abs().mean()) < 0.02  # rounding of the scaled size aside
    agent, _ = ask(made, **{**keys, "image_size": [43, 50]}, mean=[0.0] * 3, std=[1.0] * 3)
    np.testing.assert_allclose(agent.model.x[1], to_tensor(Image.open(made.images[1])), atol=1e-6)
