"""Texts of strangers on a terminal: escape sequences in a name could move the cursor, hide lines or rename windows."""

from __future__ import annotations

import re

# Control characters of both sets, and those that turn the direction of what follows.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """A text with control characters written out, as ``\\x1b``; tabs and line ends stay."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
