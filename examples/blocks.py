"""A GPT block and a ResNet block, weight by weight: the chain of the strongest weight of each parameter.

python examples/blocks.py              # a line for each parameter
python examples/blocks.py --write out  # and a page for each, out/gpt/….html and out/resnet/….html
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_manualbp
from torch_manualbp.insight.explanation import Explanation


class GPTBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.k_proj, self.v_proj, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        a = self.ln_1(x)
        q, k, v = (
            p(a).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        result: Tensor = x + self.mlp(self.ln_2(x))
        return result


class ResNetBlock(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x))))))."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


def explained(block: nn.Module, x: Tensor, y: Tensor) -> list[Explanation]:
    """The strongest weight of each parameter."""
    loss = nn.MSELoss()
    names, parameters = zip(*block.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss(block(x), y), parameters)
    explanations = []
    for name, gradient in zip(names, gradients, strict=True):
        index = torch.unravel_index(gradient.abs().argmax(), gradient.shape)
        at = tuple(int(i) for i in index)
        explanations.append(torch_manualbp.explain(block, loss, x, y, name, at, paths=3))
    return explanations


def shown(e: Explanation) -> str:
    """The chain of the strongest term in one line."""
    factors = " · ".join(factor.symbol.text for factor in e.factors)
    apart = e.value - e.autograd
    return f"{e.name}{list(e.index)}: {e.value:.6g}, {e.count} terms, the strongest {factors}; autograd {apart:+.0e}"


def main(write: Path | None = None) -> dict[str, list[Explanation]]:
    """Explain both blocks and print them."""
    torch.manual_seed(0)
    blocks: dict[str, tuple[nn.Module, Any]] = {
        "gpt": (GPTBlock().double(), torch.randn(2, 4, 8).double()),
        "resnet": (ResNetBlock().double(), torch.randn(2, 3, 5, 5).double()),
    }
    found = {}
    for name, (block, x) in blocks.items():
        print(name)
        found[name] = explained(block, x, torch.randn_like(x))
        for e in found[name]:
            print("   ", shown(e))
            if write is not None:
                (write / name).mkdir(parents=True, exist_ok=True)
                (write / name / f"{e.name}.html").write_text(e.to_html(), encoding="utf-8")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="a folder for a page of each")
    main(**vars(parser.parse_args()))
