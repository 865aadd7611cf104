"""The page of a small transformer, for the tests of pages."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_manualbp.insight import report


class Transformer(nn.Module):
    """Embeddings, one block, and a head. ``seen`` holds what a test asks for, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.ln = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.q, self.k, self.v, self.out = (nn.Linear(4, 4) for _ in range(4))
        self.head = nn.Linear(4, 5)

    def forward(self, i: Tensor) -> Tensor:
        x = self.tokens(i)
        a = self.ln(x)
        q, k, v = (p(a).unflatten(-1, (2, 2)).transpose(1, 2) for p in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        scores: Tensor = self.head(x)
        return scores

    def by_hand(self, i: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The scores, with the weights P of the attention and the sum x, which keep their gradients."""
        x = self.tokens(i)
        a = self.ln(x)
        q, k, v = (p(a).unflatten(-1, (2, 2)).transpose(1, 2) for p in (self.q, self.k, self.v))
        S = (q @ k.mT / 2**0.5).masked_fill(torch.ones(3, 3).tril() == 0, -torch.inf)
        P = torch.softmax(S, -1)
        P.retain_grad()
        x = x + self.out((P @ v).transpose(1, 2).flatten(2))
        x.retain_grad()
        return self.head(x), P, x


def cost(scores: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1), y.flatten())


def attention_report(path: Path) -> tuple[Path, Transformer, Tensor, Tensor]:
    """The page, the model, and its data."""
    model = Transformer().double()
    x, y = torch.randint(5, (2, 3)), torch.randint(5, (2, 3))
    return report(model, cost, x, y, path), model, x, y
