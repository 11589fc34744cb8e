"""Several devices of one machine: a process for each, that does its shard of the chunks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from l2d.data.errors import AgentFailure, L2DError


def build_in_processes(recipe: str, out: Path, devices: list[str], options: list[str]) -> None:
    """Run ``l2d build --shard`` once for each device and wait for all. What is then left to do is to seal the cache.

    Args:
        recipe: file or name, as typed.
        out: the cache's folder.
        devices: of torch, one a process; the same one may stand several times.
        options: further options of the command.

    Raises:
        L2DError: a process failed. Its message has been printed; what it and the others finished is kept.
    """
    command = [sys.executable, "-m", "l2d.cli", "build", recipe, "--out", str(out), *options, "--format", "json"]
    processes = [
        subprocess.Popen(
            [*command, "--device", device.strip(), "--shard", f"{number}/{len(devices)}"], stdout=subprocess.DEVNULL
        )
        for number, device in enumerate(devices, start=1)
    ]
    try:
        codes = [process.wait() for process in processes]
    except BaseException:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        raise
    failed = [(device, code) for device, code in zip(devices, codes, strict=True) if code]
    if failed:
        device, code = failed[0]
        kind = AgentFailure if code == AgentFailure.exit_code else L2DError
        raise kind(
            f"the process on {device} ended with exit code {code}",
            where=out,
            hint="its message is above; finished chunks are kept, and the same command goes on",
        )
