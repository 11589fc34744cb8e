"""Ways of doing it wrong, patched in from outside, so that each check can be seen to notice them.

As a program (``python sabotages.py NAME build RECIPE --out CACHE``) it is the command line with one of them in force.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from unittest import mock

import l2d.rejector.sql.catalogue
import l2d.rejector.sql.files


def commit_in_place(path: Path, write, *, replace: bool = False, durable: bool = True, pause: float = 0.002) -> bool:
    """As ``store.commit``, but written piece by piece under the final name, whoever else has written there."""
    from l2d.data.errors import DataError

    worlds = [folder for folder in path.parents if (folder / "recipe.toml").exists()]
    scratch = (worlds or [Path("/dev/shm")])[0] / f"scratch-{os.getpid()}-{time.monotonic_ns()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(scratch)
        content = scratch.read_bytes()
        with open(path, "wb", buffering=0) as file:
            for start in range(0, len(content), 700):
                file.write(content[start : start + 700])
                time.sleep(pause)
    except OSError as error:
        raise DataError(f"cannot write: {error}", where=path, hint="sabotaged") from error
    finally:
        scratch.unlink(missing_ok=True)
    return True


def fsync_forgiving(real):
    """``os.fsync`` whose errors go unnoticed."""

    def fsync(handle: int) -> None:
        with suppress(OSError):
            real(handle)

    return fsync


def apply(name: str | None) -> None:
    """Put a sabotage in force for the rest of this process."""
    from l2d.data.cache import store

    if name == "in place":
        store.commit = commit_in_place
    elif name == "in place, slowly":  # so that most kills hit a write
        store.commit = partial(commit_in_place, pause=0.1)
    elif name is not None and name != "deaf":
        raise ValueError(name)


@contextmanager
def trusting():
    """Readers that check nothing: no page checksums, no digests, no seals."""
    import pyarrow.dataset as pads
    import pyarrow.parquet as pq

    from l2d.data.cache import reader as cache
    from l2d.data.cache import store
    from l2d.data.cache.integrity import corruption_named

    def read_known(path: Path, columns=None):
        with corruption_named(path):
            return pq.ParquetFile(path).read(columns=columns), ""

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(cache, "skeleton_digest", return_value=""))
        stack.enter_context(mock.patch.object(store, "skeleton_of", return_value=""))
        stack.enter_context(mock.patch.object(store, "read_known", read_known))
        stack.enter_context(mock.patch.object(cache.CostCache, "sealed", return_value=None))
        stack.enter_context(mock.patch.object(cache.CostCache, "check_part"))
        stack.enter_context(mock.patch.object(l2d.rejector.sql.files, "verified_format", pads.ParquetFileFormat))
        stack.enter_context(mock.patch.object(l2d.rejector.sql.catalogue.Catalogue, "verify"))
        yield


def main() -> None:
    from l2d import cli

    name = sys.argv.pop(1)
    apply(name)
    if name == "deaf":  # nobody listens to signals
        cli.app(standalone_mode=False)
    else:
        cli.main()


if __name__ == "__main__":
    main()
