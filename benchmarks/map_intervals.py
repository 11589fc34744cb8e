"""Does the interval of a mAP hold the mAP of all images? Drawn again and again from 3,000 made-up images.

Percentiles of the draws, the basic bootstrap (which `l2d evaluate` gives) and the bias-corrected one, side by side.

    python benchmarks/map_intervals.py
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.stats import norm

from l2d.data.samples.boxes import Boxes
from l2d.rejector.evaluation.map_intervals import ImageBootstrap

WORLDS = ((3, 40, 60), (15, 40, 40), (15, 200, 25))  # classes, images, draws
LEVELS = np.array([0.025, 0.975])


def world(images: int, classes: int) -> tuple[Boxes, Boxes]:
    """Images with one to three objects of classes of unequal shares, and a detector that finds three quarters."""
    generator = np.random.default_rng(0)
    share = np.arange(1, classes + 1) ** -0.7
    share /= share.sum()
    truth, answers = [], []
    for _ in range(images):
        count, extra = int(generator.integers(1, 4)), int(generator.integers(0, 2))
        corner = generator.uniform(0, 60, (count, 2))
        boxes = np.hstack([corner, corner + generator.uniform(15, 40, (count, 2))])
        labels = generator.choice(classes, count, p=share)
        truth.append(
            {"boxes": boxes, "labels": labels, "ignore": np.zeros(count, bool), "crowd": np.zeros(count, bool)}
        )
        seen = generator.random(count) < 0.75
        right = generator.random(seen.sum()) < 0.9
        named = np.where(right, labels[seen], generator.choice(classes, seen.sum(), p=share))
        corner = generator.uniform(0, 50, (extra, 2))
        found = np.vstack([boxes[seen] + generator.normal(0, 2, (seen.sum(), 4)), np.hstack([corner, corner + 20])])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        answers.append(
            {
                "boxes": found,
                "labels": np.concatenate([named, generator.choice(classes, extra, p=share)]),
                "scores": np.concatenate([generator.beta(4, 2, seen.sum()), generator.beta(2, 4, extra)]),
            }
        )
    return Boxes.from_images(truth), Boxes.from_images(answers)


def intervals(bootstrap: ImageBootstrap, agent: np.ndarray) -> dict[str, np.ndarray]:
    """Three 95 % intervals from the same draws."""
    value, draws = bootstrap.value(agent), bootstrap._map(agent, bootstrap.weights)
    draws = draws[np.isfinite(draws)]
    shift = norm.ppf(np.clip((draws < value).mean(), 1 / len(draws), 1 - 1 / len(draws)))
    percentiles = np.quantile(draws, LEVELS)
    return {
        "percentiles": percentiles,
        "basic": np.array(bootstrap.interval(agent)),
        "bias-corrected": np.quantile(draws, norm.cdf(2 * shift + norm.ppf(LEVELS))),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| classes | images | mAP of few less that of all | percentiles | basic | bias-corrected |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for classes, images, sets in WORLDS:
        targets, answers = world(3000, classes)
        true = ImageBootstrap(targets, [answers]).value(np.zeros(3000, int))
        generator, agent, held, above = np.random.default_rng(1), np.zeros(images, int), [], []
        for _ in range(sets):
            rows = generator.choice(3000, images, replace=False)
            bootstrap = ImageBootstrap(targets.take(rows), [answers.take(rows)], draws=300)
            held.append([low <= true <= high for low, high in intervals(bootstrap, agent).values()])
            above.append(bootstrap.value(agent) - true)
        shares = " | ".join(f"{share:.0%}" for share in np.mean(held, axis=0))
        print(f"| {classes} | {images} | {np.mean(above):+.3f} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
