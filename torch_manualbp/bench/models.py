"""The networks of the panel of whole models, of stock layers, as their authors write them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GPT", "ActorCritic", "LSTMClassifier", "LeNet", "Llama", "ResNet18", "Tabular", "policy_loss", "stack"]


class CausalAttention(nn.Module):
    """Heads that see what came before, of one projection for queries, keys and values."""

    def __init__(self, n: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(n, 3 * n, bias=bias)
        self.out = nn.Linear(n, n, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out(a.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """x + attention, then x + MLP, each of what is normalized."""

    def __init__(self, n: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(n, bias=bias), CausalAttention(n, heads, bias)
        self.norm2 = nn.LayerNorm(n, bias=bias)
        self.mlp = nn.Sequential(nn.Linear(n, 4 * n, bias=bias), nn.GELU(), nn.Linear(4 * n, n, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class GPT(nn.Module):
    """Scores of the next token at each place: tokens (B, T) → (B·T, vocabulary). Embedding and head are one matrix."""

    def __init__(self, vocabulary: int, context: int, n: int, heads: int, blocks: int, bias: bool = False) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, n), nn.Embedding(context, n)
        self.blocks = nn.Sequential(*[Block(n, heads, bias) for _ in range(blocks)])
        self.norm = nn.LayerNorm(n, bias=bias)
        self.head = nn.Linear(n, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        out: Tensor = self.head(self.norm(self.blocks(x))).flatten(0, 1)
        return out


class LlamaBlock(nn.Module):
    """Rotated queries and keys, a gated MLP, norms by the root mean square."""

    def __init__(self, n: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(n), nn.RMSNorm(n)
        self.q, self.k, self.v, self.out = (nn.Linear(n, n, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(n, hidden, bias=False), nn.Linear(n, hidden, bias=False)
        self.down = nn.Linear(hidden, n, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = (t * cos + torch.cat((-t.chunk(2, -1)[1], t.chunk(2, -1)[0]), -1) * sin for t in (q, k))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        h = self.norm2(x)
        out: Tensor = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return out


class Llama(nn.Module):
    """A stack of such blocks between an embedding and a head."""

    cos: Tensor
    sin: Tensor

    def __init__(self, vocabulary: int, context: int, n: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, n)
        self.blocks = nn.ModuleList(LlamaBlock(n, heads, 8 * n // 3) for _ in range(blocks))
        self.norm, self.head = nn.RMSNorm(n), nn.Linear(n, vocabulary, bias=False)
        size = n // heads
        angles = torch.outer(torch.arange(context), 10_000.0 ** -(torch.arange(0, size, 2) / size)).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        T = tokens.shape[1]
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x, self.cos[:T], self.sin[:T])
        out: Tensor = self.head(self.norm(x)).flatten(0, 1)
        return out


class LeNet(nn.Sequential):
    """Scores of ten classes of images (B, 1, 28, 28)."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()),
            *(nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)),
        )


class ResidualBlock(nn.Module):
    """Two convolutions beside a way round them."""

    def __init__(self, n_in: int, n: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(n_in, n, 3, stride, 1, bias=False), nn.BatchNorm2d(n)
        self.conv2, self.norm2 = nn.Conv2d(n, n, 3, 1, 1, bias=False), nn.BatchNorm2d(n)
        self.round: nn.Module = nn.Identity()
        if stride > 1 or n_in != n:
            self.round = nn.Sequential(nn.Conv2d(n_in, n, 1, stride, bias=False), nn.BatchNorm2d(n))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.round(x))


class ResNet18(nn.Sequential):
    """Scores of ten classes of images (B, 3, 32, 32)."""

    def __init__(self, width: int = 64) -> None:
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        blocks: list[nn.Module] = []
        for i, (n_in, n) in enumerate(itertools.pairwise(widths)):
            blocks += [ResidualBlock(n_in, n, 2 if i else 1), ResidualBlock(n, n, 1)]
        super().__init__(
            *(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), *blocks),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10)),
        )


class LSTMClassifier(nn.Module):
    """Scores of two classes of token sequences (B, T), by the last hidden state."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.tokens, self.lstm = nn.Embedding(vocabulary, width), nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.tokens(tokens))
        out: Tensor = self.head(hidden[:, -1])
        return out


class Tabular(nn.Module):
    """A number for each row of some categories (B, C) and some numbers (B, N)."""

    def __init__(self, categories: int, size: int, numbers: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(size, 8) for _ in range(categories))
        self.norm = nn.BatchNorm1d(numbers)
        n = 8 * categories + numbers
        self.layers = nn.Sequential(
            *(nn.Linear(n, 200), nn.ReLU(), nn.BatchNorm1d(200)),
            *(nn.Linear(200, 100), nn.ReLU(), nn.BatchNorm1d(100), nn.Linear(100, 1)),
        )

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        embedded = [embedding(categories[:, i]) for i, embedding in enumerate(self.embeddings)]
        out: Tensor = self.layers(torch.cat([*embedded, self.norm(numbers)], 1))
        return out


class ActorCritic(nn.Module):
    """PPO's policy: scores of actions, and the value of an observation (B, n)."""

    def __init__(self, n: int, actions: int) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(n, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, actions))
        self.critic = nn.Sequential(nn.Linear(n, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(x), self.critic(x).squeeze(-1)


def policy_loss(output: tuple[Tensor, Tensor], target: tuple[Tensor, ...]) -> Tensor:
    """PPO's: the clipped surrogate, half of the value's squared error, a hundredth of the entropy."""
    (scores, value), (action, old, advantage, returns) = output, target
    log_p = F.log_softmax(scores, -1)
    ratio = (log_p.gather(1, action.unsqueeze(1)).squeeze(1) - old).exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    entropy = -(log_p.exp() * log_p).sum(-1).mean()
    return -surrogate + 0.5 * F.mse_loss(value, returns) - 0.01 * entropy


def stack(widths: tuple[int, ...], activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Linear layers of these widths with activations between them."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])
