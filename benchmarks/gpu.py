"""Everything to be measured and checked on a GPU, in one go of less than eight minutes, with torch 2.11 or newer.

    python benchmarks/gpu.py [--out gpu.json] [--only grid,tokens] [--device cuda:0]
    python benchmarks/gpu.py --rehearse      # the same code on the CPU, in small: speeds mean nothing, checks do

l2d need not be installed: the folder above this file is imported by that name. Parts whose packages are missing are
left out, and it says what to install: torch, numpy, pyarrow and psutil do for most, detectors need some more.

Every part runs in a process of its own and has its own seconds, so that neither a slow one nor one that breaks the GPU
takes anything from the others. Lines are printed, and the file is written anew, as results come. Exit code: 1 where
something is wrong (an exception, or a difference from the reference beyond what rounding explains), 2 where everything
was right but a part did not run, or not to its end, else 0. Goals of speed that are missed are marked; they are no
error.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ("torch", "numpy", "pyarrow", "psutil")
ASKING = (*TRAINING, "torchvision", "PIL", "polars", "pydantic", "sklearn")
SLACK = 8  # in the rehearsal, where other programs may use the cores
INSTALL = {"PIL": "pillow", "sklearn": "scikit-learn"}  # where a package's name is another


@dataclass(frozen=True)
class Part:
    """A function of gpu_parts.py, what it imports, and how long it may take."""

    name: str
    needs: tuple[str, ...]
    seconds: int

    def missing(self) -> list[str]:
        return [INSTALL.get(name, name) for name in self.needs if importlib.util.find_spec(name) is None]


PARTS = [
    Part("machine", ("torch", "psutil"), 25),
    Part("grid", TRAINING, 60),
    Part("many", TRAINING, 60),
    Part("tokens", TRAINING, 75),
    Part("nccl", TRAINING, 30),
    Part("costs", ASKING, 75),
    Part("detectors", ASKING, 140),
]


@dataclass
class Results:
    """What has been found so far; the file always has all of it."""

    file: Path
    rehearsal: bool
    start: float = field(default_factory=time.perf_counter)
    lines: list[dict] = field(default_factory=list)
    ended: dict[str, str] = field(default_factory=dict)

    def add(self, part: str, line: dict) -> None:
        self.lines.append({"part": part, **line})
        value = f"{line['value']:.4g}" if isinstance(line["value"], float) else line["value"]
        print(f"| {part} | {line['what']} | {value} {line['unit']} | {line['asked']} | {line['state']} |", flush=True)
        self.write()

    def end(self, part: str, how: str) -> None:
        self.ended[part] = how
        if how != "done":
            print(f"| {part} | **{how}** | | | |", flush=True)
        self.write()

    def write(self) -> None:
        content = {
            "device": next((line["value"] for line in self.lines if line["what"] == "device"), None),
            "rehearsal": self.rehearsal,
            "seconds": round(time.perf_counter() - self.start, 1),
            "parts": self.ended,
            "results": self.lines,
        }
        beside = self.file.with_name(self.file.name + ".new")
        beside.write_text(json.dumps(content, indent=1) + "\n")
        beside.replace(self.file)

    def code(self) -> int:
        states = [line["state"] for line in self.lines]
        if "WRONG" in states or any(how.startswith("WRONG") for how in self.ended.values()):
            return 1
        return 0 if set(self.ended.values()) == {"done"} else 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--only", default=",".join(part.name for part in PARTS), help="some of these, by commas")
    parser.add_argument("--device", default="cuda", help="such as cuda:1")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, in small, with gloo in the place of NCCL")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # one part, in this process
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if importlib.util.find_spec("l2d") is None:
            (Path(folder) / "l2d").symlink_to(ROOT)
            sys.path.append(folder)
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), folder]))
        if options.part:
            return run_here(options.part, options.device, options.rehearse)
        unknown = set(options.only.split(",")) - {part.name for part in PARTS}
        if unknown:
            parser.error(f"there is no part {', '.join(sorted(unknown))}")
        device = "cpu" if options.rehearse else options.device
        results = Results(options.out, options.rehearse)
        print("| part | what | found | asked | |\n| --- | --- | ---: | --- | --- |", flush=True)
        for part in PARTS:
            if part.name in options.only.split(","):
                missing = part.missing()
                how = f"did not run: pip install {' '.join(missing)}" if missing else run(part, device, results)
                results.end(part.name, how)
        print(f"{time.perf_counter() - results.start:.0f} s, {options.out}")
        return results.code()


def run(part: Part, device: str, results: Results) -> str:
    """A part in its own process. Returns how it ended."""
    command = [sys.executable, "-u", __file__, "--part", part.name, "--device", device]
    command += ["--rehearse"] if results.rehearsal else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    late, seconds = threading.Event(), part.seconds * (SLACK if results.rehearsal else 1)

    def stop() -> None:
        late.set()
        process.kill()

    clock = threading.Timer(seconds, stop)
    clock.start()
    try:
        assert process.stdout is not None
        for text in process.stdout:
            if text.startswith("{"):
                results.add(part.name, json.loads(text))
            else:
                print(text, end="", file=sys.stderr)
        code = process.wait()
    finally:
        clock.cancel()
        process.kill()
    if late.is_set():
        return f"not to its end: its {seconds} s were over"
    return "done" if code == 0 else f"WRONG: it ended with exit code {code}, see above"


def run_here(name: str, device: str, rehearsal: bool) -> int:
    import gpu_parts
    import torch

    if not rehearsal and not torch.cuda.is_available():
        print("torch sees no GPU here; --rehearse runs everything on the CPU", file=sys.stderr)
        return 1
    if rehearsal:
        torch.set_num_threads(1)  # as small as it is there, threads wait for each other more than they work
    for line in getattr(gpu_parts, name)(gpu_parts.Setting(device=device, rehearsal=rehearsal)):
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
