"""Which torch device to use."""

from __future__ import annotations

from l2d.data.errors import UsageError


def resolve_device(device: str) -> str:
    """``auto`` becomes ``cuda`` if torch sees one, else ``cpu``; anything else is tried.

    Raises:
        UsageError: the device is not there.
    """
    if device == "cpu":
        return device  # without the two seconds that torch takes to load
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"cannot use device {device!r}: {reason}", hint="try --device cpu") from error
    return device
