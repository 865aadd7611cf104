"""A network with ReLU, GELU and a residual, whose training step is printed as formulas.

torch-manualbp derive examples.residual:Net --input 8,4
python examples/residual.py
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.nn import Module

from torch_manualbp import TrainStep, nn


class Net(Module):
    """x ↦ head(h + fc3(GELU(fc2(h)))) with h = ReLU(fc1(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.relu = nn.Linear(4, 6), nn.ReLU()
        self.fc2, self.gelu, self.fc3 = nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.fc1(x))
        h = h + self.fc3(self.gelu(self.fc2(h)))
        scores: Tensor = self.head(h)
        return scores


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    model = Net()
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters()))
    print(step.derive(torch.zeros(8, 4), torch.zeros(8, dtype=torch.long)), end="")
