"""Results of the library: what each can be turned into, at a prompt, in a notebook, or for another program."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars


class Shown:
    """A result that is rows: as text, as a frame, as plain values, and as a table in a notebook.

    Subclasses give :meth:`rows`, and a ``title`` where the rows alone do not say what they are.
    """

    @property
    def title(self) -> str | None:
        """What the rows are, for a table that says it above them."""
        return None

    def rows(self) -> list[dict[str, Any]]:
        """Plain dictionaries with the same keys, in column order."""
        raise NotImplementedError

    def table(self) -> str:
        """The aligned table that the command line prints."""
        from l2d.data.terminal.layout import table_text

        return table_text(self.rows(), title=self.title)

    def frame(self) -> polars.DataFrame:
        """The rows as a polars frame."""
        import polars

        return polars.DataFrame(self.rows(), infer_schema_length=None)

    def to_json(self) -> Any:
        """Plain values: what the command line prints as JSON."""
        return self.rows()

    def _repr_html_(self) -> str:
        """The table, for a notebook."""
        from l2d.data.terminal.layout import format_value

        rows = [row for row in self.rows() if row is not None]
        names = list(dict.fromkeys(name for row in rows for name in row))
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(format_value(row.get(name)))}</td>" for name in names) + "</tr>"
            for row in rows
        )
        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
