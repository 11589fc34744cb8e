"""Detections from a file: COCO's results and tables against what was written, and files that are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from l2d.cache_builder.agents import config_class, make_agent
from l2d.cache_builder.agents._summary import summary_of_detections
from l2d.data.errors import DataError, UsageError
from l2d.data.samples.boxes import Boxes
from l2d.data.samples.dataset import Dataset

CLASSES = ("person", "sofa", "dog")
IDS = ["train/7", "train/12", "test/7", "test/40"]
IMAGE_IDS = [7, 12, 7, 40]
COCO_IDS = [1, 63, 18]
ROWS = [  # image, class, corners, score; not in the order of the images
    ("test/40", 2, (1.5, 2.0, 11.5, 22.0), 0.25),
    ("train/12", 0, (0.0, 0.0, 30.0, 20.0), 0.5),
    ("train/12", 1, (3.0, 4.0, 5.0, 8.0), 0.75),
    ("test/40", 0, (2.0, 2.0, 4.0, 4.0), 1.0),
]


def make_dataset(coco: bool = True) -> Dataset:
    columns = {"width": [30] * 4, "height": [20] * 4}
    return Dataset(
        name="test",
        ids=IDS,
        split=np.array(["train", "train", "test", "test"]),
        features=None,
        columns=pl.DataFrame({**columns, "image_id": IMAGE_IDS} if coco else columns),
        target_boxes=Boxes.empty(4),
        classes=CLASSES,
        keep=(),
        inputs={"category_ids": COCO_IDS} if coco else {},
        config={},
    )


def make(file: Path, **keys):
    config = {"name": "them", "kind": "detections", "file": file, **keys}
    return make_agent(config_class("detections").model_validate(config))


def ask(file: Path, dataset: Dataset, **keys):
    agent = make(file, **keys)
    agent.check(dataset, ["boxes"])
    agent.load(None, dataset, "cpu")
    parts = [agent.ask(dataset.batch(rows)) for rows in (range(3), range(3, 4))]
    return Boxes.concatenate([part.boxes for part in parts]), parts


def results(rows=ROWS, ids=COCO_IDS) -> list[dict]:
    return [
        {
            "image_id": image if image == "train/7" else IMAGE_IDS[IDS.index(image)],
            "category_id": ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for image, label, (x1, y1, x2, y2), score in rows
    ]


def write_results(folder: Path, content) -> Path:
    file = folder / "results.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def table(rows=ROWS, names=("person", "couch", "dog")) -> pl.DataFrame:
    corners = {name: [row[2][k] for row in rows] for k, name in enumerate(("x1", "y1", "x2", "y2"))}
    return pl.DataFrame(
        {
            "image": [row[0] for row in rows],
            "label": [names[row[1]] for row in rows],
            **corners,
            "score": [row[3] for row in rows],
        }
    )


def check_found(found: Boxes) -> None:
    """By hand: in the order of the images, and within an image of the file."""
    assert found.counts.tolist() == [0, 2, 0, 2]
    assert found.xyxy.tolist() == [[0, 0, 30, 20], [3, 4, 5, 8], [1.5, 2, 11.5, 22], [2, 2, 4, 4]]
    assert found.label.tolist() == [0, 1, 2, 0]
    assert found.score.tolist() == [0.5, 0.75, 0.25, 1.0]
    assert not found.ignore.any()


def test_cocos_results_come_back_as_they_were_written(tmp_path):
    found, _ = ask(write_results(tmp_path, results()), make_dataset())
    check_found(found)


def test_a_table_comes_back_as_it_was_written(tmp_path):
    table().write_csv(tmp_path / "found.csv")
    table().write_parquet(tmp_path / "found.parquet")
    for file in ("found.csv", "found.parquet"):
        check_found(ask(tmp_path / file, make_dataset())[0])
        check_found(ask(tmp_path / file, make_dataset(coco=False))[0])
    by_image_id = table().with_columns(pl.Series("image", [40, 12, 12, 40]))
    by_image_id.write_parquet(tmp_path / "ids.parquet")
    check_found(ask(tmp_path / "ids.parquet", make_dataset())[0])


def test_labels_are_mapped_where_the_dataset_has_no_ids(tmp_path):
    dataset = make_dataset(coco=False)
    content = [{**entry, "image_id": row[0]} for entry, row in zip(results(), ROWS, strict=True)]
    file = write_results(tmp_path, content)
    check_found(ask(file, dataset, labels={"1": "person", "63": "sofa", "18": "dog"})[0])
    with pytest.raises(DataError, match="category_id 18 is not one of the dataset's"):
        ask(file, dataset)
    table(names=("human", "sofa", "dog")).write_csv(tmp_path / "found.csv")
    check_found(ask(tmp_path / "found.csv", dataset, labels={"human": "person"})[0])
    with pytest.raises(UsageError, match=r"(?s)'persn'.*did you mean 'person'"):
        ask(tmp_path / "found.csv", dataset, labels={"human": "persn"})


def test_what_the_dataset_has_not_is_refused_or_dropped(tmp_path):
    extra = [
        {"image_id": 99, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5},
        {"image_id": 40, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 0.5},
    ]
    for entry, said in zip(extra, ("image 99 is not in the dataset", "category_id 2 is not one"), strict=True):
        file = write_results(tmp_path, [*results(), entry])
        with pytest.raises(DataError, match=said) as error:
            ask(file, make_dataset())
        assert f"{file}, detection at position 4" in str(error.value)
    check_found(ask(write_results(tmp_path, [*extra, *results()]), make_dataset(), others="drop")[0])


def test_an_image_id_that_two_sets_have_is_refused(tmp_path):
    entry = {"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}
    with pytest.raises(DataError, match="two images of the dataset have the image_id 7"):
        ask(write_results(tmp_path, [entry]), make_dataset())
    found, _ = ask(write_results(tmp_path, [{**entry, "image_id": "test/7"}]), make_dataset())
    assert found.counts.tolist() == [0, 0, 1, 0]


def named(**names) -> Dataset:
    """The dataset with files called 0001.png and on, whose image ids are others."""
    dataset = make_dataset()
    files = [f"{k:04d}.png" for k in (40, 7, 12, 1)]
    return replace(dataset, columns=dataset.columns.with_columns(file_name=pl.Series(files)), **names)


def test_images_may_be_named_by_file_or_stem(tmp_path):
    dataset = named()
    files = dict(zip(IDS, dataset.columns["file_name"], strict=True))
    for match, form in (("file_name", str), ("file_name", "images/{}".format), ("stem", lambda file: file[:-4])):
        content = [{**one, "image_id": form(files[row[0]])} for one, row in zip(results(), ROWS, strict=True)]
        file = write_results(tmp_path, content)
        check_found(ask(file, dataset, match=match)[0])
        with pytest.raises(DataError, match=rf'(?s)is not in the dataset.*match = "{match}" finds 4 of 4'):
            ask(file, dataset)
        with pytest.raises(DataError, match="leaves out all 4 detections, 4 for their image"):
            ask(file, dataset, others="drop")


def test_an_entry_whose_file_contradicts_its_image_id_is_refused(tmp_path):
    """Ultralytics writes the number in a file's name as its image id, and the file's name beside it."""
    dataset = named()
    files = dict(zip(IDS, dataset.columns["file_name"], strict=True))
    content = [{**one, "file_name": files[row[0]]} for one, row in zip(results(), ROWS, strict=True)]
    check_found(ask(write_results(tmp_path, content), dataset)[0])
    content = [{**one, "image_id": int(one["file_name"][:4])} for one in content]
    content[0] |= {"image_id": 40, "file_name": "0012.png"}  # image 40 is 0001.png
    with pytest.raises(DataError, match=r"image_id 40 is 0001\.png in the dataset, and file_name says 0012\.png"):
        ask(write_results(tmp_path, content), dataset)
    content[0]["file_name"] = "0001.png"
    check_found(ask(write_results(tmp_path, content), dataset, match="file_name")[0])


def test_categories_counted_from_0_are_not_read_one_class_off(tmp_path):
    dataset = replace(make_dataset(), inputs={"category_ids": [1, 2, 3]})
    file = write_results(tmp_path, results(ids=[0, 1, 2]))
    for others in ("refuse", "drop"):
        with pytest.raises(DataError, match=r'(?s)seems to count from 0.*categories = "from_0"'):
            ask(file, dataset, others=others)
    with pytest.raises(DataError, match=r"does not name [12]"):
        ask(file, dataset, labels={"0": "person"})
    check_found(ask(file, dataset, categories="from_0")[0])
    check_found(ask(file, dataset, labels={"0": "person", "1": "sofa", "2": "dog"})[0])
    with pytest.raises(DataError, match="category_id 2 and 5 would both be 'sofa'"):
        ask(write_results(tmp_path, results([*ROWS[1:], ROWS[0]], ids=[1, 2, 5])), dataset, labels={"5": "sofa"})
    from_1 = write_results(
        tmp_path, [{**one, "image_id": row[0]} for one, row in zip(results(ids=[1, 2, 3]), ROWS, strict=True)]
    )
    check_found(ask(from_1, make_dataset(coco=False), categories="from_1")[0])


def test_what_is_left_out_is_counted(tmp_path):
    extra = [{"image_id": 99, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}] * 2
    agent = make(write_results(tmp_path, [*results(), *extra]), others="drop")
    agent.check(make_dataset(), ["boxes"])
    assert agent.remarks == ["left out 2 of 6 detections: images that the dataset has not (99 …)"]


def test_boxes_that_a_person_has_drawn(tmp_path):
    """COCO's annotations: without scores, categories by their names, and the images that were looked at."""
    content = {
        "images": [{"id": k, "file_name": f"x/{name}"} for k, name in enumerate(["0001.png", "0007.png", "0040.png"])],
        "categories": [{"id": 5, "name": "dog"}, {"id": 6, "name": "couch"}, {"id": 9, "name": "human"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 5, "bbox": [1.5, 2, 10, 20]},
            {"id": 2, "image_id": 1, "category_id": 9, "bbox": [0, 0, 30, 20]},
            {"id": 3, "image_id": 1, "category_id": 6, "bbox": [3, 4, 2, 4]},
            {"id": 4, "image_id": 0, "category_id": 9, "bbox": [2, 2, 2, 2]},
        ],
    }
    file = write_results(tmp_path, json.dumps(content))
    dataset = named()
    found, parts = ask(file, dataset, match="file_name", labels={"human": "person"}, partial=True)
    check_found(replace(found, score=np.array([0.5, 0.75, 0.25, 1.0])))
    assert found.score.tolist() == [1, 1, 1, 1]
    missing = [reason for part in parts for reason in (part.failure.tolist() if part.failure is not None else [None])]
    assert missing == [None, None, "no answer", None]  # 0012.png is not in the file, nothing is on 0040.png


def test_a_partial_agent_has_no_answer_where_the_file_says_nothing(tmp_path):
    dataset = make_dataset()
    looked = write_results(tmp_path, [*results(), {"image_id": "train/7"}])
    empty = pl.DataFrame({"image": ["train/7"]})
    pl.concat([table(), empty], how="diagonal").write_csv(tmp_path / "found.csv")
    for file in (looked, tmp_path / "found.csv"):
        found, parts = ask(file, dataset, partial=True)
        check_found(found)
        assert parts[0].is_unavailable.tolist() == [False, False, True]
        assert parts[1].failure is None
        with pytest.raises(DataError, match=r"missing|label is None"):
            ask(file, dataset)


def test_a_table_without_scores_counts_each_box_with_1(tmp_path):
    table().drop("score").write_csv(tmp_path / "found.csv")
    agent = make(tmp_path / "found.csv")
    agent.check(make_dataset(), ["boxes"])
    assert agent.boxes.score.tolist() == [1, 1, 1, 1]
    assert agent.remarks == ["no scores: each box counts with score 1, and boxes of a class keep the file's order"]


def test_nothing_found_at_all(tmp_path):
    for file in (write_results(tmp_path, []), tmp_path / "empty.csv"):
        if file.suffix == ".csv":
            table().head(0).write_csv(file)
        found, parts = ask(file, make_dataset(), features=["detections"])
        assert found.counts.tolist() == [0, 0, 0, 0]
        assert not parts[0].features.any()


def test_the_summary_is_of_the_images_at_hand(tmp_path):
    found, parts = ask(write_results(tmp_path, results()), make_dataset(), features=["detections"])
    rows = np.concatenate([part.features for part in parts])
    np.testing.assert_array_equal(rows, summary_of_detections(found, np.full(4, 600.0), 3))
    np.testing.assert_allclose(rows[1], [2, 2, 2, 1, 0.75, 0.625, 0.5 * (1 + 8 / 600), 0.5, 0.75, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"score": float("nan")}, "score nan is not from 0 to 1"),
        ({"score": 1.5}, r"score 1\.5 is not"),
        ({"score": -0.1}, "score"),
        ({"score": "0.5"}, "'score' is '0.5'"),
        ({"bbox": [0, 0, float("inf"), 1]}, "box .* is not finite"),
        ({"bbox": [0, 0, 1e39, 1]}, "box .* is out of range"),
        ({"bbox": [0, 0, 10**400, 1]}, "out of range"),
        ({"bbox": [5, 5, -1, 3]}, "the wrong way round"),
        ({"bbox": [5, 5, 1]}, "not four numbers"),
        ({"bbox": None}, "not four numbers"),
        ({"image_id": True}, "'image_id' is True"),
        ({"category_id": "1"}, "'category_id' is '1'"),
        ({"score": ...}, "'score' is missing"),
        (None, "not an object"),
    ],
)
def test_bad_results_are_refused_naming_file_and_position(tmp_path, change, said):
    content = results()
    content[2] = None if change is None else {k: v for k, v in {**content[2], **change}.items() if v is not ...}
    file = write_results(tmp_path, content)
    with pytest.raises(DataError, match=said) as error:
        ask(file, make_dataset())
    assert f"{file}, detection at position 2" in str(error.value)
    assert "'them'" in str(error.value)


@pytest.mark.parametrize("text", ["{", "[1", "\ufeff[]]", '{"annotations": []}', "[" * 100_000])
def test_what_is_no_results_file_is_refused(tmp_path, text):
    file = write_results(tmp_path, text)
    with pytest.raises(DataError, match=r"is not JSON|not a list of detections|no list of objects 'images'") as error:
        ask(file, make_dataset())
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"score": "high"}, "score is 'high'"),
        ({"score": "1.01"}, "score 1.01 is not"),
        ({"x1": "nan"}, "not finite"),
        ({"x2": "-4"}, "the wrong way round"),
        ({"y1": None}, "y1 is None"),
        ({"image": None}, "image is None"),
        ({"image": "train/99"}, "image 'train/99' is not in the dataset"),
        ({"label": "settee"}, "label 'settee' is not one"),
    ],
)
def test_bad_tables_are_refused_naming_file_and_position(tmp_path, change, said):
    rows = table().cast(pl.String).to_dicts()
    rows[1] |= change
    file = tmp_path / "found.csv"
    pl.DataFrame(rows).write_csv(file)
    with pytest.raises(DataError, match=said) as error:
        ask(file, make_dataset())
    assert f"{file}, detection at position 1" in str(error.value)


def test_other_files_are_refused(tmp_path):
    table().drop("x2").write_csv(tmp_path / "found.csv")
    with pytest.raises(DataError, match="no column 'x2'"):
        ask(tmp_path / "found.csv", make_dataset())
    (tmp_path / "found.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="cannot be read"):
        ask(tmp_path / "found.parquet", make_dataset())
    with pytest.raises(UsageError, match=r"cannot read \.pkl"):
        ask(tmp_path / "found.pkl", make_dataset())
    with pytest.raises(UsageError, match="no such file"):
        ask(tmp_path / "none.json", make_dataset())


def test_the_fingerprint_is_of_the_content(tmp_path):
    dataset = make_dataset()
    file = write_results(tmp_path, results())
    before = make(file).fingerprint(dataset)
    assert before == make(file, price=3.0).fingerprint(dataset)
    write_results(tmp_path, results()[:-1])
    assert make(file).fingerprint(dataset) != before


# --- folders of text files --------------------------------------------------------------------------------------------

VOC_FILES = {"a": "2 0.25 2 3 11 22\n0 1 1 1 4 4", "b": "0,0.5,1,1,30,20\n", "c": "\n"}


def write_texts(folder: Path, files: dict[str, str] = VOC_FILES) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def lettered() -> Dataset:
    return replace(make_dataset(coco=False), ids=["a", "b", "c", "d"])


def test_a_folder_of_text_files_counts_pixels_from_1_and_classes_from_0(tmp_path):
    folder = write_texts(tmp_path / "found")
    found, parts = ask(folder, lettered(), categories="from_0", coordinates="pixels_from_1", partial=True)
    np.testing.assert_array_equal(found.counts, [2, 1, 0, 0])
    np.testing.assert_array_equal(found.xyxy, [[1, 2, 11, 22], [0, 0, 4, 4], [0, 0, 30, 20]])
    np.testing.assert_array_equal(found.size, [[10, 20], [4, 4], [30, 20]])
    np.testing.assert_array_equal(found.label, [2, 0, 0])
    np.testing.assert_array_equal(found.score, [0.25, 1, 0.5])
    assert parts[0].failure is None  # c is empty, d has no file
    assert parts[1].failure.tolist() == ["no answer"]
    assert ask(folder, lettered(), categories="from_0")[0].xyxy[0].tolist() == [2, 3, 11, 22]


def test_yolos_text_files_hold_centres_and_shares_of_the_image(tmp_path):
    folder = write_texts(tmp_path / "found", {"a": "dog 0.5 0.5 0.2 0.5 0.9\ncouch 0 0.25 0 0.5 0.1\n"})
    found, _ = ask(folder, lettered(), line="label cx cy width height score", coordinates="fractions")
    np.testing.assert_allclose(found.xyxy, [[12, 5, 18, 15], [0, 0, 0, 10]])
    np.testing.assert_array_equal(found.label, [2, 1])
    with pytest.raises(DataError, match="reaches to 30 widths"):
        ask(write_texts(tmp_path / "voc"), lettered(), categories="from_0", coordinates="fractions")


@pytest.mark.parametrize(
    ("text", "said"),
    [("0 1 1 1 4\n", "5 values, not 6"), ("0 1 1 1 4 x\n", "as numbers"), ("0 2 1 1 4 4\n", "score"),
     ("0 1 4 1 1 4\n", "wrong way round"), ("9 1 1 1 4 4\n", "category_id 9")],
)  # fmt: skip
def test_bad_lines_are_refused_naming_file_and_line(tmp_path, text, said):
    folder = write_texts(tmp_path / "found", {"a": "0 1 1 1 4 4\n\n" + text})
    with pytest.raises(DataError, match=said) as refused:
        ask(folder, lettered(), categories="from_0")
    assert str(refused.value.where).endswith("a.txt, line 3")


def test_a_line_of_no_form_and_a_folder_without_texts_are_refused(tmp_path):
    for line in ("label x1 y1", "x1 y1 x2 y2", "label x1 y1 x2 y2 z", "label label x y width height"):
        with pytest.raises(ValueError, match="a line"):
            make(tmp_path, line=line)
    with pytest.raises(DataError, match=r"no .txt files"):
        ask(tmp_path, lettered())
    write_texts(tmp_path / "one" / "deeper")
    with pytest.raises(DataError, match=r"no .txt files") as refused:
        ask(tmp_path, lettered())
    assert refused.value.hint == f"give the folder that has them: {tmp_path / 'one' / 'deeper'}"


def test_another_text_is_another_fingerprint(tmp_path):
    agent = make(write_texts(tmp_path / "found"), categories="from_0")
    before = agent.fingerprint(lettered())
    write_texts(tmp_path / "found", {"c": "0 1 1 1 4 4"})
    assert agent.fingerprint(lettered()) != before
