"""The experiments of Mozannar and Sontag (2020), each from one recipe that ships and one command:

    python benchmarks/mozannar_sontag.py digits --out ms-digits
    python benchmarks/mozannar_sontag.py cifar10 --data cifar-10-batches-bin --rows 0,5000,1000 --out ms-cifar10
    python benchmarks/mozannar_sontag.py chexpert --data CheXpert-v1.0-small --features f.parquet --out ms-chexpert

``OUT/results.csv``, ``.json`` and ``.md`` hold the table, ``OUT/curves.png`` the curves, ``OUT/runs`` every run for
``l2d evaluate`` and ``l2d query``. The same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from l2d.cache_builder.builder import build
from l2d.cache_builder.recipe import SHIPPED, load_recipe
from l2d.data.cache.reader import CostCache
from l2d.data.sources.chexpert import FINDINGS
from l2d.data.sources.digits import write_digit_table
from l2d.rejector.evaluation.curves import ranking_at_coverages
from l2d.rejector.evaluation.intervals import paired_intervals
from l2d.rejector.grid import make_grid
from l2d.rejector.rows.table import load_tables
from l2d.rejector.runs.run import load_run
from l2d.rejector.settings import TrainConfig
from l2d.rejector.sweep import sweep

METHODS = ("mozannar_sontag", "one_vs_all", "realizable", "mixture_of_experts", "confidence", "learned_oracle")
TASKS = [name for name in FINDINGS if name in ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema")]
TASKS += ["Pleural Effusion"]
COVERAGES = [step / 10 for step in range(11)]


@dataclass(frozen=True)
class Outcome:
    """A run on the test split: its figures, and where the system is wrong, bool (n,)."""

    method: str
    k: int
    rows: int
    seed: int
    accuracy: float
    coverage: float
    kept_accuracy: float | None
    wrong: np.ndarray


# --- the expert that knows the first k classes ------------------------------------------------------------------------


def first_k_classes(
    cache: CostCache,
    out: Path,
    *,
    ks: list[int],
    sizes: list[int],
    seeds: int,
    methods: list[str],
    alphas: list[float],
    settings: dict,
) -> list[Outcome]:
    """Train every method with every expert on every number of training rows (0: all of them).

    Of several ``alphas`` of mozannar_sontag, each run has the one of the lowest validation risk.
    """
    found, whole = [], len(load_tables(cache, ("train",))["train"])
    for size in sizes:
        schedule = {**settings, "epochs": epochs_of(settings, size or whole, whole)}
        for k in ks:
            pair = cache.only([cache.agents[0].name, f"expert_{k}"])
            for method in methods:
                runs = []
                for alpha in alphas if method == "mozannar_sontag" else [1.0]:
                    config = TrainConfig(classifier="own", alpha=alpha, train_rows=size or None, **schedule)
                    grid = {"weights": [], "betas": [0.0], "nus": [1.0], "seeds": list(range(seeds))}
                    points = make_grid(pair, methods=[method], **grid)
                    place = out / f"k={k}" / f"rows={size or 'all'}" / f"alpha={alpha:g}"
                    runs.append(sweep(pair, points, [place / point.run_id for point in points], config).folders)
                for seed, folders in enumerate(zip(*runs, strict=True)):
                    chosen = min(
                        folders, key=lambda folder: json.loads((folder / "run.json").read_text())["validation_risk"]
                    )
                    found.append(outcome(chosen, method, k, size, seed))
    return found


def epochs_of(settings: dict, rows: int, whole: int) -> int:
    """As many steps on fewer rows as on all of them: with as many epochs, small sets would also be trained less."""
    steps = settings["epochs"] * -(-whole // settings["batch_size"])
    return round(steps / -(-rows // settings["batch_size"]))


def validation_risk(folder: Path) -> float:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))["validation_risk"]


def outcome(folder: Path, method: str, k: int, size: int, seed: int) -> Outcome:
    table = pq.read_table(folder / "allocations.parquet", filters=[("split", "=", "test")])
    wrong, kept = table["deferral_cost"].to_numpy() > 0.5, table["agent_index"].to_numpy() == 0
    right = 1 - table["cost_0"].to_numpy()
    kept_accuracy = float(right[kept].mean()) if kept.any() else None
    return Outcome(method, k, size, seed, float(1 - wrong.mean()), float(kept.mean()), kept_accuracy, wrong)


def summary(outcomes: list[Outcome]) -> list[dict]:
    """A row for each method, k and number of training rows: means over seeds."""
    rows = []
    for key in dict.fromkeys((o.rows, o.k, o.method) for o in outcomes):
        members = [o for o in outcomes if (o.rows, o.k, o.method) == key]
        row = {"training rows": key[0] or "all", "k": key[1], "method": key[2]}
        row["system accuracy"] = float(np.mean([o.accuracy for o in members]))
        row["std"] = float(np.std([o.accuracy for o in members], ddof=1)) if len(members) > 1 else 0.0
        row["coverage"] = float(np.mean([o.coverage for o in members]))
        of_kept = [o.kept_accuracy for o in members if o.kept_accuracy is not None]
        row["accuracy of what it keeps"] = float(np.mean(of_kept)) if of_kept else None
        rows.append(row)
    return rows


def findings(outcomes: list[Outcome]) -> list[dict]:
    """The claims of the slides as differences in system accuracy, means over k and seeds, with 95 % intervals.

    Intervals are paired bootstraps over test samples, for these trained systems. ``lead over confidence`` of few rows
    less that of all rows says whether it grows as training data shrink.
    """
    sizes, ks = list(dict.fromkeys(o.rows for o in outcomes)), list(dict.fromkeys(o.k for o in outcomes))

    def right(method: str, size: int, k: int) -> np.ndarray:
        return np.mean([~o.wrong for o in outcomes if (o.method, o.rows, o.k) == (method, size, k)], axis=0)

    def lead(baseline: str, size: int, among: list[int]) -> np.ndarray:
        return np.mean([right("mozannar_sontag", size, k) - right(baseline, size, k) for k in among], axis=0)

    methods = list(dict.fromkeys(o.method for o in outcomes))
    baselines = [name for name in methods if name != "mozannar_sontag"]
    claims: dict[str, np.ndarray] = {}
    for size in sizes:
        in_all = [k for k in ks if all(any((o.rows, o.k) == (s, k) for o in outcomes) for s in sizes)]
        for baseline in baselines:
            claims[f"mozannar_sontag over {baseline}, {size or 'all'} rows"] = lead(baseline, size, in_all)
    few = [size for size in sizes if size]
    if few and len(few) < len(sizes) and "confidence" in baselines:
        least = min(few)
        growth = lead("confidence", least, in_all) - lead("confidence", 0, in_all)
        claims[f"growth of the lead over confidence, {least} rows against all"] = growth
    intervals = paired_intervals(iter(claims.values()), None)
    return [
        {"finding": name, "difference": float(i.value), "low": float(i.low), "high": float(i.high)}
        for name, i in zip(claims, intervals, strict=True)
    ]


def draw_first_k(rows: list[dict], file: Path) -> None:
    """System accuracy and the classifier's by k, and system accuracy by training rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    sizes = sorted({row["training rows"] for row in rows}, key=lambda size: float("inf") if size == "all" else size)
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method and row["training rows"] == sizes[-1]]
        axes[0].plot([row["k"] for row in mine], [row["system accuracy"] for row in mine], marker="o", label=method)
        coverage = [row["coverage"] for row in mine]
        axes[1].plot(coverage, [row["accuracy of what it keeps"] for row in mine], marker="o", label=method)
        means = [
            np.mean([r["system accuracy"] for r in rows if r["method"] == method and r["training rows"] == size])
            for size in sizes
        ]
        axes[2].plot([str(size) for size in sizes], means, marker="o", label=method)
    labels = (("k", "system accuracy"), ("coverage", "accuracy of what it keeps"), ("training rows", "system accuracy"))
    for axis, (x, y) in zip(axes, labels, strict=True):
        axis.set_xlabel(x)
        axis.set_ylabel(y)
    axes[0].legend()
    figure.savefig(file, dpi=120)


# --- CheXpert ---------------------------------------------------------------------------------------------------------


def chexpert(
    data: Path, features: Path, out: Path, *, tasks: list[str], coverages: list[float], p: float, q: float,
    settings: dict, seeds: int,
) -> list[dict]:  # fmt: skip
    """AU-ROC and AU-PR of the system at each coverage and task, means over seeds; the same expert for every method."""
    text = (SHIPPED / "mozannar_sontag_chexpert.toml").read_text(encoding="utf-8")
    rows = []
    for task in tasks:
        place = out / task.replace(" ", "_")
        place.mkdir(parents=True, exist_ok=True)
        edited = text.replace('"Cardiomegaly"', json.dumps(task))
        edited = edited.replace('"CheXpert-v1.0-small"', json.dumps(str(data.resolve())))
        edited = edited.replace('"features.parquet"', json.dumps(str(features.resolve())))
        edited = edited.replace("accuracy = 1.0", f"accuracy = {p}").replace("elsewhere = 0.7", f"elsewhere = {q}")
        (place / "recipe.toml").write_text(edited, encoding="utf-8")
        build(load_recipe(str(place / "recipe.toml")), place / "cache", device="cpu")
        cache = CostCache(place / "cache")
        grid = {"weights": [], "betas": [0.0], "nus": [1.0], "seeds": list(range(seeds))}
        points = make_grid(cache, methods=["mozannar_sontag", "confidence", "model_confidence"], **grid)
        folders = [place / "runs" / point.run_id for point in points]
        sweep(cache, points, folders, TrainConfig(classifier="own", **settings))
        test = load_tables(cache, ("test",), predictions=True)["test"]
        expert = test.predictions[cache.agents[1].name]["pred_cla"]
        found: dict[tuple[str, float], list[dict]] = {}
        for point, folder in zip(points, folders, strict=True):
            rejector = load_run(folder).rejector
            scores = rejector.scores_on(test)
            model = rejector.probabilities(test.features.numpy())[:, 1]
            margin = scores[:, 0] - scores[:, 1]
            ranked = ranking_at_coverages(margin, model, expert, test.targets["target_cla"], coverages)
            for wanted, row in zip(coverages, ranked, strict=True):
                found.setdefault((point.method, wanted), []).append(row)
        for (method, _), members in found.items():
            means = {name: float(np.mean([row[name] for row in members])) for name in members[0]}
            rows.append({"task": task, "method": method, **means})
    return rows


def draw_chexpert(rows: list[dict], file: Path) -> None:
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(3.5 * len(tasks), 6), layout="constrained")
    axes = figure.subplots(2, len(tasks), squeeze=False)
    for column, task in enumerate(tasks):
        for method in dict.fromkeys(row["method"] for row in rows):
            mine = [row for row in rows if (row["task"], row["method"]) == (task, method)]
            for axis, name in zip(axes[:, column], ("auroc", "average_precision"), strict=True):
                axis.plot([row["coverage"] for row in mine], [row[name] for row in mine], label=method)
                axis.set_xlabel("coverage")
                axis.set_ylabel(name)
        axes[0, column].set_title(task)
    axes[0, 0].legend()
    figure.savefig(file, dpi=120)


# --- tables -----------------------------------------------------------------------------------------------------------


def markdown(rows: list[dict]) -> str:
    cells = [
        [f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value) for value in row.values()]
        for row in rows
    ]
    lines = ["| " + " | ".join(rows[0]) + " |", "| " + " | ".join("---" for _ in rows[0]) + " |"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in cells])


def write_results(out: Path, rows: list[dict], found: list[dict]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "results.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (out / "results.json").write_text(json.dumps({"results": rows, "findings": found}, indent=2), encoding="utf-8")
    tables = [markdown(rows)] + ([markdown(found)] if found else [])
    (out / "results.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=["digits", "cifar10", "chexpert"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="of cifar10 and chexpert: the folder of the files")
    parser.add_argument("--features", type=Path, help="of chexpert: a Parquet file with Path and features")
    parser.add_argument("--k", default="1,2,3,4,5,6,7,8,9,10", help="numbers of first classes that the expert knows")
    parser.add_argument("--rows", default="0,200,60", help="training rows by commas, 0: all")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--alphas", default="1", help="of mozannar_sontag, chosen among on validation")
    parser.add_argument("--epochs", type=int, default=40, help="on all rows; as many steps on fewer")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--rejector", default="mlp")
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--p", type=float, default=1.0, help="of chexpert: how often the expert is right at a device")
    parser.add_argument("--q", type=float, default=0.7, help="and elsewhere")
    given = parser.parse_args(arguments)
    settings = {"network": given.rejector, "epochs": given.epochs, "batch_size": given.batch_size, "lr": given.lr}
    settings["hidden"] = given.hidden
    if given.experiment != "digits" and given.data is None:
        parser.error(f"{given.experiment} needs --data")
    found: list[dict] = []
    if given.experiment == "chexpert":
        if given.features is None:
            parser.error("chexpert needs --features")
        rows = chexpert(
            given.data, given.features, given.out, tasks=TASKS, coverages=COVERAGES, p=given.p, q=given.q,
            settings=settings, seeds=given.seeds,
        )  # fmt: skip
        draw = draw_chexpert
    else:
        given.out.mkdir(parents=True, exist_ok=True)
        data = given.data
        if given.experiment == "digits":
            data = given.out / "digits.parquet"
            write_digit_table(data)
        build(load_recipe(f"mozannar_sontag_{given.experiment}", data), given.out / "cache", device="cpu")
        outcomes = first_k_classes(
            CostCache(given.out / "cache"),
            given.out / "runs",
            ks=[int(k) for k in given.k.split(",")],
            sizes=[int(size) for size in given.rows.split(",")],
            seeds=given.seeds,
            methods=given.methods.split(","),
            alphas=[float(alpha) for alpha in given.alphas.split(",")],
            settings=settings,
        )
        rows, found, draw = summary(outcomes), findings(outcomes), draw_first_k
    write_results(given.out, rows, found)
    draw(rows, given.out / "curves.png")
    print((given.out / "results.md").read_text(encoding="utf-8"))
    print(json.dumps({row["finding"]: round(row["difference"], 4) for row in found} or {"rows": len(rows)}))


if __name__ == "__main__":
    main()
