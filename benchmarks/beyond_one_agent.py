"""Beyond one agent: cascades against a router at equal price on MMLU-Pro, promises kept, seconds of a search.

``mmlu``: six language models on MMLU-Pro's questions, with illustrative prices from 1 to 20 (the table has none), each
answer a letter. A question to which no letter was found counts as answered A. For each budget the best router, cascade
and adaptive rule that keep to it on validation, compared on test, paired by question.

``promises``: 1,000 simulated tables: how often the error promised at 95 % confidence is exceeded, where it is known. On
MMLU-Pro: the test questions are halved 200 times; one half calibrates, the other checks.

``size``: 100,000 samples, 10 agents, depth 3: processor seconds and the greatest memory of the whole search.

    python benchmarks/beyond_one_agent.py --part mmlu
    python benchmarks/beyond_one_agent.py --part promises
    python benchmarks/beyond_one_agent.py --part size
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

import l2d
from l2d.rejector.decisions.making import judged, make
from l2d.rejector.decisions.promises import Judged, Risk, learn_then_test, thresholds_of
from l2d.rejector.decisions.reading import read_worlds
from l2d.rejector.decisions.search import Search
from l2d.rejector.decisions.walk import walk
from l2d.rejector.decisions.wanted import Wanted
from l2d.rejector.evaluation.intervals import paired_interval

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from decision_worlds import right_by_type, world_of  # noqa: E402

#: Illustrative: the table says nothing of prices.
PRICES = {
    "Meta-Llama-3_1-8B-Instruct": 1.0, "mathstral-7B": 1.5, "jamba-1.5-large": 3.0, "gemini-1.5-flash-002": 4.0,
    "Meta-Llama-3_1-70B-Instruct": 8.0, "gemini-1.5-pro-002": 20.0,
}  # fmt: skip
BUDGETS = (2.0, 4.0, 6.0, 8.0, 12.0, 16.0)


def main() -> None:
    from league_tables import shared_data

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=("mmlu", "promises", "size"), required=True)
    parser.add_argument("--data", type=Path, default=shared_data(), help="folder of the public tables")
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--text", action="store_true", help="the router reads the questions word by word")
    args = parser.parse_args()
    if args.part == "mmlu":
        found = mmlu(args.data, text=args.text)
    elif args.part == "promises":
        found = promises(args.simulations)
        if args.data is not None:
            found |= on_real_tables(args.data)
    else:
        found = size(args.samples)
    print(json.dumps(found))


def mmlu_run(data: Path, folder: Path, *, text: bool = False):
    """A run of method best on the letters that six models answered."""
    answers = pl.read_parquet(data / "mmlu_pro_answers_long.parquet").filter(pl.col("model").is_in(list(PRICES)))
    asked = pl.read_parquet(data / "mmlu_pro_questions.parquet")
    whole = answers.group_by("question_id").len().filter(pl.col("len") == len(PRICES))["question_id"].implode()
    wide = answers.filter(pl.col("question_id").is_in(whole)).with_columns(pl.col("pred").fill_null("A"))
    wide = wide.pivot(on="model", index="question_id", values="pred").select("question_id", *PRICES)
    asked = asked.filter(pl.col("question_id").is_in(whole)).select(
        "question_id", "category", "answer", options=pl.col("options").list.len(),
        length=pl.col("question").str.len_chars(), text=pl.col("question") + " " + pl.col("options").list.join(" "),
    )  # fmt: skip
    asked.write_parquet(folder / "questions.parquet")
    wide.write_parquet(folder / "answers.parquet")
    agents = "".join(
        f'\n[[agents]]\nname = "{name}"\nkind = "table"\nfile = "answers.parquet"\nid = "question_id"\n'
        f'cla = "{name}"\nprice = {price}\n'
        for name, price in PRICES.items()
    )
    words = 'text = ["text"]\n' if text else ""
    (folder / "recipe.toml").write_text(
        '[dataset]\npath = "questions.parquet"\nid = "question_id"\ntarget_cla = "answer"\n'
        f'features = ["category", "options", "length"]\n{words}keep = ["category"]\n\n'
        f'[costs.cla]\nkind = "zero_one"\n{agents}',
        encoding="utf-8",
    )
    cache = l2d.build(str(folder / "recipe.toml"), folder / "cache")
    return l2d.train(cache, folder / "run", beta=0.0, method="best")


def mmlu(data: Path, *, text: bool) -> dict:
    """Router, cascade and adaptive rule at equal budgets."""
    with tempfile.TemporaryDirectory() as name:
        run = mmlu_run(data, Path(name), text=text)
        read = read_worlds(run)
        test = read.worlds["test"]
        print(
            f"{len(read.fit):,} samples to fit on, {len(test):,} test questions; right alone: "
            + ", ".join(
                f"{agent} {1 - test.costs[:, j].mean():.3f} at {PRICES[agent]:g}" for j, agent in enumerate(test.agents)
            )
        )
        print("| budget | router: right, price | cascade | against router | adaptive | against router | order |")
        print("| ---: | --- | --- | --- | --- | --- | --- |")
        found = {}
        for budget in BUDGETS:
            made = make(read, Wanted(ask="cascade", depth=3, budget=budget), kinds=("router", "cascade", "adaptive"))
            walks = {kind: walk(rule, test) for kind, rule in made.rules.items()}
            cells = [f"{1 - walks['router'].loss.mean():.4f}, {walks['router'].price.mean():.2f}"]
            for kind in ("cascade", "adaptive"):
                gap = paired_interval(walks["router"].loss - walks[kind].loss)
                cells += [f"{1 - walks[kind].loss.mean():.4f}, {walks[kind].price.mean():.2f}",
                          f"{gap.value:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"]  # fmt: skip
                found[f"{kind}_{budget:g}"] = round(gap.value, 4)
            order = " > ".join(test.agents[agent] for agent in made.rules["cascade"].order)
            print(f"| {budget:g} | {' | '.join(cells)} | {order} |", flush=True)
    return found


# --- promises ---------------------------------------------------------------------------------------------------------


def promises(simulations: int) -> dict:
    """How often a promised error is exceeded, on tables whose true error is known at every threshold."""
    found = {}
    print("| limit | family | promised | exceeded of promised | exceeded of all | answered |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for limit in (0.05, 0.1):
        for family in ("fixed-sequence", "bonferroni"):
            generator = np.random.default_rng(7)
            promised, exceeded, answered = 0, 0, []
            whole, truth = drawn(np.random.default_rng(1), 400_000)
            for _ in range(simulations):
                pilot, calibration = drawn(generator, 1500)[0], drawn(generator, 600)[0]
                made = learn_then_test(
                    calibration, [Risk("error", limit)], thresholds_of(pilot.expected), family=family, pilot=pilot
                )
                if made.threshold is not None:
                    given = whole.expected <= made.threshold
                    promised, answered = promised + 1, [*answered, given.mean()]
                    exceeded += bool(truth[given].mean() > limit)
            share = exceeded / simulations
            mean = float(np.mean(answered)) if answered else 0.0
            print(f"| {limit} | {family} | {promised} | {exceeded / max(1, promised):.3f} | {share:.3f} | {mean:.2f} |")
            found[f"exceeded_{limit}_{family}"] = share
    return found


def drawn(generator: np.random.Generator, n: int) -> tuple[Judged, np.ndarray]:
    """Samples with a chance of being wrong, and what was predicted of it, which is off."""
    chance = generator.beta(0.4, 3.5, n)
    expected = np.clip(0.8 * chance + 0.05 + 0.05 * generator.normal(size=n), 0, 1)
    wrong = generator.random(n) < chance
    return Judged(expected=expected, wrong=wrong, cost=wrong.astype(float)), chance


def on_real_tables(data: Path, *, splits: int = 200, limit: float = 0.25) -> dict:
    """Calibrated on one half of what the rule was not fitted on, checked on the other."""
    with tempfile.TemporaryDirectory() as name:
        run = mmlu_run(data, Path(name))
        read = read_worlds(run)
        made = make(read, Wanted(ask="cascade", depth=2), kinds=("router", "cascade"))
        whole = judged(read.worlds["test"], made.policy, 1.0, held_out=False)
        pilot = judged(read.worlds["train"], made.policy, 1.0)
        thresholds = thresholds_of(pilot.expected)
        generator, promised, exceeded, answered = np.random.default_rng(0), 0, 0, []
        for _ in range(splits):
            order = generator.permutation(len(whole.expected))
            half = len(order) // 2
            one, other = (part_of(whole, order[some]) for some in (slice(0, half), slice(half, None)))
            found = learn_then_test(one, [Risk("error", limit)], thresholds, pilot=pilot)
            if found.threshold is not None:
                promised += 1
                exceeded += bool(other.losses("error", found.threshold).mean() > limit)
                answered.append(float((other.expected <= found.threshold).mean()))
        print(f"MMLU-Pro, error<={limit}: promised in {promised} of {splits} splits, above it on the other half in "
              f"{exceeded}; answered {np.mean(answered):.2f}. (The other half is a sample itself.)")  # fmt: skip
    return {"real_exceeded": exceeded / splits}


def part_of(judged_: Judged, rows: np.ndarray) -> Judged:
    """Some of the samples."""
    wrong = None if judged_.wrong is None else judged_.wrong[rows]
    return Judged(expected=judged_.expected[rows], wrong=wrong, cost=judged_.cost[rows])


# --- size -------------------------------------------------------------------------------------------------------------


def size(samples: int) -> dict:
    """The richest search at full size."""
    agents, classes = 10, 4
    charges = np.linspace(0.002, 0.02, agents)
    world = world_of(right_by_type(6, agents, 7), charges, samples, classes=classes, seed=0)
    found = {}
    for name, solve in (("adaptive", Search.adaptive), ("cascade", Search.cascade)):
        began, used = time.perf_counter(), time.process_time()
        rule = solve(Search(world, depth=3))
        found[f"{name}_processor_s"] = round(time.process_time() - used, 1)
        found[f"{name}_wall_s"] = round(time.perf_counter() - began, 1)
        print(f"{name}: {found[f'{name}_processor_s']} s of a processor, {len(rule.states)} states")
    found["memory_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    print(f"greatest memory of the process: {found['memory_gib']} GiB")
    return found


if __name__ == "__main__":
    main()
