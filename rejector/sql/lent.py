"""Copies of parts of caches in stores that a query session reads: kept from being removed until the session ends."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from l2d.data.cache.places import PUSH_AGAIN
from l2d.data.errors import CorruptPart, UsageError

if TYPE_CHECKING:
    from l2d.data.cache.mirror import Mirror


class LentParts:
    """The parts that are held. Other readers than ours open them by name at any time, so all stay until the end."""

    def __init__(self) -> None:
        self._mirrors: dict[Path, Mirror] = {}

    def hold(self, mirror: Mirror, parts: list[Path]) -> None:
        """Keep some parts, of which the footers come now."""
        for part in parts:
            mirror.pin(part)
            self._mirrors[part] = mirror
        mirror.bring([(part, ()) for part in parts])

    def bring(self, wanted: Iterable[tuple[Path, Collection[str]]]) -> None:
        """Have columns of the parts that are held; other parts lie in folders and are left alone.

        Raises:
            UsageError: they take more than may be kept.
        """
        by_mirror: dict[Mirror, list[tuple[Path, Collection[str]]]] = {}
        for part, columns in wanted:
            if part in self._mirrors:
                by_mirror.setdefault(self._mirrors[part], []).append((part, columns))
        for mirror, parts in by_mirror.items():
            for start in range(0, len(parts), AT_A_TIME):
                mirror.bring(parts[start : start + AT_A_TIME])
                self._require_fit(mirror)

    def told(self, error: CorruptPart) -> CorruptPart:
        """An error about a copy as one about the part in its store. The copy goes, so that the next one is fetched."""
        part = Path(str(error.where))
        if part not in self._mirrors:
            return error
        mirror = self._mirrors[part]
        mirror.drop(part)
        return CorruptPart(error.what, where=mirror.where(part), hint=PUSH_AGAIN)

    def _require_fit(self, mirror: Mirror) -> None:
        held = sum(part.stat().st_blocks * 512 for part, owner in self._mirrors.items() if owner is mirror)
        if held > mirror.limit:
            raise UsageError(
                f"the views of this query need more than {mirror.limit / 1e6:,.0f} MB of parts at once",
                where=mirror.address,
                hint="give a higher --parts-limit, or name fewer views",
            )

    def close(self) -> None:
        """Let them go."""
        for part, mirror in self._mirrors.items():
            mirror.unpin(part)
        self._mirrors.clear()


AT_A_TIME = 64  # parts that are fetched before it is looked whether they fit
