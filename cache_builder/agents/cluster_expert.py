"""The paper's synthetic experts (section 5.2): right on some k-means clusters, wrong elsewhere, per task."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from l2d.cache_builder.agents._base import Agent, AgentConfig
from l2d.cache_builder.answers import Answers
from l2d.data.errors import UsageError
from l2d.data.samples.dataset import Batch, Dataset


class ClusterExpertConfig(AgentConfig):
    """``kind = "cluster_expert"``: needs ``[dataset.clusters]``.

    On a cluster of ``right_cla`` the class is right, elsewhere it is one of the wrong classes, uniformly. On a cluster
    of ``right_reg`` the value is right, elsewhere it is uniform over the training targets' range. Draws depend on
    ``seed``, the agent's name and the sample's id alone, so every split and every order sees the same expert.
    """

    kind: Literal["cluster_expert"]
    right_cla: list[Annotated[int, Field(ge=1)]] = []
    """Clusters on which the class is right."""
    right_reg: list[Annotated[int, Field(ge=1)]] = []
    """Clusters on which the number is right."""
    seed: int = 0
    """Another seed draws other answers."""


class ClusterExpertAgent(Agent):
    config: ClusterExpertConfig
    can_answer = ("cla", "reg")
    repeatable = True
    reads = ("column cluster", "split", "target_cla", "target_reg")

    def check(self, dataset: Dataset, tasks: list[str]) -> None:
        where = f"agent {self.config.name!r}"
        if "clusters" not in dataset.inputs:
            raise UsageError("a cluster_expert needs clusters", where=where, hint="add a [dataset.clusters] table")
        count = dataset.inputs["clusters"]["count"]
        for cluster in [*self.config.right_cla, *self.config.right_reg]:
            if cluster > count:
                raise UsageError(
                    f"it is right on cluster {cluster}, but there are {count} clusters",
                    where=where,
                    hint="lower the number, or set [dataset.clusters] count",
                )

    def load(self, frozen: Any, dataset: Dataset, device: str) -> None:
        self.num_classes = len(dataset.classes)
        if dataset.target_reg is not None:
            targets = dataset.target_reg[dataset.train]
            self.low, self.high = float(targets.min()), float(targets.max())

    def ask(self, batch: Batch) -> Answers:
        cluster = batch.columns["cluster"].to_numpy()
        uniform = np.array([self._draws(sample_id) for sample_id in batch.ids])  # (n, 2) in [0, 1)
        answers = Answers()
        if batch.target_cla is not None:
            shift = 1 + (uniform[:, 0] * (self.num_classes - 1)).astype(np.int32)  # 1 .. classes - 1: never the truth
            wrong = (batch.target_cla + shift) % self.num_classes
            answers.cla = np.where(np.isin(cluster, self.config.right_cla), batch.target_cla, wrong)
        if batch.target_reg is not None:
            wrong_value = self.low + uniform[:, 1] * (self.high - self.low)
            answers.reg = np.where(np.isin(cluster, self.config.right_reg), batch.target_reg, wrong_value)
        return answers

    def fingerprint(self, dataset: Dataset) -> dict[str, Any]:
        return {**super().fingerprint(dataset), "name": self.config.name}  # the name is part of the draw

    def _draws(self, sample_id: str) -> tuple[float, float]:
        key = f"{self.config.seed}:{self.config.name}:{sample_id}".encode()
        words = np.frombuffer(hashlib.blake2b(key, digest_size=16).digest(), dtype="<u8") >> np.uint64(11)
        return tuple(words.astype(np.float64) * 2.0**-53)
