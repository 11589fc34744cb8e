"""The view ``class_ap``: what ``evaluate`` says of each class, in SQL, and nothing where nothing can be said."""

from __future__ import annotations

import pytest

import l2d
from l2d.rejector.sql.query import QuerySession, query

SQL = "SELECT class, ap, objects FROM class_ap WHERE split = 'test' AND"


def by_class(rows: list[dict]) -> dict[str, dict]:
    return {row["class"]: {"objects": row["objects"], "ap": row["ap"]} for row in rows}


def test_agents_and_runs_have_the_figures_of_evaluate(detection_runs):
    cache, runs = detection_runs
    (result,) = l2d.evaluate(runs["mlp"]).to_json()
    places = [cache, runs["mlp"], runs["conv"]]
    with QuerySession(places) as session:
        (run,) = [row["run_id"] for row in session.run("FROM runs WHERE rejector = 'mlp'").table().to_pylist()]
        expected = {f"run_id = '{run}'": result["by_class"]}
        expected |= {f"agent = '{name}'": alone["by_class"] for name, alone in result["agents"].items()}
        for condition, wanted in expected.items():
            found = by_class(session.run(f"{SQL} {condition}").table().to_pylist())
            assert found.keys() == wanted.keys()
            for name, row in found.items():
                assert row["objects"] == wanted[name]["objects"]
                assert row["ap"] == pytest.approx(wanted[name]["ap"], abs=1e-7)
        alone = session.run(f"SELECT count(*) AS n FROM class_ap WHERE run_id = '{run}' AND agent IS NOT NULL").table()
        assert alone.to_pylist() == [{"n": 0}]
        # the mean over classes is the mAP, and objects are those of the view of boxes
        mine = f"class_ap WHERE split = 'test' AND run_id = '{run}'"
        (mean,) = session.run(f"SELECT avg(ap) AS m FROM {mine}").table()["m"].to_pylist()
        assert mean == pytest.approx(result["metrics"]["map"], abs=1e-7)
        counted = session.run(
            "SELECT class, count(*) AS objects, count(DISTINCT sample_id) AS images FROM boxes JOIN samples USING "
            "(cache, sample_id) WHERE agent IS NULL AND NOT ignored AND split = 'test' GROUP BY class ORDER BY ALL"
        ).table()
        assert session.run(f"SELECT class, objects, images FROM {mine} ORDER BY ALL").table().equals(counted)


def test_without_boxes_or_without_the_cache_it_is_empty(make_cache, make_runs, detection_runs, tmp_path):
    cache = make_cache(tmp_path)
    make_runs(cache, tmp_path / "runs")
    for place in ([tmp_path], [detection_runs[1]["mlp"]]):
        assert query(place, "SELECT * FROM class_ap").num_rows == 0
