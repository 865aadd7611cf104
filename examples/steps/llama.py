"""A block of Llama: RMSNorm, rotary positions, grouped queries, SwiGLU; and its derived step.

python examples/steps/llama.py
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_manualbp import TrainStep


def rotated(x: Tensor) -> Tensor:
    """Each pair of entries turned by an angle that grows with the position."""
    half = x.shape[-1] // 2
    angle = torch.outer(torch.arange(x.shape[-2]), 10_000 ** (-torch.arange(half) / half))
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


class LlamaBlock(nn.Module):
    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, size = heads, groups, width // heads
        self.norm_1, self.norm_2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, groups * size, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, 3 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm_1(x)
        q = self.q(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (f(h).unflatten(-1, (self.groups, -1)).transpose(1, 2) for f in (self.k, self.v))
        k, v = (t.repeat_interleave(self.heads // self.groups, 1) for t in (rotated(k), v))
        y = F.scaled_dot_product_attention(rotated(q), k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        h = self.norm_2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def main(steps: int = 50, width: int = 32) -> list[float]:
    torch.manual_seed(0)
    model = LlamaBlock(width, heads=4, groups=2)
    step = TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9))
    x = torch.randn(4, 8, width)
    losses = [step(x, x.roll(1, 1)).item() for _ in range(steps)]
    print(f"Llama's block: loss {losses[0]:.3f} → {losses[-1]:.3f}; a step of {len(step.source.splitlines())} lines")
    return losses


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
