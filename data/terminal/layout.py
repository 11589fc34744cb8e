"""Rows as an aligned table of text, and how a value reads in it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from decimal import Decimal

from l2d.data.terminal.safe import printable


def table_text(rows: Sequence[dict | None], *, title: str | None = None, columns: list[str] | None = None) -> str:
    """An aligned table: numbers to the right, a row of dashes where a row is None."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = [row for row in rows if row is not None]
    names = columns or (list(shown[0]) if shown else [])
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=title and Text(printable(title)),
        title_justify="left",
        title_style="bold",
    )
    for name in names:
        numeric = all(_is_numeric(row[name]) for row in shown)
        table.add_column(Text(printable(name)), justify="right" if numeric and shown else "left", no_wrap=True)
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*[Text(format_value(row[name])) for name in names])
    console = Console(file=sys.stdout, width=10_000, highlight=False)  # a cut-off number is worse than a long line
    text = console.render_str("")
    with console.capture() as capture:
        console.print(table if names else text)
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
