"""What Python programs do with a trained run: route, make policies, ask what agents are worth, export; and query.

Exported by :mod:`l2d`; each function does what the command of its name does, and imports what that takes: half of it
loads torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2d.data.cache.addresses import place_of
from l2d.data.cache.reader import CostCache
from l2d.data.errors import UsageError
from l2d.rejector.decisions.saved import is_policy
from l2d.rejector.results import QueryRows, Runs, folders_of, one_folder
from l2d.rejector.runs.elsewhere import Beta, at_setting
from l2d.rejector.runs.run import Run, load_run, open_cache

if TYPE_CHECKING:
    from l2d.rejector.decisions.adding import AddedAgent
    from l2d.rejector.decisions.judged import DecisionReport
    from l2d.rejector.decisions.new_agent import NewAgent
    from l2d.rejector.decisions.routing import PolicyRoute
    from l2d.rejector.decisions.worth import Worth
    from l2d.rejector.export import ExportReport
    from l2d.rejector.policies.policy import PolicyReport
    from l2d.rejector.route import RouteReport
    from l2d.rejector.rows.photographs import Showing


def route(
    run: Any,
    source: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    id_column: str | None = None,
    policy: Path | str | None = None,
    answers: Path | str | None = None,
    without: Collection[str] = (),
    beta: Beta | None = None,
    weights: dict[str, float] | None = None,
    calibration: Path | str | None = None,
    showing: Showing | None = None,
    images: Path | str | None = None,
    overwrite: bool = False,
    progress: Callable[[int | None], Callable[[int], None]] | None = None,
) -> RouteReport | PolicyRoute:
    """As :func:`l2d.route`; ``showing`` is how an agent is run on photographs."""
    (folder,) = one_folder(run)
    rule = None if policy is None else Path(policy)
    if rule is not None and is_policy(rule):
        if calibration is not None:
            raise UsageError(
                "--calibration with a policy that looks at answers: it was made of the costs as they were predicted",
                where=rule,
                hint="leave it out, or route without the policy",
            )
        if beta is not None or weights is not None:
            raise UsageError("--policy with --beta or --lambda", where=rule, hint="make the policy at that setting")
        if not isinstance(source, Path | str):
            raise UsageError("a policy that looks at answers takes one input, a table or a cache", where=rule)
        from l2d.rejector.decisions.routing import route_policy

        return route_policy(
            folder,
            place_of(source),
            Path(out),
            policy=rule,
            answers=None if answers is None else Path(answers),
            id_column=id_column,
            without=without,
            overwrite=overwrite,
            progress=progress,
        )
    if answers is not None:
        raise UsageError(
            "--answers goes with a policy that looks at answers", hint="l2d policy RUN --ask … --save FOLDER"
        )
    from l2d.rejector.route import route as route_inputs

    return route_inputs(
        folder,
        place_of(source) if isinstance(source, Path | str) else [place_of(one) for one in source],
        Path(out),
        id_column=id_column,
        policy=rule,
        without=without,
        beta=beta,
        weights=weights,
        calibration=None if calibration is None else Path(calibration),
        showing=showing,
        images=None if images is None else Path(images),
        overwrite=overwrite,
        progress=progress,
    )


def policy(
    run: Any,
    *,
    budget: float | None = None,
    gflops: float | None = None,
    coverage: float | None = None,
    capacity: dict[str, float | int | str] | str | None = None,
    beta: Beta | None = None,
    weights: dict[str, float] | None = None,
    split: str = "test",
    mode: str = "prices",
    batch_size: int | None = None,
    calibration: str = "auto",
    out: Path | str | None = None,
    save: Path | str | None = None,
    overwrite: bool = False,
    ask: str | None = None,
    depth: int | None = None,
    combine: str | None = None,
    abstain: float | None = None,
    cap: dict[str, float] | None = None,
    risk: str | Sequence[str] | None = None,
    confidence: float | None = None,
    on_average: bool = False,
    family: str | None = None,
    by: str | None = None,
    queue: Path | str | None = None,
    every: float | None = None,
    wait: float | None = None,
) -> PolicyReport | DecisionReport:
    """Allocate under constraints; or go beyond one agent: committees, cascades, no answer at all, promises.

    With any of ``ask``, ``depth``, ``combine``, ``abstain``, ``cap``, ``risk``, ``every`` or ``wait`` the decision
    engine makes the policy (docs/beyond_one_agent.md); else inputs are allocated to one agent each by prices
    (docs/policies.md).

    Args:
        run: a run, or its path.
        budget: mean price per input: of a run with prices per sample in money, as it is paid; else in the recipe's
            relative prices.
        gflops: mean GFLOPs per input, of the agent that answers.
        coverage: share that the model keeps.
        capacity: agent -> the most it may get of a batch: a float is a share, an int a number of samples; or
            ``a=0.3,b=40``. Of the engine also a rate: ``c=60/minute``.
        beta, weights: query costs and task weights in place of the run's; a run of method ``best`` takes others.
        split, mode, batch_size, calibration: see :func:`l2d.rejector.policies.policy.run_policy`.
        out: a Parquet file for the allocations.
        save: a JSON file for the prices, which :func:`route` takes; of the engine a folder.
        overwrite: replace these files if they exist.
        ask: router, topk, committee, cascade, adaptive, or auto: the simplest that validation does not show beaten.
        depth: agents for one input at most.
        combine: how several answers become one: vote, mean or weighted.
        abstain: cost of giving no answer, in units of loss.
        cap: most that one input may take: ``{"price": 10, "seconds": 2}``.
        risk: such as ``"error<=0.05"``, one or several: answers are withheld until that can be promised.
        confidence: of the promise, 0.95 if None; ``on_average``: a mean instead, by conformal risk control.
        family: how tests of several thresholds are corrected: fixed-sequence or bonferroni.
        by: a kept column: the promise holds in each of its groups.
        queue: a file for the inputs without an answer, the one to look at first on top.
        every: seconds from one batch (``batch_size`` inputs) to the next, for capacities that are rates.
        wait: what waiting for the next batch costs, in units of loss: an input that finds an agent full waits where
            that gains more; None: it goes elsewhere.

    Raises:
        UsageError: constraints cannot be met, a promise cannot be made, an option is wrong, or a file exists.
    """
    from l2d.rejector.decisions.wanted import wanted_of

    (folder,) = one_folder(run)
    opened_run = at_setting(load_run(folder), beta, weights)
    wanted = wanted_of(
        ask=ask, depth=depth, combine=combine, abstain=abstain, budget=budget, cap=cap, risk=risk,
        confidence=confidence, on_average=on_average, family=family, capacity=capacity, batch=batch_size, every=every,
        wait=wait,
    )  # fmt: skip
    if wanted is not None:
        only_prices = {"gflops": gflops, "coverage": coverage}
        for name, value in only_prices.items():
            if value is not None:
                raise UsageError(
                    f"--{name} with --ask or --risk", hint="it is for policies that ask one agent by prices"
                )
        from l2d.rejector.decisions.library import decide

        return decide(
            opened_run,
            wanted=wanted,
            split=split,
            group=by,
            out=None if out is None else Path(out),
            queue=None if queue is None else Path(queue),
            save=None if save is None else Path(save),
            overwrite=overwrite,
        )
    if by is not None or queue is not None:
        raise UsageError("--by and --queue go with --risk or --abstain", hint="give one of these")
    from l2d.rejector.policies.constraints import make_constraints, parse_capacity
    from l2d.rejector.policies.money import money_budget
    from l2d.rejector.policies.policy import written_policy

    limits = parse_capacity(capacity) if isinstance(capacity, str) else capacity
    money = None if budget is None else money_budget(opened_run, budget)
    asked = {"budget": None if money is not None else budget, "gflops": gflops, "coverage": coverage}
    others = limits or any(limit is not None for limit in asked.values())
    constraints = []
    if others or money is None:
        constraints = make_constraints(open_cache(opened_run).agents, **asked, capacity=limits)
    return written_policy(
        opened_run,
        constraints,
        out=None if out is None else Path(out),
        save=None if save is None else Path(save),
        overwrite=overwrite,
        split=split,
        mode=mode,
        batch_size=batch_size,
        calibration=calibration,
        money=money,
    )


def worth(
    run: Any,
    *,
    split: str = "test",
    group: str | None = None,
    beta: Beta | None = None,
    weights: dict[str, float] | None = None,
    new: Any = None,
    charge: float = 0.0,
    buy: int = 0,
    figure: Path | str | None = None,
    save: Path | str | None = None,
    overwrite: bool = False,
    images: Path | str | None = None,
) -> Worth | NewAgent:
    """What each agent is worth: what is lost without it, its Shapley share, the charge at which it no longer pays.

    Args:
        run: a run whose scores say something of costs; or a policy of the decision engine that was saved: then the
            policy is searched for again without each agent.
        split: on which it is told.
        group: a kept column: samples of one value are resampled together.
        beta, weights: query costs and task weights in place of the run's.
        new: answers of an agent that is not in the cache, to 50 to 200 samples: a file, or a frame, of
            ``sample_id`` and ``cost``, ``correct`` or ``answer``. Then whether it is worth adding.
        charge: for an answer of the new agent, in units of loss.
        buy: how many samples to name that the new agent should answer next.
        figure: a .png or .svg file.
        save: a folder for the figures, which SQL reads as the view ``agent_values``.
        overwrite: replace what is there.
        images: the folder of the image files that a rejector on pixels looks at, where it has moved.
    """
    from l2d.rejector.decisions.new_agent import NewAgent
    from l2d.rejector.decisions.saved import read_saved
    from l2d.rejector.decisions.worth_of_policy import worth_of_policy
    from l2d.rejector.decisions.worth_of_run import save_worth, worth_of_run

    found: Worth | NewAgent
    if isinstance(run, str | Path) and is_policy(Path(run)):
        if beta is not None or weights is not None or new is not None or buy or charge or images is not None:
            raise UsageError(
                "a policy has its setting and its agents",
                where=run,
                hint="ask its run: l2d worth RUN --new FILE",
            )
        if save is not None and Path(save).exists() and not overwrite:
            raise UsageError("this is there already", where=save, hint="give another name, or type --overwrite")
        found = worth_of_policy(read_saved(Path(run)), split=split, group=group)
        if save is not None:
            save_worth(found, Path(save), overwrite=overwrite)
    else:
        (folder,) = one_folder(run)
        found = worth_of_run(
            at_setting(load_run(folder, images=None if images is None else Path(images)), beta, weights),
            split=split,
            group=group,
            new=new,
            charge=charge,
            buy=buy,
            save=None if save is None else Path(save),
            overwrite=overwrite,
        )
    if figure is not None:
        if isinstance(found, NewAgent):
            raise UsageError("--figure with --new", hint="it draws the agents that are in the cache")
        from l2d.rejector.report.export import write_picture
        from l2d.rejector.report.figures.decisions import worth_figure

        write_picture(worth_figure(found.result), Path(figure))
    return found


def add_agent(
    run: Any,
    *,
    ask: int = 0,
    out: Path | str | None = None,
    answers: Any = None,
    charge: float = 0.0,
    rest: Path | str | None = None,
    split: str = "test",
    beta: Beta | None = None,
    weights: dict[str, float] | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> AddedAgent:
    """Add an agent step by step: what to ask it about, what it is worth by that, and what is left to ask.

    Args:
        run: a run whose scores say something of costs; its cache has the agents so far.
        ask: how many samples to name: at first a spread of all, see
            :func:`l2d.rejector.decisions.first_questions.spread_out`; with ``answers`` those that would tell most next.
        out: a CSV file for them: ``sample_id`` and the columns that the cache keeps.
        answers: of the new agent so far: a file, or a frame, of ``sample_id`` and ``cost``, ``correct`` or ``answer``,
            to 20 samples of the split or more.
        charge: for an answer of it, in units of loss.
        rest: a CSV file for all samples of the cache that it has not answered. Once it has, ``l2d extend`` adds it.
        split: of samples that the run has not seen.
        beta, weights: query costs and task weights in place of the run's.
        seed: of what is drawn.
        overwrite: replace what is there.

    Raises:
        UsageError: nothing is asked for, or a file is there.
        DataError: answers cannot be read, or are too few.
    """
    from l2d.rejector.decisions.adding import add_to_run

    (folder,) = one_folder(run)
    return add_to_run(
        at_setting(load_run(folder), beta, weights),
        ask=ask,
        out=None if out is None else Path(out),
        answers=answers,
        charge=charge,
        rest=None if rest is None else Path(rest),
        split=split,
        seed=seed,
        overwrite=overwrite,
    )


def export(
    run: Any,
    onnx: Path | str,
    *,
    beta: Beta | None = None,
    weights: dict[str, float] | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write the rejector as an ONNX model from raw features to scores and the agent's index.

    ``beta`` and ``weights``: in place of the run's; a run of method ``best`` takes others.
    """
    from l2d.rejector.export import export_run

    (folder,) = one_folder(run)
    return export_run(folder, Path(onnx), beta=beta, weights=weights, overwrite=overwrite)


def query(paths: Any, sql: str, *, memory_limit: int | None = None, timeout: float | None = None) -> QueryRows:
    """SQL over every cache and run beneath paths, see docs/sql.md.

    Args:
        paths: caches, runs, or folders above them; one or several.
        memory_limit: bytes DuckDB may hold.
        timeout: seconds the query may take.
    """
    from l2d.rejector.sql.query import query as run_query

    given = [paths] if isinstance(paths, str | Path | CostCache | Run | Runs) else list(paths)
    found: list[Path | str] = []
    for each in given:
        if isinstance(each, CostCache):
            found.append(each.path if each.mirror is None else each.address)
        else:
            found += folders_of(each) if isinstance(each, Run | Runs) else [place_of(each)]
    return QueryRows(run_query(found, sql, memory_limit=memory_limit, timeout=timeout))
