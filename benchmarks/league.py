"""Which rejector decides best on real tables: ours, twenty-line scripts, and the best constant.

Tables are those of ``league_tables.py``: what ships and, where the folder of public tables is there, those. Each is
split five times (60 / 20 / 20) so that every sample is tested once. Scripts (``league_scripts.py``) and rejectors of
ours see the same features and the same raw costs: ours through a cost cache and ``sweep``, the scripts as arrays; that
both costs are equal is checked. Differences are paired by sample and pooled over the splits; their intervals take
groups (a patient, a case) as independent and do not cover training. Holm's correction is over all cells and both
comparisons.

    python benchmarks/league.py                                   # everything
    python benchmarks/league.py --splits 1 --tables support2,mmlu-pro --methods best

What is kept (``--keep``) is found again by content: data, settings, and the source of what trains.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from league_scenes import digits, experts
from league_scripts import SCRIPTS, Parts, constant, ensemble, losses
from league_tables import SPLITS, Table, agent_name, shared_data, tables

from l2d.rejector.evaluation.intervals import holm

BETAS = (0.0, 0.05, 0.1, 0.2, 0.5)
ROOT = Path(__file__).resolve().parents[1]
#: Row -> method and training settings, as the options of ``l2d sweep`` say them.
OURS: dict[str, tuple[str, dict]] = {
    "best": ("best", {}),
    "multi-task": ("multi-task", {}),
    "regression": ("multi-task", {"loss": "regression"}),
    "one-vs-all": ("multi-task", {"loss": "one_vs_all"}),
    "cost_regression": ("cost_regression", {}),
    "l2d knn": ("knn", {}),
    "model_confidence": ("model_confidence", {}),
    "confidence": ("confidence", {}),
    "confidence own": ("confidence", {"classifier": "own"}),
    "learned_oracle": ("learned_oracle", {}),
    "conformal": ("conformal", {}),
    "conformal own": ("conformal", {"classifier": "own"}),
    "carrot": ("carrot", {}),
    "profiles": ("profiles", {}),
    "imputed": ("imputed", {}),
    "matrix_factorization": ("matrix_factorization", {}),
    "elo": ("elo", {}),
    "irt": ("irt", {}),
    "picce": ("picce", {}),
    "mozannar_sontag": ("mozannar_sontag", {}),
    "one_vs_all": ("one_vs_all", {}),
    "realizable": ("realizable", {}),
    "mixture_of_experts": ("mixture_of_experts", {}),
    "post_hoc": ("post_hoc", {}),
}
QUICK = ("best", "multi-task", "l2d knn")


@dataclass
class Arrays:
    """One split of a table, out of its cache.

    Attributes:
        x: features of each part, float32 (n, width).
        costs: raw costs, ``lambda`` applied, float64 (n, agents), NaN where an agent has no answer.
        price: query cost of each agent at beta 1, (agents,).
        groups: of the test samples.
    """

    x: Parts
    costs: Parts
    price: np.ndarray
    groups: np.ndarray


class Kept:
    """Arrays that were worked out before, in a folder, by a digest of all that they depend on."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def arrays(self, key: str, make) -> dict[str, np.ndarray]:
        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as found:
                return dict(found)
        values = make()
        temporary = path.with_suffix(f".{time.time_ns()}.tmp.npz")
        np.savez(temporary, **values)
        temporary.rename(path)
        return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=shared_data(), help="folder of the public tables")
    parser.add_argument("--tables", help="by commas; default: all but experts")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--betas", default=",".join(map(str, BETAS)))
    parser.add_argument("--methods", help=f"rows of ours, by commas: {', '.join(OURS)}; quick: {', '.join(QUICK)}")
    parser.add_argument("--default", help="the row that is judged; default: best, or multi-task")
    parser.add_argument("--keep", type=Path, default=ROOT / "build" / "league", help="folder of what is kept")
    args = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)
    loaders = {**tables(args.data), "digits": digits, "experts": experts}
    named = args.tables.split(",") if args.tables else [name for name in loaders if name != "experts"]
    if unknown := set(named) - set(loaders):
        parser.error(f"no table {sorted(unknown)[0]!r}: {', '.join(loaders)}")
    methods = (
        list(OURS) if args.methods is None else list(QUICK) if args.methods == "quick" else args.methods.split(",")
    )
    methods = [name for name in methods if name != "best" or has_best()]
    betas = [float(beta) for beta in args.betas.split(",")]
    judged = args.default or ("best" if "best" in methods else "multi-task" if "multi-task" in methods else "script")
    cells: list[dict] = []
    for name in named:
        cells += cells_of(loaders[name](), betas, args.splits, methods, judged, args.keep)
    compact(cells, judged)
    report(cells, judged)


def has_best() -> bool:
    return any((ROOT / "rejector" / "best").glob("*.py"))


# --- one table --------------------------------------------------------------------------------------------------------


def cells_of(table: Table, betas: list[float], splits: int, methods: list[str], judged: str, keep: Path) -> list[dict]:
    """A cell for each beta: the losses of every row on every tested sample, pooled over the splits."""
    pooled: dict[float, dict[str, list[np.ndarray]]] = {beta: {} for beta in betas}
    groups, validation_of, sizes = [], {}, []
    for split in range(splits):
        begun = time.perf_counter()
        folder, arrays = read(table, split, keep)
        store = Kept(folder / "kept")
        sizes.append(tuple(len(arrays.costs[part]) for part in ("train", "test")))
        groups.append(np.char.add(f"{split if table.outcomes is None else ''}|", arrays.groups.astype(str)))
        predicted = scripts(arrays, store)
        scripted = time.perf_counter() - begun
        for beta in betas:
            found, chosen = decide(predicted, arrays, beta)
            validation_of.setdefault(beta, []).append(chosen)
            for row, loss in found.items():
                pooled[beta].setdefault(row, []).append(loss)
        took = {}
        for row in methods:
            start = time.perf_counter()
            for beta, loss in ours(row, folder, arrays, betas, store).items():
                pooled[beta].setdefault(row, []).append(loss)
            took[row] = time.perf_counter() - start
        seconds = ", ".join(f"{row} {value:.1f} s" for row, value in {"scripts": scripted, **took}.items())
        print(f"{table.name}, split {split}: {seconds}", file=sys.stderr, flush=True)
    cells = []
    for beta in betas:
        rows = {row: np.concatenate(parts) for row, parts in pooled[beta].items() if len(parts) == splits}
        cells.append(
            {
                "table": table.name, "beta": beta, "rows": rows, "groups": np.concatenate(groups),
                "width": arrays.x["train"].shape[1], "agents": len(arrays.price), "sizes": sizes[0],
                "chosen": validation_of[beta],
            }
        )  # fmt: skip
    table_of(cells, judged)
    return cells


def read(table: Table, split: int, keep: Path) -> tuple[Path, Arrays]:
    """Build the split's cache unless it is kept, and read its features and costs back."""
    from l2d.cache_builder.builder import build
    from l2d.cache_builder.recipe import load_recipe
    from l2d.data.cache.reader import CostCache
    from l2d.rejector.rows.table import load_tables

    modules = ("league_tables.py", *(["league_scenes.py"] if table.name.startswith("digits") else []))
    source = "".join((Path(__file__).parent / name).read_text(encoding="utf-8") for name in modules)
    name = hashlib.sha256(f"{table.digest} {source}".encode()).hexdigest()[:12]
    folder = keep / f"{agent_name(table.name)}-{name}" / f"split-{split}"
    if not (folder / "whole").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        build(load_recipe(str(table.recipe(folder, split))), folder / "cache", device="cpu")
        (folder / "whole").touch()
    cache = CostCache(folder / "cache")
    parts = load_tables(cache, SPLITS)
    weights = np.array([cache.record.defaults.get("lambda", {}).get(task, 1.0) for task in cache.record.tasks])
    costs = {part: rows.raw.numpy().astype(np.float64) @ weights for part, rows in parts.items()}
    prices = np.array([0.0, *(agent.price for agent in cache.agents[1:])])
    groups = np.array(parts["test"].ids)
    if table.outcomes is not None:
        row = {name: k for k, name in enumerate(table.outcomes.ids)}
        raw = table.outcomes.costs()
        for part, rows in parts.items():
            np.testing.assert_allclose(costs[part], raw[[row[i] for i in rows.ids]], rtol=0, atol=1e-9)
        groups = np.array([table.outcomes.group[row[i]] for i in parts["test"].ids])
    x = {part: rows.features.numpy() for part, rows in parts.items()}
    return folder, Arrays(x, costs, prices / prices.max(), groups)


def scripts(arrays: Arrays, store: Kept) -> dict[str, Parts]:
    """Predicted raw costs of every script."""
    import sklearn

    source = hashlib.sha256((Path(__file__).parent / "league_scripts.py").read_bytes()).hexdigest()
    predicted: dict[str, Parts] = {}
    for name, script in SCRIPTS.items():

        def fit(script=script) -> dict[str, np.ndarray]:
            found = script(arrays.x, arrays.costs["train"])
            return {f"{model}|{part}": values for model, parts in found.items() for part, values in parts.items()}

        for key, values in store.arrays(f"{name} {source} {sklearn.__version__}", fit).items():
            model, part = key.split("|")
            predicted.setdefault(model, {})[part] = values
    return predicted


def decide(predicted: dict[str, Parts], arrays: Arrays, beta: float) -> tuple[dict[str, np.ndarray], str]:
    """Losses on test of the constant, the oracle and the scripts, and which script does best on validation."""
    query = beta * arrays.price
    validation, test = arrays.costs["validation"] + query, arrays.costs["test"] + query
    found = {"constant": constant(validation, test), "oracle": np.nanmin(test, axis=1)}
    known = {name: losses(parts["validation"] + query, validation).mean() for name, parts in predicted.items()}
    kept = min((name for name in predicted if name.startswith("knn")), key=known.__getitem__)
    for name in ("hgb", "ridge", "et5", "et20", "et50"):
        found[name] = losses(predicted[name]["test"] + query, test)
    found["knn"] = losses(predicted[kept]["test"] + query, test)
    found["ens"] = losses(ensemble(predicted, query, validation), test)
    chosen = min(("hgb", "ridge", "et5", "et20", "et50", kept), key=known.__getitem__)
    found["script"] = found["knn" if chosen == kept else chosen]
    return found, "knn" if chosen == kept else chosen


def ours(row: str, folder: Path, arrays: Arrays, betas: list[float], store: Kept) -> dict[float, np.ndarray]:
    """Losses on test of a method of ours at every beta, swept as a user would; none where it is not defined."""
    from l2d.data.cache.reader import CostCache
    from l2d.data.errors import UsageError
    from l2d.rejector.grid import make_grid
    from l2d.rejector.settings import TrainConfig
    from l2d.rejector.sweep import sweep

    method, settings = OURS[row]

    def train() -> dict[str, np.ndarray]:
        import polars as pl

        work = Path(tempfile.mkdtemp(prefix="league-"))
        try:
            cache = CostCache(folder / "cache")
            points = make_grid(cache, methods=[method], weights=[], betas=list(betas), nus=[1.0], seeds=[0])
            sweep(cache, points, [work / point.run_id for point in points], TrainConfig(**settings))
            found = {}
            for point in points:
                rows = pl.read_parquet(work / point.run_id / "allocations.parquet").filter(pl.col("split") == "test")
                found[f"{point.beta}"] = rows["deferral_cost"].cast(pl.Float64).to_numpy()
            return found
        except UsageError as error:
            print(f"{row}: {error}", file=sys.stderr)
            return {}
        finally:
            shutil.rmtree(work, ignore_errors=True)

    key = f"{row} {method} {sorted(settings.items())} {betas} {source_of(method)}"
    return {float(beta): loss for beta, loss in store.arrays(key, train).items()}


def source_of(method: str) -> str:
    """A digest of the source files that a method trains by."""
    places = [
        "rejector/training",
        "rejector/literature",
        "rejector/losses.py",
        "rejector/networks.py",
        "rejector/costs.py",
    ]
    files = [
        file for place in [*places, *(["rejector/best"] if method == "best" else [])] for file in _files(ROOT / place)
    ]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _files(place: Path) -> list[Path]:
    return sorted(place.rglob("*.py")) if place.is_dir() else [place]


# --- what is printed --------------------------------------------------------------------------------------------------


def difference(a: np.ndarray, b: np.ndarray, groups: np.ndarray) -> tuple[float, float, float, float]:
    """Mean of ``a - b``, its 95 % interval with groups as independent units, and a two-sided p-value (normal)."""
    from scipy.stats import norm

    values = np.where(np.abs(a - b) < 1e-6, 0.0, a - b)  # a run's costs are float32
    mean = float(values.mean())
    _, member = np.unique(groups, return_inverse=True)
    sums = np.bincount(member, values - mean)
    error = float(np.sqrt(len(sums) / max(1, len(sums) - 1) * (sums**2).sum()) / len(values))
    if error == 0:
        return mean, mean, mean, 1.0 if mean == 0 else 0.0
    return mean, mean - 1.96 * error, mean + 1.96 * error, float(2 * norm.sf(abs(mean) / error))


def table_of(cells: list[dict], judged: str) -> None:
    """A Markdown table of mean losses, a row for each beta."""
    first = cells[0]
    names = [name for name in first["rows"] if name not in ("script",)]
    print(f"\n**{first['table']}** (train {first['sizes'][0]:,}, test {first['sizes'][1]:,} a split; "
          f"width {first['width']}, {first['agents']} agents)\n")  # fmt: skip
    print(f"| beta | {' | '.join(names)} | script | {judged} - constant | {judged} - script |")
    print("| ---: |" + " ---: |" * (len(names) + 3))
    for cell in cells:
        rows, cell["against"] = cell["rows"], {}
        text = [f"{rows[name].mean():.4f}" if name in rows else "" for name in names]
        counts = {name: cell["chosen"].count(name) for name in dict.fromkeys(cell["chosen"])}
        text.append(f"{rows['script'].mean():.4f} ({', '.join(f'{n} {c}' for n, c in counts.items())})")
        for other in ("constant", "script"):
            if judged not in rows or judged == other:
                text.append("")
                continue
            mean, low, high, p = difference(rows[judged], rows[other], cell["groups"])
            cell["against"][other] = {"mean": mean, "low": low, "high": high, "p": p}
            text.append(f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]")
        print(f"| {cell['beta']:g} | {' | '.join(text)} |", flush=True)


def compact(cells: list[dict], judged: str) -> None:
    """One table of all cells: what ``benchmarks/README.md`` keeps."""
    names = [
        row for row in ("constant", "hgb", "ens", "script", "multi-task", judged, "oracle") if row in cells[0]["rows"]
    ]
    names = list(dict.fromkeys(names))
    print(f"\n| table | beta | {' | '.join(names)} | {judged} - constant | {judged} - script |")
    print("| --- |" + " ---: |" * (len(names) + 3))
    for before, cell in zip([None, *cells], cells, strict=False):
        title = cell["table"] if before is None or before["table"] != cell["table"] else ""
        found = [cell.get("against", {}).get(other) for other in ("constant", "script")]
        text = ["" if f is None else f"{f['mean']:+.4f} [{f['low']:+.4f}, {f['high']:+.4f}]" for f in found]
        means = [f"{cell['rows'][name].mean():.4f}" if name in cell["rows"] else "" for name in names]
        print(f"| {title} | {cell['beta']:g} | {' | '.join([*means, *text])} |")


def report(cells: list[dict], judged: str) -> None:
    """Which cells the judged row loses, its means, and the line of JSON."""
    compared = [(cell, other, found) for cell in cells for other, found in cell.get("against", {}).items()]
    worse, lost_tables = [], []
    for (cell, other, found), p in zip(compared, holm([f["p"] for *_, f in compared]) if compared else [], strict=True):
        found["holm"] = p
        if found["mean"] > 0 and p < 0.05:
            worse.append({"table": cell["table"], "beta": cell["beta"], "than": other, "by": round(found["mean"], 4)})
    print()
    for table in dict.fromkeys(cell["table"] for cell in cells):
        of_table = [cell for cell in cells if cell["table"] == table and judged in cell["rows"]]
        for other in ("constant", "script", "hgb", "ens") if of_table else ():
            a, b = (np.mean([cell["rows"][row] for cell in of_table], axis=0) for row in (judged, other))
            mean, low, high, _ = difference(a, b, of_table[0]["groups"])
            verdict = "worse" if low > 0 else "better" if high < 0 else "level"
            if low > 0 and other in ("constant", "script"):
                lost_tables.append({"table": table, "than": other, "by": round(mean, 4)})
            print(f"{table}, all betas: {judged} - {other} = {mean:+.4f} [{low:+.4f}, {high:+.4f}], {verdict}")
    means = {}
    for row in dict.fromkeys(name for cell in cells for name in cell["rows"]):
        shared = [cell for cell in cells if row in cell["rows"]]
        means[row] = {
            "cells": len(shared),
            **{
                f"minus {other}": round(
                    float(np.mean([c["rows"][row].mean() - c["rows"][other].mean() for c in shared])), 5
                )
                for other in ("constant", "hgb", "script")
            },
        }
    print("\n| row | cells | mean - constant | mean - hgb | mean - script |\n| --- | ---: | ---: | ---: | ---: |")
    for row, found in sorted(means.items(), key=lambda item: item[1]["minus hgb"]):
        print(
            f"| {row} | {found['cells']} | " + " | ".join(f"{v:+.4f}" for k, v in found.items() if k != "cells") + " |"
        )
    print(f"\nworse than constant or script after Holm: {len(worse)} of {len(compared)} comparisons")
    for found in worse:
        print(f"  {found['table']} at beta {found['beta']:g}: worse than {found['than']} by {found['by']}")
    at_zero = next(
        (c["rows"] for c in cells if c["table"] == "SUPPORT2" and c["beta"] == 0 and judged in c["rows"]), None
    )
    support2 = None if at_zero is None else {row: round(float(loss.mean()), 4) for row, loss in at_zero.items()}
    facts = {"judged": judged, "cells": len(cells), "worse": worse, "worse_tables": lost_tables, "means": means}
    print(json.dumps({**facts, "support2_at_0": support2}))


if __name__ == "__main__":
    main()
