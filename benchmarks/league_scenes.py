"""The league's tables that are made of handwritten digits: scenes of several, and single ones with made-up experts."""

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


def experts() -> Table:
    """Single digits: a linear model, and experts that know the first 2, 5 and 8 of ten classes and guess beyond.

    Costs are 0-1 and the model gives probabilities, so that every method for errors of classes is defined here.
    """
    known = (2, 5, 8)

    def recipe(folder: Path, split: int) -> Path:
        from l2d.data.sources.digits import write_digit_table

        write_digit_table(folder / "digits.parquet")
        text = (RECIPES / "mozannar_sontag_digits.toml").read_text(encoding="utf-8")
        head, *agents = text.split("[[agents]]")
        kept = [agent for k, agent in enumerate(agents) if k in (0, *known)]
        head = head.replace('stratify = ["class"]', f'stratify = ["class"], salt = "league {split}"')
        (folder / "recipe.toml").write_text("[[agents]]".join([head, *kept]), encoding="utf-8")
        return folder / "recipe.toml"

    return Table("digits with experts", recipe, digest=str(known))
