"""Files named in an agent's ``options``: relative to the recipe, like every other path of it, and part of the agent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from l2d.cache_builder.agents._base import file_digest
from l2d.data.errors import UsageError
from l2d.data.sources._annotated import is_file

NEEDED = {"path", "file", "weights", "checkpoint", "model"}  # keys whose files are read; others may be written


def resolved(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Options with the paths in them made absolute.

    A text is a path where it begins with ``./`` or ``../``, or names what lies in the recipe's folder and has a slash
    or a suffix.

    Args:
        folder: of the recipe.
    """

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: resolve(one) for key, one in value.items()}
        if isinstance(value, list):
            return [resolve(one) for one in value]
        path = _path(value, folder)
        return value if path is None else str(path)

    return {key: resolve(value) for key, value in options.items()}


def require_files(options: dict[str, Any], folder: Path, agent: str) -> None:
    """Raises :class:`UsageError` where an option names a file to read that is not there."""
    for key, value in options.items():
        if key not in NEEDED or not isinstance(value, str) or re.fullmatch(r"\w+", value) or "://" in value:
            continue
        if Path(value).suffix and not (folder / value).exists():
            raise UsageError(
                f"agent {agent!r}: options.{key}: there is no such file",
                where=(folder / value).absolute(),
                hint="paths in `options` are relative to the recipe",
            )


def option_files(options: dict[str, Any], folder: Path) -> dict[str, str]:
    """Digest of each file that an option of :data:`NEEDED` names, by key. Others may be logs, which change."""
    paths = {key: _path(options[key], folder) for key in sorted(NEEDED & options.keys())}
    return {key: file_digest(path) for key, path in paths.items() if path is not None and path.is_file()}


def _path(value: Any, folder: Path) -> Path | None:
    """The path that an option means, None where it is something else."""
    if not isinstance(value, str) or "://" in value or "\0" in value:
        return None
    path = (folder / value).absolute()
    if value.startswith(("./", "../")):
        return path
    like_a_path = "/" in value or Path(value).suffix != ""
    return path if like_a_path and (is_file(path) or path.is_dir()) else None
