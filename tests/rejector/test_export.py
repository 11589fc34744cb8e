"""The exported rejector, run by onnxruntime, against the allocations that the run itself wrote."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from test_training import TASKS, make_table, point

from l2d.data.cache import store
from l2d.data.errors import UsageError
from l2d.rejector.export import export_run, onnx_model
from l2d.rejector.route import route
from l2d.rejector.runs.files import RUN_FILE
from l2d.rejector.runs.run import load_run
from l2d.rejector.settings import TrainConfig
from l2d.rejector.training.loop import train_grid


@pytest.fixture
def home(patient_runs) -> Path:
    return patient_runs


@pytest.fixture(scope="module")
def exported(patient_runs, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("exported") / "rejector.onnx"
    export_run(patient_runs / "mlp", file)
    return file


def session(model: Path | onnx.ModelProto) -> onnxruntime.InferenceSession:
    content = model.read_bytes() if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def samples(cache: Path) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(part) for part in sorted((cache / "samples").glob("*.parquet"))])


def assert_runs_as_trained(file: Path, run: Path, inputs: pl.DataFrame, pixels_or_features: np.ndarray) -> None:
    """Scores and agents of every test row, in batches of 1, 7 and all, against the run's allocations."""
    rows = pl.Series([split == "test" for split in inputs["split"]]).arg_true().to_numpy()
    ids = inputs["sample_id"].gather(rows)
    allocations = pl.read_parquet(run / "allocations.parquet")
    expected = pl.DataFrame({"sample_id": ids}).join(allocations, on="sample_id", how="left", maintain_order="left")
    assert expected["split"].unique().to_list() == ["test"]
    opened = session(file)
    (entry,) = opened.get_inputs()
    for size in (1, 7, len(rows)):
        parts = [
            opened.run(None, {entry.name: pixels_or_features[rows[k : k + size]]}) for k in range(0, len(rows), size)
        ]
        scores, agent = (np.concatenate(parts) for parts in zip(*parts, strict=True))
        assert agent.dtype == np.int64
        assert agent.tolist() == expected["agent_index"].to_list()
        np.testing.assert_allclose(scores, expected.select(pl.col("^score_.*$")), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("network", ["linear", "mlp", "transformer", "best"])
@pytest.mark.slow
def test_every_row_of_the_test_split_goes_to_the_same_agent(home, tmp_path, network):
    report = export_run(home / network, tmp_path / "rejector.onnx")
    assert (report.input, report.shape) == ("features", ["batch", 6])
    assert report.num_bytes == (tmp_path / "rejector.onnx").stat().st_size
    inputs = samples(home / "cache")
    assert pl.read_parquet(home / network / "allocations.parquet")["agent_index"].n_unique() >= 2
    assert_runs_as_trained(tmp_path / "rejector.onnx", home / network, inputs, inputs["features"].to_numpy())


@pytest.mark.parametrize("network", ["linear", "mlp", "transformer", "best"])
@pytest.mark.slow
def test_missing_numbers_and_empty_batches_are_what_route_makes_of_them_in_every_runtime(home, tmp_path, network):
    """A table with holes, routed; the same features with NaN or infinities in their place, through the file."""
    table = pl.read_parquet(home / "patients.parquet").head(60)
    holes = {name: np.random.default_rng(seed).random(60) < 0.4 for seed, name in enumerate(("x1", "x2"))}
    with_holes = table.with_columns(
        pl.when(pl.Series(~hole)).then(pl.col(name)).alias(name) for name, hole in holes.items()
    )
    with_holes.write_parquet(tmp_path / "holes.parquet")
    route(home / network, tmp_path / "holes.parquet", tmp_path / "out.parquet")
    expected = pl.read_parquet(tmp_path / "out.parquet")
    encoder = load_run(home / network).input.encoder
    features = encoder.transform(with_holes)
    places = {name: encoder.names.index(name) for name in holes}
    for number, (name, hole) in enumerate(holes.items()):
        features[hole, places[name]] = [np.nan, np.inf, -np.inf][number]
        if f"{name} is missing" in encoder.names:
            features[hole, encoder.names.index(f"{name} is missing")] = 0  # set inside, as route sets it
    assert any(f"{name} is missing" in encoder.names for name in holes)
    file = tmp_path / "rejector.onnx"
    export_run(home / network, file)
    runtime, reference = session(file), ReferenceEvaluator(onnx.load(file))
    for opened in (runtime, reference):
        scores, agent = opened.run(None, {"features": features})
        assert agent.tolist() == expected["agent_index"].to_list()
        np.testing.assert_allclose(scores, expected.select(pl.col("^score_.*$")), rtol=1e-4, atol=1e-5)
        scores, agent = opened.run(None, {"features": features[:0]})
        assert scores.shape == (0, 4)
        assert (agent.shape, agent.dtype) == ((0,), np.int64)


@pytest.mark.slow
def test_without_an_encoder_what_is_missing_becomes_the_mean():
    table = make_table(100, seed=1)
    config = TrainConfig(network="linear", epochs=1)
    rejector = train_grid([point()], table, make_table(50, seed=2), config, tasks=TASKS)[0]
    opened = session(onnx_model(rejector, ["a", "b", "c"]))
    rows = table.features[:4].numpy().copy()
    rows[[0, 1, 2], [1, 2, 3]] = np.nan, np.inf, -np.inf
    filled = rows.copy()
    filled[[0, 1, 2], [1, 2, 3]] = np.asarray(rejector.state["feature_mean"])[[1, 2, 3]]
    np.testing.assert_array_equal(opened.run(None, {"features": rows})[0], opened.run(None, {"features": filled})[0])


@pytest.mark.slow
def test_images_go_in_as_pixels(detection_runs, tmp_path):
    import io

    from PIL import Image

    cache, runs = detection_runs
    report = export_run(runs["conv"], tmp_path / "rejector.onnx")
    assert (report.input, report.shape) == ("image", ["batch", 3, 16, 16])
    inputs = samples(cache)
    pixels = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in inputs["image"]]
    images = (np.stack(pixels).transpose(0, 3, 1, 2) / 255).astype(np.float32)
    assert_runs_as_trained(tmp_path / "rejector.onnx", runs["conv"], inputs, images)


@pytest.mark.slow
def test_ties_go_to_the_lowest_agent(home):
    rejector = load_run(home / "linear").rejector
    zero, bias = torch.zeros_like(rejector.state["weight"]), torch.tensor([-1.0, 2.0, 2.0, 2.0])
    tied = replace(rejector, state={**rejector.state, "weight": zero, "bias": bias})
    model = session(onnx_model(tied, ["a", "b", "c", "d"]))
    rows = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    assert model.run(["agent"], {"features": rows})[0].tolist() == [1] * 50


@pytest.mark.slow
def test_the_file_says_what_it_is_and_nothing_of_this_machine(home, exported):
    opened = session(exported)
    facts = opened.get_modelmeta().custom_metadata_map
    point = load_run(home / "mlp").point
    assert json.loads(facts["agents"]) == ["model", "expert", "cheap", "asked"]
    assert json.loads(facts["query_costs"]) == pytest.approx([0.0, 0.15, 0.02, 0.02])
    assert facts["method"] == "multi-task"
    assert facts["run_id"] == point.run_id
    assert json.loads(facts["lambda"]) == {"cla": 1.0, "reg": 0.0}
    names = ["x1", "x2", "x2 is missing", "ward = a", "ward = b", "ward = c"]
    assert json.loads(facts["feature_names"]) == names
    assert json.loads(facts["input"])["encoder"][1]["expression"] == "x2"
    assert facts["l2d_version"]
    content = exported.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in content
    assert b".py" not in content
    assert [(out.name, out.shape, out.type) for out in opened.get_outputs()] == [
        ("scores", ["batch", 4], "tensor(float)"),
        ("agent", ["batch"], "tensor(int64)"),
    ]


def test_the_file_needs_neither_torch_nor_l2d(exported):
    code = (
        "import sys, numpy, onnxruntime\n"
        "model = onnxruntime.InferenceSession('rejector.onnx', providers=['CPUExecutionProvider'])\n"
        "print(model.run(['agent'], {'features': numpy.zeros((3, 6), numpy.float32)})[0].shape)\n"
        "assert not {'torch', 'l2d'} & set(sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=exported.parent, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "(3,)\n"), result.stderr


@pytest.mark.slow
def test_what_is_there_is_replaced_only_when_told_also_by_a_run_of_before_names_were_written_down(home, tmp_path):
    file = tmp_path / "rejector.onnx"
    file.write_bytes(b"the one in use")
    with pytest.raises(UsageError, match="there already"):
        export_run(home / "linear", file)
    assert file.read_bytes() == b"the one in use"
    shutil.copytree(home / "linear", tmp_path / "run")
    facts = store.read_json(tmp_path / "run" / RUN_FILE)
    del facts["input"]
    store.commit_json(tmp_path / "run" / RUN_FILE, facts, replace=True)
    export_run(tmp_path / "run", file, overwrite=True)
    found = session(file).get_modelmeta().custom_metadata_map
    assert "agents" in found
    assert "feature_names" not in found


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_without_the_extra_it_says_what_to_install(home, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=package) as refused:
        export_run(home / "linear", tmp_path / "rejector.onnx")
    assert "l2d[onnx]" in refused.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_model_that_differs_is_never_written(home, tmp_path, monkeypatch):
    """Exporters have been wrong before: what the runtime gives is compared with what torch gives."""
    from l2d.rejector.training import graph

    honest = graph.Deployed.forward
    monkeypatch.setattr(graph.Deployed, "forward", lambda self, inputs: honest(self, inputs * 1.01))
    with pytest.raises(RuntimeError, match="differs from the rejector"):
        export_run(home / "mlp", tmp_path / "rejector.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("holds", [False, True])
def test_best_is_exported_with_its_guard_and_weights(home, holds):
    rejector = load_run(home / "best").rejector
    rejector = replace(rejector, guard={**rejector.guard, "holds": holds, "fallback": 2})
    model = session(onnx_model(rejector, ["a", "b", "c", "d"]))
    features = np.stack(samples(home / "cache")["features"].to_list()).astype(np.float32)
    scores, agent = model.run(None, {"features": features})
    expected = rejector.scores(features)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert agent.tolist() == expected.argmax(axis=1).tolist()
    assert (set(agent.tolist()) == {2}) == holds
