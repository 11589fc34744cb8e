"""The league's table of scenes: the recipe `digits` on semi-synthetic scenes, others for each split."""

from __future__ import annotations

from pathlib import Path

from league_tables import RECIPES, Table

SCENES = {"fit": 500, "train": 900, "val": 300, "test": 500}


def digits() -> Table:
    """Three small detectors, trained anew for each split; the rejector sees the cheapest one's features."""

    def recipe(folder: Path, split: int) -> Path:
        from l2d.data.sources.digits import write_digits

        write_digits(folder / "VOCdevkit", images=SCENES, seed=split)
        text = (RECIPES / "digits.toml").read_text(encoding="utf-8")
        (folder / "recipe.toml").write_text(text, encoding="utf-8")
        return folder / "recipe.toml"

    return Table("digits", recipe, digest=str(SCENES))
