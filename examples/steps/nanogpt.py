"""A GPT as nanoGPT has it, trained by its derived step on the letters of a sentence.

python examples/steps/nanogpt.py
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from torch_manualbp import TrainStep

TEXT = "the gradient of a sum is the sum of the gradients, and of a chain the product of its links. " * 20


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.ln_1(x)).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, letters: int, context: int, width: int = 32, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(letters, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])
        self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, letters, bias=False)
        self.wte.weight = self.head.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        return self.head(self.ln_f(self.blocks(x))).flatten(0, 1)


def main(steps: int = 200, context: int = 32, batch: int = 8) -> list[float]:
    torch.manual_seed(0)
    letters = sorted(set(TEXT))
    data = torch.tensor([letters.index(letter) for letter in TEXT])
    model = GPT(len(letters), context)
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.AdamW(model.parameters(), lr=3e-3))
    batches = data[torch.randint(len(data) - context - 1, (steps, batch, 1)) + torch.arange(context + 1)]
    losses = [step(rows[:, :-1].contiguous(), rows[:, 1:].reshape(-1)).item() for rows in batches]
    print(f"nanoGPT: loss {losses[0]:.3f} → {losses[-1]:.3f}; a step of {len(step.source.splitlines())} lines")
    return losses


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
