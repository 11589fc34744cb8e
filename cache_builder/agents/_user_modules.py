"""Modules of the user's own that lie beside an agent's file: found, told apart, and part of what the agent is."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

from l2d.cache_builder.agents._base import file_digest
from l2d.data.errors import AgentFailure, L2DError, UsageError

FACTORY = r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*$"  # package.module:name

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
            ours = name.partition(".")[0] == "l2d"
            if not ours and file is not None and folder in Path(file).parents and "site-packages" not in file:
                _IMPORTED.add(name)


@contextmanager
def run_safely(agent: str, what: str, where: object, folder: Path) -> Iterator[None]:
    """Inside, code of the user's is loaded from a folder; what it raises becomes an :class:`AgentFailure`.

    The agent imports its own modules, whatever they are called; those before keep theirs.
    """
    for name in _IMPORTED:
        sys.modules.pop(name, None)
    _IMPORTED.clear()
    try:
        with beside(folder):
            yield
    except L2DError:
        raise
    except (Exception, SystemExit) as error:
        raise AgentFailure(
            f"agent {agent!r}: {what} fails: {error!r}", where=where, hint="fix it and run the same command again"
        ) from error


def find_factory(factory: str, folder: Path, agent: str) -> None:
    """Raises :class:`UsageError` if the factory's module is neither beneath a folder nor installed."""
    module = factory.partition(":")[0]
    try:
        with beside(folder):
            found = module_file(module, folder) or importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise UsageError(
            f"agent {agent!r}: there is no module {module!r}",
            where=f"factory = {factory!r}",
            hint=f"install it, or put it into {folder}",
        )


def make(factory: str, folder: Path, options: dict[str, Any], agent: str) -> Any:
    """What a factory makes.

    Raises:
        AgentFailure: it cannot be imported, or raises.
    """
    module, _, name = factory.partition(":")
    with run_safely(agent, "its factory", f"factory = {factory!r}", folder):
        return attrgetter(name)(importlib.import_module(module))(**options)


def own_files(factory: str, folder: Path) -> dict[str, str] | None:
    """Digest of each file in a folder that a factory is made of; None for an installed module, which has a version."""
    own = module_file(factory.partition(":")[0], folder)
    if own is None:
        return None
    return {str(path.relative_to(folder)): file_digest(path) for path in [own, *modules_beside(own, folder)]}


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
