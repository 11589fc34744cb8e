"""Options of training: declared once, in TrainConfig; everything else that names them is held to it here."""

from __future__ import annotations

import inspect
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import pytest

from l2d import cli
from l2d.data.errors import UsageError
from l2d.data.networks.schedules import SCHEDULES
from l2d.data.options import as_typed, declared, markdown_table
from l2d.rejector import settings
from l2d.rejector.commands.train import sweep, train
from l2d.rejector.estimator import TRAINING, DeferralRejector
from l2d.rejector.losses import LOSSES
from l2d.rejector.networks import NETWORKS
from l2d.rejector.rows.input import FAILURES
from l2d.rejector.settings import INPUT_OF, OF_IMAGES, TrainConfig

#: One value for each field that is not its default.
OTHERS = {
    "network": "token_transformer", "hidden": 16, "layers": 3, "backbone": "resnet34",
    "backbone_weights": "random", "unfreeze": "layer4", "augment": "crop", "autocast": True,
    "images": "/data/VOCdevkit", "image_size": 224,
    "loss": "regression", "recentre": True, "epochs": 7,
    "batch_size": 8, "lr": 0.25, "schedule": "linear", "warmup": 0.5, "weight_decay": 0.125, "dropout": 0.5,
    "patience": 4, "memory": 5_000_000, "classifier": "own", "alpha": 0.5, "train_rows": 0.5, "guard": 0.25,
    "fallback": "expert", "router_cost": 0.5, "failures": "drop",
}  # fmt: skip


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (settings.Network, NETWORKS),
        (settings.Network, INPUT_OF),
        (settings.Loss, LOSSES),
        (settings.Schedule, SCHEDULES),
        (settings.Failures, FAILURES),
    ],
)
def test_choices_are_the_names_in_the_tables(names, table):
    assert set(get_args(names)) == set(table)


def test_every_field_is_an_option_with_help():
    assert list(declared(TrainConfig)) == list(asdict(TrainConfig())) == list(OTHERS)
    for name, one in declared(TrainConfig).items():
        assert one.help.endswith("."), name
        assert one.panel, name


@pytest.mark.parametrize("command", [train, sweep])
def test_commands_take_every_option_with_the_library_s_default(command):
    parameters = inspect.signature(command).parameters
    assert {name: parameters[name].default for name in OTHERS} == asdict(TrainConfig())


def test_the_estimator_has_the_same_defaults():
    parameters = inspect.signature(DeferralRejector).parameters
    defaults = asdict(TrainConfig())
    assert {name: parameters[name].default for name in TRAINING} == {name: defaults[name] for name in TRAINING}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_typed_gives_the_settings_again(name, monkeypatch):
    """Through the program's own parser: words for a field that differs, parsed, give an equal configuration."""
    base = {"network": "token_transformer"} if name in ("dropout", "layers") else {}
    base = {"network": "image"} if name in (*OF_IMAGES, "images") else base
    base = {"network": "conv", "images": "/data"} if name == "image_size" else base
    config = TrainConfig(**base | {name: OTHERS[name]})
    seen = []
    monkeypatch.setattr("l2d.rejector.library.train", lambda *_, config, **__: seen.append(config))
    monkeypatch.setattr("l2d.rejector.commands.train._print_on_test", lambda *_, **__: False)
    words = shlex.split(shlex.join(["train", "some.cache", "--out", "run", *as_typed(config)]))
    cli.app(words, standalone_mode=False)
    assert seen == [config]
    assert config != TrainConfig()


def test_a_flag_that_is_off_by_default_can_be_said():
    assert as_typed(TrainConfig(recentre=True)) == ["--recentre"]
    assert as_typed(replace(TrainConfig(recentre=True), recentre=False)) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"network": "MPL"}, ["network = 'MPL'", "did you mean 'mlp'?"]),
        ({"loss": "hinge"}, ["loss = 'hinge'", "surrogate, regression, one_vs_all"]),
        ({"epochs": 0}, ["epochs = 0", ">= 1"]),
        ({"lr": 0.0}, ["lr = 0.0", "> 0"]),
        ({"lr": float("nan")}, ["lr = nan", "> 0"]),
        ({"weight_decay": float("inf")}, ["weight_decay = inf", ">= 0"]),
        ({"warmup": 1.5}, ["warmup = 1.5", ">= 0 and <= 1"]),
        ({"dropout": 1.0, "network": "token_transformer"}, ["dropout = 1.0", "< 1"]),
        ({"alpha": -0.1}, ["alpha = -0.1", ">= 0 and <= 1"]),
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong, words):
    with pytest.raises(UsageError) as refused:
        TrainConfig(**wrong)
    assert all(word in str(refused.value) for word in words), str(refused.value)


def test_the_documentation_s_table_is_made_from_the_fields():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    made = page.split("<!-- made from rejector/settings.py -->\n")[1].split("<!-- end -->")[0]
    assert made == markdown_table(TrainConfig)
