"""An LSTM that counts the ones in sequences of several lengths, packed, trained by its derived step.

The lengths are numbers of the batch: each set of them has a program of its own.

python examples/steps/lstm.py
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from torch_manualbp import TrainStep

LENGTHS = ([12, 9, 7, 4], [12, 12, 6, 5])


class Counter(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, width, batch_first=True), nn.Linear(width, 1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True)
        _, (h, _) = self.lstm(packed)
        count: Tensor = self.head(h[-1]).squeeze(-1)
        return count


def main(steps: int = 200, width: int = 16) -> list[float]:
    torch.manual_seed(0)
    model = Counter(width)
    step = TrainStep(model, nn.MSELoss(), torch.optim.Adam(model.parameters(), lr=0.02))
    losses = []
    for i in range(steps):
        lengths = torch.tensor(LENGTHS[i % len(LENGTHS)])
        inside = torch.arange(12) < lengths.unsqueeze(1)
        ones = (torch.rand(4, 12) < 0.5) & inside
        losses.append(step((ones.float().unsqueeze(-1), lengths), ones.sum(1) / 12).item())
    print(f"LSTM: loss {losses[0]:.4f} → {losses[-1]:.4f}; a step of {len(step.source.splitlines())} lines")
    return losses


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
