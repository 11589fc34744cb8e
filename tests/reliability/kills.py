"""Checks 1 and 7: builders killed at random moments, and builders that are asked to stop."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from processes import built_apart, errors_of, fork, kill_group
from small import ROOT, Outcome, World, differences, reference, scratch, temporaries

HERE = Path(__file__).parent
ATTEMPTS = 400  # a build that is still not finished after so many has a problem


def real_builder(world: World, sabotage: str | None = None) -> subprocess.Popen:
    """``l2d build`` as a process with a group of its own; its stderr goes to ``world.folder/stderr``."""
    program = [str(HERE / "sabotages.py"), sabotage] if sabotage else ["-m", "l2d.cli"]
    with open(world.folder / "stderr", "wb") as stderr:
        return subprocess.Popen(
            [sys.executable, *program, *world.command()],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def kill_real(kills: int, *, sabotage: str | None = None, seed: int = 0, lanes: int = 2) -> Outcome:
    """SIGKILL real command lines, a few beside each other; rerun the same command until the cache is there."""
    reference()
    outcomes = [Outcome() for _ in range(lanes)]
    shares = [kills // lanes + (lane < kills % lanes) for lane in range(lanes)]
    threads = [
        threading.Thread(target=_kill_many, args=(shares[lane], _RealStarter(sabotage), outcomes[lane], seed + lane))
        for lane in range(lanes)
    ]
    return _joined(threads, outcomes)


def _joined(threads: list[threading.Thread], outcomes: list[Outcome]) -> Outcome:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Outcome(sum(o.cases for o in outcomes), [problem for o in outcomes for problem in o.problems])


def kill_forked(kills: int, *, sabotage: str | None = None, seed: int = 0) -> Outcome:
    """The same with forked processes that call the library: cheap, so many."""
    outcome = Outcome()
    _kill_many(kills, _ForkStarter(sabotage), outcome, seed)
    return outcome


class _RealStarter:
    pause, before, within = 0.004, 1.5, 0.12  # seconds: of a batch; until it works; how long it works, about

    def __init__(self, sabotage: str | None):
        self.sabotage = sabotage

    def __call__(self, world: World):
        process = real_builder(world, self.sabotage)
        return process, lambda: process.poll() is not None, process.wait

    def complaint(self, world: World) -> str:
        return (world.folder / "stderr").read_text()[-300:]


class _ForkStarter:
    pause, before, within = 0.002, 0.1, 0.12

    def __init__(self, sabotage: str | None):
        self.sabotage = sabotage

    def __call__(self, world: World):
        process = fork(built_apart, world.folder, self.sabotage)

        def wait() -> int:
            process.join()
            return process.exitcode

        return process, lambda: process.exitcode is not None, wait

    def complaint(self, world: World) -> str:
        return str(errors_of(world)[-1:])


def _kill_many(kills: int, start, outcome: Outcome, seed: int) -> None:
    """Kill builders of one world after another, each until its cache is finished, and compare every one."""
    randomness = random.Random(seed)
    while outcome.cases < kills and len(outcome.problems) < (1 if start.sabotage else 20):
        with scratch() as folder:
            world = World(folder / "world", pause=start.pause)
            seen_kills = 0
            for attempt in range(ATTEMPTS):
                last = outcome.cases >= kills  # let this one finish
                before = world.log.stat().st_size
                earlier = set(world.chunks_asked())
                done = {int(part.stem) for part in world.out.glob("agents/asked/predictions/*.parquet")}
                process, ended, wait = start(world)
                killed = not last and _kill_at_a_random_moment(process, ended, world, randomness, start)
                code = wait()
                asked = set(world.chunks_asked(before))
                outcome.expect(not asked & done, f"chunks {asked & done} were asked again though committed")
                outcome.expect(len(asked & earlier) <= 1, f"{len(asked & earlier)} chunks asked again after one kill")
                if killed and code == -signal.SIGKILL:
                    outcome.cases += 1
                    seen_kills += 1
                elif code == 0:
                    break
                else:
                    outcome.problems.append(f"attempt {attempt} exited with {code}: {start.complaint(world)}")
                    break
            else:
                outcome.problems.append(f"not finished after {ATTEMPTS} attempts")
            outcome.problems += differences(world)
            repeated = len(world.chunks_asked()) - world.settings["rows"]
            outcome.expect(0 <= repeated <= 10 * seen_kills, f"{repeated} samples repeated after {seen_kills} kills")


def _kill_at_a_random_moment(process, ended, world: World, randomness: random.Random, start) -> bool:
    """Kill a builder: mostly while it works, which shows in its files, sometimes before. False if it was done first."""
    if randomness.random() < 0.15:
        deadline = time.monotonic() + randomness.uniform(0, start.before)
    else:
        first = _footprint(world)
        while _footprint(world) == first:
            if ended():
                return False
            time.sleep(0.0005)
        deadline = time.monotonic() + randomness.uniform(0, start.within)
    while time.monotonic() < deadline:
        if ended():
            return False
        time.sleep(0.0005)
    kill_group(process)
    return True


def _footprint(world: World) -> tuple:
    return world.log.stat().st_size, (world.out / "cache.json").exists(), len(list(world.out.glob("**/*.parquet")))


# --- interrupts -----------------------------------------------------------------------------------------------------


def interrupts(signals: list[int], *, sabotage: str | None = None, seed: int = 0) -> Outcome:
    """SIGINT or SIGTERM while a slow agent is asked: gone within 5 s, its exit code, the line to go on with."""
    reference()
    outcomes = [Outcome() for _ in range(2)]
    threads = [
        threading.Thread(target=_interrupt_many, args=(signals[lane::2], sabotage, outcomes[lane], seed + lane))
        for lane in range(2)
    ]
    return _joined(threads, outcomes)


def _interrupt_many(signals: list[int], sabotage: str | None, outcome: Outcome, seed: int) -> None:
    randomness = random.Random(seed)
    for number in signals:
        with scratch() as folder:
            world = World(folder / "world", pause=0.7)
            process = real_builder(world, sabotage)
            while not world.log.stat().st_size and process.poll() is None:
                time.sleep(0.005)
            time.sleep(randomness.uniform(0, 1))
            sent = time.monotonic()
            process.send_signal(number)
            try:
                code = process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                kill_group(process)
                code = process.wait()
            seconds = time.monotonic() - sent
            said = (world.folder / "stderr").read_text()
            outcome.cases += 1
            name = signal.Signals(number).name
            outcome.expect(code == 128 + number, f"{name}: exited with {code}: {said[-300:]}")
            outcome.expect(seconds < 5, f"{name}: took {seconds:.1f} s")
            outcome.expect("To go on: l2d build " in said, f"{name}: does not say how to go on: {said[-300:]}")
            outcome.expect(not temporaries(world.out), f"{name}: left {temporaries(world.out)}")
            (world.folder / "pause").write_text("0")
            try:
                world.build()
            except Exception as error:
                outcome.problems.append(f"{name}: resuming failed: {error}")
            outcome.problems += differences(world)
