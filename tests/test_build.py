"""Building a cache: each agent is asked once per sample, costs are right, and nothing finished is redone or mixed up."""

from __future__ import annotations

import shutil

import numpy as np
import polars as pl
import pytest

from data.errors import CorruptPart, FingerprintMismatch, IncompleteCache, L2DError

COUNTED = '''
def ask(batch, log):
    """Writes down every sample it is asked about."""
    with open(log, "a") as file:
        file.writelines(f"{sample}\\n" for sample in batch.ids)
    p = batch.columns["risk_good"].to_numpy()
    return {"prob": [[1 - x, x] for x in p], "reg": batch.columns["stay_good"].to_numpy()}
'''

HEAD = """
[dataset]
kind = "table"
path = "patients.parquet"
id = "id"
target_cla = "died"
classes = ["no", "yes"]
target_reg = "stay"
features = ["x1", "x2", "ward"]
keep = ["ward"]
[dataset.clusters]
features = ["x1", "x2"]
count = 4
[costs.cla]
kind = "brier"
[costs.reg]
kind = "smooth_l1"
beta = 0.5
clamp = 5.0
[build]
chunk_size = 50
batch_size = 20
"""
MODEL = '[[agents]]\nname = "model"\nkind = "two_head"\nhidden = [8]\nepochs = 2\n'
CALLED = '[[agents]]\nname = "called"\nkind = "python"\nfile = "called.py"\noptions = { log = "LOG" }\n'
COLUMN = '[[agents]]\nname = "column"\nkind = "column"\nprob = "risk_bad"\nreg = "stay_bad"\n'
HARD = '[[agents]]\nname = "hard"\nkind = "column"\ncla = "CASE WHEN x1 > 0 THEN \'yes\' ELSE \'no\' END"\nreg = "x1"\n'
CLUSTER = '[[agents]]\nname = "sim"\nkind = "cluster_expert"\nright_cla = [1, 3]\nright_reg = [2]\n'
AVERAGE = '[[agents]]\nname = "all"\nkind = "average"\nof = ["model", "called", "hard"]\nreference = true\n'
NAMES = ["model", "called", "column", "hard", "sim", "all"]
ROWS = 120


@pytest.fixture
def text(workshop) -> str:
    (workshop.folder / "called.py").write_text(COUNTED)
    called = CALLED.replace("LOG", str(workshop.folder / "log"))
    return HEAD + MODEL + called + COLUMN + HARD + CLUSTER + AVERAGE


def log_of(workshop) -> list[str]:
    return (workshop.folder / "log").read_text().split()


def unchanged(before: dict, after: dict, but: str = "\0") -> bool:
    """Whether every file is as it was, those whose names start with ``but`` left out."""
    return {k: v for k, v in before.items() if not k.startswith(but)} == {
        k: v for k, v in after.items() if not k.startswith(but)
    }


def costs_folder(cache) -> str:
    return f"costs-{cache.record.cost_digest}"


def test_every_agent_answers_the_same_samples_in_the_same_order(workshop, text):
    report = workshop.build(text)
    cache = workshop.cache()
    assert report.asked == dict.fromkeys(NAMES, ROWS)
    assert report.predictions_written == report.costs_written == dict.fromkeys(NAMES, 3)
    assert log_of(workshop) == workshop.table["id"].to_list()
    assert [agent.name for agent in cache.agents] == NAMES[:-1]
    assert [agent.name for agent in cache.references] == ["all"]
    for chunk, ids in enumerate(workshop.table["id"][a : a + 50].to_list() for a in (0, 50, 100)):
        folders = [f"agents/{name}/{what}" for name in NAMES for what in ("predictions", costs_folder(cache))]
        for folder in ["samples", *folders]:
            part = workshop.folder / "cache" / folder / f"{chunk:05d}.parquet"
            assert pl.read_parquet(part)["sample_id"].to_list() == ids
    assert cache.verify() == 3 + len(NAMES) * 6
    assert not [name for name in workshop.files() if name.endswith(".tmp")]


def brute_force_costs(workshop, agent: str, cla: str, beta: float, clamp: float) -> tuple[list, list]:
    table, out = workshop.table, workshop.folder / "cache" / "agents" / agent / "predictions"
    cost_cla, cost_reg = [], []
    frames = [pl.read_parquet(file) for file in sorted(out.glob("*.parquet"))]
    rows = [row for frame in frames for row in frame.to_dicts()]
    for row, died, stay in zip(rows, table["died"], table["stay"], strict=True):
        p = row["pred_prob"][1] if "pred_prob" in row else float(row["pred_cla"])
        cost_cla.append((p - died) ** 2 if cla == "brier" else float(row["pred_cla"] != died))
        error = abs(row["pred_reg"] - stay)
        cost_reg.append(min(error**2 / (2 * beta) if error < beta else error - beta / 2, clamp))
    return cost_cla, cost_reg


def assert_costs(workshop, folder: str, cla: str, beta: float, clamp: float):
    for name in NAMES:
        for task, expected in zip(("cla", "reg"), brute_force_costs(workshop, name, cla, beta, clamp), strict=True):
            found = workshop.column(folder, f"cost_{task}", name)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_costs_follow_from_the_written_predictions_and_the_source_table(workshop, text):
    workshop.build(text)
    assert_costs(workshop, costs_folder(workshop.cache()), "brier", 0.5, 5.0)
    np.testing.assert_allclose(workshop.column("samples", "target_reg"), workshop.table["stay"], rtol=1e-6)
    np.testing.assert_array_equal(workshop.column("samples", "target_cla"), workshop.table["died"])


def test_a_second_build_asks_nothing_and_touches_no_file(workshop, text):
    workshop.build(text)
    before = workshop.files()
    report = workshop.build(text)
    assert report.asked == report.predictions_written == report.costs_written == dict.fromkeys(NAMES, 0)
    assert report.fitted == []
    assert len(log_of(workshop)) == ROWS
    assert workshop.files() == before


@pytest.mark.parametrize("name", NAMES)
def test_an_agent_whose_parts_are_gone_is_the_only_one_asked_again(workshop, text, name):
    workshop.build(text)
    before = workshop.files()
    shutil.rmtree(workshop.folder / "cache" / "agents" / name / "predictions")
    report = workshop.build(text)
    assert report.asked == {**dict.fromkeys(NAMES, 0), name: ROWS}
    assert len(log_of(workshop)) == (2 if name == "called" else 1) * ROWS
    after = workshop.files()
    assert unchanged(before, after, but=f"agents/{name}/")
    assert {k: content for k, (_, content) in after.items()} == {k: content for k, (_, content) in before.items()}


def test_a_single_missing_part_is_asked_for_alone(workshop, text):
    workshop.build(text)
    before = workshop.files()
    (workshop.folder / "cache" / "agents" / "called" / "predictions" / "00001.parquet").unlink()
    with pytest.raises(IncompleteCache, match="1 parts are missing"):
        workshop.cache().require_complete()
    assert workshop.build(text).asked == {**dict.fromkeys(NAMES, 0), "called": 50}
    assert log_of(workshop)[ROWS:] == workshop.table["id"][50:100].to_list()
    assert unchanged(before, workshop.files(), but="agents/called/")
    workshop.cache().verify()


def test_an_agent_added_at_the_end_leaves_the_others_untouched(workshop, text):
    workshop.build(text)
    before = workshop.files()
    report = workshop.build(text + COLUMN.replace('"column"\nkind', '"late"\nkind'))
    assert report.asked == {**dict.fromkeys(NAMES, 0), "late": ROWS}
    after = workshop.files()
    assert unchanged(before, after, but="agents/late/")
    assert set(after) > set(before)
    workshop.cache().verify()


def test_another_cost_table_asks_no_agent_and_costs_are_the_new_ones(workshop, text):
    workshop.build(text)
    before = workshop.files()
    changed = text.replace('"brier"', '"absolute"').replace("beta = 0.5", "beta = 2.0").replace("= 5.0", "= 3.0")
    report = workshop.build(changed)
    assert report.asked == report.predictions_written == dict.fromkeys(NAMES, 0)
    assert report.costs_written == dict.fromkeys(NAMES, 3)
    assert len(log_of(workshop)) == ROWS
    after = workshop.files()
    assert all(after[name] == before[name] for name in before if name != "cache.json")
    cache = workshop.cache()
    prob = np.concatenate([list(row) for row in workshop.column("predictions", "pred_prob", "called")]).reshape(-1, 2)
    found = workshop.column(costs_folder(cache), "cost_cla", "called")
    np.testing.assert_allclose(found, np.abs(prob[:, 1] - workshop.table["died"].to_numpy()), atol=1e-6)
    assert_reg = [brute_force_costs(workshop, name, "brier", 2.0, 3.0)[1] for name in NAMES]
    for name, expected in zip(NAMES, assert_reg, strict=True):
        found = workshop.column(costs_folder(cache), "cost_reg", name)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    cache.verify()


def test_a_cost_for_a_task_an_agent_never_answered_is_refused_and_not_a_crash(workshop):
    (workshop.folder / "one.py").write_text("def ask(batch):\n    return {'cla': [0] * len(batch.ids)}\n")
    text = HEAD.replace('[costs.reg]\nkind = "smooth_l1"\nbeta = 0.5\nclamp = 5.0\n', "")
    text += '[[agents]]\nname = "one"\nkind = "python"\nfile = "one.py"\n'
    workshop.build(text)
    with pytest.raises(L2DError, match="one"):
        workshop.build(text.replace("[build]", "[costs.reg]\n[build]"))


def edit_data(workshop):
    table = workshop.table.with_columns(pl.when(pl.col("id") == "p0003").then(2.5).otherwise("stay").alias("stay"))
    table.write_parquet(workshop.folder / "patients.parquet")


def swap(text: str) -> str:
    return text.replace(COLUMN + HARD, HARD + COLUMN)


CHANGES = {
    "hidden": (lambda text: text.replace("[8]", "[9]"), "hidden", [8], [9]),
    "chunk size": (lambda text: text.replace("= 50", "= 60"), "chunk_size", 50, 60),
    "data": (lambda text: text, "target_reg", None, None),
    "features": (lambda text: text.replace('"x2", "ward"]', '"x2"]'), "dataset.features", None, ["x1", "x2"]),
    "order": (swap, "position in the recipe", 3, 2),
    "removed": (lambda text: text.replace(CLUSTER, ""), "in the recipe", True, False),
    "column": (lambda text: text.replace('"risk_bad"', '"x1 * 0"'), "prob", "risk_bad", "x1 * 0"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_cache_of_something_else_is_refused_and_nothing_is_touched(workshop, text, what):
    workshop.build(text)
    before = workshop.files()
    change, field, old, new = CHANGES[what]
    if what == "data":
        edit_data(workshop)
    with pytest.raises(FingerprintMismatch, match=field) as caught:
        workshop.build(change(text))
    changes = caught.value.changes
    if what == "order":
        assert changes[field] in ((3, 2), (2, 3))
    else:
        assert (old or changes[field][0], new if new is not None else changes[field][1]) == changes[field]
    assert changes[field][0] != changes[field][1]
    assert f"{field}: the cache has {changes[field][0]!r}, now {changes[field][1]!r}" in str(caught.value)
    assert "--overwrite" in caught.value.hint
    assert workshop.files() == before
    assert len(log_of(workshop)) == ROWS


@pytest.mark.parametrize("what", CHANGES)
def test_overwriting_gives_what_a_fresh_build_gives(workshop, text, what):
    workshop.build(text)
    if what == "data":
        edit_data(workshop)
    changed = CHANGES[what][0](text)
    workshop.build(changed, overwrite=True)
    workshop.build(changed, out="fresh")
    assert [(k, v[1]) for k, v in workshop.files().items()] == [(k, v[1]) for k, v in workshop.files("fresh").items()]
    workshop.cache().verify()


def test_price_and_description_may_change_without_asking_anyone(workshop, text):
    workshop.build(text)
    report = workshop.build(text.replace('name = "hard"', 'name = "hard"\nprice = 7.5\ndescription = "dear"'))
    assert report.asked == dict.fromkeys(NAMES, 0)
    assert (workshop.cache().agent("hard").price, workshop.cache().agent("hard").description) == (7.5, "dear")


# --- agents ---------------------------------------------------------------------------------------------------------


def predictions(workshop, name: str, out: str = "cache") -> dict[str, np.ndarray]:
    files = sorted((workshop.folder / out / "agents" / name / "predictions").glob("*.parquet"))
    frame = pl.concat([pl.read_parquet(file) for file in files])
    return {column: np.array(frame[column].to_list()) for column in frame.columns}


def test_a_two_head_model_is_trained_the_same_again_and_never_twice(workshop, text):
    assert workshop.build(text).fitted == ["model"]
    workshop.build(text, out="again")
    frozen = "agents/model/frozen.safetensors"
    assert workshop.files()[frozen][1] == workshop.files("again")[frozen][1]
    first = predictions(workshop, "model")
    for column, values in predictions(workshop, "model", "again").items():
        np.testing.assert_array_equal(values, first[column])
    shutil.rmtree(workshop.folder / "cache" / "agents" / "model" / "predictions")
    before = workshop.files()[frozen]
    report = workshop.build(text)
    assert (report.fitted, report.asked["model"]) == ([], ROWS)
    assert workshop.files()[frozen] == before
    weights = workshop.folder / "cache" / frozen
    workshop.build(text.replace("epochs = 2", f'weights = "{weights}"'), out="loaded")
    for column, values in predictions(workshop, "model", "loaded").items():
        np.testing.assert_array_equal(values, first[column])
    workshop.build(text.replace("epochs = 2", "epochs = 2\nseed = 1"), out="other")
    assert (predictions(workshop, "model", "other")["pred_reg"] != first["pred_reg"]).any()


def test_changed_frozen_weights_are_noticed(workshop, text):
    workshop.build(text)
    file = workshop.folder / "cache" / "agents" / "model" / "frozen.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptPart, match="not what was frozen"):
        workshop.build(text)


def test_an_average_is_the_mean_of_what_its_agents_said(workshop, text):
    workshop.build(text)
    of = [predictions(workshop, name) for name in ("model", "called", "hard")]
    sure = np.eye(2)[of[2]["pred_cla"]]
    found = predictions(workshop, "all")
    np.testing.assert_allclose(
        found["pred_prob"], np.mean([of[0]["pred_prob"], of[1]["pred_prob"], sure], axis=0), atol=1e-6
    )
    np.testing.assert_allclose(found["pred_reg"], np.mean([part["pred_reg"] for part in of], axis=0), rtol=1e-6)
    assert workshop.cache().agent("all").queries == ["model", "called", "hard"]


@pytest.mark.parametrize("three_classes", [False, True])
def test_a_cluster_expert_is_right_on_its_clusters_and_wrong_elsewhere(workshop, text, three_classes):
    text = HEAD + COLUMN.replace('prob = "risk_bad"', 'cla = "ward"') + CLUSTER if three_classes else HEAD + CLUSTER
    if three_classes:
        text = text.replace('"died"', '"ward"').replace('classes = ["no", "yes"]\n', "")
    workshop.build(text)
    found, cluster = predictions(workshop, "sim"), workshop.column("samples", "cluster")
    target, value = workshop.column("samples", "target_cla"), workshop.column("samples", "target_reg")
    np.testing.assert_array_equal(found["pred_cla"] == target, np.isin(cluster, [1, 3]))
    np.testing.assert_array_equal(found["pred_reg"] == value, cluster == 2)
    train = value[workshop.column("samples", "split") == "train"]
    drawn = found["pred_reg"][cluster != 2]
    assert train.min() <= drawn.min() < drawn.max() <= train.max()
    assert abs((drawn - train.min()).mean() / np.ptp(train) - 0.5) < 4 * (1 / 12 / len(drawn)) ** 0.5
    assert set(np.unique(cluster)) == {1, 2, 3, 4}


@pytest.mark.parametrize(("chunk", "batch"), [(7, 3), (120, 120), (1000, 1)])
def test_answers_do_not_depend_on_chunks_and_batches(workshop, text, chunk, batch):
    workshop.build(text)
    resized = text.replace("chunk_size = 50", f"chunk_size = {chunk}").replace("batch_size = 20", f"batch_size = {batch}")
    workshop.build(resized, out="resized")
    for name in NAMES:
        exact = name not in ("model", "all")  # a matrix product may round differently for another batch
        for column, values in predictions(workshop, name, "resized").items():
            expected = predictions(workshop, name)[column]
            if exact or column == "sample_id":
                np.testing.assert_array_equal(values, expected)
            elif column != "pred_cla":
                np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)


def test_a_column_agent_with_an_aggregate_answers_the_same_in_any_batch(workshop):
    """``x1 > AVG(x1)`` must be refused, or mean the whole table whatever the batch size."""
    text = HEAD + COLUMN.replace('"stay_bad"', '"stay - AVG(stay)"')
    try:
        workshop.build(text)
        workshop.build(text.replace("batch_size = 20", "batch_size = 50"), out="resized")
    except L2DError:
        return
    np.testing.assert_array_equal(
        predictions(workshop, "column")["pred_reg"], predictions(workshop, "column", "resized")["pred_reg"]
    )


# --- verify ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["predictions", "costs"])
@pytest.mark.parametrize("swapped", ["chunk", "agent", "task"])
def test_verify_names_a_part_that_was_swapped_with_another(workshop, text, what, swapped):
    workshop.build(text)
    cache = workshop.cache()
    folders = {"predictions": "predictions", "costs": costs_folder(cache)}
    agents = workshop.folder / "cache" / "agents"
    victim = agents / "column" / folders[what] / "00000.parquet"
    other = {
        "chunk": victim.with_name("00001.parquet"),
        "agent": agents / "called" / folders[what] / "00000.parquet",
        "task": agents / "column" / folders["costs" if what == "predictions" else "predictions"] / "00000.parquet",
    }[swapped]
    content = victim.read_bytes()
    victim.write_bytes(other.read_bytes())
    other.write_bytes(content)
    with pytest.raises(CorruptPart) as caught:
        workshop.cache().verify()
    assert str(caught.value.where) in (str(victim), str(other))


def test_verify_notices_a_sound_part_of_another_build(workshop, text):
    workshop.build(text)
    workshop.build(text.replace('"risk_bad"', '"1 - risk_bad"'), out="other")
    for part, agent in (("predictions", "agents/column"), (costs_folder(workshop.cache()), "agents/column")):
        file = workshop.folder / "cache" / agent / part / "00002.parquet"
        good = file.read_bytes()
        file.write_bytes((workshop.folder / "other" / agent / part / "00002.parquet").read_bytes())
        with pytest.raises(CorruptPart) as caught:
            workshop.cache().verify()
        assert caught.value.where == file
        file.write_bytes(good)
    workshop.cache().verify()


def test_verify_notices_samples_of_another_build(workshop, text):
    """Same ids, another target: the costs no longer belong to it."""
    workshop.build(text)
    edit_data(workshop)
    workshop.build(text, out="other")
    name = "samples/00000.parquet"
    (workshop.folder / "cache" / name).write_bytes((workshop.folder / "other" / name).read_bytes())
    with pytest.raises(CorruptPart) as caught:
        workshop.cache().verify()
    assert str(caught.value.where).endswith(name)
