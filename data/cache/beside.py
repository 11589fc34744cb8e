"""Where the recipe that a cache was built by usually lies: a cache does not know."""

from __future__ import annotations

from pathlib import Path


def recipes_beside(cache: Path, name: str | None = None) -> list[Path]:
    """Places for the recipe of a cache, in the order in which they are tried.

    Beside the cache as ``l2d import`` writes it, under the recipe's name, and where ``l2d demo`` and ``l2d data`` lay
    it, in a folder of that name.

    Args:
        cache: folder of the cache.
        name: of the recipe; the cache's folder without its suffix if not given.
    """
    name = cache.stem if name is None else name
    found = [
        cache.with_name(f"{cache.name}.toml"),
        cache.with_name(f"{name}.toml"),
        cache.parent / name / f"{name}.toml",
    ]
    return list(dict.fromkeys(found))
