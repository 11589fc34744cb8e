"""Modules of the user's own that lie beside an agent's file: found, told apart, and part of what the agent is."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from l2d.cache_builder.agents._base import file_digest
from l2d.data.errors import AgentFailure, L2DError, UsageError

FACTORY = r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*$"  # package.module:name

#: Modules that agents have imported from each folder. Another folder may have others of these names.
_OWN: dict[Path, dict[str, ModuleType]] = {}


class FromSource(SourceFileLoader):
    """Compiles a module's file each time. Bytecode that Python keeps is known by size and second of the file alone, so
    that a model that was changed within a second would have the old one's answers under its own fingerprint.
    """

    def get_code(self, fullname: str):
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Finder(FileFinder):
    """Finds what lies in a folder of the user's."""


def _finder(folder: Path, names: set[str]) -> Callable[[str], _Finder]:
    """A hook that finds modules of these names in a folder, and what is in them."""

    def hook(path: str) -> _Finder:
        place = Path(path)
        if place != folder and (folder not in place.parents or place.relative_to(folder).parts[0] not in names):
            raise ImportError(path)
        return _Finder(
            path,
            (ExtensionFileLoader, EXTENSION_SUFFIXES),
            (FromSource, SOURCE_SUFFIXES),
            (SourcelessFileLoader, BYTECODE_SUFFIXES),
        )

    return hook


@contextmanager
def beside(folder: Path) -> Iterator[None]:
    """Inside, what lies in a folder can be imported, as if a script of that folder ran.

    A module of the same name from elsewhere, another agent's or the calling program's own ``data``, makes room for the
    time being. Modules of Python itself and installed ones stay, as l2d works with them.
    """
    folder = folder.resolve()
    own = _names_in(folder)
    elsewhere = {
        name: module
        for name, module in _loaded(own).items()
        if not _lies_in(module, folder) and not _is_installed(module)
    }
    for name in elsewhere:
        del sys.modules[name]
    sys.modules.update(_OWN.get(folder, {}))
    sys.path.insert(0, str(folder))
    hook = _finder(folder, own)
    sys.path_hooks.insert(0, hook)
    sys.path_importer_cache.pop(str(folder), None)
    try:
        yield
    finally:
        sys.path_hooks.remove(hook)
        for path in [path for path, finder in sys.path_importer_cache.items() if isinstance(finder, _Finder)]:
            del sys.path_importer_cache[path]
        sys.path.remove(str(folder))
        _OWN[folder] = {name: module for name, module in _loaded(own).items() if _lies_in(module, folder)}
        replaced = {name.partition(".")[0] for name in elsewhere}
        for name in _OWN[folder]:
            if name.partition(".")[0] in replaced:
                del sys.modules[name]
        sys.modules.update(elsewhere)


def _names_in(folder: Path) -> set[str]:
    """Names of modules and packages that lie in a folder."""
    found = set()
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.suffix == ".py":
            found.add(entry.stem)
        elif entry.name.isidentifier() and entry.is_dir() and any(entry.glob("*.py")):
            found.add(entry.name)
    return found - sys.stdlib_module_names - {"l2d", "__main__"}


def _loaded(names: set[str]) -> dict[str, ModuleType]:
    """Loaded modules of these names and what is in them. This is done around every batch, so it looks at names only."""
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in names} if names else {}


def _lies_in(module: ModuleType, folder: Path) -> bool:
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), None)
    if file is None or not isinstance(getattr(module, "__name__", None), str):
        return False
    name = module.__name__.partition(".")[0]
    return name not in ("l2d", "__main__") and folder in Path(file).parents and not _is_installed(module)


def _is_installed(module: ModuleType) -> bool:
    return "site-packages" in str(getattr(module, "__file__", None) or "")


@contextmanager
def run_safely(agent: str, what: str, where: object, folder: Path) -> Iterator[None]:
    """Inside, code of the user's is loaded from a folder; what it raises becomes an :class:`AgentFailure`.

    The agent imports its own modules, whatever they are called; those before keep theirs.
    """
    for name, module in _OWN.pop(folder.resolve(), {}).items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    try:
        with beside(folder):
            yield
    except L2DError:
        raise
    except (Exception, SystemExit) as error:
        shown = f"{type(error).__name__}: {error}" if isinstance(error, OSError) else repr(error)  # names the file
        raise AgentFailure(
            f"agent {agent!r}: {what} fails: {shown}", where=where, hint="fix it and run the same command again"
        ) from error


def defines(file: Path, function: str) -> bool:
    """Whether a Python file may define a name; False only where it surely does not. Nothing is run."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return True  # what is wrong with it is said when it is run
    plain = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    for node in tree.body:
        if not isinstance(node, plain) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            return True  # a statement that may define it, or fail
    found: set[str] = set()
    for inner in ast.walk(tree):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(inner.name)
        elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            found.add(inner.id)
        elif isinstance(inner, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in inner.names}
    return function in found or "*" in found


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
