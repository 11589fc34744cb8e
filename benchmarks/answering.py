"""Agents whose answering depends on the features: what weighting answers by their chance is worth to method best.

Made-up worlds of three agents, of which everything is known: agent 0 always answers; whether agents 1 and 2 do depends
on the features as the row says. Models are fitted without and with weights and judged on 4,000 samples of known costs.

    python benchmarks/answering.py
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch

from l2d.rejector.best.answering import Answering
from l2d.rejector.best.folds import fold_of
from l2d.rejector.best.model import fit_counted

KINDS = {
    "at random": lambda x: (np.full(len(x), 0.4), np.full(len(x), 0.4)),
    "a little": lambda x: (1 / (1 + np.exp(-0.5 * x[:, 3])), np.ones(len(x))),
    "where it is cheap": lambda x: (1 / (1 + np.exp(3 * x[:, 0] + 1)), 1 / (1 + np.exp(-2 * x[:, 2]))),
    "never on half": lambda x: ((x[:, 0] < -0.3).astype(float), np.ones(len(x))),
}


def world(kind: str, rows: int, seed: int):
    """Features, expected costs, raw costs with gaps, ids."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, 8)).astype(np.float32)
    first = 0.5 + 0.25 * np.tanh(2 * x[:, 0]) + 0.15 * np.sin(2 * x[:, 1])
    mean = np.stack([np.full(rows, 0.5), first, 0.45 + 0.2 * np.tanh(x[:, 2] * x[:, 0])], axis=1)
    raw = (random.random(mean.shape) < mean).astype(np.float32)
    chance = np.stack([np.ones(rows), *KINDS[kind](x)], axis=1)
    raw[random.random(mean.shape) >= chance] = np.nan
    return x, mean, raw[:, :, None], [f"{seed}-{row}" for row in range(rows)]


def missed(model, seed: int) -> tuple[float, float, float]:
    """Squared error of predicted costs, regret of the cheapest one, largest error of an agent's mean cost."""
    x, mean, _, _ = world("at random", 4000, 1000 + seed)
    found = model.predict(x)[:, :, 0]
    chosen = mean[np.arange(len(x)), found.argmin(axis=1)]
    off = np.abs(model.mean[:, 0] - mean.mean(axis=0)).max()
    return float(((found - mean) ** 2).mean()), float((chosen - mean.min(axis=1)).mean()), float(off)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=8)
    parser.add_argument("--rows", type=int, default=1500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts = {}
    print("| answering | squared error | regret | error of a mean cost | noticed | weighted |")
    print("| --- | --- | --- | --- | ---: | ---: |")
    for kind in KINDS:
        plain, kept, noticed, used = [], [], 0, 0
        for seed in range(options.worlds):
            x, _, raw, ids = world(kind, options.rows, seed)
            answered, fold = ~np.isnan(raw).any(axis=2), fold_of(ids)
            costs = np.where(answered[:, :, None], raw, 0)
            model, predicted = fit_counted(x, costs, answered, fold=fold, held=None, seed=0, threads=1)
            plain.append(missed(model, seed))
            kept.append(plain[-1])
            answering = Answering.of(x, answered, fold, threads=1)
            if answering is None:
                continue
            weighted, instead = fit_counted(x, costs, answering.weights, fold=fold, held=None, seed=0, threads=1)
            noticed += 1
            if answering.judged(predicted, instead, costs).used:
                used += 1
                kept[-1] = missed(weighted, seed)
        before, after = np.array(plain), np.array(kept)
        error = (after - before).std(axis=0, ddof=1) / np.sqrt(len(before))
        cells = [
            f"{b:.4f} -> {a:.4f} (± {e:.4f})" for b, a, e in zip(before.mean(0), after.mean(0), error, strict=True)
        ]
        print(f"| {kind} | {' | '.join(cells)} | {noticed} of {len(before)} | {used} |", flush=True)
        facts[kind] = {"before": before.mean(0).round(5).tolist(), "after": after.mean(0).round(5).tolist()}
    print(json.dumps({"answering": facts}))


if __name__ == "__main__":
    main()
