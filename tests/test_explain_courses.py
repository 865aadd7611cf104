"""Weights are explained of models that differentiate in forward, and of those that read numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torch_manualbp import explain


class Critic(nn.Module):
    """A gradient penalty."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        return (g.norm(2, 1) - 1).square().mean() + self.net(x).mean()


class Selects(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.net(x)
        return h[x[:, 0] > 0].square().sum() if x.sum() > 0 else h.tanh().sum()


@pytest.mark.parametrize("model", [Critic(), Selects()], ids=["gradients inside", "numbers that are read"])
def test_the_value_is_autograds(model: nn.Module) -> None:
    torch.manual_seed(0)
    model, x = model.double(), torch.randn(5, 3, dtype=torch.double)
    C: Tensor = model(x)
    C.backward()
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            assert weight.grad is not None
            explained = explain(model, lambda output, _: output, x, torch.zeros(()), name, (0, 1))
            torch.testing.assert_close(explained.value, weight.grad[0, 1].item(), rtol=1e-12, atol=1e-14)
