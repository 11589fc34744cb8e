"""What Python programs do to get a cost cache: build one from a recipe, or import tables. Exported by :mod:`l2d`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from l2d.cache_builder.builder import BuildReport, Progress
from l2d.cache_builder.builder import build as build_parts
from l2d.cache_builder.engines.processes import build_in_processes
from l2d.cache_builder.engines.ray import ray_engine
from l2d.cache_builder.engines.shards import NOTHING, WHOLE, Shard
from l2d.cache_builder.importing.detections import DetectionSource, draft_detections
from l2d.cache_builder.importing.draft import Draft
from l2d.cache_builder.importing.layouts import recognised
from l2d.cache_builder.importing.predictions import draft_predictions
from l2d.cache_builder.importing.scores import draft_scores
from l2d.cache_builder.importing.source import Source
from l2d.cache_builder.recipe import Recipe, load_recipe
from l2d.cache_builder.sharing import SharedBuild
from l2d.data.cache import store
from l2d.data.cache.audit import answers as answers_of
from l2d.data.cache.audit import truths
from l2d.data.cache.reader import CostCache
from l2d.data.errors import UsageError, nearest

if TYPE_CHECKING:
    import polars as pl

Say = Callable[[str], None]
KINDS = {"predictions": draft_predictions, "scores": draft_scores}


@dataclass(frozen=True)
class Built:
    """A cache, and what the build that ended just now did."""

    recipe: Recipe
    cache: CostCache
    report: BuildReport


def build(
    recipe: Path | str,
    out: Path | str,
    *,
    data: Path | str | None = None,
    device: str = "auto",
    on_failure: Literal["stop", "record"] = "stop",
    retry_failures: bool = False,
    keep_answers: Iterable[str] = (),
    engine: Literal["local", "ray"] = "local",
    workers: int | None = None,
    shard: str = "1/1",
    store: str | None = None,
    overwrite: bool = False,
    say: Say | None = None,
    progress: Progress | None = None,
) -> CostCache:
    """Ask every agent once and write the cost cache. The same call resumes an interrupted one.

    Args:
        recipe: a TOML file, or the name of a recipe that ships, such as ``support2``.
        out: the cache's folder.
        data: where the dataset lies, in place of the recipe's path.
        device: auto, cpu, cuda, cuda:1; several by commas divide the chunks among processes.
        on_failure: stop at the first sample an agent fails on, or record a missing answer.
        retry_failures: ask recorded failures again.
        keep_answers: agents whose answers are kept though they have changed.
        engine: where agents are asked: here, or on a Ray cluster.
        workers: Ray workers per agent.
        shard: ``I/N``: do this share of the chunks; other calls do the rest.
        store: address where builders of other shards, which share no folder with this one, finish the same cache.
        overwrite: rebuild what no longer matches.
        say: told in sentences what is done.
        progress: see :func:`l2d.cache_builder.builder.build`.

    Raises:
        UsageError: the recipe or an option is wrong.
        FingerprintMismatch: ``out`` was built from something else; nothing is touched.
        AgentFailure: an agent failed; finished chunks are kept.
        DataError: the dataset or the disk is at fault.
    """
    options: dict[str, Any] = {"on_failure": on_failure, "retry_failures": retry_failures, "keep_answers": keep_answers}
    options |= {"engine": engine, "workers": workers, "shard": shard, "overwrite": overwrite}
    options["share"] = store
    return run_build(recipe, out, data=data, device=device, say=say, progress=progress, **options).cache


def run_build(
    recipe: Path | str,
    out: Path | str,
    *,
    data: Path | str | None = None,
    device: str = "auto",
    on_failure: str = "stop",
    retry_failures: bool = False,
    keep_answers: Iterable[str] = (),
    engine: str = "local",
    workers: int | None = None,
    shard: str = "1/1",
    share: str | None = None,
    overwrite: bool = False,
    say: Say | None = None,
    progress: Progress | None = None,
) -> Built:
    """As :func:`build`, and also what was done."""
    recipe, out, say = str(recipe), Path(out), say or (lambda text: None)
    keep_answers, data = list(keep_answers), None if data is None else Path(data)
    if workers is not None and engine != "ray":
        raise UsageError("--workers is for --engine ray", hint="here: --device cpu,cpu divides the chunks among two")
    loaded = load_recipe(recipe, data)
    say(f"{loaded.name}: {loaded.description}" if loaded.description else loaded.name)
    if "," in device:
        if shard != "1/1" or engine == "ray" or overwrite:
            raise UsageError(f"--device {device} with --shard, --engine ray or --overwrite", hint="one or the other")
        options = ["--on-failure", on_failure, *(f"--keep-answers={name}" for name in keep_answers)]
        options += [f"--data={data}"] if data else []
        build_in_processes(recipe, out, device.split(","), options + ["--retry-failures"] * retry_failures)
        device = device.split(",")[0]
    how: dict[str, Any] = {"device": device, "on_failure": on_failure, "retry_failures": retry_failures}
    how |= {"overwrite": overwrite, "keep_answers": keep_answers}
    how["engine"] = ray_engine(workers=workers) if engine == "ray" else None
    if share is None:
        report = build_parts(loaded, out, shard=Shard.parse(shard), progress=progress, **how)
    else:
        if overwrite or retry_failures or keep_answers:
            raise UsageError(
                "--store with --overwrite, --retry-failures or --keep-answers: other builders have begun",
                hint="finish the cache, do that here, and push it",
            )
        report = _build_shared(SharedBuild(share, out), loaded, Shard.parse(shard), how, say, progress)
    asked = {name: samples for name, samples in report.asked.items() if samples}
    if asked:
        say("asked: " + ", ".join(f"{name} {samples:,} samples" for name, samples in asked.items()))
    else:
        say("nothing to ask: every answer was there already")
    for line in report.remarks:
        say(line)
    unavailable = {name: count for name, count in report.unavailable.items() if count}
    if unavailable:
        say("no answer: " + ", ".join(f"{name} on {count:,} samples" for name, count in unavailable.items()))
    failed = {name: count for name, count in report.failed.items() if count}
    if failed:
        say("failures recorded: " + ", ".join(f"{name} {count:,}" for name, count in failed.items()))
    return Built(loaded, CostCache(out), report)


def import_table(
    features: Path | str | pl.DataFrame | Any,
    answers: Path | str | pl.DataFrame | Any | None = None,
    *,
    out: Path | str,
    id: str = "",
    kind: Literal["predictions", "scores"] = "predictions",
    device: str = "auto",
    overwrite: bool = False,
    say: Say | None = None,
    progress: Progress | None = None,
    **facts: Any,
) -> CostCache:
    """A cost cache from tables: a row a sample with its features and truth, and what every agent answered.

    The recipe for it is written beside the cache, as ``OUT.toml``, to be edited; a frame of polars or pandas is kept
    there too, as ``OUT.features.parquet`` or ``OUT.answers.parquet``.

    Args:
        features: a file (Parquet, CSV, JSON, JSONL) or a frame.
        answers: likewise, with a row an answer, or a column an agent; None where ``features`` has them.
        out: the cache's folder.
        id: the column of sample ids; of a published layout, and where it has a usual name, it need not be said.
        kind: predictions, or scores of answers.
        device, overwrite, say, progress: see :func:`build`.
        facts: what the columns are, such as ``target="diagnosis"`` or ``annotator="reader"``: fields of
            :class:`l2d.cache_builder.importing.source.Source`.

    Raises:
        UsageError: an argument is wrong, or a recipe of that name has been edited.
        DataError: a table cannot be used.
    """
    known = [each.name for each in fields(Source) if each.name not in ("features", "answers", "id")]
    for name in facts:
        if name not in known:
            raise UsageError(f"unknown argument {name!r}", hint=nearest(name, known, "the arguments are"))
    out = Path(out)
    first = _file(features, out, "features")
    if facts.get("prices") is not None:
        facts["prices"] = _file(facts["prices"], out, "prices")
    source = Source(first, first if answers is None else _file(answers, out, "answers"), id, **facts)
    return import_source(kind, source, out, device=device, overwrite=overwrite, say=say, progress=progress)


def import_source(
    kind: str,
    source: Source,
    out: Path,
    *,
    device: str = "auto",
    overwrite: bool = False,
    say: Say | None = None,
    progress: Progress | None = None,
) -> CostCache:
    """Write the recipe for tables beside the cache, and build it; see :func:`import_table`."""
    say = say or (lambda text: None)
    return build_draft(draft_of(kind, source, out, say), out, device, overwrite, say, progress)


def import_detections(
    truth: Path | str,
    results: Mapping[str, Path | str],
    *,
    out: Path | str,
    device: str = "auto",
    overwrite: bool = False,
    say: Say | None = None,
    progress: Progress | None = None,
    **facts: Any,
) -> CostCache:
    """A cost cache from images with true boxes and what several detectors found on them. An image costs 1 - its mAP.

    The recipe for it is written beside the cache, as ``OUT.toml``, to be edited.

    Args:
        truth: COCO's annotations (``.json``), a VOCdevkit, or a folder with Pascal VOC's XML files.
        results: agent -> COCO's results (``.json``), a table, or a folder of text files. The first is agent 0.
        out: the cache's folder.
        device, overwrite, say, progress: see :func:`build`.
        facts: how they are to be read, such as ``images="val2017"`` or ``model="yolo"``: fields of
            :class:`l2d.cache_builder.importing.detections.DetectionSource`.

    Raises:
        UsageError: an argument is wrong, or a recipe of that name has been edited.
        DataError: a file cannot be used.
    """
    known = [each.name for each in fields(DetectionSource) if each.name not in ("truth", "results")]
    for name in facts:
        if name not in known:
            raise UsageError(f"unknown argument {name!r}", hint=nearest(name, known, "the arguments are"))
    if facts.get("images") is not None:
        facts["images"] = Path(facts["images"])
    out, say = Path(out), say or (lambda text: None)
    source = DetectionSource(Path(truth), {name: Path(path) for name, path in results.items()}, **facts)
    draft = draft_detections(source, out.parent, out.name, say)
    return build_draft(draft, out, device, overwrite, say, progress)


def build_draft(
    draft: Draft, out: Path, device: str, overwrite: bool, say: Say, progress: Progress | None
) -> CostCache:
    """Write an import's recipe beside the cache and build it; what looks wrong in the answers is said."""
    recipe = out.parent / f"{out.name}.toml"
    draft.write(recipe, overwrite=overwrite)
    say(f"recipe: {recipe}")
    cache = build(recipe, out, device=device, overwrite=overwrite, say=say, progress=progress)
    for finding in [*truths(cache), *answers_of(cache)]:
        if finding.level == "warning":
            say(f"warning: {finding.check}: {finding.what} (see: l2d audit {out})")
    return cache


def draft_of(kind: str, source: Source, out: Path, say: Say) -> Draft:
    """The recipe for tables, not written yet."""
    if kind not in KINDS:
        raise UsageError(f"kind = {kind!r}", hint=nearest(kind, KINDS))
    return KINDS[kind](recognised(kind, source, say), out.parent, out.name, say)


def _file(table: Any, out: Path, name: str) -> Path:
    """A table's file; a frame is written beside the cache first."""
    if isinstance(table, str | Path):
        return Path(table)
    import polars as pl

    if type(table).__module__.partition(".")[0] == "pandas":
        table = pl.from_pandas(table)
    if isinstance(table, pl.LazyFrame):
        table = table.collect()
    if not isinstance(table, pl.DataFrame):
        raise UsageError(f"{name} is a {type(table).__name__}", hint="give a file, or a frame of polars or pandas")
    path = out.parent / f"{out.name}.{name}.parquet"
    store.commit_table(path, table.to_arrow(), {}, replace=True)
    return path


def _build_shared(
    shared: SharedBuild, recipe: Recipe, shard: Shard, options: dict[str, Any], say: Say, progress: Progress | None
) -> BuildReport:
    """A build of a share that meets others in a store; where all is answered, the rest of the work as well."""
    shared.join()
    build_parts(recipe, shared.out, shard=NOTHING, **options)  # records, and what is fitted
    shared.agree()
    shared.take_parts(shard)
    with shared.giving(shard):
        report = build_parts(recipe, shared.out, shard=shard, progress=progress, **options)
    if not shared.is_answered():
        return report
    taken = shared.take_parts(WHOLE)
    report.unfinished = build_parts(recipe, shared.out, progress=progress, **options).unfinished
    shared.finish()
    say(f"took {taken:,} parts of other builders; the cache is whole in {shared.url}")
    return report
