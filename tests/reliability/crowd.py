"""Checks 4 and 8: several builders of one cache at once, and readers beside a builder."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import polars as pl
from processes import built_apart, errors_of, fork, kill_group
from small import Outcome, World, differences, reference, same, scratch, truth


def crowd(rounds: int, *, builders: int = 4, sabotage: str | None = None, seed: int = 0) -> Outcome:
    """Processes build one recipe into one folder at once: none complains, and the cache is as one would build it.

    Every other round the agent's answers differ from process to process; costs must then be those of the answers kept.
    """
    outcome, randomness = Outcome(), random.Random(seed)
    reference()
    for number in range(rounds):
        if sabotage and outcome.problems:
            break
        with scratch() as folder:
            wobble = "process" if number % 2 else "0"
            world = World(folder / "world", pause=0.001, wobble=wobble)
            first = time.monotonic() + 0.25
            spread = randomness.choice([0, 0.01, 0.1])
            starts = [first + randomness.uniform(0, spread) for _ in range(builders)]
            processes = [fork(built_apart, world.folder, sabotage, start) for start in starts]
            for process in processes:
                process.join(60)
                outcome.expect(process.exitcode == 0, f"round {number}: a builder exited with {process.exitcode}")
                if process.exitcode is None:
                    kill_group(process)
                process.close()
            outcome.problems += [f"round {number}: {error}" for error in errors_of(world)]
            problems = differences(world) if wobble == "0" else mixed(world)
            outcome.problems += [f"round {number}: {problem}" for problem in problems]
            outcome.cases += 1
    return outcome


def mixed(world: World) -> list[str]:
    """Costs that are not those of the predictions beside them."""
    from l2d.data.cache.reader import CostCache
    from l2d.data.errors import L2DError

    problems = []
    try:
        cache = CostCache(world.out)
        cache.verify()
    except L2DError as error:
        return [f"{type(error).__name__}: {error}"]
    stay = pl.read_csv(world.folder / "table.csv")["stay"].to_numpy().astype(np.float32)
    for agent in cache.all_agents:
        for chunk in range(cache.record.num_chunks):
            rows = cache.record.chunk_rows(chunk)
            predicted = cache.predictions(agent.name, chunk)["pred_reg"].to_numpy()
            cost = cache.costs(agent.name, chunk)["cost_reg"].to_numpy()
            if not np.allclose(cost, np.abs(predicted - stay[rows.start : rows.stop]), rtol=1e-4, atol=1e-4):
                problems.append(f"costs of {agent.name}, chunk {chunk}, belong to other answers")
    return problems


def readers(opens: int, *, sabotage: str | None = None, seed: int = 0) -> Outcome:
    """A reader opens caches while they are built: it sees what is committed, or a clean error, and never damage."""
    outcome, randomness = Outcome(), random.Random(seed)
    expected, seen = truth(reference()), 0
    while outcome.cases < opens and len(outcome.problems) < (1 if sabotage else 20):
        with scratch() as folder:
            world = World(folder / "world", pause=0.01)
            process = fork(built_apart, world.folder, sabotage)
            while process.exitcode is None and not any(world.out.glob("agents/*/predictions/*.parquet")):
                time.sleep(0.001)  # until then there is nothing to see
            while process.exitcode is None and outcome.cases < opens:
                problem, found = _read_once(world.out, expected, randomness)
                seen += found
                outcome.cases += 1
                outcome.expect(not problem, problem)
            process.join()
            process.close()
            if sabotage is None:
                outcome.problems += errors_of(world) + differences(world)
    outcome.expect(seen, "no part was seen")
    outcome.note = f"{seen} parts seen"
    return outcome


def _read_once(out: Path, expected: dict, randomness: random.Random) -> tuple[str, int]:
    """Open a cache and read a few parts in one of several ways; returns what was wrong, and the parts seen."""
    from l2d.data.cache.reader import CostCache
    from l2d.data.errors import CorruptPart, L2DError
    from l2d.rejector.sql.query import query

    try:
        cache = CostCache(out)
        if randomness.random() < 0.03:
            view = randomness.choice(["samples", "predictions", "costs"])
            return "", query([out], f"SELECT * FROM {view}").num_rows // 10
        if randomness.random() < 0.05:
            cache.verify()
        seen = 0
        for agent in cache.all_agents:
            chunk = randomness.randrange(cache.record.num_chunks)
            tables = {
                f"agents/{agent.name}/predictions": cache.predictions,
                f"agents/{agent.name}/costs-{cache.record.cost_digest}": cache.costs,
            }
            for name, read in tables.items():
                if not (out / name / f"{chunk:05d}.parquet").is_file():
                    continue
                seen += 1
                found = read(agent.name, chunk).replace_schema_metadata()
                if not same(found, expected[f"{name}/{chunk:05d}.parquet"].replace_schema_metadata()):
                    return f"{name} {chunk}: other values", seen
        return "", seen
    except CorruptPart as error:
        return f"a reader found damage: {error}", 0
    except L2DError:
        return "", 0
    except Exception as error:
        return f"a reader raised {type(error).__name__}: {error}", 0
