"""What Python programs do with a cache as it is: status, verify, audit, push, fetch … Exported by :mod:`l2d`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2d.data.cache.reader import CostCache
from l2d.data.cache.signature import sign as sign_cache
from l2d.data.cache.signature import signer
from l2d.data.cache.status import column_lines, status_rows
from l2d.data.results import Shown

if TYPE_CHECKING:
    from l2d.data.cache.audit import Finding


def opened(cache: CostCache | Path | str) -> CostCache:
    """A cache, or the one in a folder.

    Raises:
        UsageError: there is no cache there.
    """
    return cache if isinstance(cache, CostCache) else CostCache(cache)


@dataclass(frozen=True)
class Status(Shown):
    """What a cache holds, a row for each agent.

    Attributes:
        cache: the cache.
        agents: the rows, see :func:`l2d.data.cache.status.status_rows`.
        notes: what became of the source table's columns, and what was read in a special way.
    """

    cache: CostCache
    agents: list[dict[str, Any]]
    notes: list[str]

    def rows(self) -> list[dict[str, Any]]:
        return self.agents


@dataclass(frozen=True)
class Audit(Shown):
    """What an audit found, a row for each question; ``warnings`` counts the answers that may flatter test figures."""

    findings: list[Finding]

    def rows(self) -> list[dict[str, Any]]:
        return [finding.row() for finding in self.findings]

    def gaps(self) -> list[dict[str, Any]]:
        """Mean cost of each agent on training and on test samples."""
        return [gap.row() for finding in self.findings for gap in finding.gaps]

    def table(self) -> str:
        from l2d.data.terminal.layout import table_text

        title = "Mean cost of each agent on training and on test samples"
        return f"{super().table()}\n\n{table_text(self.gaps(), title=title)}"

    def to_json(self) -> list[dict[str, Any]]:
        return [each.row() | {"gaps": [asdict(gap) for gap in each.gaps]} for each in self.findings]

    @property
    def warnings(self) -> int:
        return sum(finding.level == "warning" for finding in self.findings)


def status(cache: CostCache | Path | str) -> Status:
    """What a cache holds: agents, parts done and missing, mean raw costs by split."""
    found = opened(cache)
    rows = status_rows(found)
    if "target_boxes" in found.record.fingerprint and all(row["samples"] == found.record.num_samples for row in rows):
        from l2d.data.costs.of_cache import test_maps

        maps = test_maps(found)
        rows = [_with_map(row, maps.get(row["agent"])) for row in rows]
    return Status(found, rows, column_lines(found))


def _with_map(row: dict[str, Any], value: float | None) -> dict[str, Any]:
    """A detector's row with its mAP before what it found nothing on."""
    place = list(row).index("nothing found")
    items = list(row.items())
    return dict([*items[:place], ("mAP % test", None if value is None else 100 * value), *items[place:]])


def verify(cache: CostCache | Path | str, *, signed: Path | str | None = None) -> int:
    """Read everything back: page checksums, samples, rows, seals. Returns the number of parts.

    Args:
        signed: a file of allowed signers, one of whom must have signed the cache as it is.

    Raises:
        CorruptPart: names the file that is not what was written.
        IncompleteCache: parts are missing.
        DataError: no allowed signer has signed it.
    """
    found = opened(cache)
    if signed is not None:
        signer(found, Path(signed))
    return found.verify()


def sign(cache: CostCache | Path | str, key: Path | str) -> Path:
    """Sign a complete cache with an SSH key. Returns the signature's file, which travels with the cache.

    Raises:
        UsageError: the key cannot be used.
    """
    return sign_cache(opened(cache), Path(key))


def audit(cache: CostCache | Path | str, *, groups: Iterable[str] = ()) -> Audit:
    """Ids, groups or inputs in two splits; agents that know the training samples. See :mod:`l2d.data.cache.audit`.

    Args:
        groups: kept columns whose values should not be in two splits, such as a patient's number.
    """
    from l2d.data.cache.audit import audit as find_leaks

    return Audit(find_leaks(opened(cache), groups=tuple(groups)))


def describe(cache: CostCache | Path | str) -> dict[str, Any]:
    """A complete cache described in Croissant 1.0: files, columns, units, licence; :mod:`l2d.data.cache.description`.

    Raises:
        IncompleteCache: parts are missing.
    """
    from l2d.data.cache.description import description

    return description(opened(cache))


def push(
    cache: CostCache | Path | str,
    url: str,
    *,
    read_back: bool = False,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Copy a complete cache to an object store or a folder. The same call goes on, and repairs what is damaged there.

    Args:
        read_back: read every file that is there already, even where the store knows its checksum.
        progress: told how many files more are done.

    Returns:
        Number of files copied.
    """
    from l2d.data.cache.remote import push as push_cache

    return push_cache(opened(cache), url, progress, read_back=read_back)


def fetch(url: str, out: Path | str, *, progress: Callable[[int], None] | None = None) -> CostCache:
    """Copy a cache from an object store or a folder and verify every byte. The same call goes on, and repairs."""
    from l2d.data.cache.remote import fetch as fetch_cache

    return fetch_cache(url, Path(out), progress)
