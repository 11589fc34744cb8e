"""Sizes in bytes, as people write them."""

from __future__ import annotations

from l2d.data.errors import UsageError


def parse_size(text: str, name: str = "--memory") -> int:
    """Bytes of a size such as ``500MB`` or ``2GiB``.

    Args:
        text: a number and a unit.
        name: the option it was given for, for messages.

    Raises:
        UsageError: the text is not a size above 0.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        size = int(TypeAdapter(ByteSize).validate_python(text.strip()))
    except (ValidationError, OverflowError):
        size = 0
    if size <= 0:
        raise UsageError(f"{name} expects a size such as 500MB or 2GiB; got {text!r}", hint=f"for example {name} 500MB")
    return size
