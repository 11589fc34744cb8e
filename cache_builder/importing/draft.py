"""What an import writes before it builds: a recipe to be edited, and the samples where no file has them as a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from l2d.data.cache import schema, store
from l2d.data.errors import UsageError

#: First line of a recipe that an import has written; what follows is the digest of the other lines.
SIGNATURE = "# Written by l2d import. Edit it as you like, then: l2d build THIS_FILE --out CACHE. "


@dataclass(frozen=True)
class Draft:
    """A recipe, and the table of samples that it reads if that had to be made (of a long file, say)."""

    recipe: str
    samples: pl.DataFrame | None = None
    samples_file: Path | None = None

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """Write recipe and samples. A recipe that an import wrote and that is as it was may be replaced.

        Raises:
            UsageError: another recipe is there and ``overwrite`` is False.
        """
        write_recipe(self.recipe, path, overwrite=overwrite)
        if self.samples is not None and self.samples_file is not None:
            store.commit_table(self.samples_file, self.samples.to_arrow(), replace=True)


def write_recipe(text: str, path: Path, *, overwrite: bool = False) -> None:
    """Write the recipe. One that an import wrote and that is as it was may be replaced.

    Raises:
        UsageError: another recipe is there and ``overwrite`` is False.
    """
    content = f"{SIGNATURE}{schema.digest(text)}\n{text}".encode()
    try:
        before = path.read_bytes()
    except FileNotFoundError:
        store.commit_bytes(path, content)
        return
    if before == content:
        return
    signature, _, rest = before.decode(errors="replace").partition("\n")
    if signature != SIGNATURE + schema.digest(rest) and not overwrite:
        raise UsageError(
            "there is a recipe of that name, which has been edited",
            where=path,
            hint=f"build that one: l2d build {path} --out …; or --overwrite to write it anew",
        )
    store.commit_bytes(path, content, replace=True)
