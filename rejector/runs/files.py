"""The files of a run, what ``run.json`` says, and where its cache lies: what needs no torch."""

from __future__ import annotations

from pathlib import Path

from l2d.data.cache import schema, store
from l2d.data.cache.addresses import is_address
from l2d.data.cache.integrity import sha256_of, skeleton_digest
from l2d.data.cache.reader import CostCache
from l2d.data.cache.temporary import TEMPORARY_SUFFIX
from l2d.data.errors import CorruptPart, UsageError
from l2d.rejector.runs.record import check_run

RUN_FILE = "run.json"
WEIGHTS_FILE = "rejector.safetensors"
ALLOCATIONS_FILE = "allocations.parquet"
BODY_FILE = "body.safetensors"  # the frozen part of a rejector on pixels
# What is made of runs, named here since a query looks for it and needs none of what makes it.
POLICY_FILE = "policy.json"
DECISIONS_FILE = "decisions.parquet"
WORTH_FILE = "worth.json"

BATCH_ROWS = 32_768  # allocated and written at once


#: Begins the names of digests of what agents were paid, which only runs that pay prices have.
PRICES = "prices of "


def cache_fingerprint(cache: CostCache) -> dict[str, str]:
    """Tells whether a cache still holds what a run was trained on: digests of its samples and of each agent's costs.

    Of a cache with prices also of what each agent was paid.
    """
    record = cache.record
    chunks = range(record.num_chunks)
    found = {"samples": [schema.samples_part(cache.path, k) for k in chunks]}
    for agent in cache.agents:
        costs = [schema.costs_part(cache.path, agent.name, k, record.cost_digest) for k in chunks]
        found[f"costs of {agent.name}"] = costs
    digests = {name: schema.digest([cache.skeleton(part) for part in parts]) for name, parts in found.items()}
    for agent in cache.agents if cache.priced else ():
        said = [cache.skeleton(schema.predictions_part(cache.path, agent.name, k)) for k in chunks]
        digests[PRICES + agent.name] = schema.digest([said, agent.price == 0, agent.paid_each])
    return digests


def find_runs(path: Path) -> list[Path]:
    """Run folders at or beneath a path, in name order.

    Raises:
        UsageError: there is none.
    """
    found = [path] if (path / RUN_FILE).is_file() else sorted(file.parent for file in path.rglob(RUN_FILE))
    found = [folder for folder in found if not folder.name.endswith(TEMPORARY_SUFFIX)]
    if not found:
        raise UsageError("there is no run here", where=path, hint="train one: l2d train CACHE --out RUN")
    return found


def one_run(path: Path) -> Path:
    """The run folder at or beneath a path.

    Raises:
        UsageError: there is none, or more than one.
    """
    found = find_runs(path)
    if len(found) > 1:
        raise UsageError(f"there are {len(found)} runs here", where=path, hint=f"choose one, such as {found[0]}")
    return found[0]


def read_facts(path: Path) -> dict:
    """``run.json``, once the files beside it are known to be those that were written with it.

    Raises:
        CorruptPart: a file of the run is missing or damaged.
    """
    try:
        facts = store.read_json(path / RUN_FILE)
        check_run(facts, path / RUN_FILE)
        digests = facts["digests"]
        others = [WEIGHTS_FILE, *(name for name in digests if name not in (WEIGHTS_FILE, ALLOCATIONS_FILE))]
        found = {name: sha256_of(path / name) for name in others}
        found[ALLOCATIONS_FILE] = skeleton_digest(path / ALLOCATIONS_FILE)
    except (KeyError, FileNotFoundError) as error:
        raise CorruptPart(f"is not a whole run: {error}", where=path, hint="train it again") from error
    for name, digest in found.items():
        if digest != digests.get(name):
            raise CorruptPart("is not the file that was written", where=path / name, hint="train it again")
    return facts


def cache_of(path: Path, facts: dict) -> Path | str:
    """Where the cache of a run lies: where it lay relative to the run if it is there, else where it lay absolutely.

    A pair that moved together is thus found even if another cache stands in its old place. The address of a cache in a
    store stays what it was.
    """
    place = facts["cache"]
    if is_address(place["path"]):
        return place["path"]
    relative = (path / place["relative_path"]).resolve()
    return relative if schema.cache_file(relative).is_file() else Path(place["path"])


def images_of(path: Path, facts: dict) -> str | None:
    """Where the image files of a run lie that looks at them; found as :func:`cache_of` finds its cache."""
    place: str | None = facts["training"].get("images")
    if place is None or "images" not in facts:
        return place
    relative = (path / facts["images"]["relative_path"]).resolve()
    return str(relative) if relative.is_dir() else place
