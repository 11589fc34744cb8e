"""The errors a user can meet, each with the exit code the command line answers with.

A message has three parts: what is wrong, where, and what to do next. Anything that is not an :class:`L2DError` is a
bug of ours and exits with 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: How many known names a message lists.
LISTED = 40


def nearest(name: object, known: Iterable[object], otherwise: str = "choose from", *, most: int = LISTED) -> str:
    """A hint for a name that is not known: the nearest known one, if one is near, and the known names.

    Args:
        name: what was given.
        known: the names that would have been understood.
        otherwise: the words before the list of known names.
        most: how many of them are listed.
    """
    names = [str(value) for value in known]
    listed = ", ".join(names[:most]) + (f" … {len(names):,} in all" if len(names) > most else "")
    found = close_to(name, names)
    return (f"did you mean {found!r}? " if found is not None else "") + f"{otherwise} {listed}"


def close_to(name: object, known: Iterable[str]) -> str | None:
    """The known name that is nearest to what was given, in any case; None if none is near."""
    lower = {value.lower(): value for value in reversed(list(known))}
    found = difflib.get_close_matches(str(name).lower(), lower, n=1)
    return lower[found[0]] if found else None


class L2DError(Exception):
    """Base of all errors the user can act on.

    Args:
        what: what is wrong, with the offending value.
        where: file, sample, agent or recipe key it was found in.
        hint: what to do next.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, hint: str | None = None):
        self.what, self.where, self.hint = what, where, hint
        lines = [what]
        if where is not None:
            lines.append(f"  where: {where}")
        if hint:
            lines.append(f"  next:  {hint}")
        super().__init__("\n".join(lines))


class UsageError(L2DError):
    """A recipe, an option or an argument is wrong (exit 2)."""

    exit_code = 2


class DataError(L2DError):
    """Data is malformed or does not fit what it is used with (exit 3)."""

    exit_code = 3


class AlreadyThere(DataError):
    """A folder that should be made is there already, and may be what another process has just made."""


class CorruptPart(DataError):
    """A file of a cache or run cannot be read back as it was written."""


class FingerprintMismatch(DataError):
    """A cache was built from something else than what it is now used with.

    Args:
        subject: what changed, such as ``agent 'model'``.
        changes: field -> (value it was made with, value now).
    """

    def __init__(self, subject: str, changes: dict[str, tuple[object, object]], *, where: object, hint: str):
        self.changes = changes
        fields = "\n".join(f"  {name}: was {old!r}, now {new!r}" for name, (old, new) in changes.items())
        super().__init__(f"{subject} is not what it was\n{fields}", where=where, hint=hint)


class IncompleteCache(L2DError):
    """Parts are missing; the same ``l2d build`` command makes them (exit 4)."""

    exit_code = 4


class AgentFailure(L2DError):
    """An agent raised, or its answer cannot be used (exit 5)."""

    exit_code = 5
