"""Rejectors ``r(x, j)``: small networks from features, token lists or small images to one score per agent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from l2d.data.errors import UsageError
from l2d.data.networks.tokens import TokenNetwork


class Linear(nn.Linear):
    """One linear layer: (batch, width) -> (batch, agents)."""

    def __init__(self, width: int, num_agents: int, hidden: int):
        super().__init__(width, num_agents)


class MLP(nn.Sequential):
    """``layers`` hidden layers of ``hidden`` units: (batch, width) -> (batch, agents)."""

    def __init__(self, width: int, num_agents: int, hidden: int, layers: int = 2):
        modules: list[nn.Module] = []
        for size in [width] + [hidden] * (layers - 1):
            modules += [nn.Linear(size, hidden), nn.ReLU()]
        super().__init__(*modules, nn.Linear(hidden, num_agents))


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
        tokens = self.norm_attention(torch.cat([summary, tokens], dim=1))
        summary = summary.squeeze(1) + self.from_heads(self._attend(tokens))
        return self.head(self.norm_out(summary + self.mlp(self.norm_mlp(summary))))

    def _attend(self, tokens: Tensor) -> Tensor:
        """Attention of the class token to all: (batch, 1 + width, hidden) -> (batch, hidden).

        Only the class token is read out, so only it asks, and it asks the same of every sample. So its query is moved
        to the keys' side and the mean over tokens to the values': tokens themselves are never multiplied by a matrix.
        (The keys' bias is the same for all tokens and so does not matter to their softmax.)
        """
        weights, biases = self.to_qkv.weight.unflatten(0, (3, self.heads, -1)), self.to_qkv.bias.chunk(3)
        to_query, to_key, to_value = weights.unbind()  # (heads, hidden / heads, hidden) each
        query = to_query @ self.norm_attention(self.summary) + biases[0].unflatten(0, (self.heads, -1))
        asked = (query.unsqueeze(1) @ to_key).squeeze(1) * query.shape[-1] ** -0.5  # (heads, hidden)
        shares = (tokens @ asked.mT).softmax(dim=1)  # (batch, 1 + width, heads)
        seen = (shares.mT @ tokens).transpose(0, 1)  # (heads, batch, hidden)
        return (seen @ to_value.mT).transpose(0, 1).flatten(1) + biases[2]


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


class ImageNetwork(nn.Module):
    """A body of torchvision's and a head: (batch, 3 * side * side), normalised as bodies see them, -> (batch, agents).

    Between them features are standardised by ``mean`` and ``std``, those of the training split.

    Args:
        width: 3 * side * side.
        hidden, layers: of the head, an :class:`MLP`.
        backbone, unfreeze: of :class:`l2d.data.networks.bodies.Body`.
    """

    def __init__(
        self, width: int, num_agents: int, hidden: int, layers: int = 2, backbone: str = "resnet18", unfreeze: str = ""
    ):
        from l2d.data.networks.bodies import Body  # loads torchvision, which other networks do without

        super().__init__()
        self.side = math.isqrt(width // 3)
        self.body = Body(backbone, unfreeze)
        with torch.no_grad():
            features = self.body(torch.zeros(1, 3, self.side, self.side)).shape[1]
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.head = MLP(features, num_agents, hidden, layers)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.body(pixels.unflatten(-1, (3, self.side, self.side)))
        return self.head((features - self.mean) / self.std)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "linear": Linear,
    "mlp": MLP,
    "transformer": Transformer,
    "feature_transformer": Transformer,
    "token_transformer": TokenNetwork,
    "conv": Conv,
    "image": ImageNetwork,
}


def make_network(
    kind: str,
    width: int,
    num_agents: int,
    hidden: int,
    layers: int = 2,
    sizes: Sequence[tuple[int, int]] = (),
    **body: str,
) -> nn.Module:
    """A rejector network of a kind in :data:`NETWORKS`.

    Args:
        width: of a row.
        layers: of those in :data:`l2d.rejector.settings.LAYERED`.
        sizes: of the fields of token lists that a row consists of, see :func:`l2d.data.samples.tokens.token_sizes`.
        body: ``backbone`` and ``unfreeze`` of an image network.

    Raises:
        UsageError: a token transformer without token lists.
    """
    if kind == "token_transformer":
        if not sizes:
            raise UsageError("a token_transformer reads token lists; these rows are none", hint="take transformer")
        return TokenNetwork(sizes, num_agents, hidden, layers)
    layered = {"layers": layers} if kind in ("mlp", "image") else {}
    return NETWORKS[kind](width, num_agents, hidden, **layered, **body)
