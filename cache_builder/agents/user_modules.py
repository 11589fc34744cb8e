"""Modules of the user's own that lie beside an agent's file: found, told apart, and part of what the agent is."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Modules that agents have imported from their folders. Another agent may have others of these names.
_IMPORTED: set[str] = set()


@contextmanager
def beside(folder: Path) -> Iterator[None]:
    """Inside, what lies in a folder can be imported, as if a script of that folder ran."""
    before, folder = set(sys.modules), folder.resolve()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            ours = name.partition(".")[0] in ("cli", "data", "cache_builder", "rejector")
            if not ours and file is not None and folder in Path(file).parents and "site-packages" not in file:
                _IMPORTED.add(name)


def forget_modules() -> None:
    """Have the next agent import its own modules, whatever they are called; those before keep theirs."""
    for name in _IMPORTED:
        sys.modules.pop(name, None)
    _IMPORTED.clear()


def module_file(module: str, folder: Path) -> Path | None:
    """The file of a module that lies in a folder, None if there is none."""
    path = folder.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def modules_beside(file: Path, folder: Path) -> list[Path]:
    """Files in a folder that a Python file imports, directly or through others, sorted; ``file`` itself left out."""
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        current = waiting.pop()
        for name in _imports(current, folder):
            parts = name.split(".")
            for length in range(1, len(parts) + 1):  # a package's own file runs too
                path = module_file(".".join(parts[:length]), folder)
                if path is not None and path not in found and path != file:
                    found.add(path)
                    waiting.append(path)
    return sorted(found)


def _imports(file: Path, folder: Path) -> list[str]:
    """Names of the modules that a file may import, as seen from the folder; none where it is no Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return []
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = []
            if node.level and folder in file.parents:
                inside = file.relative_to(folder).parts[:-1]
                package = list(inside[: len(inside) - node.level + 1])
            whole = ".".join([*package, *([node.module] if node.module else [])])
            names += [whole] if whole else []
            names += [".".join(part for part in (whole, alias.name) if part) for alias in node.names]
    return names
