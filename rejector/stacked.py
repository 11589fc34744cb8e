"""Rejectors trained side by side: parameters stacked along a first dimension, one forward and backward for all."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from .costs import total_costs
from .grid import GridPoint
from .losses import allocate, deferral_loss, surrogate_deferral_loss
from .networks import make_network

#: Activations of a layer that are worked on at once, in numbers. On a CPU more than this falls out of its cache.
ACTIVATIONS_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 30}


def points_at_once(device: str, batch_size: int, hidden: int) -> int:
    """How many rejectors are stacked together; more of them make further stacks."""
    kind = torch.device(device).type
    return max(1, ACTIVATIONS_AT_ONCE.get(kind, 1 << 30) // (batch_size * hidden))


class Stack:
    """Points of a grid trained together. Each has its own parameters, so each gets its own gradient and step.

    Legend: P points, S seeds, B rows of a batch, W features, A agents, T tasks.

    Args:
        points: the P points.
        weights: ``lambda`` that each is trained on, (P, T).
        seeds: of the whole grid, in the order of the batches' first dimension.
        network: kind of network, with ``width``, ``num_agents`` and ``hidden``.
        lr, weight_decay: of AdamW.
    """

    def __init__(
        self,
        points: list[GridPoint],
        weights: Tensor,
        seeds: list[int],
        *,
        network: str,
        width: int,
        num_agents: int,
        hidden: int,
        lr: float,
        weight_decay: float,
        device: str,
    ):
        self.points, self.weights = points, weights.to(device)
        self.beta = torch.tensor([point.query_costs for point in points], device=device)  # (P, A)
        nu = torch.tensor([point.nu for point in points], device=device)[:, None, None]
        self.nu = 1.0 if bool((nu == 1).all()) else nu
        self.of_seed = torch.tensor([seeds.index(point.seed) for point in points], device=device)

        networks = [_initialised(point.seed, network, width, num_agents, hidden) for point in points]
        stacked, _ = stack_module_state(networks)
        self.parameters = {name: v.to(device).detach().requires_grad_() for name, v in stacked.items()}
        template = networks[0].to("meta")

        def forward(state: dict[str, Tensor], features: Tensor) -> Tensor:
            return functional_call(template, (state, {}), (features,))

        self._forward = vmap(forward)  # (P, …), (P, B, W) -> (P, B, A)
        self._forward_shared = vmap(forward, in_dims=(0, None))  # (P, …), (B, W) -> (P, B, A)
        self._optimizer = torch.optim.AdamW(self.parameters.values(), lr=lr, weight_decay=weight_decay, fused=True)
        self.best = {name: v.detach().clone() for name, v in self.parameters.items()}
        self.best_risk = torch.full((len(points),), float("inf"), device=device)
        self.best_epoch = torch.zeros(len(points), dtype=torch.int64, device=device)

    def step(self, features: Tensor, raw: Tensor, lr: float) -> Tensor:
        """One optimiser step on a batch.

        Args:
            features: each seed's rows, (S, B, W).
            raw: their raw costs, (S, B, A, T).
            lr: learning rate.

        Returns:
            Mean surrogate deferral loss of each point before the step, (P,).
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        costs = total_costs(raw[self.of_seed], self.weights, self.beta)
        scores = self._forward(self.parameters, features[self.of_seed])
        loss = surrogate_deferral_loss(scores, costs, self.nu).mean(dim=1)
        self._optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        self._optimizer.step()
        return loss.detach()

    @torch.inference_mode()
    def risk(self, features: Tensor, raw: Tensor, rows_at_once: int) -> Tensor:
        """Mean true deferral loss of each point, (P,), on the same rows for all: (n, W), (n, A, T)."""
        total = torch.zeros(len(self.points), device=features.device)
        step = max(1, rows_at_once // len(self.points))
        for x, costs in zip(features.split(step), raw.split(step), strict=True):
            costs = total_costs(costs.expand(len(self.points), -1, -1, -1), self.weights, self.beta)
            total += deferral_loss(allocate(self._forward_shared(self.parameters, x)), costs).sum(dim=1)
        return total / len(features)

    def keep_best(self, risk: Tensor, epoch: int) -> None:
        """Remember the parameters of points whose validation risk (P,) is lower than ever."""
        better = risk < self.best_risk
        self.best_risk = torch.where(better, risk, self.best_risk)
        self.best_epoch = torch.where(better, epoch, self.best_epoch)
        for name, value in self.parameters.items():
            chosen = better.view(-1, *[1] * (value.dim() - 1))
            self.best[name] = torch.where(chosen, value.detach(), self.best[name])

    def best_state(self, position: int) -> dict[str, Tensor]:
        """Best parameters of one point, on the CPU."""
        return {name: value[position].cpu().clone() for name, value in self.best.items()}


def _initialised(seed: int, network: str, width: int, num_agents: int, hidden: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_network(network, width, num_agents, hidden)
