"""The mAP of each detector of a cache alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from l2d.data.cache.reader import CostCache
from l2d.data.costs.pooled import system_map
from l2d.data.samples.boxes import Boxes

MOST_IMAGES = 10_000  # of the test split; of more, evaluate says it: a status ought not to take a minute


def test_maps(cache: CostCache) -> dict[str, float]:
    """Agent or reference -> COCO's mAP in [0, 1] of its detections on the test images of a complete cache.

    Images on which an agent failed or was not available are left out for it. Agents without any image, or without an
    object to find, are left out; so are all where there are more than :data:`MOST_IMAGES` images.
    """
    ids: list[str] = []
    targets: list[Boxes] = []
    found: dict[str, list[Boxes]] = {agent.name: [] for agent in cache.all_agents}
    answered: dict[str, list[np.ndarray]] = {agent.name: [] for agent in cache.all_agents}
    for chunk in range(cache.record.num_chunks):
        samples = cache.samples(chunk, ["sample_id", "split", "target_boxes"])
        rows = np.flatnonzero(np.array(samples["split"].to_pylist()) == "test")
        if not len(rows):
            continue
        take = pa.array(rows)
        ids += samples["sample_id"].take(take).to_pylist()
        targets.append(Boxes.from_arrow(samples["target_boxes"].take(take)))
        for name in found:
            answers = cache.predictions(name, chunk, ["pred_boxes", "failure"]).take(take)
            found[name].append(Boxes.from_arrow(answers["pred_boxes"]))
            answered[name].append(np.array([reason is None for reason in answers["failure"].to_pylist()], dtype=bool))
    if not ids or len(ids) > MOST_IMAGES:
        return {}
    truth, maps = Boxes.concatenate(targets), {}
    for name, parts in found.items():
        rows = np.flatnonzero(np.concatenate(answered[name]))
        if len(rows):
            boxes = Boxes.concatenate(parts)
            pooled = system_map(truth.take(rows), boxes.take(rows), [ids[row] for row in rows])
            if "map" in pooled:
                maps[name] = pooled["map"]
    return maps
