"""Training goes on after a kill to the same weights; stops early as alone; several processes do what one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from l2d.data.cache.reader import CostCache
from l2d.data.errors import CorruptPart, UsageError
from l2d.rejector.grid import make_grid
from l2d.rejector.settings import TrainConfig
from l2d.rejector.sweep import sweep
from l2d.rejector.training.checkpoint import Checkpoint, Progress
from l2d.rejector.training.points import checkpoint_file
from l2d.rejector.training.stack import Stack

SMALL = {"batch_size": 4, "memory": 12_500}  # a few parts of the training split, and some batches, fit
SETTINGS = {"epochs": 4, "batch_size": 16, "hidden": 16}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> CostCache:
    from conftest import write_table
    from recipes import RECIPE

    from l2d.cache_builder.builder import build
    from l2d.cache_builder.recipe import load_recipe

    folder = tmp_path_factory.mktemp("resume")
    write_table(folder, rows=600)
    (folder / "recipe.toml").write_text(RECIPE)
    build(load_recipe(str(folder / "recipe.toml")), folder / "cache")
    return CostCache(folder / "cache")


def grid(cache: CostCache, betas=(0.0, 0.2), seeds=(0, 1)):
    return make_grid(cache, methods=["multi-task"], weights=[], betas=list(betas), nus=[1.0], seeds=list(seeds))


def train(cache: CostCache, out: Path, config: TrainConfig, points=None, **options) -> dict[str, dict]:
    points = points or grid(cache)
    folders = [out / point.run_id for point in points]
    sweep(cache, points, folders, config, **options)
    return {folder.name: load_file(folder / "rejector.safetensors") for folder in folders}


def equal(one: dict[str, dict], other: dict[str, dict]) -> bool:
    return all(torch.equal(one[run][name], other[run][name]) for run in one for name in one[run])


class Killed(BaseException):
    pass


@pytest.mark.parametrize("network", ["mlp", "transformer"])
@pytest.mark.parametrize(("memory", "batch_size"), [(None, 16), (SMALL["memory"], SMALL["batch_size"])])
@pytest.mark.parametrize("kills", [[8], [30, 9, 50], [60]])
@pytest.mark.slow
def test_training_that_was_killed_goes_on_to_the_same_weights(
    cache, tmp_path, monkeypatch, network, memory, batch_size, kills
):
    monkeypatch.setattr("l2d.rejector.training.loop.BATCHES_AT_ONCE", 2)
    config = TrainConfig(epochs=4, batch_size=batch_size, hidden=16, network=network, memory=memory)
    whole = train(cache, tmp_path / "whole", config)
    step = Stack.step
    for after in kills:
        left = after

        def stop(stack, *args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return step(stack, *args, **kwargs)

        monkeypatch.setattr(Stack, "step", stop)
        with pytest.raises(Killed):
            train(cache, tmp_path / "killed", config, checkpoint_every=0)
        assert not (tmp_path / "killed" / grid(cache)[0].run_id).exists()
    assert len(list((tmp_path / "killed").glob(".training-*.safetensors"))) == 1
    steps = []
    monkeypatch.setattr(Stack, "step", lambda stack, *a, **k: (steps.append(1), step(stack, *a, **k))[1])
    resumed = train(cache, tmp_path / "killed", config)
    if network == "mlp":
        assert equal(resumed, whole)
    for run, state in whole.items():  # autograd's sums may differ in the last bit from one pass to the next
        for name, value in state.items():
            torch.testing.assert_close(resumed[run][name], value, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(Stack, "step", lambda stack, *a, **k: (whole_steps.append(1), step(stack, *a, **k))[1])
    whole_steps = []
    train(cache, tmp_path / "again", config)
    assert len(steps) < len(whole_steps)  # not from the beginning
    assert not list((tmp_path / "killed").glob(".training-*"))
    curves = [
        json.loads((tmp_path / name / grid(cache)[0].run_id / "run.json").read_text())["history"]
        for name in ("whole", "killed")
    ]
    torch.testing.assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_killed_process_goes_on_with_the_same_command(cache, tmp_path):
    out = tmp_path / "runs"
    code = (
        "import sys, l2d.rejector.sweep; from functools import partial; from l2d import cli\n"
        "l2d.rejector.sweep.sweep = partial(l2d.rejector.sweep.sweep, checkpoint_every=0)\n"
        f"sys.argv = ['l2d', 'sweep', {str(cache.path)!r}, '--out', {str(out)!r}, '--epochs', '400',"
        "'--batch-size', '16', '--seeds', '2', '--hidden', '16']\ncli.main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.glob(".training-*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(out.glob("multi-task*"))
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    config = TrainConfig(epochs=400, batch_size=16, hidden=16)
    whole = train(cache, tmp_path / "whole", config, grid(cache, betas=(0.0,)))
    found = {run: load_file(out / run / "rejector.safetensors") for run in whole}
    assert equal(found, whole)


def test_other_settings_are_never_resumed_from(cache, tmp_path):
    todo = [(point, tmp_path / point.run_id) for point in grid(cache)]
    config = TrainConfig(**SETTINGS)
    files = {
        checkpoint_file(todo, config, cache),
        checkpoint_file(todo[:-1], config, cache),
        checkpoint_file(todo, replace(config, lr=1e-4), cache),
        checkpoint_file(todo, replace(config, memory=10**6), cache),
    }
    assert len(files) == 4


def test_a_damaged_checkpoint_is_named(tmp_path):
    checkpoint = Checkpoint(tmp_path / "one.safetensors", every=0)
    assert checkpoint.load() is None
    saved = Progress(3, 5, torch.arange(2.0), torch.ones(3, 2, 2), {"a": torch.arange(4), "b": torch.tensor(1.5)})
    checkpoint.save(saved)
    found = checkpoint.load()
    assert (found.epoch, found.step) == (3, 5)
    assert torch.equal(found.state["a"], saved.state["a"])
    assert torch.equal(found.history, saved.history)
    content = bytearray(checkpoint.file.read_bytes())
    for position in (len(content) - 3, 20, 2):
        damaged = bytearray(content)
        damaged[position] ^= 4
        checkpoint.file.write_bytes(damaged)
        with pytest.raises(CorruptPart, match=r"one\.safetensors"):
            checkpoint.load()


def test_patience_stops_a_point_in_a_grid_as_it_stops_alone(cache, tmp_path):
    config = TrainConfig(epochs=60, batch_size=64, hidden=16, lr=3e-3, schedule="constant", patience=6)
    points = grid(cache, seeds=(0, 1, 2))
    together = train(cache, tmp_path / "together", config, points)
    for point in points:
        alone = train(cache, tmp_path / "alone", config, [point])[point.run_id]
        assert equal({"": alone}, {"": together[point.run_id]})  # to the last bit, whichever points have left by then
    epochs = []
    for point in points:
        facts = [json.loads((tmp_path / n / point.run_id / "run.json").read_text()) for n in ("together", "alone")]
        assert facts[0]["best_epoch"] == facts[1]["best_epoch"]
        risks = [risk for _, risk in facts[0]["history"]]
        assert len(risks) == len(facts[1]["history"])
        best = risks.index(min(risks))
        assert best == facts[0]["best_epoch"]
        assert len(risks) in (best + 7, 60)
        epochs.append(len(risks))
    assert min(epochs) < 60
    assert len(set(epochs)) > 1  # some left before others


def test_training_that_was_killed_after_points_had_left_goes_on_to_the_same_weights(cache, tmp_path):
    points = grid(cache, seeds=(0, 1, 2))
    config = TrainConfig(epochs=60, batch_size=64, hidden=16, lr=3e-3, schedule="constant", patience=6)
    whole = train(cache, tmp_path / "whole", config, points)
    ends = [json.loads(file.read_text())["history"] for file in sorted((tmp_path / "whole").glob("*/run.json"))]
    first_end = min(map(len, ends))
    assert first_end + 2 < max(map(len, ends))

    def killed(epoch: int, rows: int, risk: float) -> None:
        if epoch > first_end:
            raise Killed

    with pytest.raises(Killed):
        train(cache, tmp_path / "killed", config, points, checkpoint_every=0, progress=killed)
    resumed = train(cache, tmp_path / "killed", config, points)
    assert equal(resumed, whole)
    for run in whole:
        histories = [json.loads((tmp_path / n / run / "run.json").read_text())["history"] for n in ("whole", "killed")]
        assert histories[0] == histories[1]


@pytest.mark.slow
def test_memory_bounds_the_window_and_too_little_is_refused(cache, tmp_path):
    with pytest.raises(UsageError, match="do not hold a window"):
        train(cache, tmp_path / "none", TrainConfig(**SETTINGS, memory=1000))
    settings = {"epochs": 2, "batch_size": SMALL["batch_size"], "hidden": 16}
    some = train(cache, tmp_path / "some", TrainConfig(**settings, memory=SMALL["memory"]))
    everything = train(cache, tmp_path / "everything", TrainConfig(**settings, memory=10**9))
    unbound = train(cache, tmp_path / "unbound", TrainConfig(**settings))
    assert equal(everything, unbound)
    assert not equal(some, unbound)  # other batches, as only a window is shuffled at once


@pytest.mark.parametrize("network", ["mlp", "transformer"])
@pytest.mark.slow
def test_two_processes_train_what_one_does(cache, tmp_path, network):
    settings = ["--epochs", "3", "--batch-size", "50", "--seeds", "2", "--hidden", "16", "--rejector", network]
    out = tmp_path / "two"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        "-m",
        "cli",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, "sweep", str(cache.path), "--out", str(out), "--device", "cpu", "--format", "json", *settings],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)) == 2  # one process speaks
    config = TrainConfig(epochs=3, batch_size=50, hidden=16, network=network)
    one = train(cache, tmp_path / "one", config, grid(cache, betas=(0.0,)))
    for run, state in one.items():
        two = load_file(out / run / "rejector.safetensors")
        for name, value in state.items():
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)
