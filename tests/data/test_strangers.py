"""A cache from elsewhere: its digests are right, what it says or holds cannot be. It is refused, naming the place."""

from __future__ import annotations

import copy
import json
import os

import numpy as np
import pyarrow as pa
import pytest
from conftest import RECIPE

from l2d.data.cache import schema, store
from l2d.data.cache.integrity import sha256_of, skeleton_digest
from l2d.data.errors import CorruptPart, L2DError, UsageError
from l2d.data.library import audit, status
from l2d.data.terminal.layout import table_text
from l2d.data.terminal.progress import say


def rewrite(cache, part, change) -> None:
    """Write a part again with other columns, and a seal that says so."""
    table = store.read_table(part)
    facts = store.facts_of(table)
    store.commit_table(part, change(table), facts, replace=True)
    file = schema.seal_file(part)
    value = store.read_json(file)
    value["parts"][part.name] = {
        "rows": value["parts"][part.name]["rows"],
        "bytes": os.path.getsize(part),
        "sha256": sha256_of(part),
        "skeleton": skeleton_digest(part),
    }
    store.commit_json(file, value, replace=True)


def with_column(name: str, make):
    """A change of one column."""
    return lambda table: table.set_column(table.column_names.index(name), name, make(table[name]))


def first_to(value):
    """A column whose first value is another."""
    return lambda column: pa.array([value, *column.to_pylist()[1:]], column.type)


def narrower(column):
    rows = np.array([row[:2] for row in column.to_pylist()], dtype=np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 2)


FAULTS = {
    "an id twice": ("samples", "sample_id", lambda column: pa.array([column[1].as_py(), *column.to_pylist()[1:]])),
    "ids that are numbers": ("samples", "sample_id", lambda column: pa.array(range(len(column)))),
    "another split": ("samples", "split", first_to("holdout")),
    "class 99 of two": ("samples", "target_cla", first_to(99)),
    "class -1": ("samples", "target_cla", first_to(-1)),
    "an infinite target": ("samples", "target_reg", first_to(float("inf"))),
    "features 2 wide": ("samples", "features", narrower),
    "a predicted class 7": ("predictions", "pred_cla", first_to(7)),
    "a prediction that is no number": ("predictions", "pred_reg", first_to(float("nan"))),
    "an infinite cost": ("costs", "cost_reg", first_to(float("inf"))),
    "costs that are texts": ("costs", "cost_reg", lambda column: pa.array(["0.5"] * len(column))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_refuses_rows_that_cannot_be(workshop, fault):
    """Two of the faults go through the same check in another column; each is a promise of its own."""
    workshop.build(RECIPE)
    cache = workshop.cache()
    table, column, make = FAULTS[fault]
    part = {
        "samples": schema.samples_part(cache.path, 1),
        "predictions": schema.predictions_part(cache.path, "expert", 1),
        "costs": schema.costs_part(cache.path, "expert", 1, cache.record.cost_digest),
    }[table]
    cache.verify()
    rewrite(cache, part, with_column(column, make))
    with pytest.raises(CorruptPart, match=column):
        workshop.cache().verify()


def leaves(value, path=()):
    """Places in a JSON value; of a list the first two."""
    yield path
    if isinstance(value, dict):
        for name in value:
            yield from leaves(value[name], (*path, name))
    elif isinstance(value, list):
        for place in range(min(2, len(value))):
            yield from leaves(value[place], (*path, place))


def changed(value, path, new):
    value = copy.deepcopy(value)
    inner = value
    for step in path[:-1]:
        inner = inner[step]
    if new is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return value


#: What a place of a record may say; ... is nothing. Every other place gets every other one: all of them are tried many
#: times over, and tests/reliability/strangers.py draws from more.
SAID = (None, 10**12, "\x1b[31m../..", {"a": 1}, ...)


@pytest.mark.parametrize("name", ["cache.json", "agents/expert/agent.json", "samples.seal.json"])
def test_whatever_a_record_says_is_understood_or_refused(workshop, name):
    """Each place of a record in turn is missing, of another type, or huge: two or three of these."""
    workshop.build(RECIPE)
    file = workshop.folder / "cache" / name
    good = store.read_json(file)
    for number, path in enumerate(leaves(good)):
        asks = (status, audit) if path[:1] in [("inputs",), ("tasks",)] else (status,)
        for new in SAID[number % 2 :: 2]:
            if not path:
                continue
            store.commit_json(file, changed(good, path, new), replace=True)
            for ask in asks:
                try:
                    ask(workshop.folder / "cache")
                except L2DError:
                    continue
                except Exception as error:
                    pytest.fail(f"{ask.__name__} with {'.'.join(map(str, path))} = {new!r}: {error!r}")


def test_a_digest_of_numbers_that_json_has_not_is_refused(tmp_path):
    file = tmp_path / "cache.json"
    file.write_text(json.dumps({"num_samples": float("nan"), store.DIGEST_FIELD: "0" * 64}))
    with pytest.raises(CorruptPart, match="not JSON"):
        store.read_json(file)


def test_names_do_not_reach_the_terminal_with_their_control_characters(capsys):
    name = "agent\x1b[2J\x9b31m\u202e"
    assert "agent\\x1b[2J\\x9b31m\\u202e" in table_text([{"agent": name}], title=name)
    say(f"error: {name}\n  next: look")
    assert capsys.readouterr().err == "error: agent\\x1b[2J\\x9b31m\\u202e\n  next: look\n"
    assert not set("\x1b\x9b\u202e") & set(table_text([{name: 1, "b": [name]}]))


def test_a_run_from_elsewhere_is_understood_or_refused(workshop):
    """Each place of run.json is missing, of another type, or huge (two of these or three); its digest is right."""
    from l2d.data.library import opened
    from l2d.rejector.evaluation.evaluate import evaluate_runs
    from l2d.rejector.library import train
    from l2d.rejector.runs.files import RUN_FILE

    workshop.build(RECIPE)
    run = workshop.folder / "run"
    train(opened(workshop.folder / "cache"), run, method="multi-task", epochs=1)
    good = store.read_json(run / RUN_FILE)
    for number, path in enumerate(leaves(good)):
        if not path or path[0] in ("history", "input", "seen"):
            continue
        for new in SAID[number % 2 :: 2]:
            store.commit_json(run / RUN_FILE, changed(good, path, new), replace=True)
            try:
                evaluate_runs([run], "test")
            except L2DError:
                continue
            except Exception as error:
                pytest.fail(f"{'.'.join(map(str, path))} = {new!r}: {error!r}")


@pytest.mark.slow
def test_what_a_run_from_elsewhere_looks_at_is_understood_or_refused(workshop):
    """Each place that ``route`` reads of run.json: all values, as these were once believed."""
    from l2d.data.library import opened
    from l2d.rejector.library import train
    from l2d.rejector.rows.foreign import Foreign
    from l2d.rejector.runs.files import RUN_FILE
    from l2d.rejector.runs.run import load_run

    workshop.build(RECIPE)
    run = workshop.folder / "run"
    train(opened(workshop.folder / "cache"), run, method="multi-task", epochs=1)
    good, refused = store.read_json(run / RUN_FILE), 0
    paths = [path for path in leaves(good) if path[:1] in [("input",), ("seen",), ("prices",), ("training",)]]
    for path in paths:
        for new in SAID:
            if (path, new) == (("input",), ...):  # as runs of before it was kept are
                continue
            store.commit_json(run / RUN_FILE, changed(good, path, new), replace=True)
            try:
                found = load_run(run)
                encoder = found.input.encoder
                names = ["x"] * found.rejector.width if encoder is None else encoder.names
                if len(names) != found.rejector.width:  # which route refuses
                    raise UsageError("another width")
                foreign = Foreign(found.seen, encoder, names, found.agents)
                foreign.see(np.zeros((1, len(names)), np.float32))
                foreign.findings([1] * len(found.agents))
            except L2DError:
                refused += 1
            except Exception as error:
                pytest.fail(f"{'.'.join(map(str, path))} = {new!r}: {error!r}")
    assert refused > 2 * len(paths)
