"""Query costs and task weights as they are typed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from l2d.data.errors import UsageError
from l2d.data.terminal.options import pairs, values

BETA_HELP = (
    "Query cost: one number (the dearest expert's; others scale by price), or name=value pairs. paid=2.0 charges every "
    "answer what it was paid: 2 units of loss for a unit of money."
)
LAMBDA_HELP = "Task weights, such as cla=1,reg=0.2. Default: the recipe's."
ELSEWHERE = "In place of the run's, without training again (method best)."

OtherBetaOption = Annotated[str | None, typer.Option("--beta", help=f"{BETA_HELP} {ELSEWHERE}")]
OtherLambdaOption = Annotated[
    str | None, typer.Option("--lambda", help=f"Task weights, such as cla=1,reg=0.2. {ELSEWHERE}")
]

CalibrationOption = Annotated[
    Path | None, typer.Option(help="A file of `l2d recalibrate`: correct the predicted costs by it.", metavar="FILE")
]


def betas(texts: list[str]) -> list[float | dict[str, float]]:
    """Query costs as they are typed: numbers by commas, or name=value pairs, one setting a text.

    ``paid=0,1,10`` is one name with several values: a setting each.
    """
    found: list[float | dict[str, float]] = []
    for text in texts:
        name, _, given = text.partition("=")
        if "=" not in text:
            found += values(text, float, "--beta")
        elif "," in given and "=" not in given:
            found += [{name.strip(): value} for value in values(given, float, "--beta")]
        else:
            found.append(pairs(text, "--beta"))
    return found


def one_beta(text: str | None, hint: str = "give one") -> float | dict[str, float] | None:
    """The query cost of one setting, None where nothing is typed.

    Raises:
        UsageError: several are given.
    """
    if text is None:
        return None
    found = betas([text])
    if len(found) > 1:
        raise UsageError(f"--beta {text} gives {len(found)} values", hint=hint)
    return found[0]


def one_lambda(text: str | None) -> dict[str, float] | None:
    """Task weights of one setting, None where nothing is typed."""
    return None if text is None else pairs(text, "--lambda")
