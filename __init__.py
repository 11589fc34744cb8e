"""Learning to defer, from a table: ask every agent once, then train rejectors on the cached costs.

Every command of the program is a function here, and does what the command does::

    import l2d

    cache = l2d.build("support2", "support2.cache")
    runs = l2d.sweep(cache, "support2.runs", betas=[0, 0.1, 0.2])
    print(l2d.evaluate(runs).table())

Results have ``.table()``, ``.frame()`` (polars) and ``.to_json()``, and show themselves in a notebook. Whatever is not
named here may change without notice.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from l2d.both_stages import route as route
    from l2d.cache_builder.extending import extend as extend
    from l2d.cache_builder.library import build as build
    from l2d.cache_builder.library import import_detections as import_detections
    from l2d.cache_builder.library import import_table as import_table
    from l2d.data.cache.reader import CostCache as CostCache
    from l2d.data.errors import AgentFailure as AgentFailure
    from l2d.data.errors import CorruptPart as CorruptPart
    from l2d.data.errors import DataError as DataError
    from l2d.data.errors import FingerprintMismatch as FingerprintMismatch
    from l2d.data.errors import IncompleteCache as IncompleteCache
    from l2d.data.errors import L2DError as L2DError
    from l2d.data.errors import UsageError as UsageError
    from l2d.data.library import audit as audit
    from l2d.data.library import describe as describe
    from l2d.data.library import fetch as fetch
    from l2d.data.library import push as push
    from l2d.data.library import sign as sign
    from l2d.data.library import status as status
    from l2d.data.library import verify as verify
    from l2d.data.samples.text_transformer import TextFeatures as TextFeatures
    from l2d.rejector.at_work import add_agent as add_agent
    from l2d.rejector.at_work import export as export
    from l2d.rejector.at_work import policy as policy
    from l2d.rejector.at_work import query as query
    from l2d.rejector.at_work import worth as worth
    from l2d.rejector.decisions.online import load_policy as load_policy
    from l2d.rejector.estimator import DeferralRejector as DeferralRejector
    from l2d.rejector.library import choose as choose
    from l2d.rejector.library import evaluate as evaluate
    from l2d.rejector.library import report as report
    from l2d.rejector.library import sweep as sweep
    from l2d.rejector.library import theory as theory
    from l2d.rejector.library import train as train
    from l2d.rejector.recalibration.recalibrating import recalibrate as recalibrate
    from l2d.rejector.replay.replaying import replay as replay
    from l2d.rejector.runs.run import load_run as load_run
    from l2d.rejector.serving.log import DecisionLog as DecisionLog
    from l2d.rejector.serving.opening import load_router as load_router
    from l2d.rejector.serving.reading import read_log as read_log
    from l2d.rejector.serving.router import Router as Router
    from l2d.rejector.serving.server import serve as serve
    from l2d.rejector.settings import TrainConfig as TrainConfig
    from l2d.rejector.watch.watching import watch as watch

#: Module -> the names that come from it. They are imported when they are asked for: most load torch.
_NAMES = {
    "l2d.cache_builder.extending": ("extend",),
    "l2d.both_stages": ("route",),
    "l2d.cache_builder.library": ("build", "import_detections", "import_table"),
    "l2d.data.cache.reader": ("CostCache",),
    "l2d.data.errors": (
        "AgentFailure",
        "CorruptPart",
        "DataError",
        "FingerprintMismatch",
        "IncompleteCache",
        "L2DError",
        "UsageError",
    ),
    "l2d.data.library": ("audit", "describe", "fetch", "push", "sign", "status", "verify"),
    "l2d.data.samples.text_transformer": ("TextFeatures",),
    "l2d.rejector.at_work": ("add_agent", "export", "policy", "query", "worth"),
    "l2d.rejector.decisions.online": ("load_policy",),
    "l2d.rejector.estimator": ("DeferralRejector",),
    "l2d.rejector.library": (
        "choose",
        "evaluate",
        "report",
        "sweep",
        "theory",
        "train",
    ),
    "l2d.rejector.recalibration.recalibrating": ("recalibrate",),
    "l2d.rejector.replay.replaying": ("replay",),
    "l2d.rejector.runs.run": ("load_run",),
    "l2d.rejector.serving.log": ("DecisionLog",),
    "l2d.rejector.serving.reading": ("read_log",),
    "l2d.rejector.serving.opening": ("load_router",),
    "l2d.rejector.serving.router": ("Router",),
    "l2d.rejector.serving.server": ("serve",),
    "l2d.rejector.settings": ("TrainConfig",),
    "l2d.rejector.watch.watching": ("watch",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("l2d")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
