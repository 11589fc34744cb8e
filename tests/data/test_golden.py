"""Caches written by earlier schemas stay readable. `python tests/test_golden.py` writes one for the schema in force."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from l2d.data.cache import schema, store
from l2d.data.cache.reader import CostCache
from l2d.data.errors import FingerprintMismatch
from l2d.rejector.rows.table import load_tables

GOLDEN = Path(__file__).parents[1] / "golden"


def values(cache: CostCache) -> dict[str, str]:
    """Digest of every column that stage two reads."""
    tables = load_tables(cache, schema.SPLITS, predictions=True, failures="worst")
    digests = {}
    for split, table in tables.items():
        columns = {
            "features": table.features.numpy(),
            "raw": table.raw.numpy(),
            "ids": np.array(table.ids),
            **table.targets,
        }
        for agent, predictions in table.predictions.items():
            columns |= {f"{agent}.{name}": array for name, array in predictions.items()}
        for name, array in sorted(columns.items()):
            digests[f"{split}.{name}"] = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
    return digests


@pytest.mark.parametrize("version", sorted(path.name for path in GOLDEN.glob("v*")))
def test_every_golden_cache_opens_verifies_and_holds_its_values(version):
    cache = CostCache(GOLDEN / version / "cache")
    assert cache.verify() == len(cache.parts())
    assert values(cache) == json.loads((GOLDEN / version / "values.json").read_text())


def test_there_is_a_golden_cache_of_the_schema_in_force():
    assert (GOLDEN / f"v{schema.SCHEMA_VERSION}" / "cache" / "cache.json").is_file()


def test_a_cache_of_a_schema_from_the_future_is_refused_by_name(tmp_path):
    shutil.copytree(GOLDEN / "v1" / "cache", tmp_path / "cache")
    file = schema.cache_file(tmp_path / "cache")
    record = store.read_json(file)
    store.commit_json(file, {**record, "schema_version": 99, "unheard_of": 1}, replace=True)
    with pytest.raises(FingerprintMismatch, match="schema_version: was 99, now 1"):
        CostCache(tmp_path / "cache")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import tempfile

    from conftest import Workshop
    from recipes import RECIPE

    target = GOLDEN / f"v{schema.SCHEMA_VERSION}"
    if target.exists():
        raise SystemExit(f"{target} is there already: a golden cache is written once and never again")
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder))
        lines = ["def ask(batch):", "    assert 'p0007' not in batch.ids"]
        lines += ["    return {'cla': [1] * len(batch.ids), 'reg': [2.0] * len(batch.ids)}", ""]
        code = "\n".join(lines)
        (Path(folder) / "agent.py").write_text(code)
        text = RECIPE + '\n[[agents]]\nname = "flaky"\nkind = "python"\nfile = "agent.py"\n'
        workshop.build(text, on_failure="record")
        shutil.copytree(Path(folder) / "cache", target / "cache")
    (target / "values.json").write_text(json.dumps(values(CostCache(target / "cache")), indent=1) + "\n")
