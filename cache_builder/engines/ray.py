"""Stage one on a Ray cluster: chunks are tasks, agents are actors that hold their model on a GPU or CPU.

The driver plans, fits what has to be fitted, and seals; actors ask and commit parts through the same store, so the
cache's folder has to be one that all machines share. Ray starts a lost actor again, elsewhere if its machine is gone,
and hands it the chunk it was at; a part that had been committed by then is left as it is. So a cache built on a cluster
holds the same bytes as one built here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from l2d.cache_builder.agents import Agent
from l2d.cache_builder.builder import Build, Engine, ask_here
from l2d.cache_builder.prepare import prepare
from l2d.cache_builder.recipe import Recipe
from l2d.data.cache import schema
from l2d.data.cache.reader import CacheRecord
from l2d.data.errors import AgentFailure, L2DError, UsageError
from l2d.data.samples.dataset import Dataset

GPU_OF_AN_ACTOR = 1.0
TRIES = 4  # at a chunk whose actors die: an agent that brings its process down would do so for ever


class AgentActor:
    """One agent in a process of its own, asked about one chunk at a time."""

    def __init__(self, recipe: Recipe, dataset: Dataset, record: CacheRecord, out: Path, name: str, settings: dict):
        self.job = Build(recipe, dataset, record, out, progress=lambda *_: lambda done: None, **settings)
        self.name, self.asker = name, None
        _, agents, _, _ = prepare(recipe, out, dataset)
        (self.agent,) = (agent for agent in agents if agent.config.name == name)

    def answer(self, chunk: int, again: bool) -> tuple[int, int, int, float]:
        """Ask about a chunk, and commit its predictions and costs.

        Returns:
            Samples asked about, failures recorded, samples on which the agent is unavailable, seconds of asking.
        """
        if self.asker is None:
            file = schema.frozen_file(self.job.out, self.name)
            self.asker = self.job.begin(self.agent, _load(file) if file.is_file() else None, 0)
        before = self._counts()
        if again or not schema.predictions_part(self.job.out, self.name, chunk).is_file():
            self.job.write_predictions(self.name, chunk, self.job.answers(self.asker, chunk, again=again))
        self.job.write_costs(self.agent, chunk)
        return tuple(now - then for now, then in zip(self._counts(), before, strict=True))

    def _counts(self) -> tuple[int, int, int, float]:
        return self.asker.asked, self.asker.failed, self.asker.unavailable, self.asker.seconds


def ray_engine(*, workers: int | None = None, address: str | None = None) -> Engine:
    """An engine for :func:`l2d.cache_builder.builder.build`.

    Args:
        workers: actors of each agent; as many as the cluster has GPUs (or CPUs, for a build on these) if None.
        address: of a cluster; the one that is configured, or else one on this machine, if None.

    Raises:
        UsageError: Ray is not installed, or the cluster has no GPU though the build is to run on one.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError("--engine ray needs Ray", hint="pip install 'l2d[ray]'") from error
    if not ray.is_initialized():
        ray.init(address=address, include_dashboard=False, log_to_driver=False, configure_logging=False)
    shared: dict[int, Any] = {}  # the dataset is sent once, not with every agent

    def ask(job: Build, agent: Agent, frozen: dict | None, todo: list[int], retry: list[int]) -> None:
        if agent.needs and agent.repeatable:  # arithmetic on answers that are there: nothing to distribute
            ask_here(job, agent, frozen, todo, retry)
            return
        on_gpu = job.device.startswith("cuda")
        there = int(ray.cluster_resources().get("GPU" if on_gpu else "CPU", 0))
        if not there:
            raise UsageError("the Ray cluster has no GPU", hint="--device cpu, or start it with --num-gpus")
        count = min(workers or there, len(todo) + len(retry))
        resources = {"num_gpus": GPU_OF_AN_ACTOR} if on_gpu else {"num_cpus": 1}
        actor = ray.remote(max_restarts=-1, max_task_retries=TRIES - 1, **resources)(AgentActor)
        if id(job) not in shared:
            shared[id(job)] = ray.put(job.dataset)
        settings = {
            "device": "cuda" if on_gpu else job.device,  # Ray shows each actor its own GPU as the only one
            "record_failures": job.record_failures,
            "retry_failures": job.retry_failures,
            "shard": job.shard,
        }
        name = agent.config.name
        advance = job.progress(name, sum(len(job.record.chunk_rows(k)) for k in [*todo, *retry]))
        arguments = (job.recipe, shared[id(job)], job.record, job.out.absolute(), name, settings)
        actors = [actor.remote(*arguments) for _ in range(count)]
        try:
            _collect(ray, job, name, actors, [*((k, False) for k in todo), *((k, True) for k in retry)], advance)
        finally:
            for one in actors:
                ray.kill(one)

    return ask


def _collect(
    ray: Any, job: Build, name: str, actors: list, chunks: list[tuple[int, bool]], advance: Callable[[int], None]
) -> None:
    """Hand out chunks as actors get free, and add up what they report."""
    from ray.util import ActorPool

    pool, report = ActorPool(actors), job.report
    report.failed[name] = report.unavailable[name] = 0
    for chunk in chunks:
        pool.submit(lambda one, chunk: one.answer.remote(*chunk), chunk)
    while pool.has_next():
        try:
            asked, failed, unavailable, seconds = pool.get_next_unordered()
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, L2DError):
                raise error.cause from None
            raise
        except ray.exceptions.RayActorError as error:
            raise AgentFailure(
                f"agent {name!r}: the process that asks it has died {TRIES} times at the same chunk",
                where=job.out,
                hint="finished chunks are kept; build without --engine ray to see which sample it is at",
            ) from error
        report.asked[name] += asked
        report.failed[name] += failed
        report.unavailable[name] += unavailable
        report.seconds[name] += seconds
        advance(asked)
    report.predictions_written[name] += len(chunks)
    report.costs_written[name] += len(chunks)


def _load(file: Path) -> dict:
    from safetensors.numpy import load

    return load(file.read_bytes())
