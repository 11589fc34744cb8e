"""The view ``class_ap``: AP of each class of objects, of every agent alone and of every run.

It is counted from cached boxes once a query asks for it, and held as long as the session: nothing else waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from l2d.data.cache import schema, store
from l2d.data.cache.reader import CostCache
from l2d.rejector.sql.files import Part, held_rows, rows_as_sql

NAME = "class_ap"
_TEXT, _NUMBER, _COUNT = pa.string(), pa.float64(), pa.int64()
COLUMNS = pa.schema(
    {"cache": _TEXT, "run_id": _TEXT, "agent": _TEXT, "split": _TEXT, "class_index": pa.int32(), "class": _TEXT,
     "ap": _NUMBER, "ap_50": _NUMBER, "images": _COUNT, "objects": _COUNT, "detections": _COUNT}
)  # fmt: skip
WITHOUT_ROWS = f"CREATE TEMP VIEW {NAME} AS {rows_as_sql([], COLUMNS)}"  # what it is until a query asks for it


@dataclass
class ClassAP:
    """What the view is made of: caches by their names in SQL, and the allocations of runs."""

    caches: dict[str, CostCache] = field(default_factory=dict)
    runs: list[Part] = field(default_factory=list)
    _made: bool = False

    def fill(self, connection: Any, stop: Callable[[], bool]) -> None:
        """Make the view with its rows, once.

        Raises:
            CorruptPart: a file is damaged.
        """
        if self._made:
            return
        rows: list[dict] = []
        for label, cache in self.caches.items():
            rows += _rows_of(cache, label, [run for run in self.runs if run.constants["cache"] == label], stop)
        if stop():  # before all is counted; the query ends anyway
            return
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {NAME} AS FROM {held_rows(connection, NAME, rows, COLUMNS)}")
        self._made = True


def _rows_of(cache: CostCache, label: str, runs: list[Part], stop: Callable[[], bool]) -> Iterator[dict]:
    """Rows of one cache; none where its samples have no boxes, or where it is still being built."""
    chunks = range(cache.record.num_chunks)
    samples = [schema.samples_part(cache.path, k) for k in chunks]
    if not all(map(cache.has, samples)) or schema.TARGET_BOXES not in cache.columns_of(samples[0]).names:
        return
    from l2d.data.costs.class_precision import class_precision, judge  # here: other queries do without
    from l2d.data.costs.pooled import ranks
    from l2d.data.samples.boxes import Boxes

    table = pa.concat_tables([cache.samples(k, ["sample_id", "split", schema.TARGET_BOXES]) for k in chunks])
    ids, targets = table["sample_id"].to_pylist(), Boxes.from_arrow(table[schema.TARGET_BOXES])
    split = np.array(table["split"].to_pylist())
    rank = ranks(ids)
    agents, answers, missing = [], [], []
    for agent in cache.all_agents:
        parts = [schema.predictions_part(cache.path, agent.name, k) for k in chunks]
        if stop() or not all(map(cache.has, parts)) or schema.PRED_BOXES not in cache.columns_of(parts[0]).names:
            continue
        found = pa.concat_tables([cache.predictions(agent.name, k, [schema.PRED_BOXES, "failure"]) for k in chunks])
        agents.append(agent.name)
        answers.append(judge(targets, Boxes.from_arrow(found[schema.PRED_BOXES])))
        missing.append(found["failure"].is_valid().to_numpy(zero_copy_only=False))

    def counted(chosen: np.ndarray, run_id: str | None, agent: str | None) -> Iterator[dict]:
        for part in schema.SPLITS:
            set_of = np.where(split == part, chosen, -1)
            if any(gaps[set_of == place].any() for place, gaps in enumerate(missing)):
                continue
            for found in class_precision(targets, answers, set_of, rank):
                yield {
                    "cache": label, "run_id": run_id, "agent": agent, "split": part, "class_index": found.label,
                    "class": cache.record.classes[found.label], "ap": found.ap, "ap_50": found.ap_50,
                    "images": found.images, "objects": found.objects, "detections": found.detections,
                }  # fmt: skip

    for place, name in enumerate(agents):
        yield from counted(np.full(len(ids), place), None, name)
    position = {sample_id: image for image, sample_id in enumerate(ids)}
    for run in runs:
        if stop() or not set(run.agents or ()) <= set(agents):
            continue
        said = store.read_table(run.path, ["sample_id", "agent_index"])
        places = np.array([agents.index(name) for name in run.agents or ()])
        chosen = np.full(len(ids), -1)
        images = [position[sample_id] for sample_id in said["sample_id"].to_pylist()]
        chosen[images] = places[said["agent_index"].to_numpy()]
        yield from counted(chosen, str(run.constants["run_id"]), None)
