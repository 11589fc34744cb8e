"""Time of paired bootstrap intervals of many differences, against scipy's bootstrap and numpy by hand.

python benchmarks/bootstrap.py
python benchmarks/bootstrap.py --samples 20000 --resamples 2000 --rounds 1
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
from scipy import stats

from l2d.data.terminal.render import print_rows
from l2d.rejector.evaluation.intervals import paired_intervals


def with_scipy(differences: np.ndarray, resamples: int) -> list[tuple[float, float]]:
    """``scipy.stats.bootstrap``, vectorised, all differences resampled together; batches that fit memory."""
    batch = max(1, 200_000_000 // (8 * differences.size))

    def means(*columns: np.ndarray, axis: int) -> np.ndarray:
        return np.stack([column.mean(axis=axis) for column in columns])

    found = stats.bootstrap(
        tuple(differences), means, paired=True, n_resamples=resamples, method="percentile", batch=batch, rng=0
    ).confidence_interval
    return list(zip(found.low.tolist(), found.high.tolist(), strict=True))


def with_rows(differences: np.ndarray, resamples: int) -> list[tuple[float, float]]:
    """A resample at a time: draw rows, gather them, average. What l2d did before."""
    generator, count = np.random.default_rng(0), differences.shape[1]
    columns = np.ascontiguousarray(differences.T)
    means = np.stack([columns[generator.integers(0, count, count)].mean(axis=0) for _ in range(resamples)])
    return list(zip(*np.quantile(means, [0.025, 0.975], axis=0).tolist(), strict=True))


def with_counts(differences: np.ndarray, resamples: int) -> list[tuple[float, float]]:
    """Multinomial counts of blocks of resamples by ``bincount``, then a matrix product."""
    generator, count = np.random.default_rng(0), differences.shape[1]
    columns, means = np.ascontiguousarray(differences.T), []
    for start in range(0, resamples, 50):
        block = range(start, min(start + 50, resamples))
        counts = np.stack([np.bincount(generator.integers(0, count, count), minlength=count) for _ in block])
        means.append(counts @ columns / count)
    return list(zip(*np.quantile(np.concatenate(means), [0.025, 0.975], axis=0).tolist(), strict=True))


def ours(differences: np.ndarray, resamples: int) -> list[tuple[float, float]]:
    return [(found.low, found.high) for found in paired_intervals(differences, resamples=resamples)]


METHODS: dict[str, Callable] = {
    "l2d": ours,
    "scipy.stats.bootstrap": with_scipy,
    "numpy, rows of each resample": with_rows,
    "numpy, bincount and product": with_counts,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--differences", default="1,8")
    options = parser.parse_args()
    rows, ratios = [], {}
    for count in map(int, options.differences.split(",")):
        generator = np.random.default_rng(0)
        differences = generator.gamma(0.5, size=(count, options.samples)) - 0.5
        seconds: dict[str, list[float]] = {name: [] for name in METHODS}
        intervals = {}
        for _ in range(options.rounds):
            for name, method in METHODS.items():
                start = time.perf_counter()
                intervals[name] = method(differences, options.resamples)
                seconds[name].append(time.perf_counter() - start)
        for name, times in seconds.items():
            ratio = statistics.median(t / own for t, own in zip(times, seconds["l2d"], strict=True))
            width, low = np.ptp(intervals["l2d"][0]), intervals["l2d"][0][0]
            rows.append(
                {
                    "differences": count,
                    "method": name,
                    "seconds": f"{statistics.median(times):.1f}",
                    "x l2d": f"{ratio:.1f}",
                    "low end, off by % of the width": f"{100 * (intervals[name][0][0] - low) / width:+.1f}",
                }
            )
            ratios[f"{name}, {count}"] = round(ratio, 2)
    print_rows(rows, title=f"{options.resamples:,} resamples of {options.samples:,} samples")
    print(json.dumps({"times_as_slow_as_l2d": ratios}))


if __name__ == "__main__":
    main()
