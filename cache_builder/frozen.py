"""What is fitted once and then kept: an agent's weights, and what text features were fitted to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from l2d.cache_builder.agents import Agent
from l2d.cache_builder.plan import agent_record, measured_in, write_record
from l2d.data.cache import schema, store
from l2d.data.cache.integrity import sha256_of
from l2d.data.cache.reader import CacheRecord
from l2d.data.errors import CorruptPart
from l2d.data.samples.dataset import Dataset

if TYPE_CHECKING:
    from l2d.cache_builder.builder import Build


def frozen_arrays(job: Build, agent: Agent, index: int, fingerprint: dict) -> tuple[dict | None, dict]:
    """What the agent froze (read back if it is there, else fitted and committed), and its whole fingerprint.

    ``agent.json`` is written before anything else in the folder, so whatever lies there is known to be of it.

    Raises:
        CorruptPart: what was frozen is gone, or another.
    """
    from safetensors.numpy import load, save

    name = agent.config.name
    record_file, file = schema.agent_file(job.out, name), schema.frozen_file(job.out, name)
    before = store.read_json(record_file) if record_file.is_file() else {"fingerprint": {}}
    recorded = before["fingerprint"].get("frozen")
    measured: dict[str, float | None] = {**measured_in(before)}
    if recorded is not None:
        fingerprint = {**fingerprint, "frozen": recorded}
    write_record(record_file, agent_record(agent, index, fingerprint, measured))
    if type(agent).freeze is Agent.freeze:
        return None, fingerprint
    if not file.is_file():
        if recorded is not None:
            raise CorruptPart(
                "is gone: the agent cannot be asked as it was", where=file, hint="restore it, or --overwrite"
            )
        job.progress(f"{name}: fitting, once", 0)  # it may take a while
        arrays = agent.freeze(job.dataset, job.device) or {}
        store.commit_bytes(file, save({key: np.ascontiguousarray(value) for key, value in arrays.items()}))
        job.report.fitted.append(name)
    found = sha256_of(file)[:16]
    if recorded not in (None, found):
        raise CorruptPart(
            f"is not what was frozen (SHA-256 {found}, recorded {recorded})",
            where=file,
            hint="restore this file, or delete the agent's folder and build again",
        )
    fingerprint = {**fingerprint, "frozen": found}
    write_record(record_file, agent_record(agent, index, fingerprint, measured))
    return load(file.read_bytes()), fingerprint


def write_text(out: Path, record: CacheRecord, dataset: Dataset) -> None:
    """Write what text features were fitted to, unless it is there, and remove what earlier ones were."""
    file = schema.text_file(out, record.inputs.get("features", {}))
    if file is not None and dataset.frozen is not None:
        there = file.is_file() and file.read_bytes() == dataset.frozen
        if not there:
            store.commit_bytes(file, dataset.frozen, replace=True)
    for other in out.glob("text-*.safetensors"):
        if other != file:
            store.remove(other)
