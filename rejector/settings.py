"""How a rejector is trained: network, loss, schedule."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from l2d.data.errors import UsageError
from l2d.data.networks.schedules import SCHEDULES
from l2d.rejector.losses import LOSSES
from l2d.rejector.networks import LAYERED, NETWORKS, network_for


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a rejector is trained. Defaults are the paper's for electronic health records (section 5.2)."""

    network: str = "mlp"
    hidden: int = 64
    layers: int = 2  # hidden layers of the mlp, blocks of the token_transformer
    loss: str = "surrogate"  # the paper's; or regression, one_vs_all, see rejector.losses
    recentre: bool = False  # subtract each sample's cheapest cost from all agents' before the loss
    epochs: int = 100
    batch_size: int = 1024
    lr: float = 3e-3
    schedule: str = "cosine"  # or linear, constant
    warmup: float = 0.1  # share of the steps over which the rate rises from 0
    weight_decay: float = 0.0  # decoupled (AdamW)
    dropout: float = 0.0  # share of a token_transformer's activations that each step leaves out
    patience: int = 0  # stop a point this many epochs after its lowest validation risk; 0: never
    memory: int | None = (
        None  # bytes that training may hold of a split; None: all of it. The order of rows depends on it
    )
    classifier: str = "cached"  # of rejector.methods: the cached model, or one of the run's own
    alpha: float = 1.0  # of mozannar_sontag and realizable
    train_rows: float | None = None  # a share of the training split below 1, or how many of its rows; None: all
    failures: str = "refuse"  # recorded failures: refuse, drop, worst or mask, see rejector.table.load_tables

    def __post_init__(self):
        limits = {"hidden": 1, "layers": 1, "epochs": 1, "batch_size": 1, "patience": 0}
        for name, least in limits.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name} = {getattr(self, name)}", hint=f"at least {least}")
        if self.network not in NETWORKS:
            raise UsageError(f"there is no rejector {self.network!r}", hint=f"choose from {', '.join(NETWORKS)}")
        if self.layers != 2 and self.network not in (*LAYERED, "transformer"):
            raise UsageError(f"layers = {self.layers}", hint=f"{self.network} has none; {' and '.join(LAYERED)} have")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout = {self.dropout}", hint="0 <= dropout < 1")
        if self.dropout and self.network not in ("token_transformer", "transformer"):
            raise UsageError(f"dropout = {self.dropout}", hint=f"{self.network} has none; a token_transformer has")
        if self.loss not in LOSSES:
            raise UsageError(f"there is no loss {self.loss!r}", hint=f"choose from {', '.join(LOSSES)}")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"there is no schedule {self.schedule!r}", hint=f"choose from {', '.join(SCHEDULES)}")
        finite = math.isfinite(self.lr) and math.isfinite(self.weight_decay)
        if not (finite and self.lr > 0 and 0 <= self.warmup <= 1 and self.weight_decay >= 0):
            raise UsageError(
                f"lr = {self.lr}, warmup = {self.warmup}, weight_decay = {self.weight_decay}",
                hint="lr is > 0, warmup in [0, 1], weight_decay >= 0, all finite",
            )
        if self.classifier not in ("cached", "own"):
            raise UsageError(f"there is no classifier {self.classifier!r}", hint="choose from cached, own")
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha = {self.alpha}", hint="alpha lies in [0, 1]")
        rows = self.train_rows
        if rows is not None and not (0 < rows < 1 or (rows >= 2 and rows == int(rows) and math.isfinite(rows))):
            raise UsageError(f"train_rows = {rows}", hint="a share below 1, or a number of rows from 2 on")
        if rows is not None and self.memory is not None:
            raise UsageError("memory with train_rows", hint="a part of the training split is held: leave out memory")
        if self.network.endswith("transformer") and self.hidden % 4:
            raise UsageError(f"hidden = {self.hidden}", hint="a transformer needs a multiple of 4")
        if self.network == "conv" and self.hidden % 16:
            raise UsageError(f"hidden = {self.hidden}", hint="a conv needs a multiple of 16")

    def on(self, inputs: Collection[str]) -> TrainConfig:
        """These settings on a cache with these inputs: which network a ``transformer`` is, see :func:`network_for`.

        Raises:
            UsageError: the network has no such settings.
        """
        network = network_for(self.network, inputs)
        if network == "transformer" and (self.layers != 2 or self.dropout):
            raise UsageError(
                f"layers = {self.layers}, dropout = {self.dropout}: a transformer over features has one block and none",
                hint="leave them out: this cache has no token lists",
            )
        return replace(self, network=network)


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Rate of step ``step`` out of ``steps``: linear warm-up, then the schedule."""
    warm = round(config.warmup * steps)
    if step < warm:
        return config.lr * (step + 1) / warm
    return config.lr * SCHEDULES[config.schedule]((step - warm) / max(1, steps - warm))
