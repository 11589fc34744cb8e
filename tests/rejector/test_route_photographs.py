"""`l2d route RUN photos/`: image files and folders, for runs on pixels and on what an agent makes of images."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest
from conftest import refused
from typer.testing import CliRunner

import l2d
from l2d.cli import app
from l2d.data.errors import DataError, FingerprintMismatch, UsageError
from l2d.rejector.rows.photographs import open_photographs, other_images, photographs_at
from l2d.rejector.rows.unlabelled import InputRecord

pytestmark = pytest.mark.slow

AGENTS = '''
import numpy as np
from PIL import Image


def look(batch, dark=60, summary=False):
    """A detector of bright boxes: features are the mean of each quarter of the image; none of the truth is read."""
    boxes, rows = [], []
    for path in batch.images:
        pixels = np.asarray(Image.open(path).convert("L"), dtype=np.float64)
        high, wide = pixels.shape
        quarters = [pixels[: high // 2, : wide // 2], pixels[: high // 2, wide // 2 :],
                    pixels[high // 2 :, : wide // 2], pixels[high // 2 :, wide // 2 :]]
        rows.append([part.mean() for part in quarters])
        box = [0, 0, wide, high] if pixels.max() > dark else [1, 1, 2, 2]
        boxes.append({"boxes": np.array([box], float), "labels": np.array([int(pixels.mean()) % 10]), "scores": [0.9]})
    return {"boxes": boxes, "features": np.array(rows, dtype=np.float32)}
'''

RECIPE = """
[dataset]
kind = "voc"
path = "devkit"
sets = { train = ["digits/train"], validation = ["digits/val"], test = ["digits/test"] }
classes = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
image_size = 16

[costs.map]

[[agents]]
name = "model"
kind = "python"
file = "agents.py"
function = "look"
features = ["features"]

[[agents]]
name = "other"
kind = "python"
file = "agents.py"
function = "look"
options = { dark = 200 }
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Scenes, ``my.cache`` with ``my.toml`` beside it, a run on features and one on pixels, and ``new`` photographs."""
    from l2d.data.sources.digits import write_digits

    folder = tmp_path_factory.mktemp("photographs")
    write_digits(folder / "devkit", images={"train": 24, "val": 10, "test": 12}, seed=3)
    (folder / "agents.py").write_text(AGENTS)
    (folder / "my.toml").write_text(RECIPE)
    cache = l2d.build(folder / "my.toml", folder / "my.cache", device="cpu")
    l2d.train(cache, folder / "features", beta=0.1)
    l2d.train(cache, folder / "pixels", method="multi-task", beta=0.1, network="conv", epochs=1, hidden=16)
    (folder / "new" / "monday").mkdir(parents=True)
    found = {file.stem: file for file in (folder / "devkit").rglob("*") if file.suffix in (".jpg", ".png")}
    for number, name in enumerate(test_ids(folder)[:5]):
        shutil.copy(found[name], folder / "new" / ("monday" if number > 2 else "") / found[name].name)
    (folder / "new" / "notes.txt").write_text("not an image")
    return folder


def test_ids(folder: Path) -> list[str]:
    sql = "SELECT sample_id FROM samples WHERE split = 'test' ORDER BY 1"
    return l2d.query([folder / "my.cache"], sql).frame()["sample_id"].to_list()


test_ids.__test__ = False


@pytest.mark.parametrize("run", ["features", "pixels"])
def test_photographs_of_the_cache_get_its_scores(home, tmp_path, run):
    result = CliRunner().invoke(app, ["route", str(home / run), str(home / "new"), "--out", str(tmp_path / "a.csv")])
    assert result.exit_code == 0, result.stderr
    assert "sample ids: file names" in result.stderr
    routed = pl.read_csv(tmp_path / "a.csv")
    assert [Path(name).parent.name for name in routed["sample_id"]] == [""] * 3 + ["monday"] * 2
    known = pl.read_parquet(home / run / "allocations.parquet")
    same = routed.with_columns(pl.col("sample_id").map_elements(lambda name: Path(name).stem, pl.String))
    both = same.join(known, on="sample_id", how="left", suffix="_known")
    assert both["agent_index"].equals(both["agent_index_known"].cast(pl.Int64), check_names=False)
    for score in ("score_0", "score_1"):
        assert (both[score] - both[f"{score}_known"].cast(pl.Float64)).abs().max() < 1e-6


def test_one_file_from_python_with_another_recipe_file(home, tmp_path):
    shutil.copy(home / "my.toml", home / "elsewhere.toml")
    file = next((home / "new" / "monday").iterdir())
    report = l2d.route(home / "features", file, tmp_path / "one.parquet", recipe=home / "elsewhere.toml", device="cpu")
    assert report.samples == 1
    assert pl.read_parquet(tmp_path / "one.parquet")["sample_id"].to_list() == [file.name]


def test_several_files_and_folders_are_routed_as_the_folder_that_has_them_all(home, tmp_path):
    alone = sorted(file for file in (home / "new").iterdir() if file.suffix in (".jpg", ".png"))
    given = [str(home / "new" / "monday"), *map(str, alone)]
    result = CliRunner().invoke(app, ["route", str(home / "pixels"), *given, "--out", str(tmp_path / "several.csv")])
    assert result.exit_code == 0, result.stderr
    l2d.route(home / "pixels", home / "new", tmp_path / "folder.csv")
    several, folder = (pl.read_csv(tmp_path / f"{name}.csv") for name in ("several", "folder"))
    assert several["sample_id"].to_list() == [Path(name).name for name in folder["sample_id"][3:]] + [
        file.name for file in alone
    ]
    assert several.drop("sample_id").equals(pl.concat([folder[3:], folder[:3]]).drop("sample_id"))
    shutil.copy(alone[0], tmp_path)
    with pytest.raises(UsageError, match=f"2 images are called {alone[0].name}"):
        l2d.route(home / "pixels", [alone[0], home / "new" / "monday", tmp_path / alone[0].name], tmp_path / "x.csv")
    with pytest.raises(UsageError, match="one of 2 inputs, and not an image or a folder of images"):
        l2d.route(home / "pixels", [alone[0], tmp_path / "several.csv"], tmp_path / "x.csv")


def test_what_cannot_be_routed_is_refused(home, tmp_path):
    def routed(source: Path, **options):
        return lambda: l2d.route(home / "features", source, tmp_path / "x.csv", **options)

    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "half.png").write_bytes(next((home / "new").glob("*.[jp][pn]g")).read_bytes()[:60])
    refused(routed(tmp_path / "broken"), DataError, "half.png")
    changed = home / "changed.toml"
    changed.write_text(RECIPE.replace('features = ["f', 'options = { dark = 1 }\nfeatures = ["f'))
    refused(routed(home / "new", recipe=changed), FingerprintMismatch, "'model'", "whose features", "changed.toml")
    changed.write_text(RECIPE.replace('name = "model"', 'name = "small"'))
    refused(routed(home / "new", recipe=changed), UsageError, "no agent 'model'", "small")
    with pytest.raises(UsageError, match="photographs are called by their files' names"):
        routed(home / "new", id_column="x")()
    (home / "my.toml").rename(home / "mine.toml")
    try:
        with pytest.raises(UsageError, match="no recipe says how to run it"):
            routed(home / "new")()
        (home / "my").mkdir()  # where `l2d demo` lays a recipe
        shutil.copy(home / "mine.toml", home / "my" / "my.toml")
        with pytest.raises(UsageError, match=r"agents\.py"):  # found, and its agents' file looked for beside it
            routed(home / "new")()
    finally:
        shutil.rmtree(home / "my")
        (home / "mine.toml").rename(home / "my.toml")


def test_what_is_no_photograph_is_left_out_or_refused_by_name(tmp_path):
    for name in ("a.jpg", "monday/ñ.PNG", "b.webp", "c.TIF", "._a.jpg", "notes.txt"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    files, ids = photographs_at(tmp_path / "photos")
    assert ids == ["a.jpg", "monday/ñ.PNG"]
    assert other_images([tmp_path / "photos", files[0]]) == ["b.webp", "c.TIF"]
    for folder in ("empty", "webp"):
        (tmp_path / folder).mkdir()
    (tmp_path / "photos" / "b.webp").rename(tmp_path / "webp" / "b.webp")
    refused = {
        "neither a cost cache nor JPEG": tmp_path / "empty",
        "only other images, such as b.webp": tmp_path / "webp",
        ".webp files are not read": tmp_path / "webp" / "b.webp",
        "no such file or folder": [files[0], tmp_path / "nowhere.jpg"],
        "given twice": [files[0], tmp_path / "monday" / ".." / "photos" / "a.jpg", tmp_path / "photos"],
    }
    (tmp_path / "monday").mkdir()
    for what, given in refused.items():
        with pytest.raises(UsageError, match=what):
            photographs_at(given)


def test_a_run_on_a_table_says_so(home):
    files, ids = photographs_at(home / "new")
    with pytest.raises(UsageError, match="looks at columns of a table, not at photographs"):
        open_photographs(files, ids, InputRecord(column="features", made={"encoder": []}), 3)
