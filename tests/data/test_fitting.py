"""What loops that fit networks share."""

from __future__ import annotations

import torch

from l2d.data.networks.fitting import Adam


def test_adam_steps_as_torchs_own_to_the_last_bit():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (
        [torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1))) for shape in ((7, 5), (3,))]
        for _ in range(2)
    )
    own = Adam(ours, lr=0.02, weight_decay=0.1)
    other = torch.optim.AdamW(theirs, lr=0.02, weight_decay=0.1)
    for _ in range(20):
        for one, another in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            another.grad = one.grad.clone()
        own.step()
        other.step()
        own.zero_grad()
    for one, another in zip(ours, theirs, strict=True):
        assert torch.equal(one, another)
        assert one.grad is None
