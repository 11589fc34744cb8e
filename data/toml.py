"""Texts as TOML writes them, for files that people read and edit."""

from __future__ import annotations

import json


def toml_text(value: str) -> str:
    """A TOML string."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_list(values: list[str]) -> str:
    """A TOML list of strings."""
    return f"[{', '.join(toml_text(value) for value in values)}]"
