"""Runs on disk: whole or absent, read back as saved, tied to their cache; and caches that are not ready."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from recipes import RECIPE, STAGE_TWO_RECIPE

import l2d
from l2d.data.cache import store
from l2d.data.cache.reader import CostCache
from l2d.data.errors import AlreadyThere, CorruptPart, DataError, FingerprintMismatch, IncompleteCache, UsageError
from l2d.rejector.evaluation.evaluate import evaluate_runs
from l2d.rejector.grid import make_grid
from l2d.rejector.rows.stream import open_streams
from l2d.rejector.rows.table import load_tables
from l2d.rejector.runs.files import RUN_FILE, find_runs
from l2d.rejector.runs.run import load_run
from l2d.rejector.runs.saving import save_runs
from l2d.rejector.settings import TrainConfig
from l2d.rejector.sweep import sweep
from l2d.rejector.training.loop import train_grid

SPLITS = ("train", "validation", "test")


ANOTHER_CHEAP = {"agents.cheap.cla": "CASE WHEN x1 > 0.3 THEN 'yes' ELSE 'no' END"}


@pytest.fixture
def cache(make_cache, tmp_path) -> CostCache:
    return make_cache(tmp_path)


@pytest.fixture
def rejector(cache):
    """One rejector trained for two epochs, and the tables it was trained on."""
    tables = load_tables(cache, SPLITS)
    points = make_grid(cache, methods=["multi-task"], weights=[], betas=[{"expert": 0.1}], nus=[1.5], seeds=[3])
    config = TrainConfig(hidden=8, epochs=2, batch_size=64)
    return train_grid(points, tables["train"], tables["validation"], config, tasks=cache.record.tasks)[0], tables


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_read_back_as_it_was_saved(cache, rejector, tmp_path):
    trained, tables = rejector
    save_runs([trained], [tmp_path / "run"], cache, tables, seconds=1.0)
    run = load_run(tmp_path / "run")
    np.testing.assert_array_equal(run.rejector.scores_on(tables["test"]), trained.scores_on(tables["test"]))
    assert run.point == trained.point
    assert run.point.beta == (("expert", 0.1),)
    assert run.rejector.config == trained.config
    assert run.rejector.state.keys() == trained.state.keys()
    assert all(torch.equal(run.rejector.state[name], value) for name, value in trained.state.items())
    assert (run.rejector.best_epoch, run.rejector.validation_risk) == (trained.best_epoch, trained.validation_risk)
    assert run.rejector.history == trained.history
    assert run.agents == ["model", "expert", "cheap", "asked"]
    assert run.cache_path.samefile(cache.path)


@pytest.mark.parametrize("failing", ["commit_bytes", "commit_batches", "commit_json"])
@pytest.mark.parametrize("error", [RuntimeError("stop"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_run_folder_is_never_half_written(cache, rejector, tmp_path, monkeypatch, failing, error):
    trained, tables = rejector

    def fail(*args, **kwargs):
        raise error

    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(store, failing, fail)
    with pytest.raises((DataError, type(error))):
        save_runs([trained], [tmp_path / "runs" / "run"], cache, tables, seconds=1.0)
    assert list((tmp_path / "runs").rglob("*")) == []


def test_a_failed_overwrite_leaves_the_old_run(cache, rejector, tmp_path, monkeypatch):
    trained, tables = rejector
    save_runs([trained], [tmp_path / "runs" / "run"], cache, tables, seconds=1.0)
    before = everything(tmp_path / "runs")

    def fail(*args, **kwargs):
        raise RuntimeError("stop")

    monkeypatch.setattr(store, "commit_json", fail)
    with pytest.raises(RuntimeError):
        save_runs([trained], [tmp_path / "runs" / "run"], cache, tables, seconds=2.0, overwrite=True)
    assert everything(tmp_path / "runs") == before


def test_an_existing_run_is_replaced_only_when_told(cache, rejector, tmp_path):
    trained, tables = rejector
    folder = tmp_path / "run"
    save_runs([trained], [folder], cache, tables, seconds=1.0)
    before = everything(folder)
    with pytest.raises(DataError, match="there already"):
        save_runs([trained], [folder], cache, tables, seconds=2.0)
    assert everything(folder) == before
    save_runs([trained], [folder], cache, tables, seconds=2.0, overwrite=True)
    assert json.loads((folder / "run.json").read_text())["grid_seconds"] == 2.0


def test_overwrite_never_removes_a_folder_that_is_no_run(cache, rejector, tmp_path):
    trained, tables = rejector
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(DataError, match="there already"):
        save_runs([trained], [tmp_path / "thesis"], cache, tables, seconds=1.0, overwrite=True)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    "changes",
    [ANOTHER_CHEAP, {"costs.reg.clamp": 4.0}, {"dataset.features": ["x1"]}],
    ids=["agent", "cost table", "features"],
)
@pytest.mark.slow
def test_a_cache_that_has_changed_is_refused(cache, make_cache, make_runs, tmp_path, changes):
    runs = make_runs(cache, tmp_path / "runs")
    evaluate_runs(runs)
    make_cache(tmp_path, STAGE_TWO_RECIPE.but(changes), overwrite=True)
    with pytest.raises(FingerprintMismatch, match=r"that run .* was trained on") as caught:
        evaluate_runs(runs)
    assert caught.value.exit_code == 3


def test_a_run_and_its_cache_moved_together_still_evaluate(cache, make_runs, tmp_path):
    runs = make_runs(cache, tmp_path / "runs")
    before = evaluate_runs(runs)[0].result
    elsewhere = tmp_path / "elsewhere" / "deep"
    elsewhere.mkdir(parents=True)
    shutil.move(tmp_path / "cache", elsewhere / "cache")
    with pytest.raises(UsageError, match="not there any more"):
        evaluate_runs(runs)
    shutil.move(tmp_path / "runs", elsewhere / "runs")
    assert evaluate_runs(find_runs(elsewhere / "runs"))[0].result == before


@pytest.mark.slow
def test_a_moved_pair_evaluates_though_another_cache_stands_in_the_old_place(cache, make_cache, make_runs, tmp_path):
    make_runs(cache, tmp_path / "runs")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("cache", "runs"):
        shutil.move(tmp_path / name, elsewhere / name)
    make_cache(tmp_path, STAGE_TWO_RECIPE.but(ANOTHER_CHEAP))
    assert evaluate_runs(find_runs(elsewhere / "runs"))[0].run.cache_path.samefile(elsewhere / "cache")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_last_weight(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 0x40
    file.write_bytes(bytes(content))


def without(key: str):
    def edit(file: Path) -> None:
        facts = json.loads(file.read_text())
        del facts[key]
        file.write_text(json.dumps(facts))

    return edit


def other_network(file: Path) -> None:
    facts = json.loads(file.read_text())
    facts["training"]["network"] = "no-such-network"
    file.write_text(json.dumps(facts))


def other_weights(file: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2, 2)}, file)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("run.json", cut),
        ("run.json", lambda file: file.write_bytes(b"")),
        ("run.json", lambda file: file.write_bytes(b"\xff\xfe\x00")),
        ("run.json", lambda file: file.write_text("[1, 2]")),
        ("run.json", without("point")),
        ("run.json", without("cache")),
        ("run.json", without("training")),
        ("run.json", other_network),
        ("run.json", Path.unlink),
        ("rejector.safetensors", cut),
        ("rejector.safetensors", lambda file: file.write_bytes(b"")),
        ("rejector.safetensors", lambda file: file.write_bytes(b"\x80\x04pickle")),
        ("rejector.safetensors", other_weights),
        ("rejector.safetensors", flip_last_weight),
        ("rejector.safetensors", Path.unlink),
    ],
)
def test_a_damaged_run_is_refused_naming_its_folder(cache, make_runs, tmp_path, name, damage):
    run = make_runs(cache, tmp_path / "runs")[0]
    damage(run / name)
    with pytest.raises(CorruptPart) as caught:
        evaluate_runs([run])
    assert str(run) in str(caught.value)
    assert caught.value.exit_code == 3


def test_runs_are_found_in_order_and_leftovers_of_a_crash_are_not(cache, make_runs, tmp_path):
    runs = make_runs(cache, tmp_path / "runs", seeds=[2, 0, 1])
    shutil.copytree(runs[0], tmp_path / "runs" / ".run.host.1.abc.tmp")
    assert find_runs(tmp_path / "runs") == sorted(runs)
    assert find_runs(runs[0]) == [runs[0]]
    for nothing in (tmp_path / "cache", tmp_path / "absent"):
        with pytest.raises(UsageError, match="no run here"):
            find_runs(nothing)
    with pytest.raises(UsageError, match="no runs"):
        evaluate_runs([])


# --- caches that are not ready ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "missing", ["samples/00001.parquet", "agents/expert/predictions/00000.parquet", "agents/cheap/agent.json"]
)
def test_a_cache_with_a_missing_part_is_incomplete(cache, missing):
    (cache.path / missing).unlink()
    with pytest.raises(IncompleteCache) as caught:
        load_tables(CostCache(cache.path), SPLITS)
    assert caught.value.exit_code == 4
    assert "l2d build" in str(caught.value)


def test_a_cache_with_missing_costs_is_incomplete(cache):
    next(cache.path.glob("agents/asked/costs-*/00002.parquet")).unlink()
    with pytest.raises(IncompleteCache, match="asked"):
        load_tables(CostCache(cache.path), SPLITS)


def test_one_agent_alone_leaves_nothing_to_defer_to(make_cache, tmp_path):
    cache = make_cache(tmp_path, RECIPE.only("model"))
    with pytest.raises(UsageError, match="nothing to defer to") as caught:
        load_tables(cache, SPLITS)
    assert caught.value.exit_code == 2


def test_a_folder_without_a_cache_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no cost cache"):
        CostCache(tmp_path)


def test_a_run_of_before_there_were_some_settings_has_their_defaults(cache, tmp_path):
    """It is read, and the same command leaves it as it is; with another value of such a setting it is refused."""
    points = make_grid(cache, methods=["multi-task"], weights=[], betas=[{"expert": 0.1}], nus=[1.0], seeds=[3])
    config, folder = TrainConfig(hidden=8, epochs=1), tmp_path / "run"
    sweep(cache, points, [folder], config)
    facts = store.read_json(folder / RUN_FILE)
    for name in ("layers", "loss", "recentre"):
        del facts["training"][name]
    store.commit_json(folder / RUN_FILE, facts, replace=True)
    assert load_run(folder).rejector.config == config
    assert sweep(cache, points, [folder], config).trained == 0
    for other in ({"layers": 1}, {"loss": "regression"}, {"recentre": True}):
        with pytest.raises(DataError, match="other settings"):
            sweep(cache, points, [folder], TrainConfig(hidden=8, epochs=1, **other))


@pytest.mark.slow
def test_damage_anywhere_in_the_cache_is_found_before_anything_is_trained(cache, tmp_path, monkeypatch):
    """Also in parts that only the evaluation afterwards reads: predictions, say."""
    settings = {"methods": ["multi-task"], "weights": [], "betas": [], "nus": [1.0], "seeds": [0]}
    points = make_grid(cache, **settings)
    trained = []
    monkeypatch.setattr("l2d.rejector.training.points.train_grid", lambda *given, **more: trained.append(given))
    parts = sorted(cache.parts())
    assert len(parts) > 4
    for part in parts:
        whole = part.read_bytes()
        for place in (5, len(whole) // 2, len(whole) - 3):
            part.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(CorruptPart, match=part.name):
                sweep(CostCache(cache.path), points, [tmp_path / "run"], TrainConfig(network="linear", epochs=1))
        part.write_bytes(whole)
    assert not trained
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("same", [True, False])
def test_a_sweep_beside_an_identical_one_takes_its_runs(cache, tmp_path, monkeypatch, same):
    """The other sweep ends just before this one writes. A run of other settings in its place is refused, and stays."""
    points = make_grid(cache, methods=["multi-task"], weights=[], betas=[0.1, 0.2], nus=[1.0], seeds=[0])
    folders, said = [tmp_path / "runs" / "a", tmp_path / "runs" / "b"], []
    config = TrainConfig(hidden=8, epochs=1)
    sweep(
        cache, points, [tmp_path / "other" / "a", tmp_path / "other" / "b"], config if same else TrainConfig(epochs=1)
    )
    commit = store.commit_folder

    def late(path, fill, **options):
        if path == folders[0]:
            shutil.copytree(tmp_path / "other" / "a", path)
        return commit(path, fill, **options)

    monkeypatch.setattr(store, "commit_folder", late)
    if same:
        sweep(cache, points, folders, config, narrate=said.append)
        assert any("another sweep" in line and line.startswith("a ") for line in said)
        assert find_runs(tmp_path / "runs") == folders
    else:
        with pytest.raises(DataError, match="other settings"):
            sweep(cache, points, folders, config, narrate=said.append)
    theirs = (tmp_path / "other" / "a" / RUN_FILE).read_bytes()
    assert (folders[0] / RUN_FILE).read_bytes() == theirs
    assert not [path for path in (tmp_path / "runs").iterdir() if path.name.startswith(".")]


def test_a_folder_that_appears_while_another_is_filled_is_not_removed(tmp_path):
    def fill(temporary):
        (temporary / "mine").write_text("1")
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "theirs").write_text("2")

    with pytest.raises(AlreadyThere):
        store.commit_folder(tmp_path / "there", fill)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["theirs"]


def test_runs_of_a_grid_are_written_together_as_each_alone(cache, tmp_path):
    l2d.sweep(cache, tmp_path / "held", methods="multi-task", betas=[0.0, 0.1], seeds=2, epochs=2, hidden=8)
    l2d.sweep(cache, tmp_path / "held", methods="best", betas=[0.0, 0.1, 0.3])
    streams = open_streams(cache, SPLITS)
    for folder in (tmp_path / "held").iterdir():
        save_runs([load_run(folder).rejector], [tmp_path / "again" / folder.name], cache, streams, seconds=1.0)
    runs = {path.name for path in (tmp_path / "held").iterdir()}
    assert len(runs) == 7
    for run in runs:
        held, again = tmp_path / "held" / run, tmp_path / "again" / run
        for name in ("allocations.parquet", "rejector.safetensors"):
            assert (held / name).read_bytes() == (again / name).read_bytes()
        table = pq.read_table(held / "allocations.parquet")
        counts = pc.value_counts(table.filter(pc.equal(table["split"], "validation"))["agent_index"]).to_pylist()
        seen = json.loads((held / "run.json").read_text())["seen"]["validation"]
        assert {k: n for k, n in enumerate(seen) if n} == {found["values"]: found["counts"] for found in counts}


def test_a_run_that_cannot_be_written_ends_the_others(cache, tmp_path, monkeypatch):
    commit = store.commit_folder

    def fails(folder, fill, **options):
        if "seed=2" in folder.name:
            raise DataError("cannot write: the disk is full", where=folder)
        commit(folder, fill, **options)

    monkeypatch.setattr(store, "commit_folder", fails)
    with pytest.raises(DataError, match="the disk is full"):
        l2d.sweep(cache, tmp_path / "runs", methods="multi-task", seeds=4, epochs=1, hidden=8)
    monkeypatch.undo()
    assert len(l2d.sweep(cache, tmp_path / "runs", methods="multi-task", seeds=4, epochs=1, hidden=8)) == 4


def test_runs_of_one_fit_share_what_is_read_of_them(cache, tmp_path):
    folders = l2d.sweep(cache, tmp_path / "runs", methods="best", betas=[0.0, 0.1]).folders
    loaded: dict = {}
    first, second = (load_run(folder, loaded).rejector for folder in folders)
    assert first.state is second.state
    assert first.predictor is second.predictor
    assert first.point != second.point
    alone = load_run(folders[1]).rejector
    rows = np.random.default_rng(0).normal(size=(50, second.width)).astype(np.float32)
    np.testing.assert_array_equal(alone.scores(rows), second.scores(rows))
