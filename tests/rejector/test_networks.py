"""Networks: what they compute, against PyTorch's own modules with the same parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from l2d.rejector.networks import make_network


def test_the_transformer_is_pytorchs_encoder_layer_read_out_at_the_class_token():
    """Though it works nothing out for the other tokens; gradients are the same too."""
    torch.manual_seed(0)
    ours = make_network("transformer", 9, 3, 16).double()
    for parameter in ours.parameters():  # biases and gains begin at 0 and 1
        nn.init.normal_(parameter, std=0.5)
    layer = nn.TransformerEncoderLayer(
        16, nhead=4, dim_feedforward=32, dropout=0.0, activation="gelu", norm_first=True, batch_first=True
    ).double()
    pairs = {
        "self_attn.in_proj_": ours.to_qkv,
        "self_attn.out_proj.": ours.from_heads,
        "linear1.": ours.mlp[0],
        "linear2.": ours.mlp[2],
        "norm1.": ours.norm_attention,
        "norm2.": ours.norm_mlp,
    }
    layer.load_state_dict(
        {f"{prefix}{n}": v for prefix, module in pairs.items() for n, v in module.state_dict().items()}
    )

    def textbook(features: torch.Tensor) -> torch.Tensor:
        tokens = features[:, :, None] * ours.value + ours.bias
        tokens = torch.cat([ours.summary.expand(len(features), 1, 16), tokens], dim=1)
        return ours.head(ours.norm_out(layer(tokens)[:, 0]))

    features = torch.randn(20, 9, dtype=torch.float64)
    found, expected = ours(features), textbook(features)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    by = torch.randn(20, 3, dtype=torch.float64)
    shared = [ours.value, ours.bias, ours.summary, ours.head.weight]
    gradients = [torch.autograd.grad(scores, shared, by, retain_graph=True) for scores in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    theirs = dict(
        zip(dict(layer.named_parameters()), torch.autograd.grad(expected, list(layer.parameters()), by), strict=True)
    )
    for prefix, module in pairs.items():
        mine = torch.autograd.grad(found, list(module.parameters()), by, retain_graph=True)
        for (name, _), gradient in zip(module.named_parameters(), mine, strict=True):
            torch.testing.assert_close(gradient, theirs[f"{prefix}{name}"], rtol=0, atol=1e-11)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_an_mlp_has_as_many_hidden_layers_as_asked_for(layers):
    torch.manual_seed(1)
    network, x = make_network("mlp", 5, 3, 7, layers), torch.randn(11, 5)
    values = list(network.parameters())
    assert [tuple(v.shape) for v in values[::2]] == [(7, 5), *[(7, 7)] * (layers - 1), (3, 7)]
    expected = x
    for depth in range(layers):
        expected = (expected @ values[2 * depth].T + values[2 * depth + 1]).clamp(min=0)
    torch.testing.assert_close(network(x), expected @ values[-2].T + values[-1])
