"""What Python programs do with costs: train, sweep, evaluate, choose, report … Exported by :mod:`l2d`.

Each function does what the command of its name does, and returns a result that can be printed, put into a frame or
shown in a notebook (:class:`l2d.data.results.Shown`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from l2d.data.cache.audit import leaks
from l2d.data.cache.audit_answers import ALONE, compared
from l2d.data.cache.paid import missing_prices
from l2d.data.cache.reader import CostCache
from l2d.data.cache.schema import INPUT_COLUMNS
from l2d.data.device import resolve_device
from l2d.data.errors import UsageError
from l2d.data.library import opened
from l2d.rejector.decisions.evaluated import PolicyEvaluations, evaluate_policies
from l2d.rejector.decisions.library import policies_among, runs_or_their
from l2d.rejector.decisions.saved import read_saved
from l2d.rejector.eligible import eligible_methods
from l2d.rejector.evaluation.causal import deferral_effects
from l2d.rejector.evaluation.evaluate import evaluate_runs
from l2d.rejector.evaluation.robust import robustness
from l2d.rejector.grid import chosen_agents, make_grid
from l2d.rejector.methods import METHODS
from l2d.rejector.policies.choose import Choice, Target
from l2d.rejector.policies.choose import choose as choose_run
from l2d.rejector.results import Evaluations, Runs, Theory, folders_of, one_folder
from l2d.rejector.runs.elsewhere import Beta
from l2d.rejector.runs.files import read_facts
from l2d.rejector.runs.run import Run, load_run
from l2d.rejector.settings import INPUT_OF, TrainConfig, config_of
from l2d.rejector.sweep import default_method
from l2d.rejector.sweep import sweep as train_points
from l2d.rejector.theory.section import theory_section
from l2d.rejector.training.distributed import is_first

Say = Callable[[str], None]


def train(
    cache: CostCache | Path | str,
    out: Path | str,
    *,
    method: str | None = None,
    beta: Beta | None = None,
    weights: dict[str, float] | None = None,
    nu: float = 1.0,
    cost: str | None = None,
    seed: int = 0,
    only: Iterable[str] | None = None,
    device: str = "auto",
    overwrite: bool = False,
    say: Say | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    config: TrainConfig | None = None,
    **settings: Any,
) -> Run:
    """Train one rejector on a cost cache; no agent is asked. Arguments as in :func:`sweep`, one value each."""
    grid = {
        "methods": [] if method is None else [method],
        "weights": [weights] if weights else [],
        "betas": [] if beta is None else [beta],
    }
    grid |= {"nus": [nu], "seeds": [seed], "cost": cost}
    done = _train(
        cache, grid, lambda point: Path(out), only, device, overwrite, say, progress, config_of(config, settings)
    )
    return load_run(done.folders[0])


def sweep(
    cache: CostCache | Path | str,
    out: Path | str,
    *,
    methods: str | Sequence[str] | None = None,
    betas: Beta | Sequence[Beta] = (),
    weights: dict[str, float] | Sequence[dict[str, float]] = (),
    nus: float | Sequence[float] = 1.0,
    cost: str | None = None,
    seeds: int | Sequence[int] | None = None,
    only: Iterable[str] | None = None,
    device: str = "auto",
    overwrite: bool = False,
    say: Say | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    config: TrainConfig | None = None,
    **settings: Any,
) -> Runs:
    """Train a grid of rejectors together: methods x weights x betas x nus x seeds; no agent is asked.

    Runs that exist already are left as they are, and the same call goes on with an interrupted grid.

    Args:
        cache: a cache, or its folder.
        out: folder of the runs, one folder each.
        methods: one or more; if None what :func:`l2d.rejector.sweep.default_method` says.
        betas: query costs: the dearest expert's, or agent -> cost; the recipe's if empty.
        weights: ``lambda`` by task; the recipe's if empty.
        nus: of the surrogate.
        cost: SQL over the cost columns in place of the weighted sum.
        seeds: how many, or which; if None one for method ``best`` alone, otherwise four.
        only: the agents to choose among, including the model.
        device: auto, cpu, cuda …
        overwrite: train again what no longer matches.
        say: told in sentences what is done.
        progress: see :func:`l2d.rejector.training.loop.train_grid`.
        config: settings of training; or give its fields by name, such as ``epochs=20``.

    Raises:
        UsageError: an argument is wrong.
        DataError: a folder holds a run of other settings or of another cache.
        IncompleteCache: parts of the cache are missing.
    """
    grid = {
        "methods": [methods] if isinstance(methods, str) else list(methods or ()),
        "weights": [weights] if isinstance(weights, dict) else list(weights),
        "betas": [betas] if isinstance(betas, int | float | dict) else list(betas),
        "nus": [nus] if isinstance(nus, int | float) else list(nus),
        "seeds": list(range(seeds)) if isinstance(seeds, int) else list(seeds or ()),
        "cost": cost,
    }
    return _train(
        cache,
        grid,
        lambda point: Path(out) / point.run_id,
        only,
        device,
        overwrite,
        say,
        progress,
        config_of(config, settings),
    )


def _train(
    cache: CostCache | Path | str,
    grid: dict[str, Any],
    folder_of: Callable[[Any], Path],
    only: Iterable[str] | None,
    device: str,
    overwrite: bool,
    say: Say | None,
    progress: Callable[[int, int, float], None] | None,
    config: TrainConfig,
) -> Runs:
    tell, found = say or (lambda text: None), opened(cache)
    if only is not None:
        found = chosen_agents(found, list(only))
    if not grid["methods"]:
        grid["methods"] = [default_method(found, config, nus=grid["nus"])]
        if grid["methods"] == ["multi-task"] and is_first():
            tell("method multi-task: these options or this cache are not for method best")
    if not grid["seeds"]:
        trainers = [METHODS[name].trainer for name in grid["methods"] if name in METHODS]  # others are refused below
        grid["seeds"] = list(range(max((trainer.seeds for trainer in trainers), default=1)))
    methods = eligible_methods(list(grid["methods"]), found, grid["weights"], grid["cost"], config, tell)
    points = make_grid(found, **{**grid, "methods": methods})
    folders = [folder_of(point) for point in points]
    if is_first():
        if any(point.paid is not None for point in points):
            for name, count in missing_prices(found).items():
                tell(f"{name}: nothing says what {count:,} of its answers were paid, so it is not asked there")
        for leak in leaks(found, _looked_at(found, config))[:1]:
            tell(f"warning: {leak.check}: {leak.what} (see: l2d audit {found.address})")
        if compared(found) == 0:
            tell(f"warning: {ALONE}; have some inputs answered by several agents")
    done = train_points(
        found,
        points,
        folders,
        config,
        device=resolve_device(device),
        overwrite=overwrite,
        progress=progress,
        narrate=tell,
    )
    if is_first():
        if done.trained:
            what = "1 rejector" if done.trained == 1 else f"{done.trained} rejectors together"
            tell(f"trained {what} in {done.seconds:.1f} s, asking no agent")
        if done.left_out:
            tell(f"left out {done.left_out:,} samples for want of answers")
        if done.trained < len(folders):
            tell(f"{len(folders) - done.trained} of {len(folders)} were trained already")
    return Runs(done.folders, done.trained, done.seconds, done.left_out)


def _looked_at(cache: CostCache, config: TrainConfig) -> tuple[str, ...]:
    """The inputs that are looked at for leaks: of a cache in a store only what is read anyway."""
    return INPUT_COLUMNS if cache.mirror is None else (INPUT_OF[config.on(cache.record.inputs).network],)


def evaluate(
    runs: Any,
    *,
    split: str = "test",
    group: str | None = None,
    causal: bool = False,
    robust: float | None = None,
    images: Path | str | None = None,
) -> Evaluations | PolicyEvaluations:
    """Deferral loss, task metrics, allocation, every agent alone, baselines and oracle, with intervals.

    Args:
        runs: a sweep's result, a run, or paths of runs or of folders of runs; or folders of saved policies.
        split: which samples are judged.
        group: a kept column; samples of one value are resampled together. ``group`` where it is kept, if None.
        causal: add what deferring saves on the deferred samples and at the margin.
        robust: add what attacks on the features do that move each by at most this many standard deviations.
        images: the folder of the image files that a rejector on pixels looks at, where it has moved.

    Raises:
        UsageError: there are no runs, or no such column; a rejector that does not read features alone is attacked; a
            folder of images is given and no run looks at image files.
        FingerprintMismatch: a cache is not what a run was trained on any more.
    """
    policies, others = policies_among(runs)
    if policies:
        if others:
            raise UsageError("runs and policies together", hint="evaluate them one after the other")
        if causal or robust is not None or images is not None:
            raise UsageError(
                "--causal, --robust and --images are about runs", hint="leave them out, or give the policy's run"
            )
        return evaluate_policies(policies, split)
    if images is not None and not any(read_facts(path)["training"].get("images") for path in folders_of(runs)):
        raise UsageError(
            "--images: none of these runs looks at image files", hint="leave it out; those that do: l2d train --images"
        )
    found = judge_runs(runs, split=split, group=group, images=images)
    for evaluation in found:
        if causal:
            evaluation.result["causal"] = deferral_effects(evaluation)
        if robust is not None:
            evaluation.result["robust"] = robustness(evaluation, robust)
    return found


def judge_runs(
    runs: Any, *, split: str = "test", group: str | None = None, images: Path | str | None = None
) -> Evaluations:
    """:func:`evaluate` of runs."""
    return Evaluations(evaluate_runs(folders_of(runs), split, group=group, images=_folder(images)))


def _folder(images: Path | str | None) -> Path | None:
    return None if images is None else Path(images)


def theory(run: Any, *, split: str = "test", device: str = "cpu", images: Path | str | None = None) -> Theory:
    """Why a rejector falls short: features, class, data, optimization; the model's heads; the paper's bounds."""
    (folder,) = one_folder(run)
    return Theory(theory_section(folder, split, device=resolve_device(device), images=_folder(images)))


def choose(runs: Any, *targets: str, prefer: str | None = None, images: Path | str | None = None) -> Choice:
    """The run of a sweep for a target, chosen on validation, and what it gives on test.

    Args:
        runs: see :func:`evaluate`.
        targets: such as ``"coverage>=0.6"``.
        prefer: a quantity, among the runs that meet the targets.
        images: see :func:`evaluate`.

    Raises:
        UsageError: a target or a quantity is unknown.
        DataError: no setting meets the targets.
    """
    return choose_run(folders_of(runs), [Target.parse(text) for text in targets], prefer=prefer, images=_folder(images))


def report(
    runs: Any,
    out: Path | str = "report.html",
    *,
    by: Iterable[str] = (),
    images: Path | str | None = None,
    figure: Path | str | None = None,
    figures: Path | str | None = None,
    figure_format: str = "png",
    split: str = "test",
    group: str | None = None,
    theory: bool = False,
) -> list[Path]:
    """One self-contained HTML page about runs, and pictures of its figures.

    Args:
        runs: see :func:`evaluate`; or its result. Policies may be among them: a part of the page is theirs.
        out: the page.
        by: columns or SQL expressions to group samples by; the most telling if none.
        images: folder of a detection dataset's images, for examples; that of a rejector on pixels if None.
        figure: a .png or .svg file for the main figures.
        figures: a folder for every figure, as ``figure_format``.
        split, group: see :func:`evaluate`.
        theory: add the diagnosis of :func:`theory`.

    Returns:
        The files written, the page first.
    """
    from l2d.rejector.report.export import write_figure, write_figures
    from l2d.rejector.report.page import write_report

    policies: list[Path] = []
    if not isinstance(runs, Evaluations):
        policies, others = policies_among(runs)
        runs = judge_runs(runs_or_their(policies, others), split=split, group=group, images=images)
    members, groups, page = list(runs), list(by) or None, Path(out)
    write_report(
        members,
        page,
        by=groups,
        images=_folder(images),
        theory=theory,
        group=group,
        policies=[read_saved(policy) for policy in policies],
    )
    written = [page]
    if figure is not None:
        write_figure(members, Path(figure))
        written.append(Path(figure))
    if figures is not None:
        written += write_figures(members, Path(figures), format=figure_format, by=groups)
    return written
