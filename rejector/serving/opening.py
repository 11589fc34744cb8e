"""Opening a router: of a run, or of a saved policy that may ask several agents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2d.data.errors import UsageError
from l2d.rejector.runs.files import one_run
from l2d.rejector.served import open_served
from l2d.rejector.serving.asking import PolicyRouter, names_policy, open_policy
from l2d.rejector.serving.guarding import guard_of
from l2d.rejector.serving.log import DecisionLog
from l2d.rejector.serving.router import Router
from l2d.rejector.serving.spans import Spans

if TYPE_CHECKING:
    from l2d.rejector.runs.elsewhere import Beta


def load_router(
    run: Any,
    *,
    policy: Any = None,
    beta: Beta | None = None,
    weights: dict[str, float] | None = None,
    explore: float = 0.0,
    seed: int | None = None,
    log: DecisionLog | Path | str | None = None,
    keep_inputs: bool = False,
    shadow: Any = None,
    guard: float | None = None,
    calibration: Path | str | None = None,
    trace: Any = False,
) -> Router:
    """A run, or a saved policy that may ask several agents, ready to decide about single inputs.

    Runs of method ``best`` and of networks ``linear`` and ``mlp`` at their own setting load no torch. A decision has
    the bits that ``l2d route`` gives the same row of a file.

    Args:
        run: a run, or its folder; or the folder of a policy (``l2d policy --ask cascade --save``), or one that
            :func:`l2d.load_policy` opened: it says whom to ask, and :meth:`Router.next` whom to ask after each answer.
        policy: such a policy, of this run; or a file of ``l2d policy --save``: allocates by its prices.
        beta, weights: query costs and task weights in place of the run's, where its scores are costs.
        explore: share of the decisions that are drawn at random, each agent that can be asked being as likely as the
            others; what is drawn is never beyond a cap.
        seed: of what is drawn.
        log: a folder, in which decisions and outcomes are written down.
        keep_inputs: write inputs down too.
        shadow: a second run, which decides silently; its choices are logged.
        guard: fall back to the best constant agent when outcomes say that choosing costs more; this is the chance that
            it ever does so wrongly, such as 0.01. Needs ``log`` and ``explore``.
        calibration: a file that ``l2d recalibrate`` wrote: corrects the predicted costs.
        trace: make an OpenTelemetry span of each decision, with its input where ``keep_inputs`` is given; True: by the
            provider that the program has set; or a provider. Needs the extra ``otel``.

    Raises:
        UsageError: there is no run or several, or an argument is wrong.
        CorruptPart: the run is damaged.
    """
    if names_policy(run if policy is None else policy):
        if explore or shadow is not None or guard is not None:
            raise UsageError(
                "a policy that asks several agents is neither drawn at random nor shadowed nor guarded",
                hint="explore, or have a shadow or a guard, with a run",
            )
        if calibration is not None:
            raise UsageError(
                "a policy that asks several agents was made of the costs as they were predicted",
                hint="leave out the calibration, or load the run",
            )
        if beta is not None or weights is not None:
            raise UsageError("a policy has the setting that it was made at", hint="make it at this one: l2d policy")
        work, path = open_policy(run, policy)
        own = log if isinstance(log, DecisionLog) or log is None else DecisionLog(log, keep_inputs=keep_inputs)
        return _traced(PolicyRouter(work, path, log=own), trace, keep_inputs)
    served = open_served(
        one_run(_folder(run)),
        policy=None if policy is None else Path(policy),
        beta=beta,
        weights=weights,
        calibration=None if calibration is None else Path(calibration),
    )
    if shadow is not None and log is None:
        raise UsageError("a shadow decides silently: without a log it is not heard", hint="give log as well")
    book = log if isinstance(log, DecisionLog) or log is None else DecisionLog(log, keep_inputs=keep_inputs)
    silent = None if shadow is None else load_router(shadow)
    watching = None if guard is None else guard_of(served, one_run(_folder(run)), book, explore=explore, alpha=guard)
    router = Router(served, explore=explore, seed=seed, log=book, shadow=silent, guard=watching)
    return _traced(router, trace, keep_inputs)


def _traced(router: Router, trace: Any, inputs: bool) -> Router:
    if trace is not False and trace is not None:
        router.spans = Spans(router.run, inputs=inputs, provider=None if trace is True else trace)
    return router


def _folder(run: Any) -> Path:
    return Path(getattr(run, "path", run))
