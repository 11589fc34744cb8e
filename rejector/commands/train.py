"""Commands that train: one rejector, or a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from l2d.data.terminal.command import closed
from l2d.data.terminal.options import (
    CacheArgument,
    DeviceOption,
    Format,
    FormatOption,
    OverwriteOption,
    options_of,
    pairs,
    reads_stores,
    values,
)
from l2d.data.terminal.progress import Bars, quote, say
from l2d.rejector.commands.setting import BETA_HELP, LAMBDA_HELP, betas, one_beta
from l2d.rejector.methods import METHODS
from l2d.rejector.settings import TrainConfig

METHOD_HELP = (
    "What trains it, see docs/methods.md; multi-task is the paper's. Default: best, or multi-task where an option of "
    "networks is given."
)

CostOption = Annotated[str | None, typer.Option(help="SQL over cost_cla, cost_reg … in place of the weighted sum.")]
OnlyOption = Annotated[
    str | None, typer.Option(help="Agents to choose among, by commas, with the model if it is free.")
]


@reads_stores
@options_of(TrainConfig)
def train(
    cache: CacheArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    config: TrainConfig,
    method: Annotated[str | None, typer.Option(help=METHOD_HELP, **closed(METHODS))] = None,
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
    from l2d.rejector.library import train as train_run

    with Bars() as bars:
        run = train_run(
            cache,
            out,
            method=method,
            beta=one_beta(beta, "for a grid: l2d sweep"),
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
    if _print_on_test(run, format, one=True, images=config.images):
        sql = "SELECT agent, count(*) FROM allocations GROUP BY ALL"
        say(f'next: l2d report {quote(out)}, or l2d query {quote(out)} {quote(cache)} "{sql}"')


@reads_stores
@options_of(TrainConfig)
def sweep(
    cache: CacheArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the runs, one folder each.")],
    config: TrainConfig,
    method: Annotated[
        list[str] | None,
        typer.Option(help=METHOD_HELP + " One or more, by commas; may be repeated.", **closed(METHODS, several=True)),
    ] = None,
    beta: Annotated[
        list[str] | None, typer.Option(help=BETA_HELP + " Numbers by commas, also paid=0,1,10; may be repeated.")
    ] = None,
    lambda_: Annotated[list[str] | None, typer.Option("--lambda", help=LAMBDA_HELP + " May be repeated.")] = None,
    nu: Annotated[list[str] | None, typer.Option(help="Numbers >= 0, by commas; may be repeated. Default: 1.")] = None,
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

        l2d sweep routerbench.cache --out runs --beta paid=0,1,10,100,1000

        l2d sweep digits.cache --only model,expert_5 --out others --method knn,confidence,mozannar_sontag,realizable

        torchrun --standalone --nproc-per-node 2 --no-python l2d sweep support2.cache --out runs
    """
    from l2d.rejector.library import sweep as train_grid

    with Bars() as bars:
        runs = train_grid(
            cache,
            out,
            methods=method,
            betas=betas(beta or []),
            weights=[pairs(text, "--lambda") for text in lambda_ or []],
            nus=[number for text in nu or ["1"] for number in values(text, float, "--nu")],
            cost=cost,
            seeds=seeds,
            only=values(only, str, "--only") if only is not None else None,
            device=device,
            overwrite=overwrite,
            say=say,
            progress=bars.epochs(config.epochs),
            config=config,
        )
    if _print_on_test(runs, format, one=False, images=config.images):
        say(f"next: l2d report {quote(out)}, or l2d evaluate {quote(out)} --split validation")


def _print_on_test(runs: Any, format: Format, *, one: bool, images: str | None) -> bool:
    """Print what runs do on test samples; False in the processes of a `torchrun` that have nothing to say."""
    from l2d.rejector.commands.judge import print_evaluations
    from l2d.rejector.library import judge_runs
    from l2d.rejector.training.distributed import is_first

    if is_first():
        print_evaluations(judge_runs(runs, images=images), format, one=one)
    return is_first()
