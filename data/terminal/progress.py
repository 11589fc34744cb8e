"""Narration and progress bars, on stderr: stdout is for results."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable

import typer

from l2d.data.terminal.safe import printable


def say(text: str, *, bold: bool = False) -> None:
    """Narration, to stderr. Control characters in names are written out."""
    typer.secho(printable(text), err=True, bold=bold)


def quote(path: object) -> str:
    """A path as it has to be typed."""
    return shlex.quote(str(path))


class Bars:
    """Progress bars on stderr, silent where stderr is not a terminal."""

    def __enter__(self) -> Bars:
        self.bars: list = []
        return self

    def __exit__(self, *_: object) -> None:
        for bar in self.bars:
            bar.close()

    def start(self, agent: str, samples: int | None, unit: str = "samples") -> Callable[[int], None]:
        """A bar that is told how many samples more are done."""
        if not sys.stderr.isatty():
            return lambda done: None
        from tqdm import tqdm

        for bar in self.bars:
            bar.close()
        self.bars.append(tqdm(total=samples, desc=printable(agent), unit=f" {unit}", disable=None))
        return self.bars[-1].update

    def epochs(self, total: int) -> Callable[[int, int, float], None]:
        """A bar of training that is told the epoch, its rows and the validation risk; one for each wave."""
        if not sys.stderr.isatty():
            return lambda epoch, rows, risk: None
        from tqdm import tqdm

        bar = None

        def advance(epoch: int, rows: int, risk: float) -> None:
            nonlocal bar
            if bar is None or epoch == 0:  # of another wave
                bar = tqdm(total=total * rows, desc="training", unit=" rows", unit_scale=True, disable=None)
                self.bars.append(bar)
            bar.set_postfix_str(f"epoch {epoch + 1}/{total}, validation risk {risk:.4f}", refresh=False)
            bar.update(rows)

        return advance
