"""Small datasets and caches that tests share."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import numpy as np
import polars as pl
import pytest
from recipes import AVERAGE, CLUSTER, COLUMN, HARD, HEAD, MODEL, RECIPE, STAGE_TWO_RECIPE, Recipe, agent

# The gate draws the same examples everywhere and always; `make fuzz` draws new ones, many more where a test sets no
# number of its own.
hypothesis.settings.register_profile("gate", derandomize=True, deadline=None)
hypothesis.settings.register_profile("fuzz", max_examples=1000, deadline=None, print_blob=True)
hypothesis.settings.load_profile("gate")


def write_table(folder: Path, rows: int = 240, seed: int = 0) -> Path:
    """A table with two informative numbers, a category, a class, a value, and three agents' answers as columns."""
    generator = np.random.default_rng(seed)
    x1, x2 = generator.normal(size=(2, rows))
    died = (x1 + 0.5 * generator.normal(size=rows) > 0).astype(int)
    stay = np.exp(1 + 0.5 * x2 + 0.1 * generator.normal(size=rows))
    table = pl.DataFrame(
        {
            "id": [f"p{row:04d}" for row in range(rows)],
            "x1": x1,
            "x2": pl.Series(np.where(generator.random(rows) < 0.1, np.nan, x2)).fill_nan(None),
            "ward": generator.choice(["a", "b", "c"], size=rows),
            "died": died,
            "stay": stay,
            "risk_good": np.clip(np.where(died == 1, 0.8, 0.2) + 0.1 * generator.normal(size=rows), 0, 1),
            "stay_good": stay * np.exp(0.05 * generator.normal(size=rows)),
            "risk_bad": np.full(rows, 0.5),
            "stay_bad": np.full(rows, stay.mean()),
        },
        strict=False,
    )
    path = folder / "patients.parquet"
    table.write_parquet(path)
    return path


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A recipe of three column agents over a small table, written to a temporary folder."""
    write_table(tmp_path)
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


# --- stage one ------------------------------------------------------------------------------------------------------


def patients(rows: int = 120, seed: int = 0) -> pl.DataFrame:
    """Numbers with gaps, a category, a class, a value and three agents' answers."""
    generator = np.random.default_rng(seed)
    x1, x2 = generator.normal(size=(2, rows))
    gaps = generator.random(rows) < 0.1
    died = (x1 + 0.5 * generator.normal(size=rows) > 0).astype(int)
    stay = np.exp(1 + 0.5 * x2)
    return pl.DataFrame(
        {
            "id": [f"p{row:04d}" for row in range(rows)],
            "x1": x1,
            "x2": [None if gap else value for gap, value in zip(gaps, x2.tolist(), strict=True)],
            "ward": generator.choice(["a", "b", "c"], size=rows).tolist(),
            "died": died,
            "stay": stay,
            "risk_good": np.clip(np.where(died == 1, 0.8, 0.2) + 0.1 * generator.normal(size=rows), 0, 1),
            "stay_good": stay * np.exp(0.05 * generator.normal(size=rows)),
            "risk_bad": generator.random(rows),
            "stay_bad": np.full(rows, 40.0),
        }
    )


class Workshop:
    """A folder with ``patients.parquet``, where recipes are written as text and built on the CPU."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.table = patients()
        self.table.write_parquet(folder / "patients.parquet")

    def recipe(self, text: str):
        """The recipe that this TOML text describes."""
        from l2d.cache_builder.recipe import load_recipe

        path = self.folder / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(str(path))

    def build(self, text: str, out: str = "cache", **options):
        """Build a recipe into ``out``; returns the report."""
        from l2d.cache_builder.builder import build

        return build(self.recipe(text), self.folder / out, device="cpu", **options)

    def cache(self, out: str = "cache"):
        """The cache at ``out``, opened."""
        from l2d.data.cache.reader import CostCache

        return CostCache(self.folder / out)

    def files(self, out: str = "cache") -> dict[str, tuple[int, bytes]]:
        """Every file beneath ``out``: relative name -> modification time and content."""
        root = self.folder / out
        found = (path for path in sorted(root.rglob("*")) if path.is_file())
        return {str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}

    def column(self, part: str, name: str, agent: str = "", out: str = "cache") -> np.ndarray:
        """A column over all chunks, read by polars: ``part`` is samples, predictions or costs-*."""
        root = self.folder / out
        folder = root / "samples" if part == "samples" else root / "agents" / agent / part
        return np.concatenate([pl.read_parquet(file)[name].to_numpy() for file in sorted(folder.glob("*.parquet"))])

    def predictions(self, name: str, out: str = "cache") -> dict[str, np.ndarray]:
        """An agent's predictions over all chunks, by column."""
        files = sorted((self.folder / out / "agents" / name / "predictions").glob("*.parquet"))
        frame = pl.concat([pl.read_parquet(file) for file in files])
        return {column: np.array(frame[column].to_list()) for column in frame.columns}

    def costs_folder(self) -> str:
        """Name of the folder of the costs in force."""
        return f"costs-{self.cache().record.cost_digest}"

    def log(self) -> list[str]:
        """Ids of the samples that the agent ``called`` was asked about, in order."""
        return (self.folder / "log").read_text().split()

    def edit_data(self) -> None:
        """Another length of stay for one patient."""
        stay = pl.when(pl.col("id") == "p0003").then(2.5).otherwise("stay").alias("stay")
        self.table.with_columns(stay).write_parquet(self.folder / "patients.parquet")


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


# --- commands -------------------------------------------------------------------------------------------------------


@pytest.fixture
def l2d(monkeypatch, capfd):
    """Run a command in this process: returns (exit code, stdout, stderr)."""
    import sys

    from l2d import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["l2d", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capfd.readouterr()
        return stopped.value.code or 0, out, err

    return run


@pytest.fixture
def l2d_done(l2d):
    """Run a command in this process that has to succeed: returns its stdout."""

    def run(*arguments: object) -> str:
        code, out, err = l2d(*arguments)
        assert code == 0, (arguments, err)
        return out

    return run


# --- stage two ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk(request):
    """A fifth of the time of the tests was spent in fsync. Those of reliability keep it: they say what it is for."""
    with pytest.MonkeyPatch.context() as patch:
        if "reliability" not in request.path.parts:
            from l2d.data.cache import store

            patch.setattr(store, "_fsync", lambda path: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread():
    """Networks here are so small that a second thread only waits; beside other tests it waits long."""
    import torch

    torch.set_num_threads(1)


ASKED = """
from pathlib import Path

import numpy as np


def ask(batch):
    with open(Path(__file__).with_name("calls.txt"), "a") as calls:
        calls.write(f"{len(batch.ids)}\\n")
    x1 = batch.columns["x1"].to_numpy()
    return {"cla": (x1 > -0.5).astype(int), "reg": np.exp(1 + 0.1 * x1)}
"""


@pytest.fixture(scope="session")
def make_cache(tmp_path_factory):
    """Builds STAGE_TWO_RECIPE (or another) over 400 patients into ``folder/cache``; returns it opened.

    The recipe's own build is done once a session and copied, since a cache may lie anywhere.
    """
    import shutil

    from l2d.cache_builder.builder import build
    from l2d.cache_builder.recipe import load_recipe
    from l2d.data.cache.reader import CostCache

    def fresh(folder: Path, recipe: str, **options) -> None:
        patients(400).write_parquet(folder / "patients.parquet")
        (folder / "asked.py").write_text(ASKED, encoding="utf-8")
        (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
        build(load_recipe(str(folder / "recipe.toml")), folder / "cache", device="cpu", **options)

    original = tmp_path_factory.mktemp("stage_two")
    fresh(original, STAGE_TWO_RECIPE)

    def make(folder: Path, recipe: str = STAGE_TWO_RECIPE, **options) -> CostCache:
        if recipe == STAGE_TWO_RECIPE and not (folder / "cache").exists():
            shutil.copytree(original, folder, dirs_exist_ok=True)
        else:
            fresh(folder, recipe, **options)
        return CostCache(folder / "cache")

    return make


@pytest.fixture(scope="session")
def make_runs():
    """Trains a small grid on a cache and saves it under ``folder``; returns the run folders in grid order."""
    from l2d.rejector.grid import make_grid
    from l2d.rejector.rows.table import load_tables
    from l2d.rejector.runs.saving import save_runs
    from l2d.rejector.settings import TrainConfig
    from l2d.rejector.training.loop import train_grid

    def make(cache, folder: Path, *, config: dict | None = None, cost: str | None = None, **grid) -> list[Path]:
        values = {"methods": ["multi-task"], "weights": [], "betas": [0.05], "nus": [1.0], "seeds": [0], **grid}
        points = make_grid(cache, cost=cost, **values)
        tables = load_tables(cache, ("train", "validation", "test"))
        settings = {"network": "linear", "epochs": 4, "batch_size": 64, "lr": 0.02, **(config or {})}
        tasks = cache.record.tasks
        found = train_grid(points, tables["train"], tables["validation"], TrainConfig(**settings), tasks=tasks)
        folders = [folder / point.run_id for point in points]
        save_runs(found, folders, cache, tables, seconds=0.1)
        return folders

    return make


COUNTED = '''
def ask(batch, log):
    """Writes down every sample it is asked about."""
    with open(log, "a") as file:
        file.writelines(f"{sample}\\n" for sample in batch.ids)
    p = batch.columns["risk_good"].to_numpy()
    return {"prob": [[1 - x, x] for x in p], "reg": batch.columns["stay_good"].to_numpy()}
'''


@pytest.fixture
def recipe(workshop) -> Recipe:
    """A recipe with an agent of every kind; the one that is called writes down the samples it was asked about."""
    (workshop.folder / "called.py").write_text(COUNTED)
    called = agent("called", "python", file="called.py", options={"log": str(workshop.folder / "log")})
    return HEAD.plus(MODEL, called, COLUMN, HARD, CLUSTER, AVERAGE)


def load_patients(folder: Path, table: pl.DataFrame, **changes):
    """The dataset of a table like :func:`patients`, with ``changes`` to its ``[dataset]``."""
    from l2d.data.sources.table import TableConfig, load_table

    path = folder / "table.parquet"
    table.write_parquet(path)
    return load_table(TableConfig(**table_settings(path, **changes)), "test")


def table_settings(path: Path, **changes) -> dict:
    """``[dataset]`` of such a table; None leaves a key out."""
    base = {"path": path, "id": "id", "target_cla": "died", "target_reg": "stay", "features": ["x1", "x2", "ward"]}
    return {name: value for name, value in {**base, **changes}.items() if value is not None}


def part_table(rows: int = 60):
    """A part with text, floats, integers and a fixed-width list."""
    import pyarrow as pa

    from l2d.data.cache import schema

    generator = np.random.default_rng(0)
    flat = pa.array(generator.random(2 * rows).astype(np.float32))
    return pa.table(
        {
            "sample_id": pa.array([f"p{row}" for row in range(rows)]),
            "cost_cla": pa.array(generator.random(rows).astype(np.float32)),
            "pred_cla": pa.array(generator.integers(5, size=rows), pa.int32()),
            "pred_prob": pa.FixedSizeListArray.from_arrays(flat, type=schema.dense(2)),
        }
    )


def refused(run, kind: type, *words: str):
    """Runs ``run``; it must raise exactly ``kind`` with all three parts filled and every word in the message."""
    from l2d.data.errors import L2DError

    with pytest.raises(L2DError) as caught:
        run()
    error = caught.value
    assert type(error) is kind, error
    for word in words:
        assert word in str(error), (word, str(error))
    assert error.what, "what"
    assert error.hint, f"no hint: {error}"
    assert error.where is not None, f"no where: {error}"
    return error


def no_temporaries(workshop: Workshop) -> bool:
    """Whether no temporary file is left."""
    return not list(workshop.folder.rglob("*.tmp"))


# --- rejectors at work ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def patient_runs(make_cache, make_runs, tmp_path_factory) -> Path:
    """A folder with ``patients.parquet``, its ``cache``, and runs on it: linear, mlp and transformer, and best."""
    import shutil

    from l2d.data.cache.reader import CostCache
    from l2d.rejector.grid import make_grid
    from l2d.rejector.settings import TrainConfig
    from l2d.rejector.sweep import sweep

    folder = tmp_path_factory.mktemp("patients")
    cache = make_cache(folder)
    for network in ("linear", "mlp", "transformer"):
        config = {"network": network, "hidden": 8, "lr": 0.03, "epochs": 20}
        costs = {"weights": [{"cla": 1.0}], "betas": [{"expert": 0.15, "cheap": 0.02, "asked": 0.02}]}
        run = make_runs(cache, folder / "trained", config=config, **costs)[0]
        shutil.move(run, folder / network)
    points = make_grid(CostCache(folder / "cache"), methods=["best"], nus=[1.0], seeds=[0], **costs)
    sweep(CostCache(folder / "cache"), points, [folder / "best"], TrainConfig(guard=0.0))
    return folder


@pytest.fixture(scope="session")
def detection_runs(tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """A detection cache with features of the model's own pass and small images, and a run on each: mlp and conv.

    Beside the cache lies what it was built from: ``devkit``, ``agents.py`` and ``recipe.toml``.
    """
    from test_detection_build import AGENTS, COUNTS, RECIPE

    from l2d.cache_builder.builder import build
    from l2d.cache_builder.recipe import load_recipe
    from l2d.data.cache.reader import CostCache
    from l2d.data.sources.digits import write_digits
    from l2d.rejector.grid import make_grid
    from l2d.rejector.settings import TrainConfig
    from l2d.rejector.sweep import sweep

    folder = tmp_path_factory.mktemp("detection")
    write_digits(folder / "devkit", images=COUNTS, seed=3)
    (folder / "agents.py").write_text(AGENTS)
    (folder / "recipe.toml").write_text(RECIPE.format(dataset="image_size = 16", costs=""))
    build(load_recipe(str(folder / "recipe.toml")), folder / "cache", device="cpu")
    cache = CostCache(folder / "cache")
    betas = [{"even": 0.0, "best": 0.4}]  # so that both are worth asking
    points = make_grid(cache, methods=["multi-task"], weights=[], betas=betas, nus=[1.0], seeds=[0])
    for network, lr in (("mlp", 0.02), ("conv", 0.01)):
        config = TrainConfig(network=network, hidden=16, epochs=5, batch_size=8, lr=lr)
        sweep(cache, points, [folder / network], config)
    return folder / "cache", {"mlp": folder / "mlp", "conv": folder / "conv"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what ``tests/long.txt`` and ``tests/slow.txt`` name: a file, or ``file::test``, with all of its cases."""
    for mark in ("long", "slow"):
        text = (Path(__file__).parent / f"{mark}.txt").read_text(encoding="utf-8")
        named = {line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")}
        for item in items:
            test = item.nodeid.partition("[")[0]
            if test in named or test.partition("::")[0] in named:
                item.add_marker(mark)
