"""CIFAR-10's binary version, on files of the format with other contents."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from cifar10_files import write_batches
from conftest import refused

from l2d.cache_builder.agents import make_agent
from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import load_recipe
from l2d.data.cache.reader import CostCache
from l2d.data.errors import DataError, UsageError
from l2d.data.samples.images import decode_thumbnails
from l2d.data.sources.cifar10 import CLASSES, Cifar10Config, load_cifar10


@pytest.fixture
def batches(tmp_path):
    return write_batches(tmp_path / "cifar-10-batches-bin")


def load(folder: Path, **settings):
    return load_cifar10(Cifar10Config(path=folder, **settings), "test")


def test_every_pixel_is_where_it_belongs(batches, tmp_path):
    dataset = load(tmp_path, pool=4)
    assert len(dataset) == 6 * 24
    assert dataset.classes == CLASSES
    for position, sample in enumerate(dataset.ids):
        source, record = sample.split("/")
        labels, images = batches[source]
        image = images[int(record)]
        assert dataset.target_cla[position] == labels[int(record)]
        np.testing.assert_array_equal(dataset.pixels[position], image.transpose(2, 0, 1))
        means = [
            image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4, colour].mean() / 255
            for colour in range(3)
            for row in range(8)
            for column in range(8)
        ]
        np.testing.assert_allclose(dataset.features[position], means, rtol=1e-6)
        assert (dataset.split[position] == "test") == (source == "test_batch")
        assert dataset.columns["class"][position] == CLASSES[labels[int(record)]]
    assert (dataset.split == "validation").sum() == 12
    assert load(tmp_path / "cifar-10-batches-bin", pool=4).fingerprint() == dataset.fingerprint()


def test_less_training_data_leaves_the_other_splits_alone(batches, tmp_path):
    whole, small, smaller = load(tmp_path), load(tmp_path, train_images=30), load(tmp_path, train_images=10)
    ids = [
        {split: set(np.array(d.ids)[d.split == split]) for split in np.unique(d.split)} for d in (whole, small, smaller)
    ]
    assert [len(found["train"]) for found in ids] == [108, 30, 10]
    assert ids[2]["train"] < ids[1]["train"] < ids[0]["train"]
    for split in ("validation", "test"):
        assert ids[0][split] == ids[1][split] == ids[2][split]
    refused(lambda: load(tmp_path, train_images=109), DataError, "109", "108")


def test_what_is_wrong_is_named(batches, tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    file = folder / "data_batch_2.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    refused(lambda: load(tmp_path), DataError, "data_batch_2.bin", "3073")
    file.write_bytes(b"")
    refused(lambda: load(tmp_path), DataError, "data_batch_2.bin")
    file.write_bytes(whole[: 3073 * 3] + b"\x0a" + whole[3073 * 3 + 1 :])
    refused(lambda: load(tmp_path), DataError, "label 10", "record 3")
    file.unlink()
    refused(lambda: load(tmp_path), DataError, "no such file", "data_batch_2.bin")
    file.write_bytes(whole)
    (folder / "batches.meta.txt").write_text("cat dog")
    refused(lambda: load(tmp_path), DataError, "2 classes")


def test_pickles_are_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path(tmp_path / "sprung").mkdir, ())

    for number in range(1, 6):
        (tmp_path / f"data_batch_{number}").write_bytes(pickle.dumps(Trap()))
    refused(lambda: load(tmp_path), DataError, "pickled", "binary version")
    assert not (tmp_path / "sprung").exists()


RECIPE = """
[dataset]
kind = "cifar10"
path = "."
pool = 8
[costs.cla]
kind = "zero_one"
[[agents]]
name = "model"
kind = "two_head"
epochs = 2
[[agents]]
name = "seer"
kind = "python"
file = "seer.py"
"""
SEER = """
def ask(batch):
    assert batch.pixels.shape[1:] == (3, 32, 32) and batch.pixels.dtype == "uint8"
    return {"cla": batch.target_cla}
"""


def test_the_images_are_in_the_cache(batches, tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "seer.py").write_text(SEER)
    build(load_recipe(str(tmp_path / "recipe.toml")), tmp_path / "cache", device="cpu")
    cache = CostCache(tmp_path / "cache")
    assert cache.verify() > 0
    assert cache.record.inputs["image"] == {"kind": "image", "size": 32}
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "cache" / "samples" / "00000.parquet")
    dataset = load(tmp_path)
    np.testing.assert_array_equal(decode_thumbnails(table["image"].to_pylist()), dataset.pixels)


NET = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 5, stride=3)
        self.head = torch.nn.Linear(4 * 10 * 10, 10)

    def forward(self, x):
        return self.head(self.conv(x).relu().flatten(1))
"""
TORCH = """
[[agents]]
name = "net"
kind = "torch"
factory = "net:Net"
weights = "net.pth"
mean = [0.5, 0.4, 0.3]
std = [0.2, 0.25, 0.3]
batch_size = 50
"""


def test_a_torch_agent_answers_as_its_module_does(batches, tmp_path):
    import torch

    (tmp_path / "net.py").write_text(NET)
    scope: dict = {}
    exec(NET, scope)  # the module itself, without l2d
    torch.manual_seed(0)
    module = scope["Net"]().eval()
    torch.save(module.state_dict(), tmp_path / "net.pth")
    (tmp_path / "recipe.toml").write_text(RECIPE.split("[[agents]]")[0] + TORCH)
    build(load_recipe(str(tmp_path / "recipe.toml")), tmp_path / "cache", device="cpu")
    predicted = CostCache(tmp_path / "cache").predictions("net", 0)
    images = np.stack([batches[source][1][int(row)] for source, row in (i.split("/") for i in load(tmp_path).ids)])
    inputs = (torch.from_numpy(images).float() / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.25, 0.3])
    with torch.inference_mode():
        expected = module(inputs.permute(0, 3, 1, 2)).softmax(dim=1).numpy()
    found = np.stack(predicted["pred_prob"].to_pylist())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert predicted["pred_cla"].to_pylist() == expected.argmax(axis=1).tolist()
    assert len(set(predicted["pred_cla"].to_pylist())) > 1


@pytest.mark.parametrize(("kind", "name"), [("python", "seer"), ("torch", "net")])
def test_other_pixels_are_other_answers(batches, tmp_path, kind, name):
    """An agent that has seen the images is asked again when one of them changes."""
    (tmp_path / "seer.py").write_text(SEER)
    (tmp_path / "net.py").write_text(NET)
    text = RECIPE if kind == "python" else RECIPE.split("[[agents]]")[0] + TORCH.replace('weights = "net.pth"\n', "")
    (tmp_path / "recipe.toml").write_text(text)
    (config,) = [one for one in load_recipe(str(tmp_path / "recipe.toml")).agents if one.name == name]
    agent = make_agent(config)
    before = agent.fingerprint(load(tmp_path))
    file = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(bytes(content))
    after = agent.fingerprint(load(tmp_path))
    assert [field for field in before if before[field] != after[field]] == ["dataset.pixels"]


def test_a_cost_without_a_target_is_refused(batches, tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE + '\n[costs.reg]\nkind = "absolute"\n')
    (tmp_path / "seer.py").write_text(SEER)
    recipe = load_recipe(str(tmp_path / "recipe.toml"))
    refused(lambda: build(recipe, tmp_path / "cache", device="cpu"), UsageError, "costs.reg", "target_reg")
