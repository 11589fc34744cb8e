"""Rows as an aligned table of text, and how a value reads in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from decimal import Decimal

from l2d.data.terminal.safe import printable


def table_text(rows: Sequence[dict | None], *, title: str | None = None, columns: list[str] | None = None) -> str:
    """An aligned table under its title: numbers to the right, an empty line where a row is None."""
    shown = [row for row in rows if row is not None]
    names = columns or (list(shown[0]) if shown else [])
    if not names:
        return ""
    right = [bool(shown) and all(_is_numeric(row[name]) for row in shown) for name in names]
    head = [printable(name) for name in names]
    body = [None if row is None else [format_value(row[name]) for name in names] for row in rows]
    table = _simple(head, body, right) or _by_rich(head, body, right)
    return f"{_bold(printable(title))}\n{table}" if title else table


def _bold(text: str) -> str:
    styled = sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return f"\x1b[1m{text}\x1b[0m" if styled else text


def _simple(head: list[str], body: list[list[str] | None], right: list[bool]) -> str | None:
    """What :func:`_by_rich` makes of letters that are one cell wide each, which is nearly always all there is.

    None where something else is there. Importing rich would be a tenth of the time in which a command answers.
    """
    cells = [text for row in [head, *body] if row is not None for text in row]
    widths = [max(len(row[k]) for row in [head, *body] if row is not None) for k in range(len(head))]
    if not all(widths) or not all(text.isascii() and text.isprintable() and text == text.strip() for text in cells):
        return None

    def line(row: list[str]) -> str:
        placed = zip(row, widths, right, strict=True)
        found = [text.rjust(width) if is_number else text.ljust(width) for text, width, is_number in placed]
        return f" {'   '.join(found)}".rstrip()

    lines = ["", _bold(line(head)), " " + "─" * (sum(widths) + 3 * (len(widths) - 1))]
    rows, divided = 0, False
    for row in body:
        if row is None:
            divided = rows > 0
            continue
        lines += [*([""] * divided), line(row)]
        rows, divided = rows + 1, False
    return "\n".join([*lines, ""])


def _by_rich(head: list[str], body: list[list[str] | None], right: list[bool]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, is_number in zip(head, right, strict=True):
        table.add_column(Text(name), justify="right" if is_number else "left", no_wrap=True)
    for row in body:
        if row is None:
            table.add_section()
        else:
            table.add_row(*map(Text, row))
    console = Console(file=sys.stdout, width=10_000, highlight=False)  # a cut-off number is worse than a long line
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines())


def format_value(value: object) -> str:
    """Numbers to four significant digits, lists shortened, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, Decimal):  # DuckDB's sums of integers
        return format_value(int(value) if value == value.to_integral_value() else float(value))
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, list) and len(value) > 6:
        return "[" + ", ".join(format_value(v) for v in value[:6]) + f", … {len(value)} in all]"
    return printable(str(value))


def _is_numeric(value: object) -> bool:
    if isinstance(value, str):
        return value[:1] in "0123456789-.+"
    return value is None or isinstance(value, int | float | Decimal)
