"""A rejector that looks at scenes of digits through a frozen body, against the model's pooled features and `conv`.

    python benchmarks/pixels.py compare OUT [--splits 5] [--only image,pooled,conv]
    python benchmarks/pixels.py grid OUT

Both write scenes of digits (500 to fit on, 1,700 others), train the recipe's three detectors, keep the scenes at 64
pixels, and train a ResNet-18 on the scenes of `fit` to tell which digits there are, how many and how high. That body is
then frozen. What is there already is not made again.

`compare` draws the splits of the 1,700 scenes by five salts (48 % to train on, 12 % to choose the epoch, 40 % to test
on; the answers are kept). The rejectors are alike but for what they look at: 60 epochs, batches of 64, the same head,
betas 0.05, 0.1 and 0.2, two seeds; `conv` 30 epochs of 16 channels. Prints the mean deferral loss on test scenes and
the paired difference of `image` from the others with its 95 % interval: a scene's difference is its mean over seeds and
the splits that test it, and scenes are drawn 2,000 times.

`grid` trains 28 image rejectors (7 betas, 4 seeds) and one: processor seconds, each in a process of its own, twice, the
order changing. `l2d evaluate OUT/grid-28-0` prints Table 3 in its shape.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import torch
from league_scenes import SCENES
from league_tables import RECIPES
from torch import nn
from torchvision.models import get_model

import l2d
from l2d.data.networks.bodies import normalised
from l2d.data.samples.images import decode_thumbnails, thumbnail
from l2d.data.sources.digits import CLASSES, write_digits
from l2d.data.sources.voc import parse_voc
from l2d.rejector.settings import TrainConfig

SIDE, BETAS, DRAWS = 64, (0.05, 0.1, 0.2), 2000
GRID_BETAS, GRID_SEEDS = (0.01, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5), 4
ALIKE = {"batch_size": 64, "lr": 1e-3, "recentre": True, "weight_decay": 0.3}
BODY_EPOCHS = 6


def scenes(out: Path) -> Path:
    """The scenes as a cache, split by the first salt."""
    if not (out / "VOCdevkit").is_dir():
        write_digits(out / "VOCdevkit", images=SCENES)
    return split_by(out, 0)


def split_by(out: Path, salt: int) -> Path:
    """The cache with its splits drawn anew; every answer stays."""
    cache = out / f"salt-{salt}.cache"
    if (out / f"salt-{salt}.done").is_file():
        return cache
    text = (RECIPES / "digits.toml").read_text(encoding="utf-8")
    drawn = ["digits/train", "digits/val", "digits/test"]
    before, _, after = text.partition("[dataset.sets]")
    head = f'image_size = {SIDE}\nvalidation = 0.2\ntest = 0.4\nsalt = "{salt}"\n'
    sets = f'[dataset.sets]\nfit = ["digits/fit"]\ntrain = {drawn}\n\n[costs.map]'
    (out / "digits.toml").write_text(before + head + sets + after.partition("[costs.map]")[2], encoding="utf-8")
    kept = ["model", "expert_1", "expert_2"]
    if salt and not cache.is_dir():
        shutil.copytree(scenes(out), cache)
    l2d.build(out / "digits.toml", cache, **({"overwrite": True, "keep_answers": kept} if cache.is_dir() else {}))
    (out / f"salt-{salt}.done").touch()
    return cache


def body(folder: Path) -> Path:
    """Weights of a ResNet-18 that has learnt what stands in the scenes of `fit`."""
    file = folder / "resnet18.pth"
    if file.is_file():
        return file
    devkit = folder / "VOCdevkit" / "VOCdigits"
    names = (devkit / "ImageSets" / "Main" / "fit.txt").read_text().split()
    small = decode_thumbnails([thumbnail(devkit / "JPEGImages" / f"{name}.jpg", SIDE) for name in names])
    images, truth = normalised(torch.from_numpy(small).float() / 255), torch.zeros(len(names), len(CLASSES) + 3)
    for row, name in enumerate(names):
        annotation = devkit / "Annotations" / f"{name}.xml"
        objects = parse_voc(annotation.read_bytes(), annotation).objects
        for one in objects:
            truth[row, CLASSES.index(one.name)] = 1
        heights = [one.xyxy[3] - one.xyxy[1] for one in objects] or [0.0]
        truth[row, -3:] = torch.tensor([len(objects) / 3, np.mean(heights) / 30, min(heights) / 30])
    torch.manual_seed(0)
    network = get_model("resnet18", weights=None, num_classes=truth.shape[1])
    steps = BODY_EPOCHS * -(-len(images) // 32)
    adam = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.05)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for epoch in range(BODY_EPOCHS):
        total = 0.0
        for rows in torch.randperm(len(images)).split(32):
            moved = torch.roll(images[rows], tuple(torch.randint(-4, 5, (2,)).tolist()), (2, 3))
            said = network(moved)
            loss = nn.functional.binary_cross_entropy_with_logits(said[:, :-3], truth[rows, :-3])
            loss = loss + 3 * nn.functional.smooth_l1_loss(said[:, -3:], truth[rows, -3:])
            adam.zero_grad()
            loss.backward()
            adam.step()
            slower.step()
            total += float(loss.detach()) * len(rows)
        print(f"  body, epoch {epoch + 1}: {total / len(images):.3f}", flush=True)
    torch.save(network.state_dict(), file)
    return file


def configs(weights: Path) -> dict[str, TrainConfig]:
    return {
        "pooled": TrainConfig(network="mlp", epochs=60, **ALIKE),
        "image": TrainConfig(network="image", backbone="resnet18", backbone_weights=str(weights), epochs=60, **ALIKE),
        "conv": TrainConfig(network="conv", hidden=16, epochs=30, **ALIKE),
    }


def losses(runs: Path, beta: float) -> dict[str, float]:
    """Deferral loss of each test scene, the mean over seeds."""
    found = pl.concat(
        pl.read_parquet(run / "allocations.parquet").filter(split="test").select("sample_id", "deferral_cost")
        for run in sorted(runs.iterdir())
        if f"beta={beta:g}_" in run.name
    )
    return dict(found.group_by("sample_id").mean().iter_rows())


def compare(out: Path, splits: int, only: list[str]) -> None:
    found: dict[tuple[str, float], list[dict[str, float]]] = {}
    scenes(out)
    weights = body(out)
    for salt in range(splits):
        cache = split_by(out, salt)
        for name, config in configs(weights).items():
            if name not in only:
                continue
            runs = out / f"salt-{salt}.{name}"
            if not runs.is_dir():
                l2d.sweep(cache, runs, methods=["multi-task"], betas=list(BETAS), seeds=2, config=config)
            for beta in BETAS:
                found.setdefault((name, beta), []).append(losses(runs, beta))
        tell(found, only, salt + 1)


def tell(found: dict[tuple[str, float], list[dict[str, float]]], only: list[str], splits: int) -> None:
    others = [name for name in only if name != "image"]
    print(f"{splits} splits")
    print("| beta | " + " | ".join([*only, *(f"image less {name}" for name in others)]) + " | splits below |")
    print("| ---: |" + " ---: |" * (len(only) + len(others)) + " --- |", flush=True)
    for beta in BETAS:
        means = [np.mean([np.mean(list(one.values())) for one in found[name, beta]]) for name in only]
        differences, below = [], []
        for name in others:
            pairs = list(zip(found["image", beta], found[name, beta], strict=True))
            apart: dict[str, list[float]] = {}
            for image, other in pairs:
                for scene, loss in image.items():
                    apart.setdefault(scene, []).append(loss - other[scene])
            differences.append(interval(np.array([np.mean(values) for values in apart.values()])))
            less = sum(np.mean(list(a.values())) < np.mean(list(b.values())) for a, b in pairs)
            below.append(f"{less} ({name})")
        cells = [f"{mean:.4f}" for mean in means]
        print(f"| {beta:g} | " + " | ".join([*cells, *differences, ", ".join(below)]) + " |", flush=True)


def interval(apart: np.ndarray) -> str:
    """Mean of differences (n,) and its 95 % percentile interval."""
    generator = np.random.default_rng(0)
    means = [apart[generator.integers(0, len(apart), len(apart))].mean() for _ in range(DRAWS)]
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{apart.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


def seconds(cache: Path, weights: Path, out: Path, size: str) -> float:
    """Processor seconds of one sweep in a process of its own."""
    betas, seeds = ([0.1], 1) if size == "one" else (list(GRID_BETAS), GRID_SEEDS)
    config = configs(weights)["image"]
    code = (
        "import resource, torch, l2d; torch.set_num_threads(1)\n"
        "from l2d.rejector.settings import TrainConfig\n"
        "spent = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])\n"
        f"config = {config!r}\nbegun = spent()\n"
        f"grid = dict(methods=['multi-task'], betas={betas}, seeds={seeds})\n"
        f"l2d.sweep({str(cache)!r}, {str(out)!r}, config=config, **grid)\n"
        "print(spent() - begun)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def grid(out: Path) -> None:
    cache, weights = scenes(out), body(out)
    taken: dict[str, list[float]] = {"one": [], "28": []}
    for turn, order in enumerate((("one", "28"), ("28", "one"))):
        for size in order:
            taken[size].append(seconds(cache, weights, out / f"grid-{size}-{turn}", size))
    for one, many in zip(taken["one"], taken["28"], strict=True):
        print(f"one: {one:.1f} s, 28: {many:.1f} s, {many / one:.2f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["compare", "grid"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--only", default="image,pooled,conv")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    compare(given.out, given.splits, given.only.split(",")) if given.what == "compare" else grid(given.out)
    spent = sum(resource.getrusage(who).ru_utime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"{spent:.0f} processor seconds")


if __name__ == "__main__":
    main()
