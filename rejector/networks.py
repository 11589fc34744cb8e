"""Rejectors ``r(x, j)``: small networks from dense features, or small images, to one score per agent."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """One linear layer: (batch, width) -> (batch, agents)."""

    def __init__(self, width: int, num_agents: int, hidden: int):
        super().__init__(width, num_agents)


class MLP(nn.Sequential):
    """Two hidden layers of ``hidden`` units: (batch, width) -> (batch, agents)."""

    def __init__(self, width: int, num_agents: int, hidden: int):
        super().__init__(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, num_agents)
        )


class Transformer(nn.Module):
    """A compact transformer encoder over one token per feature (Gorishniy et al. 2021), read out at a class token.

    (batch, width) -> (batch, agents). ``hidden`` is the width of a token, a multiple of 4 (heads).
    """

    def __init__(self, width: int, num_agents: int, hidden: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.value = nn.Parameter(torch.randn(width, hidden) * hidden**-0.5)
        self.bias = nn.Parameter(torch.randn(width, hidden) * hidden**-0.5)
        self.summary = nn.Parameter(torch.randn(hidden) * hidden**-0.5)
        self.norm_attention, self.norm_mlp, self.norm_out = (nn.LayerNorm(hidden) for _ in range(3))
        self.to_qkv = nn.Linear(hidden, 3 * hidden)
        self.from_heads = nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden))
        self.head = nn.Linear(hidden, num_agents)

    def forward(self, features: Tensor) -> Tensor:
        tokens = features.unsqueeze(-1) * self.value + self.bias  # (batch, width, hidden)
        summary = self.summary.expand(features.shape[0], 1, -1)
        tokens = torch.cat([summary, tokens], dim=1)
        query, key, value = self._split(self.to_qkv(self.norm_attention(tokens)))
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        tokens = tokens + self.from_heads((weights @ value).transpose(1, 2).flatten(2))
        tokens = tokens + self.mlp(self.norm_mlp(tokens))
        return self.head(self.norm_out(tokens[:, 0]))

    def _split(self, qkv: Tensor) -> list[Tensor]:
        """(batch, tokens, 3 hidden) -> three of (batch, heads, tokens, hidden / heads)."""
        return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)]


class Conv(nn.Module):
    """A small convolutional network over cached images: (batch, 3 * side * side) -> (batch, agents).

    Three strided convolutions of ``hidden / 2``, ``hidden`` and ``hidden`` channels with group normalisation, and the
    mean over what is left of the picture. ``hidden`` is a multiple of 16.
    """

    def __init__(self, width: int, num_agents: int, hidden: int):
        super().__init__()
        self.side = math.isqrt(width // 3)
        layers: list[nn.Module] = []
        channels = 3
        for size in (hidden // 2, hidden, hidden):
            layers += [nn.Conv2d(channels, size, 3, stride=2, padding=1), nn.GroupNorm(8, size), nn.ReLU()]
            channels = size
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, num_agents)

    def forward(self, pixels: Tensor) -> Tensor:
        images = pixels.unflatten(-1, (3, self.side, self.side))
        return self.head(self.layers(images).mean(dim=(-2, -1)))


NETWORKS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "linear": Linear,
    "mlp": MLP,
    "transformer": Transformer,
    "conv": Conv,
}

#: Which column of the samples a network looks at.
INPUT_OF = {"linear": "features", "mlp": "features", "transformer": "features", "conv": "image"}


def make_network(kind: str, width: int, num_agents: int, hidden: int) -> nn.Module:
    """A rejector network of a kind in :data:`NETWORKS`."""
    return NETWORKS[kind](width, num_agents, hidden)
