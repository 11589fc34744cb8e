"""Forked processes: builders to be killed or set beside each other, and checks that may crash."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from small import Outcome, World

# Forked from a server that has imported everything and started no thread: cheap, and free of the parent's locks.
CONTEXT = multiprocessing.get_context("forkserver")
PRELOAD = [
    "torch",
    "safetensors.numpy",
    "l2d.cache_builder.builder",
    "l2d.cache_builder.recipe",
    "l2d.data.cache.reader",
]


def fork(function: Callable, *arguments: object):
    """Start ``function`` in a forked process with a process group of its own."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("POLARS_MAX_THREADS", "2")
    CONTEXT.set_forkserver_preload(PRELOAD)
    process = CONTEXT.Process(target=_alone, args=(function, *arguments), daemon=True)
    process.start()
    return process


def _alone(function: Callable, *arguments: object) -> None:
    os.setsid()
    function(*arguments)


def kill_group(process) -> None:
    """SIGKILL to a process and all it started."""
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:  # it has no group of its own yet, or is gone
        process.kill()


def built_apart(folder: Path, sabotage: str | None, start_at: float = 0.0) -> None:
    """Body of a forked builder: build, and leave any error in ``folder/errors``."""
    from sabotages import apply

    apply(sabotage)
    world = World(folder)
    while time.monotonic() < start_at:
        time.sleep(0.0002)
    try:
        world.build()
    except BaseException as error:
        frames = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-4:]]
        text = f"{type(error).__name__}: {str(error).splitlines()[0]} ({' > '.join(frames)})"
        handle = os.open(folder / "errors", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, text.encode() + b"\0")
        os.close(handle)
        sys.exit(3)


def errors_of(world: World) -> list[str]:
    """What forked builders of a world complained of."""
    file = world.folder / "errors"
    return [text for text in file.read_text().split("\0") if text] if file.exists() else []


def apart(function: Callable[..., Outcome], *arguments: object) -> Outcome:
    """Run a check in a forked process, since a sabotaged reader may crash it."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = fork(_send, sender, function, arguments)
    sender.close()
    try:
        outcome = receiver.recv()
    except EOFError:
        process.join()
        outcome = Outcome(1, [f"the process died with {process.exitcode}"])
    receiver.close()
    process.join()
    process.close()
    return outcome


def _send(sender, function: Callable, arguments: tuple) -> None:
    sender.send(function(*arguments))
