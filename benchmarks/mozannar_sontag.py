"""Trying."""

from pathlib import Path

import numpy as np
import polars as pl
from sklearn.datasets import load_digits


def write_digits(folder: Path, seed: int = 0) -> Path:
    digits = load_digits()
    pooled = digits.images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(len(digits.images), -1)
    g = np.random.default_rng(seed)
    y = digits.target
    columns = {"id": [f"d{i:04d}" for i in range(len(y))], "label": y}
    columns |= {f"p{i}": pooled[:, i] for i in range(16)}
    for k in range(1, 11):
        columns[f"expert_{k}"] = np.where(y < k, y, g.integers(0, 10, len(y)))
    pl.DataFrame(columns).write_parquet(folder / "digits.parquet")
    text = f"""
[dataset]
kind = "table"
path = "digits.parquet"
id = "id"
target_cla = "label"
features = {[f"p{i}" for i in range(16)]}
keep = ["label"]
split = {{ stratify = ["label"], train = 0.5, validation = 0.15, test = 0.35 }}
[costs.cla]
kind = "zero_one"
[[agents]]
name = "model"
kind = "two_head"
hidden = []
epochs = 40
""" + "".join(f'[[agents]]\nname = "expert_{k}"\nkind = "column"\ncla = "expert_{k}"\n' for k in range(1, 11))
    (folder / "recipe.toml").write_text(text.replace("'", '"'))
    return folder / "recipe.toml"


if __name__ == "__main__":
    import sys

    print(write_digits(Path(sys.argv[1])))
