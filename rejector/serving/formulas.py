"""SQL arithmetic on one row as Python functions: the bits of polars, without starting a query for a single row.

Only sums, differences, products, quotients, ``ln``, ``exp``, ``sqrt`` and ``abs`` of numbers and columns are taken, and
only where they give polars' bits on a thousand trial rows; the rest stays with polars.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

Number = float | int
#: Values of the columns, in order -> the value; NaN where it is missing. Raises :class:`NotPlain`.
Formula = Callable[[Sequence[Any]], float]

ALIAS = re.compile(r"""\s+AS\s+("[^"]+"|\w+)\s*$""", re.IGNORECASE)
LARGEST_INT = 1 << 31  # products of larger ones may leave 64 bits
TRIALS = 300
SPECIAL = (0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 1e-300, 1e300, -1e300, math.inf, -math.inf, math.nan, None)


class NotPlain(Exception):
    """A value that this has no rule for: ask polars."""


@lru_cache(maxsize=10_000)  # a run that is opened again needs no trial
def formula(expression: str, columns: tuple[str, ...]) -> Formula | None:
    """The function of an expression; None where it is not plain arithmetic, or gives other bits than polars."""
    try:
        tree = ast.parse(ALIAS.sub("", expression).strip(), mode="eval").body
        compiled = _compiled(tree, list(columns))
        found = _of_row(compiled)
        return found if _agrees(found, expression, columns) else None
    except (SyntaxError, ValueError, NotPlain, pl.exceptions.PolarsError, RecursionError):
        return None


def _of_row(compiled: Callable[[Sequence[Number]], Number]) -> Formula:
    def value_of(row: Sequence[Any]) -> float:
        for value in row:
            kind = value.__class__
            if kind is float:
                continue
            if value is None:
                return math.nan
            if kind is not int or not -LARGEST_INT < value < LARGEST_INT:
                raise NotPlain
        return float(compiled(row))

    return value_of


def _compiled(node: ast.expr, columns: list[str]) -> Callable[[Sequence[Number]], Number]:
    if isinstance(node, ast.Name) and node.id in columns:
        place = columns.index(node.id)
        return lambda row: row[place]
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        constant: Number = node.value  # type: ignore[assignment]
        return lambda row: constant
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _compiled(node.operand, columns)
        return lambda row: -inner(row)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        operation, left, right = (
            OPERATIONS[type(node.op)],
            _compiled(node.left, columns),
            _compiled(node.right, columns),
        )
        return lambda row: operation(left(row), right(row))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1 and not node.keywords:
        function, inner = FUNCTIONS.get(node.func.id.lower()), _compiled(node.args[0], columns)
        if function is not None:
            return lambda row: function(inner(row))
    raise NotPlain


def _quotient(a: Number, b: Number) -> float:
    if b:
        return a / b
    return math.nan if not a or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def _ln(x: Number) -> float:
    if x > 0:
        return math.log(x)
    return -math.inf if x == 0 else math.nan


def _exp(x: Number) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


OPERATIONS: dict[type, Callable[[Number, Number], Number]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: _quotient,
}
FUNCTIONS: dict[str, Callable[[Number], Number]] = {
    "ln": _ln, "exp": _exp, "abs": abs, "sqrt": lambda x: math.sqrt(x) if x >= 0 else math.nan,
}  # fmt: skip


def _agrees(found: Formula, expression: str, columns: Sequence[str]) -> bool:
    """Whether polars gives the same bits for floats, for whole numbers, and for both among each other."""
    generator, many = np.random.default_rng(0), len(columns)
    floats = np.concatenate(
        [generator.lognormal(2, 4, (TRIALS, many)), generator.normal(0, 3, (TRIALS, many)).round(2)]
    ).tolist()
    mixed = [[SPECIAL[k] for k in generator.integers(0, len(SPECIAL), many)] for _ in range(20 * many)]
    whole = generator.integers(-50, 3000, (TRIALS, many)).tolist()
    both = [[own if k % 2 else other for k, (own, other) in enumerate(zip(*pair, strict=True))]
            for pair in zip(floats, whole, strict=False)]  # fmt: skip
    for rows in (floats + mixed, whole, both):
        frame = pl.DataFrame([pl.Series(name, list(own)) for name, own in zip(columns, zip(*rows, strict=True),
                                                                              strict=True)])  # fmt: skip
        expected = frame.select(pl.sql_expr(expression).cast(pl.Float64)).to_series().fill_null(math.nan).to_numpy()
        own = np.array([found(row) for row in rows])
        same = (own.view(np.int64) == expected.view(np.int64)) | (np.isnan(own) & np.isnan(expected))
        if len(expected) != len(rows) or not same.all():
            return False
    return True
