"""Commands that train: one rejector, or a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from l2d.data.errors import UsageError
from l2d.data.terminal.options import (
    CacheArgument,
    DeviceOption,
    Format,
    FormatOption,
    OverwriteOption,
    options_of,
    pairs,
    values,
)
from l2d.data.terminal.progress import Bars, quote, say
from l2d.rejector.settings import DEFAULT_METHOD, TrainConfig

BETA_HELP = "Query cost: one number (the dearest expert's; others scale by price), or name=value pairs."
LAMBDA_HELP = "Task weights, such as cla=1,reg=0.2. Default: the recipe's."

METHOD_HELP = (
    "best, multi-task (the paper's), classification-only, mozannar_sontag, knn …: docs/methods.md. "
    "Default: best; multi-task where an option of networks is given."
)

CostOption = Annotated[str | None, typer.Option(help="SQL over cost_cla, cost_reg … in place of the weighted sum.")]
OnlyOption = Annotated[
    str | None, typer.Option(help="Agents to choose among, by commas, including the model. Default: all.")
]


@options_of(TrainConfig)
def train(
    cache: CacheArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    config: TrainConfig,
<<<<<<< HEAD
    method: Annotated[str | None, typer.Option(help=METHOD_HELP)] = None,
=======
    method: Annotated[str, typer.Option(help="multi-task, mozannar_sontag, knn …: docs/methods.md.")] = DEFAULT_METHOD,
>>>>>>> main
    beta: Annotated[str | None, typer.Option(help=BETA_HELP)] = None,
    lambda_: Annotated[str | None, typer.Option("--lambda", help=LAMBDA_HELP)] = None,
    nu: Annotated[float, typer.Option(min=0, help="Surrogate: 0 sum-exponential, 1 log-softmax, 2 MAE.")] = 1.0,
    cost: CostOption = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Initial parameters and order of samples.")] = 0,
    only: OnlyOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    format: FormatOption = Format.table,
):
    """Train one rejector on a cost cache. No agent is asked.

    Examples:

        l2d train support2.cache --out run

        l2d train support2.cache --out run --beta expert_1=0.05,expert_2=0.1 --nu 0.5 --rejector linear
    """
<<<<<<< HEAD
    grid = {
        "methods": [] if method is None else [method],
        "weights": [pairs(lambda_, "--lambda")] if lambda_ else [],
        "betas": betas([beta]) if beta else [],
        "nus": [nu],
        "seeds": [seed],
        "cost": cost,
    }
    if len(grid["betas"]) > 1:
        raise UsageError(f"--beta {beta} gives {len(grid['betas'])} values", hint="for a grid: l2d sweep")
    if _sweep(cache, grid, config, lambda point: out, device, overwrite, only) is None:
        return
    from l2d.rejector.commands.judge import print_evaluations
=======
    from l2d.rejector.library import train as train_run
>>>>>>> main

    given = betas([beta]) if beta else [None]
    if len(given) > 1:
        raise UsageError(f"--beta {beta} gives {len(given)} values", hint="for a grid: l2d sweep")
    with Bars() as bars:
        run = train_run(
            cache,
            out,
            method=method,
            beta=given[0],
            weights=pairs(lambda_, "--lambda") if lambda_ else None,
            nu=nu,
            cost=cost,
            seed=seed,
            only=values(only, str, "--only") if only is not None else None,
            device=device,
            overwrite=overwrite,
            say=say,
            progress=bars.epochs(config.epochs),
            config=config,
        )
    if _print_on_test(run, format, one=True):
        sql = "SELECT agent, count(*) FROM allocations GROUP BY ALL"
        say(f'next: l2d report {quote(out)}, or l2d query {quote(out)} {quote(cache)} "{sql}"')


@options_of(TrainConfig)
def sweep(
    cache: CacheArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the runs, one folder each.")],
    config: TrainConfig,
<<<<<<< HEAD
    method: Annotated[str | None, typer.Option(help=METHOD_HELP + " One or more, by commas.")] = None,
=======
    method: Annotated[str, typer.Option(help="One or more, by commas: docs/methods.md.")] = DEFAULT_METHOD,
>>>>>>> main
    beta: Annotated[list[str] | None, typer.Option(help=BETA_HELP + " Numbers by commas; may be repeated.")] = None,
    lambda_: Annotated[list[str] | None, typer.Option("--lambda", help=LAMBDA_HELP + " May be repeated.")] = None,
    nu: Annotated[str, typer.Option(help="Numbers >= 0, by commas.")] = "1",
    cost: CostOption = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Number of seeds: 0, 1, … Default: 4; 1 for method best.")
    ] = None,
    only: OnlyOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    format: FormatOption = Format.table,
):
    """Train a grid of rejectors together: methods x lambda x beta x nu x seeds. No agent is asked.

    Examples:

        l2d sweep support2.cache --out runs --method multi-task,classification-only,regression-only

        l2d sweep support2.cache --out betas --beta 0,0.05,0.1,0.2,0.4 --seeds 4

        l2d sweep digits.cache --only model,expert_5 --out others --method knn,confidence,mozannar_sontag,realizable

        torchrun --standalone --nproc-per-node 2 --no-python l2d sweep support2.cache --out runs
    """
<<<<<<< HEAD
    grid = {
        "methods": [] if method is None else values(method, str, "--method"),
        "weights": [pairs(text, "--lambda") for text in lambda_ or []],
        "betas": betas(beta) if beta else [],
        "nus": values(nu, float, "--nu"),
        "seeds": [] if seeds is None else list(range(seeds)),
        "cost": cost,
    }
    folders = _sweep(cache, grid, config, lambda point: out / point.run_id, device, overwrite, only)
    if folders is None:
        return
    from l2d.rejector.commands.judge import print_evaluations
=======
    from l2d.rejector.library import sweep as train_grid
>>>>>>> main

    with Bars() as bars:
        runs = train_grid(
            cache,
            out,
            methods=values(method, str, "--method"),
            betas=betas(beta or []),
            weights=[pairs(text, "--lambda") for text in lambda_ or []],
            nus=values(nu, float, "--nu"),
            cost=cost,
            seeds=seeds,
            only=values(only, str, "--only") if only is not None else None,
            device=device,
            overwrite=overwrite,
            say=say,
            progress=bars.epochs(config.epochs),
            config=config,
        )
    if _print_on_test(runs, format, one=False):
        say(f"next: l2d report {quote(out)}, or l2d evaluate {quote(out)} --split validation")


def _print_on_test(runs: Any, format: Format, *, one: bool) -> bool:
    """Print what runs do on test samples; False in the processes of a `torchrun` that have nothing to say."""
    from l2d.rejector.commands.judge import print_evaluations
    from l2d.rejector.library import evaluate
    from l2d.rejector.training.distributed import is_first

    if is_first():
        print_evaluations(evaluate(runs), format, one=one)
    return is_first()


def betas(texts: list[str]) -> list[float | dict[str, float]]:
    """Query costs as they are typed: numbers by commas, or name=value pairs, one setting a text."""
    found: list[float | dict[str, float]] = []
    for text in texts:
        found += [pairs(text, "--beta")] if "=" in text else values(text, float, "--beta")
    return found
<<<<<<< HEAD


def _sweep(
    cache: Path,
    grid: dict[str, Any],
    config: TrainConfig,
    folder_of: Callable,
    device: str,
    overwrite: bool,
    only: str | None,
) -> list[Path] | None:
    """Train; folders of the runs. None in the processes of a `torchrun` that have nothing to say."""
    from l2d.data.cache.reader import CostCache
    from l2d.data.device import resolve_device
    from l2d.rejector.grid import chosen_agents, make_grid
    from l2d.rejector.sweep import default_method
    from l2d.rejector.sweep import sweep as run_sweep
    from l2d.rejector.training.distributed import is_first

    opened = CostCache(cache)
    if only is not None:
        opened = chosen_agents(opened, values(only, str, "--only"))
    if not grid["methods"]:
        grid["methods"] = [default_method(opened, config, nus=grid["nus"])]
        if grid["methods"] == ["multi-task"]:
            say("method multi-task: these options or this cache are not for method best")
    grid["seeds"] = grid["seeds"] or list(range(1 if grid["methods"] == ["best"] else 4))
    points = make_grid(opened, **grid)
    folders = [folder_of(point) for point in points]
    if is_first():
        _warn_of_leaks(opened)
    with Bars() as bars:
        advance = bars.epochs(config.epochs)
        done = run_sweep(
            opened, points, folders, config, device=resolve_device(device), overwrite=overwrite,
            progress=advance, narrate=say,
        )  # fmt: skip
    if not is_first():
        return None
    if done.trained:
        what = "1 rejector" if done.trained == 1 else f"{done.trained} rejectors together"
        say(f"trained {what} in {done.seconds:.1f} s, asking no agent")
    if done.left_out:
        say(f"left out {done.left_out:,} samples for want of answers")
    if done.trained < len(folders):
        say(f"{len(folders) - done.trained} of {len(folders)} were trained already")
    return done.folders


def _warn_of_leaks(cache) -> None:
    """One line if test samples are in another split too; silent otherwise."""
    from l2d.data.cache.audit import leaks

    for finding in leaks(cache)[:1]:
        say(f"warning: {finding.check}: {finding.what} (see: l2d audit {quote(cache.path)})")
=======
>>>>>>> main
