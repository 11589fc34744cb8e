"""How a rejector is trained: network, loss, schedule. Every such option of the command line is declared here, once.

Loads no torch, so that ``--help`` is made from it. The names of networks, losses and schedules are those of the tables
that implement them (:data:`l2d.rejector.networks.NETWORKS` and so on), held by a test.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

from l2d.data.errors import UsageError, nearest
from l2d.data.networks.schedules import rate_at
from l2d.data.options import check, declared, option
from l2d.data.sizes import parse_size

Network = Literal["linear", "mlp", "transformer", "feature_transformer", "token_transformer", "conv", "image"]
Loss = Literal["surrogate", "regression", "one_vs_all"]
Augment = Literal["none", "flip", "crop"]
Schedule = Literal["cosine", "linear", "constant"]
Classifier = Literal["cached", "own"]
Failures = Literal["refuse", "drop", "worst", "mask"]

#: What a network looks at, out of data.cache.schema.INPUT_COLUMNS.
INPUT_OF: dict[Network, str] = {
    "linear": "features",
    "mlp": "features",
    "transformer": "features",
    "feature_transformer": "features",
    "token_transformer": "tokens",
    "conv": "image",
    "image": "image",
}
INPUT_HINT = "token_transformer looks at tokens, conv and image at images, all other rejectors at features"

#: Settings of a rejector on pixels alone.
OF_IMAGES = ("backbone", "backbone_weights", "unfreeze", "augment", "autocast")

#: Settings of networks that look at images.
OF_PICTURES = ("images", "image_size")

#: Networks that have a number of layers.
LAYERED = ("mlp", "token_transformer", "image")

NETWORK = "The rejector's network"
IMAGES = "A rejector on pixels"
LOSS = "What it learns from"
SCHEDULE = "Optimization"
OTHERS = "Methods of the literature"
BEST = "Method best"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a rejector is trained. Defaults are the paper's for electronic health records (section 5.2)."""

    network: Network = option(
        "mlp",
        "Kind of network. A transformer reads token lists where the cache has them, otherwise features; "
        "token_transformer and feature_transformer say which. conv and image look at images; image has a body of "
        "torchvision's.",
        flag="--rejector",
        panel=NETWORK,
    )
    hidden: int = option(64, "Hidden units; for a transformer, the width of a token.", least=1, panel=NETWORK)
    layers: int = option(2, "Hidden layers of the mlp, or blocks of the token_transformer.", least=1, panel=NETWORK)
    backbone: str = option(
        "resnet18",
        "image: torchvision's network without its last layer, or the backbone of its Faster R-CNN of that name.",
        metavar="NAME",
        panel=IMAGES,
    )
    backbone_weights: str = option(
        "DEFAULT",
        "image: a file, a name of published weights in torch.hub's cache, or random. Nothing is downloaded.",
        metavar="WEIGHTS",
        panel=IMAGES,
    )
    unfreeze: str = option(
        "", "image: the first stage of the body that learns, such as layer4; all: the whole body.", panel=IMAGES
    )
    augment: Augment = option(
        "none", "image: mirror training images, or cut out parts of them and change their colors too.", panel=IMAGES
    )
    autocast: bool = option(False, "image: run the frozen part of the body in bfloat16.", panel=IMAGES)
    images: str | None = option(
        None,
        "image, conv: look at the image files in this folder of the dataset. Default: the images that the cache keeps.",
        metavar="FOLDER",
        panel=IMAGES,
    )
    image_size: int | None = option(
        None,
        "With --images: side in pixels that they are squeezed to. Default: that of the cache's images.",
        least=8,
        panel=IMAGES,
    )
    loss: Loss = option("surrogate", "Training loss; surrogate is the paper's.", panel=LOSS)
    recentre: bool = option(False, "Subtract each sample's cheapest cost from all its costs.", panel=LOSS)
    epochs: int = option(100, "Passes over the training split.", least=1, panel=SCHEDULE)
    batch_size: int = option(1024, "Samples in one step.", least=1, panel=SCHEDULE)
    lr: float = option(3e-3, "Adam's learning rate.", above=0, panel=SCHEDULE)
    schedule: Schedule = option("cosine", "How the learning rate falls after the warm-up.", panel=SCHEDULE)
    warmup: float = option(0.1, "Share of the steps over which the rate rises from 0.", least=0, most=1, panel=SCHEDULE)
    weight_decay: float = option(0.0, "Decoupled weight decay (AdamW).", least=0, panel=SCHEDULE)
    dropout: float = option(
        0.0, "Share of activations dropped in training (token_transformer).", least=0, below=1, panel=NETWORK
    )
    patience: int = option(
        0, "Stop this many epochs after the lowest validation risk. 0: never.", least=0, panel=SCHEDULE
    )
    memory: int | None = option(
        None,
        "Rows held in memory at once, such as 500MB or 2GiB; the rest is streamed, in another order. Default: all.",
        parse=parse_size,
        metavar="SIZE",
        panel=LOSS,
    )
    classifier: Classifier = option(
        "cached", "Take the cached model's classes, or train a classifier with the rejector.", panel=OTHERS
    )
    alpha: float = option(
        1.0,
        "mozannar_sontag: weight of the class terms where an expert is right. realizable: weight of its surrogate.",
        least=0,
        most=1,
        panel=OTHERS,
    )
    train_rows: float | None = option(
        None, "Train on part of the split: a share below 1, or a number of rows, drawn by the seed.", panel=LOSS
    )
    guard: float = option(
        1.0,
        "Leave the best constant agent only where choosing pays by this many standard errors on held-out samples. "
        "0: no guard.",
        least=0,
        panel=BEST,
    )
    fallback: str | None = option(
        None, "The agent that the guard falls back on. Default: the best constant agent.", metavar="AGENT", panel=BEST
    )
    router_cost: float = option(
        0.0,
        "What deciding costs for one input, in the unit that answers are paid in (with --beta paid=…).",
        least=0,
        panel=LOSS,
    )
    failures: Failures = option(
        "refuse",
        "Recorded failures: refuse; drop those samples; charge the worst training cost; mask the agent.",
        panel=LOSS,
    )

    def __post_init__(self):
        check(self)
        if self.layers != 2 and self.network not in (*LAYERED, "transformer"):
            raise UsageError(f"layers = {self.layers}", hint=f"{self.network} has none; {' and '.join(LAYERED)} have")
        if self.dropout and self.network not in ("token_transformer", "transformer"):
            raise UsageError(f"dropout = {self.dropout}", hint=f"{self.network} has none; a token_transformer has")
        rows = self.train_rows
        if rows is not None and not (0 < rows < 1 or (rows >= 2 and rows == int(rows) and math.isfinite(rows))):
            raise UsageError(f"train_rows = {rows}", hint="a share below 1, or a number of rows from 2 on")
        if rows is not None and self.memory is not None:
            raise UsageError("memory with train_rows", hint="a part of the training split is held: leave out memory")
        if self.network.endswith("transformer") and self.hidden % 4:
            raise UsageError(f"hidden = {self.hidden}", hint="a transformer needs a multiple of 4")
        if self.network == "conv" and self.hidden % 16:
            raise UsageError(f"hidden = {self.hidden}", hint="a conv needs a multiple of 16")

        changed = [name for name in OF_IMAGES if getattr(self, name) != getattr(TrainConfig, name)]
        if self.network != "image" and changed:
            raise UsageError(
                f"{changed[0]} = {getattr(self, changed[0])!r}", hint=f"{self.network} has none; --rejector image has"
            )
        pictures = [name for name in OF_PICTURES if getattr(self, name) is not None]
        if pictures and INPUT_OF[self.network] != "image":
            raise UsageError(
                f"{pictures[0]} = {getattr(self, pictures[0])!r}",
                hint=f"{self.network} looks at {INPUT_OF[self.network]}; --rejector image and conv look at images",
            )
        if pictures == ["image_size"]:
            raise UsageError(
                f"image_size = {self.image_size}", hint="say where the images lie: --images FOLDER; those in the cache "
                "have the size that [dataset] image_size said",
            )  # fmt: skip
        if self.images is not None:  # evaluation may be called from elsewhere
            object.__setattr__(self, "images", os.path.abspath(self.images))
        if self.augment != "none" and (self.memory is not None or self.train_rows is not None):
            raise UsageError("augment with memory or train_rows", hint="augmented images are all held: leave these out")

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


def network_for(kind: Network, inputs: Collection[str]) -> Network:
    """The network that a name stands for on a cache with these inputs.

    A ``transformer`` reads token lists where the cache has them, since that is what transformers are for; where it has
    none, its tokens are features. ``token_transformer`` and ``feature_transformer`` say which one is meant.
    """
    return "token_transformer" if kind == "transformer" and "tokens" in inputs else kind


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Rate of step ``step`` out of ``steps``, see :func:`l2d.data.networks.schedules.rate_at`."""
    return rate_at(step, steps, lr=config.lr, warmup=config.warmup, schedule=config.schedule)


def config_of(config: TrainConfig | None, settings: dict[str, Any]) -> TrainConfig:
    """Settings of training, as one object or by name.

    Raises:
        UsageError: both are given, or a name is unknown.
    """
    for name in settings:
        if name not in declared(TrainConfig):
            raise UsageError(f"unknown setting {name!r}", hint=nearest(name, declared(TrainConfig), "the settings are"))
    if config is not None and settings:
        raise UsageError("config and single settings together", hint="give one or the other")
    return TrainConfig(**settings) if config is None else config
