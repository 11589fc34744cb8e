"""A rejector on pixels: the frozen part of its body is run once for all points of a grid, and again only where images
are augmented. What learns, heads and unfrozen stages, is trained by the loop that trains all other networks.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from l2d.data.networks.bodies import AT_ONCE, MEAN, STD, Body, in_fixed_batches, normalised, pooled
from l2d.data.samples.standardise import standardisation_of_parts
from l2d.rejector.networks import MLP, ImageNetwork
from l2d.rejector.rows.stream import Prepare, Rows, Stream, ahead, batches_of
from l2d.rejector.rows.table import CostTable
from l2d.rejector.scoring import ExactLayers, layers_of
from l2d.rejector.settings import OF_IMAGES, OF_PICTURES, TrainConfig
from l2d.rejector.trained import Rejector
from l2d.rejector.training.network import TrainedNetwork

TRUNK = "body.trunk."  # how names of the frozen part begin, which the runs of a grid share
#: What bodies have made of tables: evaluating a grid asks for the same many times. (rows, body's digest, features)
_KNOWN: list[tuple[weakref.ref, str, Tensor]] = []
#: Settings of bodies and pictures where there are none.
_PLAIN: dict[str, Any] = {name: getattr(TrainConfig, name) for name in (*OF_IMAGES, *OF_PICTURES)}
AT_ONCE_ON = {"cpu": AT_ONCE, "cuda": 8 * AT_ONCE}


@dataclass(frozen=True, kw_only=True)
class TrainedImage(TrainedNetwork):
    """A rejector that looks at pixels: rows (n, 3 * side * side) from 0 to 1."""

    @property
    def activations(self) -> int:
        return 4 * self.width

    @property
    def shared(self) -> tuple[str, ...]:
        return tuple(name for name in self.state if name.startswith(TRUNK))

    def network(self) -> ImageNetwork:
        """The network with its parameters, on rows normalised as bodies see them."""
        config = self.config
        network = ImageNetwork(
            self.width, len(self.point.query_costs), config.hidden, config.layers, config.backbone, config.unfreeze
        )
        network.load_state_dict({name: v for name, v in self.state.items() if not name.startswith("feature_")})
        return network.eval().requires_grad_(False)

    def scores(self, features: np.ndarray) -> np.ndarray:
        return self._of_features(self._looked(torch.from_numpy(features)))

    def scores_on(self, table: CostTable) -> np.ndarray:
        for known, digest, features in _KNOWN:
            if known() is table.features and digest == self.digest:
                return self._of_features(features)
        features = self._looked(table.features)
        _KNOWN[:] = [(weakref.ref(table.features), self.digest, features), *_KNOWN[:3]]
        return self._of_features(features)

    def check(self) -> None:
        """See that the parameters fit the network. Running it would take longer than all else."""
        self.network()

    @cached_property
    def digest(self) -> str:
        """Tells bodies apart."""
        state = sha256()
        for name in sorted(self.state):
            if name.startswith("body."):
                state.update(
                    name.encode() + self.state[name].reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
                )
        return state.hexdigest()

    def _looked(self, rows: Tensor) -> Tensor:
        """What the body makes of rows of pixels, float32 (n, its width)."""
        network, autocast = self.network(), self.config.autocast
        body = network.body
        images = normalised(rows.unflatten(-1, (3, network.side, network.side)).float())

        def look(part: Tensor) -> Tensor:
            """As in training: the frozen part alone may be in bfloat16, also the mean of what it gives."""
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                maps = body.trunk(part)
            if len(body.tail):
                maps = {name: level.float() for name, level in maps.items()} if isinstance(maps, dict) else maps.float()
                maps = body.tail(maps)
            return pooled(body.kind, maps).float()

        with torch.inference_mode():
            return torch.cat(list(in_fixed_batches(images, look)))

    def on_features(self, table: CostTable) -> CostTable:
        """A table of pixels as the body, as it is, makes features of it: what :meth:`on_body` looks at."""
        return replace(table, features=self._looked(table.features))

    def on_body(self) -> TrainedNetwork:
        """The head alone: an mlp on what the body makes of images."""
        head = {name.removeprefix("head."): v for name, v in self.state.items() if name.startswith("head.")}
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        state = {**head, "feature_mean": self.state["mean"], "feature_std": self.state["std"]}
        return TrainedNetwork(**{**given, "state": state, "config": replace(self.config, network="mlp", **_PLAIN)})

    def _of_features(self, features: Tensor) -> np.ndarray:
        """Scores from what the body makes of images, float32 (n, width of the body)."""
        head = {name.removeprefix("head."): v.numpy() for name, v in self.state.items() if name.startswith("head.")}
        rows = (features - self.state["mean"]) / self.state["std"]
        return ExactLayers(layers_of(head))(rows.numpy())


class _Fresh(TrainedImage):
    """One that was trained just now: the rows at hand are what the frozen part has made of the images."""

    def scores_of(self, split: str, ids: object, features: np.ndarray) -> np.ndarray:
        rows = torch.from_numpy(features)
        if not self.config.unfreeze:
            return self._of_features(rows)
        body = self.network().body
        maps = rows.unflatten(-1, self.__dict__["shape"])
        parts = in_fixed_batches(maps, lambda part: pooled(body.kind, body.tail(part)))
        with torch.inference_mode():
            return self._of_features(torch.cat(list(parts)))


class Tail(nn.Module):
    """Stages that learn and a head: rows (batch, what the frozen part gives) -> (batch, agents)."""

    def __init__(
        self, body: Body, shape: tuple[int, ...], agents: int, config: TrainConfig, spread: tuple[Tensor, Tensor]
    ):
        super().__init__()
        self.kind, self.shape = body.kind, shape
        self.tail = copy.deepcopy(body.tail).requires_grad_()
        self.head = MLP(len(spread[0]), agents, config.hidden, config.layers)
        first = next(layer for layer in self.head if isinstance(layer, nn.Linear))
        with torch.no_grad():  # the head begins as one on standardised features does
            first.weight.div_(spread[1])
            first.bias.sub_(first.weight @ spread[0])

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(pooled(self.kind, self.tail(rows.unflatten(-1, self.shape))))


class BodyStream:
    """A stream of images as the frozen part of a body gives them. Without a bound on memory it is run once and held.

    Args:
        stream: rows of pixels from 0 to 1.
        look: images (n, 3, side, side), normalised -> rows (n, width).
        hold: keep what it makes.
        augment: changes an image by a seed; each epoch another one.
        learns: the rows are maps, and stay as they are: not to be standardised one by one.
    """

    def __init__(
        self,
        stream: Stream,
        look: Callable[[Tensor], Tensor],
        *,
        hold: bool,
        augment: Callable[[Tensor, int], Tensor] | None = None,
        learns: bool = False,
    ):
        self.stream, self._look, self._hold, self._augment, self._learns = stream, look, hold, augment, learns
        self.side = int((stream.width // 3) ** 0.5)
        self.shape, self.sizes, self.counts = stream.shape, stream.sizes, stream.counts
        self.chunks, self.cache_path = stream.chunks, stream.cache_path
        self.has_unavailable, self.left_out = stream.has_unavailable, stream.left_out
        self.epoch = 0
        self._held: dict[int, Rows] = {}
        self.width = look(torch.zeros(1, 3, self.side, self.side)).shape[1]

    def __len__(self) -> int:
        return len(self.stream)

    def begin(self, epoch: int) -> bool:
        """Other rows than before, where images are augmented."""
        changed = self._augment is not None and epoch != self.epoch
        if changed:
            self.epoch = epoch
            self._held.clear()
        return changed

    def rows(self, chunk: int, prepare: Prepare | None = None) -> Rows:
        """The split's rows in one chunk."""
        found = self._held.get(chunk) or self._seen(chunk, self.stream.rows(chunk))
        return prepare(*found) if prepare else found

    def _seen(self, chunk: int, rows: Rows) -> Rows:
        images = rows[0].unflatten(-1, (3, self.side, self.side))
        if self._augment is not None:
            seeds = np.random.SeedSequence([self.epoch, chunk]).generate_state(len(images)).tolist()
            images = torch.stack([self._augment(image, seed) for image, seed in zip(images, seeds, strict=True)])
        found = self._look(normalised(images)), rows[1]
        if self._hold:
            self._held[chunk] = found
        return found

    def _all(self) -> Iterator[tuple[int, Rows]]:
        """Every chunk; the next one's images are decoded while the body looks at those of one."""
        missing = [chunk for chunk in self.chunks if chunk not in self._held]
        read = ahead(self.stream.rows, missing)
        for chunk in self.chunks:
            yield chunk, self._held[chunk] if chunk in self._held else self._seen(chunk, next(read))

    def in_order(self, batch: int, *, prepare: Prepare | None = None) -> Iterator[Rows]:
        """Every row once, ``batch`` at a time."""
        yield from batches_of((prepare(*rows) if prepare else rows for _, rows in self._all()), batch)

    def ids_in_order(self, batch: int) -> Iterator[list[str]]:
        """The sample ids of the batches of :meth:`in_order`."""
        return self.stream.ids_in_order(batch)

    def standardisation(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of each feature; 0 and 1 of maps."""
        if self._learns:
            return np.zeros(self.width, np.float32), np.ones(self.width, np.float32)
        return standardisation_of_parts(rows[0].numpy() for _, rows in self._all())


@dataclass(frozen=True)
class Looked:
    """What a grid of image rejectors is trained on.

    Attributes:
        streams: split -> rows as the frozen part gives them.
        train: those of the training split, augmented if that is asked for.
        config: of what learns.
        make: makes what learns, None for a plain head.
    """

    body: Body
    shape: tuple[int, ...]
    streams: dict[str, Any]
    train: Any
    config: TrainConfig
    make: Callable[[], nn.Module] | None
    original: TrainConfig
    side: int
    look: Callable[[Tensor], Tensor]

    def table(self, table: CostTable) -> CostTable:
        """A table of pixels as the frozen part gives it."""
        images = table.features.unflatten(-1, (3, self.side, self.side))
        return replace(table, features=self.look(normalised(images)))

    @property
    def digest(self) -> str:
        """Of the body's weights: training goes on only with the same."""
        state = sha256()
        for name, value in sorted(self.body.state_dict().items()):
            state.update(name.encode() + value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return state.hexdigest()

    def finished(self, rejectors: list[TrainedNetwork]) -> list[Rejector]:
        """Whole rejectors on pixels of those that were trained on rows of the frozen part."""
        trunk = {TRUNK + name: value.contiguous() for name, value in self.body.trunk.state_dict().items()}
        spread = {
            f"feature_{name}": torch.tensor(values).repeat_interleave(self.side * self.side)
            for name, values in (("mean", MEAN), ("std", STD))
        }
        found: list[Rejector] = []
        for rejector in rejectors:
            state = dict(rejector.state)
            mean, std = state.pop("feature_mean"), state.pop("feature_std")
            if self.make is None:
                learnt = {f"head.{name}": value for name, value in state.items()}
            else:
                learnt = {name if name.startswith("head.") else f"body.{name}": v for name, v in state.items()}
                width = learnt["head.0.weight"].shape[1]
                mean, std = torch.zeros(width), torch.ones(width)
            whole = {**trunk, **learnt, "mean": mean.float(), "std": std.float(), **spread}
            given = {each.name: getattr(rejector, each.name) for each in fields(rejector)}
            one = _Fresh(**{**given, "state": whole, "config": self.original})
            one.__dict__["shape"] = self.shape
            found.append(one)
        return found


def look(streams: dict[str, Stream], config: TrainConfig, agents: int, device: str) -> Looked:
    """Open the body and run its frozen part on the images of a cache's splits.

    Raises:
        UsageError: there is no such body, stage or file of weights.
        DataError: the weights do not fit.
    """
    body = Body(config.backbone, config.unfreeze)
    body.load(config.backbone_weights)
    body.eval().requires_grad_(False)
    side = int((streams["train"].width // 3) ** 0.5)
    frozen = copy.deepcopy(body.trunk).to(device)
    learns, kind = bool(config.unfreeze), torch.device(device).type
    with torch.inference_mode():
        example = frozen(torch.zeros(1, 3, side, side, device=device))
    shape = () if isinstance(example, dict) else tuple(example.shape[1:])

    def run(images: Tensor) -> Tensor:
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=config.autocast):
            maps = frozen(images.to(device, non_blocking=True))
        return (maps.flatten(1) if learns else pooled(body.kind, maps)).float().cpu()

    def see(images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat(list(in_fixed_batches(images, run, AT_ONCE_ON.get(kind, AT_ONCE))))

    hold = config.memory is None
    seen = {split: BodyStream(stream, see, hold=hold, learns=learns) for split, stream in streams.items()}
    train = seen["train"]
    if config.augment != "none":
        train = BodyStream(streams["train"], see, hold=hold, augment=partial(augmented, config.augment), learns=learns)
    head, make = replace(config, network="mlp", **_PLAIN), None
    if learns:
        spread = _spread(seen["train"], body, shape)
        make = partial(Tail, body, shape, agents, config, spread)
        head = config
    return Looked(body, shape, seen, train, head, make, config, side, see)


def _spread(train: BodyStream, body: Body, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of what the body, as it begins, makes of the training images."""

    def features() -> Iterator[np.ndarray]:
        for rows, _ in train.in_order(AT_ONCE):
            with torch.no_grad():
                yield pooled(body.kind, body.tail(rows.unflatten(-1, shape))).numpy()

    mean, std = standardisation_of_parts(features())
    scale = float(np.sqrt(np.square(std[std != 1], dtype=np.float64).mean())) if (std != 1).any() else 1.0
    # one number for all: what hardly varies as the body begins would be blown up once it learns
    return torch.from_numpy(mean).float(), torch.full((len(mean),), max(scale, 1e-3))


def augmented(kind: str, image: Tensor, seed: int) -> Tensor:
    """An image (3, side, side) from 0 to 1, changed as ``seed`` says.

    ``flip``: mirrored or not. ``crop``: also a part of it, six tenths of the area or more, as large as the whole, with
    brightness, contrast and saturation changed by at most a fifth.
    """
    from torchvision.transforms import v2

    steps: list[nn.Module] = [v2.RandomHorizontalFlip()]
    if kind == "crop":
        side = image.shape[-1]
        steps += [v2.RandomResizedCrop(side, scale=(0.6, 1.0), antialias=True), v2.ColorJitter(0.2, 0.2, 0.2)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return v2.Compose(steps)(image)
