"""SQL over tables that are handed in: a DuckDB connection that reaches no file, no extension and no variable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def locked_connection(
    register: Callable[[Any], object] | None = None,
    *,
    files: Callable[[], list[str]] = list,
    spill: Path | None = None,
    memory_limit: int | None = None,
) -> Any:
    """An in-memory DuckDB connection that reaches nothing but what it is given.

    Args:
        register: called with the connection before it is locked.
        files: asked then for the files that DuckDB's own readers may open.
        spill: a folder of our own, where DuckDB may put what does not fit into memory; None: nowhere. It stays within
            reach of the engine, which is why :func:`l2d.rejector.sql.guard.admitted` comes before it.
        memory_limit: bytes DuckDB may hold; 60 % of the machine's (or container's) if None.
    """
    import duckdb

    config: dict[str, str | bool | int | float | list[str]] = {
        "python_enable_replacements": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "temp_directory": "" if spill is None else str(spill),  # its own default is a folder in the working directory
        "memory_limit": "60%" if memory_limit is None else f"{memory_limit}B",
    }
    connection = duckdb.connect(config=config)
    try:
        if register is not None:
            register(connection)
        if allowed := files():
            connection.execute(f"SET allowed_paths = [{', '.join(_text(file) for file in allowed)}]")
        connection.execute("SET enable_external_access = false; SET lock_configuration = true")
    except BaseException:
        connection.close()
        raise
    return connection


def _text(value: str) -> str:
    """A text as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"
