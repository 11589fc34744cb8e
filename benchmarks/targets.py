"""Lines of the table of targets (`README.md`, "whole way"), as each program that measures some prints them."""

from __future__ import annotations

import os


def print_targets(lines: list[tuple[str, str, float, str, float]]) -> None:
    """A line for each target: what was measured, and whether that is enough.

    Args:
        lines: work, what the figure is, the figure, ``<=`` or ``>=``, and the figure that is aimed at.
    """
    load = os.getloadavg()[0]
    print(f"\nTargets, at a load of {load:.1f} on {os.cpu_count()} cores:\n")
    print("| work | figure | measured | target | |\n| --- | --- | ---: | ---: | --- |")
    for work, figure, measured, sign, target in lines:
        reached = measured <= target if sign == "<=" else measured >= target
        print(f"| {work} | {figure} | {measured:.3g} | {sign} {target:g} | {'reached' if reached else 'not reached'} |")


def as_installed() -> dict[str, str]:
    """The environment of a program that is measured: with compiled modules, which an installed package has.

    Where ``PYTHONDONTWRITEBYTECODE`` is set an editable installation is compiled anew by each process, in 0.2 s.
    """
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
