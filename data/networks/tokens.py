"""A compact transformer over token lists: the model of stage one and the rejector of stage two are of this kind.

Each field of lists has an encoder of its own (Vaswani et al. 2017, with normalisation before each part as Xiong et al.
2020 have it), read out at a class token; what the fields' encoders say is put side by side and goes through a small
head. Lists are taken as sets: nothing tells a network in which order their codes come. Padding is masked: neither how
wide rows are padded nor what other rows there are changes an output, except for the last bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

HEADS = 4
WIDENING = 4  # of the hidden layer of a block

Drop = Callable[[Tensor], Tensor]  # what sets some numbers to zero in training


class TokenNetwork(nn.Module):
    """Rows of :func:`l2d.data.samples.tokens.token_rows` -> (batch, outputs).

    Args:
        sizes: of each field, see :func:`l2d.data.samples.tokens.token_sizes`.
        outputs: how many numbers.
        hidden: width of a token, a multiple of 4 (heads).
        layers: blocks of each encoder.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], outputs: int, hidden: int, layers: int):
        super().__init__()
        self.lengths = tuple(length for _, length in sizes)
        self.encoders = nn.ModuleList(ListEncoder(codes, hidden, layers) for codes, _ in sizes)
        self.head = nn.Sequential(
            nn.Linear(len(sizes) * hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )  # fields meet here

    def forward(self, rows: Tensor, lengths: Sequence[int] | None = None, drop: Drop | None = None) -> Tensor:
        """Score rows.

        Args:
            rows: (batch, sum of lengths), of any type that holds the indices.
            lengths: of each field in these rows; those of ``sizes`` if None.
            drop: applied to embeddings and to what each block adds; nothing if None.
        """
        parts = rows.long().split(list(lengths or self.lengths), dim=-1)
        return self.head(torch.cat([f(part, drop) for f, part in zip(self.encoders, parts, strict=True)], dim=-1))

    def trimmed(self, rows: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Rows (…, sum of lengths) without the columns in which all are padding, and each field's length then.

        Most lists are much shorter than the longest one that is allowed, and so is the longest of a batch.
        """
        there = (rows != 0).flatten(0, -2).any(dim=0).tolist()
        lengths, kept = [], []
        for start, length in zip(itertools.accumulate((0, *self.lengths)), self.lengths, strict=False):
            used = max((place + 1 for place in range(length) if there[start + place]), default=1)
            lengths.append(used)
            kept.append(rows[..., start : start + used])
        return torch.cat(kept, dim=-1), tuple(lengths)

    @staticmethod
    def longest_first(rows: Tensor) -> Tensor:
        """Positions of rows (…, n, sum of lengths) in an order in which neighbours have about as many codes, (…, n)."""
        return (rows != 0).sum(dim=-1).argsort(dim=-1, descending=True, stable=True)

    @property
    def _of_fields(self) -> list[ListEncoder]:
        return [cast(ListEncoder, encoder) for encoder in self.encoders]

    def multiply_adds(self, lengths: Sequence[int]) -> int:
        """Multiplications with an addition that a row takes whose lists are of these lengths."""
        encoders = sum(f.multiply_adds(length) for f, length in zip(self._of_fields, lengths, strict=True))
        return encoders + sum(layer.weight.numel() for layer in self.head if isinstance(layer, nn.Linear))


class ListEncoder(nn.Module):
    """Lists of one field, padded with 0: (batch, length) -> (batch, hidden)."""

    def __init__(self, codes: int, hidden: int, layers: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(codes, hidden) * hidden**-0.5)
        self.summary = nn.Parameter(torch.randn(hidden) * hidden**-0.5)
        self.blocks = nn.ModuleList(Block(hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, codes: Tensor, drop: Drop | None = None) -> Tensor:
        drop = drop or (lambda values: values)
        summary = self.summary.expand(codes.shape[0], 1, -1)
        tokens = torch.cat([summary, drop(nn.functional.embedding(codes, self.embedding))], dim=1)
        there = torch.cat([torch.ones_like(codes[:, :1], dtype=torch.bool), codes != 0], dim=1)
        for block in self.blocks[:-1]:
            tokens = block(tokens, there, drop)
        last = cast(Block, self.blocks[-1])
        return self.norm(last.first(tokens, there, drop))

    def multiply_adds(self, length: int) -> int:
        hidden, tokens = len(self.summary), length + 1
        block = 4 * hidden**2 + 2 * tokens * hidden + 2 * WIDENING * hidden**2  # of a token
        last = 4 * hidden**2 + 2 * tokens * HEADS * hidden + 2 * WIDENING * hidden**2
        return (len(self.blocks) - 1) * tokens * block + last


class Block(nn.Module):
    """``torch.nn.TransformerEncoderLayer(norm_first=True, activation="gelu")``, written so that ``vmap`` takes it."""

    def __init__(self, hidden: int):
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.to_qkv = nn.Linear(hidden, 3 * hidden)
        self.from_heads = nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, WIDENING * hidden), nn.GELU(), nn.Linear(WIDENING * hidden, hidden))

    def forward(self, tokens: Tensor, there: Tensor, drop: Drop) -> Tensor:
        """Tokens (batch, length, hidden), of which those ``there`` (batch, length) may be looked at -> the same."""
        query, key, value = (  # (batch, heads, length, hidden / heads)
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in (self.norm_attention(tokens) @ self.to_qkv.weight.mT + self._biases()).chunk(3, -1)
        )
        logits = query @ key.mT * query.shape[-1] ** -0.5
        shares = logits.masked_fill(~there[:, None, None], -torch.inf).softmax(dim=-1)
        tokens = tokens + drop(self.from_heads((shares @ value).transpose(1, 2).flatten(2)))
        return tokens + drop(self.mlp(self.norm_mlp(tokens)))

    def _biases(self) -> Tensor:
        """Of queries and values. The keys' is the same for all tokens and so does not matter to their softmax.

        Were it added, its gradient would be nothing but rounding errors, which Adam would follow at full pace.
        """
        query, key, value = self.to_qkv.bias.chunk(3)
        return torch.cat([query, torch.zeros_like(key), value])

    def first(self, tokens: Tensor, there: Tensor, drop: Drop) -> Tensor:
        """The first token of what :meth:`forward` gives, (batch, hidden).

        Only the first one asks, so its query is moved to the keys' side and the mean over tokens to the values':
        tokens themselves are never multiplied by a matrix.
        """
        first, tokens = tokens[:, 0], self.norm_attention(tokens)
        weights, biases = self.to_qkv.weight.unflatten(0, (3, HEADS, -1)), self.to_qkv.bias.chunk(3)
        to_query, to_key, to_value = weights.unbind()  # (heads, hidden / heads, hidden) each
        asking = tokens[:, 0]
        query = (asking @ to_query.flatten(0, 1).mT + biases[0]).unflatten(-1, (HEADS, -1))  # (batch, heads, …)
        asked = (query.transpose(0, 1) @ to_key).transpose(0, 1)  # (batch, heads, hidden)
        logits = tokens @ asked.mT * query.shape[-1] ** -0.5  # (batch, length, heads)
        shares = logits.masked_fill(~there[:, :, None], -torch.inf).softmax(dim=1)
        seen = (shares.mT @ tokens).transpose(0, 1)  # (heads, batch, hidden)
        attended = (seen @ to_value.mT).transpose(0, 1).flatten(1) + biases[2]
        first = first + drop(self.from_heads(attended))
        return first + drop(self.mlp(self.norm_mlp(first)))
