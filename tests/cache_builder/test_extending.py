"""One more agent for a cache that is there: what is there stays byte for byte, and bad input changes nothing."""

from __future__ import annotations

import tomllib

import polars as pl
import pytest

import l2d as library
from l2d.data.errors import L2DError, UsageError


@pytest.fixture
def imported(tmp_path):
    """A cache of two readers, imported from tables."""
    ids = [f"s{k}" for k in range(40)]
    truth = ["yes" if k % 3 else "no" for k in range(40)]
    pl.DataFrame({"case": ids, "x": [float(k % 7) for k in range(40)], "sick": truth}).write_csv(tmp_path / "cases.csv")
    rows = [(one, who, said) for one, said in zip(ids, truth, strict=True) for who in ("anna", "ben")]
    pl.DataFrame(rows, ["case", "reader", "answer"], orient="row").write_csv(tmp_path / "answers.csv")
    library.import_table(
        tmp_path / "cases.csv", tmp_path / "answers.csv", out=tmp_path / "cache", id="case", target="sick",
        annotator="reader", model="anna", columns=["x"],
    )  # fmt: skip
    return tmp_path


def files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_agent_is_added_and_nothing_else_is_asked(imported, l2d):
    before = files(imported / "cache" / "agents")
    ids = [f"s{k}" for k in range(0, 40, 2)]
    pl.DataFrame({"sample_id": ids, "answer": ["yes"] * 20}).write_csv(imported / "clinic.csv")
    code, _, err = l2d("extend", imported / "cache", imported / "clinic.csv", "--name", "a clinic")
    assert code == 0, err
    assert "asked: a clinic 40 samples" in err
    after = files(imported / "cache" / "agents")
    assert {name: after[name] for name in before} == before
    entry = tomllib.loads((imported / "cache.toml").read_text())["agents"][-1]
    assert entry == {"name": "a clinic", "kind": "table", "file": "clinic.csv", "id": "sample_id", "cla": "answer"}
    found = library.query(
        imported / "cache",
        "SELECT sample_id, cost_cla, target_cla FROM costs JOIN samples USING (sample_id) WHERE agent = 'a clinic'",
    ).frame()
    known = found.filter(pl.col("cost_cla").is_finite())
    assert set(known["sample_id"]) == set(ids)
    wrong = [float(int(name[1:]) % 3 == 0) for name in known["sample_id"]]
    assert known["cost_cla"].to_list() == wrong


@pytest.mark.parametrize(
    ("table", "options", "said"),
    [
        ({"sample_id": ["s1"], "answer": ["perhaps"]}, {}, "perhaps"),
        ({"sample_id": ["s1"], "said": ["yes"]}, {}, "--cla COLUMN"),
        ({"sample_id": ["s1"], "answer": ["yes"]}, {"cla": "reply"}, "reply"),
        ({"sample_id": ["other"], "answer": ["yes"]}, {}, "other"),
        ({"sample_id": ["s1"], "answer": ["yes"]}, {"name": "ben"}, "has an agent 'ben'"),
        ({"sample_id": ["s1"], "answer": ["yes"]}, {"recipe": "none.toml"}, "no recipe here"),
    ],
)
def test_bad_input_changes_nothing(imported, table, options, said):
    before = files(imported)
    pl.DataFrame(table).write_csv(imported / "new.csv")
    with pytest.raises(L2DError, match=said):
        library.extend(imported / "cache", imported / "new.csv", **{"name": "new", **options})
    (imported / "new.csv").unlink()
    assert files(imported) == before


def test_a_cache_that_is_not_there_is_none(imported):
    pl.DataFrame({"sample_id": ["s1"], "answer": ["yes"]}).write_csv(imported / "new.csv")
    with pytest.raises(UsageError):
        library.extend(imported / "none", imported / "new.csv", name="new", recipe=imported / "cache.toml")
