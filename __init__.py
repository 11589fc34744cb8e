"""Learning to defer, from a table: ask every agent once, then train rejectors on the cached costs."""

from __future__ import annotations

from typing import Any

__all__ = ["DeferralRejector"]


def __getattr__(name: str) -> Any:
    """``DeferralRejector`` loads torch and scikit-learn, so it is imported when it is asked for."""
    if name == "DeferralRejector":
        from l2d.rejector.estimator import DeferralRejector

        return DeferralRejector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
