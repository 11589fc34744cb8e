"""All of the theory for one run: why it falls short of the best rejector there could be, and by how much.

A *finding* is one quantity: what it is called, its value with a 95 % interval where it is a mean over samples, and what
it says. Findings come in parts, in the order they are read. :func:`theory_section` gives them as plain values.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from l2d.data.errors import UsageError
from l2d.rejector.methods import METHODS, ONE_MODEL
from l2d.rejector.runs.files import one_run
from l2d.rejector.runs.run import load_run
from l2d.rejector.theory.of_costs import PREDICTABLE, SHOWN, WORTH


def theory_section(
    path: Path, split: str = "test", *, device: str = "cpu", seed: int = 0, images: Path | None = None
) -> dict[str, Any]:
    """Every finding on a run, as plain values for JSON, a table or a page.

    Which theory it is depends on what trains the run's method (:attr:`l2d.rejector.methods.Trainer.theory`):
    :mod:`l2d.rejector.theory.of_surrogate` or :mod:`l2d.rejector.theory.of_costs`.

    Args:
        path: a run's folder, or one that holds a single run.
        split: to judge on.
        device: that rejectors are trained on.
        seed: of folds, halves and signs.
        images: the folder of the image files that the run looks at, where it has moved.

    Returns:
        ``run_id``, ``split``, ``num_samples`` and settings; ``verdict``, a sentence or two; ``parts``: title of a part
        -> key -> ``title``, ``value``, ``low``, ``high``, ``says``; ``bound_curve``: the learning bound at rising
        sample sizes, one object a size (empty where there is none); ``notes``.

    Raises:
        UsageError: there is no run or more than one, no theory is about its method, or a split has too few samples.
        FingerprintMismatch: the cache is no longer what the run was trained on.
    """
    run = load_run(one_run(path), images=images)
    theory = METHODS[run.point.method].trainer.theory
    if theory is None:
        raise UsageError(
            f"no theory here is about method {run.point.method!r}",
            where=run.path,
            hint=f"take a run of {', '.join(ONE_MODEL)}",
        )
    return import_module(theory).section(run, split, device=device, seed=seed)


def theory_rows(section: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A section's findings as rows: part, key, title, value, low, high, says."""
    for part, findings in section["parts"].items():
        for key, finding in findings.items():
            yield {"part": part, "quantity": key, **finding}


def shown_parts(section: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """A section as tables for people: title -> rows of text. Of more than a few agents or columns, some."""
    facts = [section["run_id"], f"{section['split']} split, {section['num_samples']:,} samples"]
    if section["network"] is not None:
        facts += [section["network"]]
        facts += [f"nu {section['nu']:g}" if section["nu"] is not None else f"loss {section['loss']}"]
    facts += ["recentred"] if section["recentre"] else []
    tables = {}
    for number, (part, findings) in enumerate(section["parts"].items()):
        some, title = list(findings.values()), part
        if part in (PREDICTABLE, WORTH) and len(some) > SHOWN:
            some, title = some[:SHOWN], f"{part} ({SHOWN} of {len(findings)}; --format csv has all)"
        tables[title if number else f"{', '.join(facts)}\n\n{title}"] = [
            {
                "quantity": finding["title"],
                "value": "" if finding["value"] is None else _number(finding["value"]),
                "95 % interval": ""
                if finding["low"] is None
                else f"[{_number(finding['low'])}, {_number(finding['high'])}]",
                "what it says": finding["says"],
            }
            for finding in some
        ]
    return tables


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}"
