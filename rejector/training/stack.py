"""Rejectors trained side by side: parameters stacked along a first dimension, one forward, backward, step for all."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from l2d.data.networks.tokens import TokenNetwork
from l2d.rejector.costs import total_costs
from l2d.rejector.grid import GridPoint
from l2d.rejector.losses import LOSSES, allocate, check_nu, deferral_loss, recentred
from l2d.rejector.networks import make_network
from l2d.rejector.training.distributed import Group
from l2d.rejector.training.dropout import SeededDropout

#: Activations of a layer that are worked on at once, in numbers. On a CPU more than this falls out of its cache.
ACTIVATIONS_AT_ONCE = {"cpu": 1 << 19, "cuda": 1 << 30}
#: Rows of token lists that are worked on at once, those of about the same length together: a row is many tokens.
TOKEN_ROWS_AT_ONCE = {"cpu": 128, "cuda": 1024}
#: Rows of maps of images whose risk is worked out at once.
RISK_ROWS_OF_IMAGES = 64
ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False, "maximize": False}
#: What a point's state consists of, besides three numbers: a tensor of each kind for each parameter.
KINDS = ("parameters", "exp_avg", "exp_avg_sq", "best")


def points_at_once(device: str, batch_size: int, network: str, width: int, hidden: int, layers: int = 2) -> int:
    """How many rejectors an :class:`AutogradStack` should hold; more of them make further stacks."""
    kind = torch.device(device).type
    if network == "token_transformer":
        batch_size = min(batch_size, TOKEN_ROWS_AT_ONCE.get(kind, 1024))
    tokens = (1 + width) * hidden
    of_row = {
        "transformer": tokens,
        "feature_transformer": tokens,
        "token_transformer": tokens * (1 if kind == "cpu" else 16 * layers),  # what autograd keeps has to fit as well
        "conv": width // 24 * hidden,  # a quarter of the pixels, hidden / 2
        "image": 8 * width,  # stages that keep about as many numbers, each with what autograd needs
    }
    return max(1, ACTIVATIONS_AT_ONCE.get(kind, 1 << 30) // (batch_size * of_row.get(network, hidden)))


class Stack(ABC):
    """Points of a grid trained together. Each has its own parameters, so each gets its own gradient and step.

    All parameters lie in one flat tensor, parameter by parameter and therein point by point, and so do gradients and
    Adam's moments: one fused step is for all. ``parameters`` are views of it, by the network's names, (P, ...).

    Legend: P points, S seeds, B rows of a batch, W features, A agents, T tasks.

    Args:
        points: the P points.
        weights: ``lambda`` that each is trained on, (P, T).
        network: kind of network, with ``width``, ``num_agents``, ``hidden``, ``layers`` and ``sizes``.
        loss: one of :data:`l2d.rejector.losses.LOSSES`, on costs that are ``recentre``\\ d or not.
        has_unavailable: whether raw costs may be NaN, where an agent is unavailable.
        weight_decay: decoupled, as AdamW does it.
        dropout: share of a token_transformer's activations that a step leaves out.
        dtype: of parameters; features and costs have to be of the same.
        make: makes a network of another kind, its parameters drawn by torch's generator.

    Attributes:
        seeds: of the points, ascending: the order of a batch's first dimension.
    """

    def __init__(
        self,
        points: list[GridPoint],
        weights: Tensor,
        *,
        network: str,
        width: int,
        num_agents: int,
        hidden: int,
        layers: int = 2,
        sizes: Sequence[tuple[int, int]] = (),
        loss: str = "surrogate",
        recentre: bool = False,
        has_unavailable: bool = False,
        weight_decay: float = 0.0,
        dropout: float = 0.0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        make: Callable[[], torch.nn.Module] | None = None,
    ):
        self.points, self.device = points, torch.device(device)
        self.seeds = sorted({point.seed for point in points})
        self.of_seed = torch.tensor([self.seeds.index(point.seed) for point in points], device=device)
        self.weights = weights.to(device, dtype)
        self.beta = torch.tensor([point.query_costs for point in points], device=device, dtype=dtype)  # (P, A)
        nu = check_nu(torch.tensor([point.nu for point in points]), dtype, device)
        self.nu = None if nu is None or loss != "surrogate" else nu[:, None, None]
        self._loss, self._recentre, self._weight_decay = LOSSES[loss], recentre, weight_decay
        self._has_unavailable = has_unavailable
        self._dropout, self._wide = dropout, make is not None

        shape = (network, width, num_agents, hidden, layers, sizes)
        networks = {seed: _initialised(seed, make or partial(make_network, *shape)) for seed in self.seeds}
        self.template = networks[self.seeds[0]]
        self._shapes = {name: value.shape for name, value in self.template.named_parameters()}
        # No element of a padded tensor is left over for the fused step's scalar code, whose last bit might differ.
        size = sum(padded(len(points) * math.prod(self._stored(name)), 64) for name in self._shapes)
        self._flat = torch.zeros(size, device=device, dtype=dtype)
        self._flat_gradient, self._mean, self._square = (torch.zeros_like(self._flat) for _ in range(3))
        self._steps = torch.zeros((), device=device)
        self.parameters = self._views(self._flat)
        for position, point in enumerate(points):
            for name, value in networks[point.seed].named_parameters():
                self.parameters[name][position] = value.detach()
        self._best = self._flat.clone()
        self.best_risk = torch.full((len(points),), math.inf, device=device, dtype=torch.float64)
        self.best_epoch = torch.zeros(len(points), dtype=torch.int64, device=device)

    @abstractmethod
    def _backward(self, features: Tensor, raw: Tensor, keys: Tensor | None) -> Tensor:
        """Write gradients of the mean losses of a batch to ``_flat_gradient``; return these means, (P,)."""

    @abstractmethod
    def risk(self, features: Tensor, raw: Tensor, rows_at_once: int) -> Tensor:
        """Mean true deferral loss of each point, float64 (P,), on the same rows for all: (n, W), (n, A, T)."""

    def step(
        self,
        features: Tensor,
        raw: Tensor,
        lr: float,
        *,
        total: int | None = None,
        group: Group | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """One optimizer step on a batch.

        Args:
            features: each seed's rows, (S, B, W).
            raw: their raw costs, (S, B, A, T).
            lr: learning rate.
            total: rows of the whole batch, where ``group``'s other processes have the rest of it.
            keys: what the rows' dropout is drawn from, (S, B); none without dropout.

        Returns:
            Mean loss of each point over the whole batch before the step, float64 (P,).
        """
        if group is None or group.size == 1:
            losses = self._backward(features, raw, keys)
        else:
            assert total is not None  # of rows that are shared
            losses = self._backward_together(features, raw, total, group, keys)
        self._steps += 1
        # What torch.optim.AdamW(fused=True) calls; its own bookkeeping costs as much as the step of a small grid.
        torch._fused_adamw_(
            [self._flat], [self._flat_gradient], [self._mean], [self._square], [], [self._steps],
            lr=lr, weight_decay=self._weight_decay, **ADAM,
        )  # fmt: skip
        return losses

    def _backward_together(
        self, features: Tensor, raw: Tensor, total: int, group: Group, keys: Tensor | None
    ) -> Tensor:
        """Gradients and means of a batch of which each process has a share."""
        rows = features.shape[1]
        if rows:
            losses = self._backward(features, raw, keys) * (rows / total)
            self._flat_gradient *= rows / total
        else:
            losses = torch.zeros(len(self.points), dtype=torch.float64, device=self.device)
            self._flat_gradient.zero_()
        group.add(self._flat_gradient)
        return group.add(losses)

    @torch.no_grad()
    def keep_best(self, risk: Tensor, epoch: int) -> None:
        """Remember the parameters of points whose validation risk (P,) is lower than ever."""
        better = risk < self.best_risk
        self.best_risk = torch.where(better, risk, self.best_risk)
        self.best_epoch = torch.where(better, epoch, self.best_epoch)
        for name, best in self._views(self._best).items():
            best[better] = self.parameters[name][better]

    def best_state(self, position: int) -> dict[str, Tensor]:
        """Best parameters of one point, on the CPU."""
        return {name: value[position].cpu().clone().contiguous() for name, value in self._views(self._best).items()}

    def state(self) -> dict[str, Tensor]:
        """Copies of everything that changes in training, on the CPU: what :meth:`load_state` takes.

        Names are ``parameters.NAME``, ``exp_avg.NAME``, ``exp_avg_sq.NAME`` (Adam's moments), ``best.NAME``, and
        ``steps``, ``best_risk``, ``best_epoch``. Every tensor's first dimension is the points', so states of several
        stacks can be joined and divided anew.
        """
        flats = (self._flat, self._mean, self._square, self._best)
        state = {
            f"{kind}.{name}": value.detach().cpu().clone().contiguous()
            for kind, flat in zip(KINDS, flats, strict=True)
            for name, value in self._views(flat).items()
        }
        steps = self._steps.to("cpu", torch.int64).expand(len(self.points)).clone()
        return {**state, "steps": steps, "best_risk": self.best_risk.cpu(), "best_epoch": self.best_epoch.cpu()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on where :meth:`state` was taken, to the same bits on the same device.

        Raises:
            ValueError: names or shapes are not this stack's, or its points have not made the same number of steps.
        """
        expected = {name: value.shape for name, value in self.state().items()}
        found = {name: value.shape for name, value in state.items()}
        if found != expected:
            wrong = sorted(name for name in {**expected, **found} if expected.get(name) != found.get(name))
            raise ValueError(f"this is the state of another stack: {', '.join(wrong)}")
        if len(state["steps"].unique()) != 1:
            raise ValueError(f"the points have made {state['steps'].unique().tolist()} steps; all have to be as far")
        for kind, flat in zip(KINDS, (self._flat, self._mean, self._square, self._best), strict=True):
            for name, value in self._views(flat).items():
                value.copy_(state[f"{kind}.{name}"])
        self._steps.copy_(state["steps"][0])
        self.best_risk.copy_(state["best_risk"])
        self.best_epoch.copy_(state["best_epoch"])

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        """Parameters, (P, ...) each, of a flat tensor."""
        return {
            name: part[(slice(None), *map(slice, self._shapes[name]))] for name, part in self._whole_views(flat).items()
        }

    def _whole_views(self, flat: Tensor) -> dict[str, Tensor]:
        """Parameters as they lie in memory, where a shape may be filled up beyond the network's."""
        views, start = {}, 0
        for name in self._shapes:
            shape = self._stored(name)
            size = len(self.points) * math.prod(shape)
            part = flat[start : start + size]
            turned = len(shape) == 2 and self._is_transposed(name)
            views[name] = part.view(-1, *reversed(shape)).mT if turned else part.view(-1, *shape)
            start += padded(size, 64)
        return views

    def _stored(self, name: str) -> tuple[int, ...]:
        """Shape in memory of a parameter of one point: its own, or more, of which the rest is and stays 0."""
        return tuple(self._shapes[name])

    def _is_transposed(self, name: str) -> bool:
        """Whether a matrix lies in memory as (columns, rows)."""
        return False

    def _value_and_gradient(self, scores: Tensor, costs: Tensor, nu: Tensor | None, dim: int) -> tuple[Tensor, Tensor]:
        missing = None
        if self._has_unavailable:
            missing = costs.isnan()
            costs = costs.masked_fill(missing, math.inf)
        return self._loss(scores, recentred(costs, dim) if self._recentre else costs, nu, dim, missing)

    def _deferral_losses(self, scores: Tensor, costs: Tensor) -> Tensor:
        """Cost of the agents that the scores choose among the available ones: (P, B, A), (P, B, A) -> (P, B)."""
        return deferral_loss(allocate(scores, ~costs.isnan() if self._has_unavailable else None), costs)


class AutogradStack(Stack):
    """Any network, on any device: ``torch.func`` runs the same forward on all parameters, autograd goes back."""

    def __init__(self, points: list[GridPoint], weights: Tensor, **settings):
        super().__init__(points, weights, **settings)
        self.template = self.template.to("meta")
        self._leaves = {name: value.detach().requires_grad_() for name, value in self.parameters.items()}
        for name, gradient in self._views(self._flat_gradient).items():
            self._leaves[name].grad = gradient  # autograd adds to what is there

    def _forward(self, state: dict[str, Tensor], features: Tensor, keys: Tensor | None = None) -> Tensor:
        """Scores (P, B, A) of each point's rows (S, B, W), or of the same rows (B, W) for all."""
        options = {}
        if isinstance(self.template, TokenNetwork):
            features, options["lengths"] = self.template.trimmed(features)

        def forward(state: dict[str, Tensor], rows: Tensor, keys: Tensor | None = None) -> Tensor:
            drop = {} if keys is None else {"drop": SeededDropout(keys, self._dropout)}
            return functional_call(self.template, (state, {}), (rows,), {**options, **drop})

        if len(self.points) == 1:  # vmap costs something with large batches even where there is nothing to map over
            given = () if keys is None else (keys[0],)
            return forward({name: value[0] for name, value in state.items()}, features.flatten(0, -2), *given)[None]
        if features.dim() == 2:
            return vmap(forward, in_dims=(0, None))(state, features)
        given = () if keys is None else (keys[self.of_seed],)
        return vmap(forward)(state, features[self.of_seed], *given)

    def _backward(self, features: Tensor, raw: Tensor, keys: Tensor | None) -> Tensor:
        self._flat_gradient.zero_()
        total = torch.zeros(len(self.points), device=features.device, dtype=torch.float64)
        for x, block, of_rows in self._blocks(features, raw, keys):
            costs = total_costs(block[self.of_seed], self.weights, self.beta)
            scores = self._forward(self._leaves, x, of_rows)
            losses, gradient = self._value_and_gradient(scores.detach(), costs, self.nu, -1)
            scores.backward(gradient / features.shape[1])
            total += losses.sum(dim=1, dtype=torch.float64)
        return total / features.shape[1]

    def _blocks(self, features: Tensor, raw: Tensor, keys: Tensor | None) -> Iterator[tuple]:
        """A batch as it is; of token lists some rows after the other, so that short ones do not pay for long ones."""
        at_once = TOKEN_ROWS_AT_ONCE.get(self.device.type, 1024)
        if not isinstance(self.template, TokenNetwork) or features.shape[1] <= at_once:
            yield features, raw, keys
            return
        seeds = torch.arange(len(features), device=features.device)[:, None]
        for rows in TokenNetwork.longest_first(features).split(at_once, dim=1):
            yield features[seeds, rows], raw[seeds, rows], None if keys is None else keys[seeds, rows]

    @torch.inference_mode()
    def risk(self, features: Tensor, raw: Tensor, rows_at_once: int) -> Tensor:
        if isinstance(self.template, TokenNetwork):
            rows_at_once = len(self.points) * TOKEN_ROWS_AT_ONCE.get(self.device.type, 1024)
            order = TokenNetwork.longest_first(features)
            features, raw = features[order], raw[order]
        if self._wide:
            rows_at_once = len(self.points) * RISK_ROWS_OF_IMAGES
        total = torch.zeros(len(self.points), device=features.device, dtype=torch.float64)
        step = max(1, rows_at_once // len(self.points))
        for x, costs in zip(features.split(step), raw.split(step), strict=True):
            costs = total_costs(costs.expand(len(self.points), -1, -1, -1), self.weights, self.beta)
            losses = self._deferral_losses(self._forward(self.parameters, x), costs)
            total += losses.sum(dim=1, dtype=torch.float64)
        return total / len(features)


def padded(size: int, multiple: int) -> int:
    """The next multiple that is not below ``size``."""
    return -(-size // multiple) * multiple


def _initialised(seed: int, make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch's function notes where it was called from: 3 ms each time
        return make()
